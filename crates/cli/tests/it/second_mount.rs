//! One file system mounted in several places: what a second mount may be, and what an unmount of one of them is. And what else
//! `mount` and `umount` say about the server behind them.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use extant_testkit::kernel::{DeviceMount, Loop};
use extant_testkit::{Scratch, env, oracle};
use rustix::io::Errno;

use crate::mounted::{Mounted, extant};
use crate::run::ok;

const FAILURE: i32 = 32;

fn may_mount() -> Result<(), String> {
    env::kernel_mounts().and_then(|()| env::fuse()).and_then(|()| env::tools(&["mke2fs", "e2fsck"]))
}

fn image() -> (Scratch, PathBuf) {
    let dir = env::scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 32 << 20, "-t ext4");
    (dir, image)
}

/// Options of the mount at `dir`, from /proc/self/mountinfo.
fn shown(dir: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == dir.to_str())?;
    line.split(' ').nth(5).map(str::to_owned)
}

fn mount(image: &Path, dir: &Path, options: &str) -> Output {
    oracle::output(extant().args(["mount", "-o", options]).args([image, dir])).unwrap()
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn umount(dir: &Path) -> Output {
    oracle::output(extant().arg("umount").arg(dir)).unwrap()
}

/// The second mount of a device is what the kernel's ext4 makes of it: EBUSY where one is read-only and the other is not, flags for
/// each mount. Options that both would share and that the first does not have are refused, where the kernel drops them.
#[test]
fn a_second_mount_of_a_device() {
    need!(may_mount());
    let (dir, image) = image();
    let (first, second) = (dir.join("first"), dir.join("second"));
    fs::create_dir(&second).unwrap();
    let attached = Loop::attach(&image, false);
    let device = attached.device();
    let theirs = DeviceMount::new(device, "").expect("the kernel's own");
    let of_kernel = DeviceMount::new(device, "ro").err();
    assert_eq!(of_kernel, Some(Errno::BUSY), "the kernel's own");
    theirs.unmount();

    let mounted = Mounted::of(device, &first, "");
    let out = mount(device, &second, "ro");
    assert_eq!(out.status.code(), Some(FAILURE), "{}", said(&out));
    assert!(said(&out).contains("already mounted on") && said(&out).contains("read-only"), "{}", said(&out));
    for refused in [
        "errors=remount-ro",
        "commit=7",
        "sync",
        "noatime",
        "data=journal",
        "nobarrier",
        "offset=",
        "writeback_cache",
        "cache_size=16m",
    ] {
        let given = if refused == "offset=" { "offset=1048576" } else { refused };
        let out = mount(device, &second, &format!("nosuid,commit=5,{given}"));
        assert_eq!(out.status.code(), Some(FAILURE), "{given}: {}", said(&out));
        assert!(said(&out).contains(&format!("`{refused}`")), "{given}: {}", said(&out));
        assert!(!said(&out).contains("commit=5"), "what is in force is no reason: {}", said(&out));
    }
    assert_eq!(shown(&second), None, "what is refused mounts nothing");
    // What is in force may be named.
    let out = mount(device, &second, "rw,errors=continue,commit=5,relatime,nosuid,nodev,noexec,nosymfollow");
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(shown(&second).unwrap(), "rw,nosuid,nodev,noexec,relatime,nosymfollow");
    assert_eq!(shown(&first).unwrap(), "rw,relatime", "the first keeps its own");
    fs::write(second.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(second.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    let run =
        |dir: &Path| oracle::output(&mut Command::new(dir.join("script"))).map(|out| out.status.success());
    assert_eq!(run(&second).unwrap_err().raw_os_error(), Some(Errno::ACCESS.raw_os_error()));
    assert!(run(&first).unwrap());
    assert!(umount(&second).status.success());
    mounted.unmount();
    oracle::assert_clean(&image);

    // Read-only first: mount(8) mounts the second read-only then, and says so.
    let mounted = Mounted::of(device, &first, "ro");
    for (options, warns) in [("ro", false), ("rw", true)] {
        let out = mount(device, &second, options);
        assert!(out.status.success(), "{}", said(&out));
        assert_eq!(said(&out).contains("mounted read-only"), warns, "{options}: {}", said(&out));
        assert_eq!(shown(&second).unwrap(), "ro,relatime");
        let refused = fs::write(second.join("x"), "").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
        assert!(umount(&second).status.success());
    }
    mounted.unmount();
    oracle::assert_clean(&image);
}

/// An unmount of one of several mounts returns at once, as umount(8) does, and says where else it is mounted; that of the last one
/// when the image is clean. (What waits for a server that goes on would not return.)
#[test]
fn an_unmount_of_one_mount_does_not_wait_for_the_others() {
    need!(may_mount());
    for options in ["attach=plain", "attach=loop"] {
        let (dir, image) = image();
        let second = dir.join("second");
        fs::create_dir_all(second.join("deep")).unwrap();
        let mounted = Mounted::new(&image, options);
        fs::write(mounted.path().join("file"), "content").unwrap();
        rustix::mount::mount_bind(mounted.path(), &second).unwrap();
        let out = umount(mounted.path());
        assert!(out.status.success() && said(&out).contains(second.to_str().unwrap()), "{}", said(&out));
        assert_eq!(shown(mounted.path()), None);
        assert_eq!(fs::read(second.join("file")).unwrap(), b"content");
        mounted.gone();
        let out = umount(&second);
        assert!(out.status.success() && !said(&out).contains("still"), "{}", said(&out));
        oracle::assert_clean(&image);
    }
}

/// A server that goes on for files that are open on a copy that was unmounted lazily is waited for, and in time that is said. (What did not
/// say so would wait with the test for ever.)
#[test]
fn an_unmount_says_which_server_it_waits_for() {
    need!(may_mount());
    let (dir, image) = image();
    let second = dir.join("second");
    fs::create_dir(&second).unwrap();
    let mounted = Mounted::new(&image, "attach=plain");
    fs::write(mounted.path().join("file"), "content").unwrap();
    rustix::mount::mount_bind(mounted.path(), &second).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3<\"$0\"; echo there; read line"]).arg(second.join("file"));
    let mut user = oracle::start(command.stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
    let mut line = String::new();
    BufReader::new(user.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut command = extant();
    assert!(oracle::output(command.args(["umount", "-l"]).arg(&second)).unwrap().status.success());
    let mut command = extant();
    command.arg("umount").arg(mounted.path()).stderr(Stdio::piped());
    let mut umount = oracle::start(&mut command).unwrap();
    mounted.gone();
    // Another test may have a namespace, which is said first.
    let mut said = BufReader::new(umount.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.any(|line| line.contains("waiting for its server, process")));
    drop(user.stdin.take());
    user.wait().unwrap();
    assert!(umount.wait().unwrap().success());
    oracle::assert_clean(&image);
}

/// A copy in the mount namespace of another process is waited for, and that is said.
#[test]
fn an_unmount_says_which_namespace_it_waits_for() {
    need!(may_mount(), env::tools(&["unshare"]));
    let (_dir, image) = image();
    let mounted = Mounted::new(&image, "attach=plain");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "echo there; read line"]);
    let mut other = oracle::start(command.stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
    let mut line = String::new();
    BufReader::new(other.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut command = extant();
    command.arg("umount").arg(mounted.path()).stderr(Stdio::piped());
    let mut umount = oracle::start(&mut command).unwrap();
    mounted.gone();
    let (mut waits, mut said) = (String::new(), BufReader::new(umount.stderr.take().unwrap()));
    said.read_line(&mut waits).unwrap();
    // Another test may have a namespace, too.
    assert!(waits.contains("waiting for the mount namespaces of processes"), "{waits}");
    let pids: Vec<u32> = waits.split(|c: char| !c.is_ascii_digit()).filter_map(|w| w.parse().ok()).collect();
    assert!(pids.contains(&other.id()), "{waits}");
    drop(other.stdin.take());
    other.wait().unwrap();
    assert!(umount.wait().unwrap().success());
    oracle::assert_clean(&image);
}

/// Paths in options are those of whoever mounts, whose directory the server does not share.
#[test]
fn a_journal_is_found_by_a_relative_path() {
    need!(may_mount());
    let dir = env::scratch();
    ok(&[&"mkfs", &"-q", &"-O", &"journal_dev", &"-b", &"1024", &dir.join("journal"), &"4m"]);
    let device = format!("device={}", dir.join("journal").display());
    ok(&[&"mkfs", &"-q", &"-b", &"1024", &"-J", &device, &dir.join("fs"), &"32m"]);
    fs::create_dir(dir.join("at")).unwrap();
    let mut command = extant();
    command.current_dir(dir.path()).args(["mount", "-o", "journal_path=journal", "fs", "at"]);
    let out = oracle::output(&mut command).unwrap();
    assert!(out.status.success(), "{}", said(&out));
    fs::write(dir.join("at/file"), "content").unwrap();
    let mut remount = extant();
    remount.current_dir(dir.path()).args(["mount", "-o", "remount,journal_path=journal", "fs", "at"]);
    let out = oracle::output(&mut remount).unwrap();
    assert!(out.status.success(), "the same journal: {}", said(&out));
    let out = umount(&dir.join("at"));
    assert!(out.status.success(), "{}", said(&out));
    let mut command = extant();
    command.current_dir(dir.path()).args(["mount", "-o", "journal_path=nowhere", "fs", "at"]);
    let out = oracle::output(&mut command).unwrap();
    assert!(out.status.code() == Some(FAILURE) && said(&out).contains("nowhere"), "{}", said(&out));
}

/// An image that is not left clean: `umount` says why.
#[test]
fn an_unmount_says_why_the_image_is_not_clean() {
    need!(may_mount(), env::tools(&["python3"]));
    const SHUTDOWN: &str = "import fcntl, os, struct, sys\n\
        fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 1))";
    let (_dir, image) = image();
    let mounted = Mounted::new(&image, "");
    fs::write(mounted.path().join("file"), "content").unwrap();
    let mut python = Command::new("python3");
    let asked = oracle::output(python.args(["-c", SHUTDOWN]).arg(mounted.path())).unwrap();
    assert!(asked.status.success(), "{}", said(&asked));
    let out = umount(mounted.path());
    mounted.gone();
    assert!(
        out.status.code() == Some(FAILURE) && said(&out).contains("had been shut down"),
        "{}",
        said(&out)
    );

    let mounted = Mounted::new(&image, "attach=plain");
    fs::write(mounted.path().join("file"), "more").unwrap();
    let server = server_of(&image);
    rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
    let ended = rustix::process::pidfd_open(server, rustix::process::PidfdFlags::empty());
    if let Ok(ended) = ended {
        let mut wait = [rustix::event::PollFd::new(&ended, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut wait, None).unwrap();
    }
    let out = umount(mounted.path());
    mounted.gone();
    assert!(out.status.code() == Some(FAILURE) && said(&out).contains("server had ended"), "{}", said(&out));
}

/// Who holds the image's lock.
fn server_of(image: &Path) -> rustix::process::Pid {
    use std::os::unix::fs::MetadataExt as _;
    let inode = format!(":{}", fs::metadata(image).unwrap().ino());
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let line = locks.lines().find(|line| line.contains("FLOCK") && line.contains(&inode)).unwrap();
    let pid = line.split_ascii_whitespace().nth(4).unwrap().parse().unwrap();
    rustix::process::Pid::from_raw(pid).unwrap()
}

/// FITRIM takes and refuses what the kernel's ext4 does.
#[test]
fn the_bounds_of_fitrim_are_the_kernels() {
    need!(may_mount(), env::tools(&["fstrim"]));
    // 8,192 blocks of 1 KiB a group; of clusters, as many clusters of 4 KiB.
    for (mkfs, group) in
        [("-t ext4 -b 1024 -g 8192", 8 << 20), ("-t ext4 -b 1024 -O bigalloc -C 4096", 32 << 20)]
    {
        let dir = env::scratch();
        let answers = |at: &Path| -> Vec<bool> {
            let asked: [&[u64]; 8] = [
                &[0, u64::MAX, group],
                &[0, u64::MAX, group + 1023],
                &[0, u64::MAX, group + 1024],
                &[0, u64::MAX, 1 << 40],
                &[0, u64::MAX, u64::MAX],
                &[0, 1023, 0],
                &[0, 1024, 0],
                &[64 << 20, 4096, 0],
            ];
            let trims = asked.iter().map(|range| {
                let mut fstrim = Command::new("fstrim");
                fstrim.args(["-o", &range[0].to_string(), "-l", &range[1].to_string()]);
                oracle::output(fstrim.args(["-m", &range[2].to_string()]).arg(at)).unwrap().status.success()
            });
            trims.collect()
        };
        let [theirs, ours] = ["theirs", "ours"].map(|name| {
            let image = dir.join(name);
            oracle::mke2fs(&image, 64 << 20, mkfs);
            image
        });
        let mounted = extant_testkit::kernel::KernelMount::rw(&theirs);
        let expected = answers(mounted.path());
        mounted.unmount();
        assert_eq!(expected, [true, true, false, false, false, false, true, false], "the kernel's, {mkfs}");
        let mounted = Mounted::new(&ours, "");
        assert_eq!(answers(mounted.path()), expected, "{mkfs}");
        mounted.unmount();
        oracle::assert_clean(&ours);
    }
}
