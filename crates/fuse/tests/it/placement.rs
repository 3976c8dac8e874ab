//! Where writes go, and which are refused, whatever O_APPEND was at open(2) and is now, and whatever the file's flags allow: as on the
//! kernel's ext4, with and without the writeback cache.

use std::fs;
use std::path::Path;

use extant_fuse::AdapterOptions;
use extant_testkit::kernel::KernelMount;
use extant_testkit::{env, oracle};

use crate::ext4::{finish, mounted, mounted_with};
use crate::served::may_mount;

/// What the programs begin with: the file is their first argument, and has 8192 times `A`.
const BEGIN: &str = "import fcntl, mmap, os, struct, sys\n\
    path = sys.argv[1]\n\
    APPEND_ONLY, IMMUTABLE = 0x20, 0x10\n\
    def flag(which):\n    \
        fd = os.open(path, os.O_RDONLY)\n    \
        flags = struct.unpack('l', fcntl.ioctl(fd, 0x80086601, bytes(8)))[0]\n    \
        fcntl.ioctl(fd, 0x40086602, struct.pack('l', flags & 0xffffffff | which))\n    \
        os.close(fd)\n\
    def refused(what):\n    \
        try: what()\n    \
        except OSError: return\n    \
        sys.exit('not refused')\n\
    def aligned(byte):\n    \
        memory = mmap.mmap(-1, 4096)\n    \
        memory[:] = byte * 4096\n    \
        return memory\n";

struct Case {
    name: &'static str,
    program: &'static str,
    /// Runs of bytes.
    want: &'static [(u8, usize)],
}

const CASES: &[Case] = &[
    Case {
        name: "O_APPEND taken away",
        program: "fd = os.open(path, os.O_RDWR | os.O_APPEND)\n\
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)\n\
            os.pwrite(fd, b'B' * 4096, 0)\n\
            os.fsync(fd)\n",
        want: &[(b'B', 4096), (b'A', 4096)],
    },
    Case {
        name: "O_APPEND given later",
        program: "fd = os.open(path, os.O_RDWR)\n\
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)\n\
            os.pwrite(fd, b'B' * 100, 0)\n\
            os.fsync(fd)\n",
        want: &[(b'A', 8192), (b'B', 100)],
    },
    Case {
        name: "a copy after O_APPEND was taken away",
        program: "source = os.open(path + '.source', os.O_RDWR | os.O_CREAT)\n\
            os.write(source, b'C' * 4096)\n\
            fd = os.open(path, os.O_RDWR | os.O_APPEND)\n\
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)\n\
            assert os.copy_file_range(source, fd, 4096, 0, 0) == 4096\n\
            os.fsync(fd)\n",
        want: &[(b'C', 4096), (b'A', 4096)],
    },
    Case {
        name: "O_DIRECT in place of O_APPEND",
        program: "fd = os.open(path, os.O_RDWR | os.O_APPEND)\n\
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)\n\
            os.pwrite(fd, aligned(b'D'), 0)\n\
            os.fsync(fd)\n",
        want: &[(b'D', 4096), (b'A', 4096)],
    },
    Case {
        name: "an append past the cache after writes in it",
        program: "buffered = os.open(path, os.O_RDWR)\n\
            os.pwrite(buffered, b'B' * 8192, 8192)\n\
            direct = os.open(path, os.O_RDWR | os.O_APPEND | os.O_DIRECT)\n\
            os.write(direct, aligned(b'D'))\n\
            os.pwrite(buffered, b'E', 20479)\n\
            os.fsync(buffered)\n\
            os.fsync(direct)\n",
        want: &[(b'A', 8192), (b'B', 8192), (b'D', 4095), (b'E', 1)],
    },
    Case {
        name: "a mapping of what may only grow",
        program: "flag(APPEND_ONLY)\n\
            fd = os.open(path, os.O_RDWR | os.O_APPEND)\n\
            refused(lambda: mmap.mmap(fd, 8192))\n\
            assert mmap.mmap(fd, 8192, mmap.MAP_PRIVATE)[:8192] == b'A' * 8192\n",
        want: &[(b'A', 8192)],
    },
    Case {
        name: "what may only grow, without O_APPEND",
        program: "flag(APPEND_ONLY)\n\
            fd = os.open(path, os.O_RDWR | os.O_APPEND)\n\
            def change():\n    \
                fcntl.fcntl(fd, fcntl.F_SETFL, 0)\n    \
                os.pwrite(fd, b'B' * 4096, 0)\n    \
                os.fsync(fd)\n\
            refused(change)\n\
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)\n\
            os.write(fd, b'C' * 100)\n\
            os.fsync(fd)\n\
            reader = os.open(path, os.O_RDONLY)\n\
            assert os.pread(reader, 8193, 0) == b'A' * 8192 + b'C'\n\
            os.write(fd, b'D' * 100)\n\
            assert os.pread(reader, 9000, 8192) == b'C' * 100 + b'D' * 100\n",
        want: &[(b'A', 8192), (b'C', 100), (b'D', 100)],
    },
    Case {
        name: "RWF_NOAPPEND to what may only grow",
        program: "flag(APPEND_ONLY)\n\
            fd = os.open(path, os.O_RDWR | os.O_APPEND)\n\
            refused(lambda: os.pwritev(fd, [b'B' * 4096], 0, 0x20))\n",
        want: &[(b'A', 8192)],
    },
    Case {
        name: "a file that was open before it could only grow",
        program: "fd = os.open(path, os.O_RDWR)\n\
            flag(APPEND_ONLY)\n\
            os.pwrite(fd, b'B' * 100, 0)\n\
            os.fsync(fd)\n",
        want: &[(b'B', 100), (b'A', 8092)],
    },
    Case {
        name: "fsync of what may only grow",
        program: "flag(APPEND_ONLY)\n\
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)\n\
            for _ in range(2):\n    \
                os.write(fd, b'B' * 100)\n    \
                os.fsync(fd)\n",
        want: &[(b'A', 8192), (b'B', 200)],
    },
    Case {
        name: "a file that becomes unchangeable over a mapping's stores",
        program: "fd = os.open(path, os.O_RDWR)\n\
            memory = mmap.mmap(fd, 8192)\n\
            memory[:4096] = b'S' * 4096\n\
            flag(IMMUTABLE)\n\
            memory.close()\n\
            os.close(fd)\n",
        want: &[(b'S', 4096), (b'A', 4096)],
    },
    Case {
        name: "a file that becomes unchangeable over writes",
        program: "fd = os.open(path, os.O_RDWR)\n\
            os.write(fd, b'B' * 8192)\n\
            flag(IMMUTABLE)\n\
            os.fsync(fd)\n",
        want: &[(b'B', 8192)],
    },
];

impl Case {
    /// What is wrong with its answers.
    fn run(&self, path: &Path) -> Option<String> {
        let mut program = std::process::Command::new("python3");
        program.arg("-c").arg(format!("{BEGIN}{}", self.program)).arg(path);
        let out = oracle::output(&mut program).expect("python3");
        (!out.status.success()).then(|| format!("{}: {}", self.name, String::from_utf8_lossy(&out.stderr)))
    }

    /// What is wrong with the content.
    fn check(&self, got: &[u8]) -> Option<String> {
        let want: Vec<u8> = self.want.iter().flat_map(|&(byte, n)| std::iter::repeat_n(byte, n)).collect();
        let differs = got.iter().zip(&want).position(|(a, b)| a != b);
        let sizes = (got.len(), want.len());
        (got != want).then(|| format!("{}: {sizes:?} bytes, the first that differs {differs:?}", self.name))
    }
}

fn run(folder: &Path) -> Vec<String> {
    let run = |(n, case): (usize, &Case)| case.run(&folder.join(n.to_string()));
    CASES.iter().enumerate().filter_map(run).collect()
}

fn check(folder: &Path) -> Vec<String> {
    let _open = oracle::files_on_a_mount();
    let check = |(n, case): (usize, &Case)| case.check(&fs::read(folder.join(n.to_string())).expect("file"));
    CASES.iter().enumerate().filter_map(check).collect()
}

fn image(scratch: &env::Scratch) -> std::path::PathBuf {
    let image = scratch.sparse("image", 16 << 20);
    oracle::mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    image
}

fn create(folder: &Path) {
    let _open = oracle::files_on_a_mount();
    for n in 0..CASES.len() {
        fs::write(folder.join(n.to_string()), [b'A'; 8192]).expect("file");
    }
}

#[test]
fn writes_go_where_they_go_on_the_kernels_ext4() {
    need!(env::root(), env::tools(&["mke2fs", "python3"]), env::kernel_mounts());
    let scratch = env::scratch();
    let mount = KernelMount::with(&image(&scratch), "").expect("mount");
    create(mount.path());
    let wrong = [run(mount.path()), check(mount.path())].concat();
    assert!(wrong.is_empty(), "the kernel's ext4: {wrong:#?}");
}

#[test]
fn writes_go_where_they_go_through_a_mount() {
    if !may_mount("writes_go_where_they_go_through_a_mount") {
        return;
    }
    need!(env::tools(&["mke2fs", "e2fsck", "python3"]));
    for writeback_cache in [false, true] {
        let scratch = env::scratch();
        let image = image(&scratch);
        let options = AdapterOptions { writeback_cache, ..AdapterOptions::default() };
        let (mount, adapter) = mounted_with(&image, "", options);
        adapter.set_notifier(mount.notifier().clone());
        create(&mount.join(""));
        let mut wrong = run(&mount.join(""));
        finish(mount, &adapter);
        drop(adapter);
        let (mount, adapter) = mounted(&image, "");
        wrong.extend(check(&mount.join("")));
        finish(mount, &adapter);
        assert!(wrong.is_empty(), "writeback_cache {writeback_cache}: {wrong:#?}");
        oracle::assert_clean(&image);
    }
}
