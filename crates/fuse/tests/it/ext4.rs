//! Images through a mount, against what mke2fs put into them and what e2fsck says afterwards.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use extant::{Credentials, Filesystem, InodeFlags, Setup};
use extant_device::OpenOptions;
use extant_fuse::{Adapter, AdapterOptions};
use extant_testkit::kernel::KernelMount;
use extant_testkit::tree::Tree;
use extant_testkit::{env, oracle};

use crate::served::{Served, may_mount};

/// The image mounted with `options`.
pub(crate) fn mounted(image: &Path, options: &str) -> (Served, Arc<Adapter>) {
    mounted_with(image, options, AdapterOptions::default())
}

pub(crate) fn mounted_with(
    image: &Path,
    options: &str,
    adapter_options: AdapterOptions,
) -> (Served, Arc<Adapter>) {
    let setup = Setup::with_options(options).unwrap();
    let device = OpenOptions::new().write(!setup.options.read_only).open(image).unwrap();
    let fs = Filesystem::open(Arc::new(device), setup).unwrap();
    let adapter = Arc::new(Adapter::new(fs, adapter_options));
    (Served::new(Arc::clone(&adapter)), adapter)
}

pub(crate) fn finish(mount: Served, adapter: &Adapter) {
    mount.finish().unwrap();
    assert_eq!(adapter.ended(), Some(Ok(())));
}

/// Files of all kinds that mke2fs can copy.
fn sample(dir: &Path) {
    fs::create_dir_all(dir.join("a/b/c")).unwrap();
    fs::write(dir.join("empty"), b"").unwrap();
    fs::write(dir.join("a/small"), b"some text\n").unwrap();
    let large: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(dir.join("a/b/large"), &large).unwrap();
    symlink("a/small", dir.join("short")).unwrap();
    symlink("x/".repeat(100), dir.join("long")).unwrap();
    fs::hard_link(dir.join("a/small"), dir.join("a/b/c/again")).unwrap();
    for i in 0..500 {
        fs::write(dir.join(format!("a/b/c/file-{i:04}")), format!("{i}")).unwrap();
    }
    fs::set_permissions(dir.join("empty"), fs::Permissions::from_mode(0o4751)).unwrap();
}

#[test]
fn what_mke2fs_has_written_is_read_back() {
    if !may_mount("what_mke2fs_has_written_is_read_back") {
        return;
    }
    let scratch = env::scratch();
    let source = scratch.join("source");
    sample(&source);
    for features in ["-t ext4", "-t ext4 -b 1024", "-t ext2", "-t ext4 -O inline_data -I 512"] {
        let image = scratch.sparse("image", 64 << 20);
        oracle::mke2fs(&image, 64 << 20, &format!("{features} -d {}", source.display()));
        let (mount, adapter) = mounted(&image, "ro");
        let (left, right) = (Tree::read(mount.path(), false).unwrap(), Tree::read(&source, false).unwrap());
        assert!(left.nodes.keys().eq(right.nodes.keys()), "{features}");
        assert_eq!(fs::read(mount.join("a/b/large")).unwrap(), fs::read(source.join("a/b/large")).unwrap());
        assert_eq!(fs::read_link(mount.join("long")).unwrap(), fs::read_link(source.join("long")).unwrap());
        assert_eq!(fs::metadata(mount.path()).unwrap().ino(), 2);
        assert!(File::create(mount.join("new")).is_err());
        finish(mount, &adapter);
        oracle::assert_clean(&image);
        fs::remove_file(&image).unwrap();
    }
}

#[test]
fn names_through_a_mount_leave_a_clean_image() {
    if !may_mount("names_through_a_mount_leave_a_clean_image") {
        return;
    }
    let scratch = env::scratch();
    let image = scratch.sparse("image", 64 << 20);
    oracle::mke2fs(&image, 64 << 20, "-t ext4");
    let (mount, adapter) = mounted(&image, "rw");
    let open = oracle::files_on_a_mount();
    fs::create_dir(mount.join("d")).unwrap();
    for i in 0..2000 {
        File::create(mount.join(&format!("d/{i:05}"))).unwrap();
    }
    for i in (0..2000).step_by(3) {
        fs::remove_file(mount.join(&format!("d/{i:05}"))).unwrap();
    }
    let mut names: Vec<_> = fs::read_dir(mount.join("d"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected: Vec<_> = (0..2000).filter(|i| i % 3 != 0).map(|i| format!("{i:05}")).collect();
    assert!(names == expected);
    fs::rename(mount.join("d/00001"), mount.join("d/00002")).unwrap();
    fs::create_dir(mount.join("e")).unwrap();
    fs::rename(mount.join("d"), mount.join("e/d")).unwrap();
    fs::hard_link(mount.join("e/d/00002"), mount.join("link")).unwrap();
    assert_eq!(fs::metadata(mount.join("link")).unwrap().nlink(), 2);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        mount.join("node"),
        rustix::fs::FileType::BlockDevice,
        0o600.into(),
        rustix::fs::makedev(300, 70_000),
    )
    .unwrap();
    let node = fs::metadata(mount.join("node")).unwrap();
    assert!(node.file_type().is_block_device());
    assert_eq!(node.rdev(), rustix::fs::makedev(300, 70_000));
    assert_eq!(fs::remove_dir(mount.join("e")).unwrap_err().kind(), std::io::ErrorKind::DirectoryNotEmpty);
    drop(open);
    finish(mount, &adapter);
    oracle::assert_clean(&image);
}

#[test]
fn an_inode_without_a_name_lives_while_the_kernel_knows_it() {
    if !may_mount("an_inode_without_a_name_lives_while_the_kernel_knows_it") {
        return;
    }
    let scratch = env::scratch();
    let image = scratch.sparse("image", 16 << 20);
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let (mount, adapter) = mounted(&image, "rw");
    let open = oracle::files_on_a_mount();
    fs::create_dir(mount.join("gone")).unwrap();
    let gone = rustix::fs::open(
        mount.join("gone"),
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let before = rustix::fs::fstat(&gone).unwrap();
    fs::remove_dir(mount.join("gone")).unwrap();
    // A number that is free would be given to one of these.
    for i in 0..20 {
        fs::create_dir(mount.join(&format!("new{i}"))).unwrap();
        assert_ne!(fs::metadata(mount.join(&format!("new{i}"))).unwrap().ino(), before.st_ino);
    }
    let after = rustix::fs::fstat(&gone).unwrap();
    assert_eq!((after.st_ino, after.st_nlink), (before.st_ino, 0));
    drop(gone);
    drop(open);
    finish(mount, &adapter);
    oracle::assert_clean(&image);
}

const GENERATION: &str = "
import fcntl, os, struct, sys
path, set_it, value = sys.argv[1:]
file = os.open(path, os.O_RDONLY)
try:
    if set_it == 'set':
        fcntl.ioctl(file, 0x40086604, struct.pack('II', int(value), 0))
    else:
        found = struct.unpack('II', fcntl.ioctl(file, 0x80087601, bytes(8)))[0]
        sys.exit(0 if found == int(value) else 1)
except OSError as e:
    sys.exit(e.errno)
";

/// `EXT4_IOC_SETVERSION`; and an open file outlives it.
#[test]
fn a_generation_is_set_through_a_mount() {
    if !may_mount("a_generation_is_set_through_a_mount") {
        return;
    }
    need!(env::tools(&["mke2fs", "python3", "e2fsck"]));
    let scratch = env::scratch();
    for (features, expected) in [("-t ext4 -O ^metadata_csum", 0), ("-t ext4", 25)] {
        let image = scratch.sparse("image", 16 << 20);
        oracle::mke2fs(&image, 16 << 20, features);
        let (mount, adapter) = mounted(&image, "rw");
        let path = mount.join("f");
        fs::write(&path, b"text").unwrap();
        let open = File::open(&path).unwrap();
        let ask = |what: &str, value: &str| {
            let mut python = oracle::command("python3");
            python.args(["-c", GENERATION]).arg(&path).args([what, value]);
            oracle::run(&mut python).status
        };
        assert_eq!(ask("set", "4000000000"), expected, "{features}");
        assert_eq!(ask("get", "4000000000"), i32::from(expected != 0), "{features}");
        assert_eq!(fs::read(&path).unwrap(), b"text");
        assert_eq!(open.metadata().unwrap().len(), 4, "the open file is the same");
        drop(open);
        finish(mount, &adapter);
        oracle::assert_clean(&image);
        fs::remove_file(&image).unwrap();
    }
}

/// Asks for the DAX flag of one inode of each kind, in all ways that there are, and prints the errno of each.
const KINDS: &str = "
import ctypes, fcntl, os, socket, stat, struct, sys
os.chdir(sys.argv[1])
DAX = 0x2000000
os.mkfifo('fifo')
socket.socket(socket.AF_UNIX).bind('sock')
os.mknod('char', stat.S_IFCHR | 0o600, os.makedev(1, 3))
os.mknod('block', stat.S_IFBLK | 0o600, os.makedev(7, 0))
os.symlink('file', 'short')
os.symlink('x' * 200, 'long')
os.mkdir('dir')
open('file', 'w').close()
libc = ctypes.CDLL(None, use_errno=True)
def setattr(name):
    attr = ctypes.create_string_buffer(struct.pack('QIIII', 0x8000, 0, 0, 0, 0))
    if libc.syscall(469, -100, name.encode(), attr, 24, 0x100) < 0:
        raise OSError(ctypes.get_errno(), '')
def ioctl(number, data):
    return lambda name: fcntl.ioctl(handle(name), number, data)
def handle(name):
    # A device is not opened: what it does is not the filesystem's.
    way = os.O_PATH if name == 'block' else os.O_RDONLY | os.O_NONBLOCK
    try:
        return os.open(name, way | os.O_NOFOLLOW)
    except OSError:
        return os.open(name, os.O_PATH | os.O_NOFOLLOW)
ways = [('SETFLAGS', ioctl(0x40086602, struct.pack('q', 0x80000 | DAX))),
        ('FSSETXATTR', ioctl(0x401c5820, struct.pack('IIIII8x', 0x8000, 0, 0, 0, 0))),
        ('file_setattr', setattr)]
for name in ['fifo', 'sock', 'char', 'block', 'short', 'long', 'dir', 'file']:
    for what, how in ways:
        try:
            how(name)
            answer = 0
        except OSError as e:
            answer = e.errno
        print(name, what, answer)
";

/// Flags are those of files and directories: the rest is refused as the kernel does, through the mount and by the library.
#[test]
fn the_dax_flag_of_every_kind_of_inode() {
    if !may_mount("the_dax_flag_of_every_kind_of_inode") {
        return;
    }
    need!(env::kernel_mounts(), env::tools(&["mke2fs", "python3", "e2fsck"]));
    let scratch = env::scratch();
    let image = scratch.sparse("image", 16 << 20);
    let ask = |path: &Path| {
        let mut python = oracle::command("python3");
        python.args(["-c", KINDS]).arg(path);
        oracle::run_ok(&mut python)
    };
    oracle::mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let theirs = KernelMount::rw(&image);
    let want = ask(theirs.path());
    theirs.unmount();
    oracle::mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let (mount, adapter) = mounted(&image, "rw");
    assert_eq!(ask(mount.path()), want);
    finish(mount, &adapter);
    drop(adapter);
    // Not every way leads to every kind, and older kernels have one less: the library has one for all.
    let device = OpenOptions::new().write(true).open(&image).unwrap();
    let fs = Filesystem::open(Arc::new(device), Setup::default()).unwrap();
    let root = Credentials::root();
    for name in ["fifo", "sock", "char", "block", "short", "long", "dir", "file"] {
        let inode = fs.lookup(&fs.root().unwrap(), name.as_bytes(), &root).unwrap();
        let clear = InodeFlags::from_bits_retain(inode.attr().flags.bits() & !0x200_0000);
        let expected = if ["dir", "file"].contains(&name) { 0 } else { 95 };
        let errno = |done: extant::Result<()>| done.err().map_or(0, |e| e.errno());
        assert_eq!(errno(fs.set_flags(&inode, clear, &root)), expected, "{name}");
        assert_eq!(errno(fs.set_flags(&inode, clear | InodeFlags::DAX, &root)), expected, "{name}");
        let attr = extant::FsxAttr { xflags: 0x8000, ..fs.fsx_attr(&inode) };
        assert_eq!(errno(fs.set_fsx_attr(&inode, attr, &root)), expected, "{name}");
        assert_eq!(inode.attr().flags.contains(InodeFlags::DAX), expected == 0, "{name}");
        let theirs = format!("{name} file_setattr {expected}\n");
        assert!(want.contains(&theirs) || want.contains("file_setattr 38"), "{name}: {want}");
    }
    fs.unmount().unwrap();
    drop(fs);
    oracle::assert_clean(&image);
}
