//! The commands that mount and unmount, as they are used: signals, exit statuses, remounts, mount(8) and fstab(5), a plain
//! user, and where errors go that come later.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use extant_fuse::mount::LoopDevice;
use extant_testkit::env::{self, Scratch};
use extant_testkit::oracle::{self, assert_clean, mke2fs};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

use crate::mounted::{Mounted, extant};

/// mount(8)'s exit statuses.
const USAGE: i32 = 1;
const FAILURE: i32 = 32;

fn may_mount() -> Result<(), String> {
    env::root().and_then(|()| env::fuse()).and_then(|()| env::tools(&["mke2fs", "e2fsck", "dumpe2fs"]))
}

/// A folder with an image in it.
fn image(mkfs: &str) -> (Scratch, PathBuf) {
    let dir = env::scratch();
    let image = dir.join("image");
    mke2fs(&image, 32 << 20, mkfs);
    (dir, image)
}

fn wants_recovery(image: &Path) -> bool {
    oracle::dumpe2fs_header(image).iter().any(|(_, value)| value.contains("needs_recovery"))
}

fn is_mounted(dir: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == dir.to_str())
}

fn run(command: &mut Command) -> Output {
    oracle::output(command.stdin(Stdio::null())).unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

#[track_caller]
fn good(command: &mut Command) -> Output {
    let out = run(command);
    assert!(out.status.success(), "{command:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    out
}

/// `extant mount -f`, which is up once it answers.
struct Foreground {
    child: Child,
    dir: PathBuf,
}

impl Foreground {
    fn new(image: &Path, options: &str) -> Self {
        let dir = image.with_extension("mnt");
        fs::create_dir_all(&dir).unwrap();
        let mut command = extant();
        command.args(["mount", "-f", "-o", options]).args([image, &dir]).stderr(Stdio::piped());
        let child = oracle::start(&mut command).unwrap();
        let mut mount = Self { child, dir };
        // The mount table is the only sign; the program ends if it cannot mount.
        while !is_mounted(&mount.dir) {
            assert_eq!(mount.child.try_wait().unwrap(), None, "it ended before it was mounted");
            std::thread::yield_now();
        }
        // Answered only once the server runs, which then takes signals.
        fs::read_dir(&mount.dir).unwrap();
        mount
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Its exit status and what it said.
    fn end(mut self) -> (i32, String) {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = self.child.wait().unwrap();
        (status.code().unwrap_or(-1), said)
    }
}

#[test]
fn a_signal_unmounts_and_the_image_is_clean_when_the_program_has_ended() {
    need!(may_mount());
    use rustix::process::Signal;
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        for attach in ["attach=loop", "attach=plain"] {
            let (_dir, image) = image("-t ext4");
            let mount = Foreground::new(&image, attach);
            fs::write(mount.dir.join("file"), vec![7; 3 << 20]).unwrap();
            assert!(wants_recovery(&image));
            let dir = mount.dir.clone();
            mount.signal(signal);
            let (status, said) = mount.end();
            assert_eq!(status, 0, "{signal:?} {attach}: {said}");
            assert!(!is_mounted(&dir) && !wants_recovery(&image), "{signal:?} {attach}");
            assert_clean(&image);
            let out = good(extant().arg("cat").arg(&image).arg("/file"));
            assert!(out.stdout == vec![7; 3 << 20]);
        }
    }
}

#[test]
fn a_signal_while_a_file_is_open_takes_the_mount_away_and_ends_with_the_last_user() {
    need!(may_mount());
    let (_dir, image) = image("-t ext4");
    let mut mount = Foreground::new(&image, "attach=plain");
    let file = File::create(mount.dir.join("file")).unwrap();
    mount.signal(rustix::process::Signal::TERM);
    let mut said = BufReader::new(mount.child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("unmounting when nobody uses it any more"), "{line}");
    while is_mounted(&mount.dir) {
        std::thread::yield_now();
    }
    assert_eq!(mount.child.try_wait().unwrap(), None);
    file.write_all_at(b"still served", 0).unwrap();
    drop(file);
    assert_eq!(mount.child.wait().unwrap().code(), Some(0));
    assert_clean(&image);
    assert_eq!(good(extant().arg("cat").arg(&image).arg("/file")).stdout, b"still served");
}

#[test]
fn exit_statuses_are_those_of_mount() {
    need!(may_mount());
    let (dir, image) = image("-t ext4");
    let at = dir.join("at");
    fs::create_dir(&at).unwrap();
    let text = dir.join("text");
    fs::write(&text, "no file system at all").unwrap();
    let helper = dir.join("mount.fuse.extant");
    symlink(env!("CARGO_BIN_EXE_extant"), &helper).unwrap();
    let (image, at, text) = (image.to_str().unwrap(), at.to_str().unwrap(), text.to_str().unwrap());
    let missing = dir.join("missing");
    let missing = missing.to_str().unwrap();
    let cases: &[(i32, &[&str])] = &[
        (USAGE, &["mount"]),
        (USAGE, &["mount", image]),
        (USAGE, &["mount", "--unknown", image, at]),
        (USAGE, &["mount", "-o", "unknown_option", image, at]),
        (USAGE, &["mount", "-o", "attach=nowhere", image, at]),
        (USAGE, &["mount", "-o", "offset=0,partition=1", image, at]),
        (FAILURE, &["mount", missing, at]),
        (FAILURE, &["mount", image, missing]),
        (FAILURE, &["mount", image, text]),
        (FAILURE, &["mount", text, at]),
        (FAILURE, &["mount", "-f", text, at]),
        (FAILURE, &["mount", "-o", "remount,ro", image, at]),
        (USAGE, &["umount"]),
        (FAILURE, &["umount", at]),
        (FAILURE, &["umount", missing]),
    ];
    for (status, words) in cases {
        let out = run(extant().args(*words));
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(*status), "{words:?}: {said}");
        assert!(said.trim().len() > 10, "{words:?} fails without a word: {said}");
    }
    let helped: &[(i32, &[&str])] = &[
        (USAGE, &[image]),
        (USAGE, &[image, at, "-o"]),
        (USAGE, &[image, at, "-o", "unknown_option"]),
        (FAILURE, &[missing, at, "-o", "rw"]),
        (0, &[image, at, "-f", "-o", "rw"]),
    ];
    for (status, words) in helped {
        let out = run(Command::new(&helper).args(*words));
        assert_eq!(out.status.code(), Some(*status), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    // In use: by ourselves, and while a program is in it.
    let mount = Mounted::new(Path::new(image), "");
    assert_eq!(run(extant().args(["mount", image, at])).status.code(), Some(FAILURE));
    let busy = File::create(mount.path().join("busy")).unwrap();
    assert_eq!(run(extant().arg("umount").arg(mount.path())).status.code(), Some(FAILURE));
    drop(busy);
    mount.unmount();
    assert_clean(Path::new(image));
}

/// The helper of mount(8), by the names it is linked to.
struct Helper(Scratch);

impl Helper {
    fn new() -> Self {
        let dir = env::scratch();
        for name in ["mount.fuse.extant", "mount.fuseblk.extant"] {
            symlink(env!("CARGO_BIN_EXE_extant"), dir.join(name)).unwrap();
        }
        Self(dir)
    }

    fn call(&self, name: &str) -> Command {
        Command::new(self.0.join(name))
    }
}

/// As mount(8) calls it, with the words that it does not keep for itself: they are no reason to refuse.
#[test]
fn the_helper_drops_what_concerns_others() {
    need!(may_mount());
    let (dir, image) = image("-t ext4");
    let helper = Helper::new();
    let at = dir.join("at");
    fs::create_dir(&at).unwrap();
    let words = "rw,nosuid,nodev,noexec,relatime,_netdev,nofail,noauto,user=root,x-systemd.automount,X-mount.mkdir,\
                 comment=words,uhelper=extant,helper=extant,defaults,subtype=extant,fsname=any,suid,dev,exec,async,silent,lazytime";
    good(helper.call("mount.fuse.extant").args([&image, &at]).args([
        "-o",
        words,
        "-t",
        "fuse.extant",
        "-v",
        "-n",
        "-s",
    ]));
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == at.to_str()).unwrap();
    assert!(line.contains("extant") && !line.contains("nosuid"), "later words win: {line}");
    good(extant().arg("umount").arg(&at));
    assert_clean(&image);
}

/// A block device turns read-only and writable again, with the server told.
#[test]
fn remounts() {
    need!(may_mount());
    let helper = Helper::new();
    let (dir, image) = image("-t ext4");
    let at = dir.join("at");
    fs::create_dir(&at).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(&image).unwrap();
    let device = LoopDevice::attach(&file, false).unwrap();
    let remount =
        |words: &str| run(helper.call("mount.fuseblk.extant").args([device.path(), &at]).args(["-o", words]));
    let refused = |name: &str| fs::write(at.join(name), b"").unwrap_err().raw_os_error();
    for first in ["ro", "rw"] {
        good(helper.call("mount.fuse.extant").args([device.path(), &at]).args(["-o", first]));
        if first == "rw" {
            fs::write(at.join("first"), b"first").unwrap();
            let open = File::create(at.join("open")).unwrap();
            let out = remount("remount,ro");
            assert_eq!(out.status.code(), Some(FAILURE), "a file is open for writing");
            drop(open);
            assert!(remount("remount,ro").status.success());
        }
        assert_eq!(refused("x"), Some(30), "EROFS");
        assert!(!wants_recovery(&image), "{first}");
        assert_clean(&image);
        let out = remount("remount,rw");
        assert!(out.status.success(), "{first}: {}", String::from_utf8_lossy(&out.stderr));
        fs::write(at.join(format!("after-{first}")), b"written").unwrap();
        good(extant().arg("umount").arg(&at));
        assert_clean(&image);
    }
    drop((device, file));
    for name in ["/first", "/after-ro", "/after-rw"] {
        // The loop device is let go of once no program that another test is starting has a copy of it.
        good(extant().args(["cat", "--force-read"]).arg(&image).arg(name));
    }
}

/// What no word of a remount names stays as it is, and all of it where the server refuses.
#[test]
fn a_remount_keeps_the_flags_that_it_does_not_name() {
    need!(may_mount());
    let (_dir, image) = image("-t ext4");
    let mount = Mounted::new(&image, "nosuid,nodev,noexec,sync");
    let shown = || {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.split(' ').nth(4) == mount.path().to_str()).unwrap();
        let of_super =
            line.rsplit(' ').next().unwrap().split(',').filter(|w| ["ro", "rw", "sync"].contains(w));
        format!("{} {}", line.split(' ').nth(5).unwrap(), of_super.collect::<Vec<_>>().join(","))
    };
    let remount =
        |words: &str| run(extant().args(["mount", "-o", words]).args([&*image, mount.path()])).status.code();
    let first = "rw,nosuid,nodev,noexec,relatime rw,sync";
    assert_eq!(shown(), first);
    assert_eq!(remount("remount,ro,exec,data=journal"), Some(FAILURE), "the way of data stays");
    assert_eq!(shown(), first);
    assert_eq!(remount("remount,ro"), Some(0));
    let read_only = "ro,nosuid,nodev,noexec,relatime ro,sync";
    assert_eq!(shown(), read_only);
    assert_eq!(remount("remount,ro,exec,data=journal"), Some(FAILURE));
    assert_eq!(shown(), read_only);
    assert_eq!(remount("remount,commit=7"), Some(0));
    assert_eq!(shown(), read_only);
    assert_eq!(remount("remount,rw,dev,async"), Some(0));
    assert_eq!(shown(), "rw,nosuid,noexec,relatime rw");
    mount.unmount();
    assert_clean(&image);
}

/// A bind mount, until it is dropped.
struct Bind(PathBuf);

impl Bind {
    fn new(from: &Path, at: &Path) -> Self {
        rustix::mount::mount_bind(from, at).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

/// A mount of its own of a part or the whole, which is read-only by itself: a remount there keeps that unless a word names it, and
/// changes the other mount in what is the filesystem's alone.
#[test]
fn a_remount_of_a_bind_mount_keeps_its_own_flags() {
    need!(may_mount());
    let (dir, image) = image("-t ext4");
    let first = Mounted::new(&image, "nodev");
    fs::create_dir(first.path().join("part")).unwrap();
    for part in ["", "part"] {
        let at = dir.join(&format!("bind{part}"));
        fs::create_dir(&at).unwrap();
        let bind = Bind::new(&first.path().join(part), &at);
        let own = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::BIND;
        rustix::mount::mount_remount(&at, own, c"").unwrap();
        let shown = || {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let of = |at: &Path| {
                let line = table.lines().find(|line| line.split(' ').nth(4) == at.to_str()).unwrap();
                let of_super =
                    line.rsplit(' ').next().unwrap().split(',').filter(|w| ["ro", "rw", "sync"].contains(w));
                format!("{} {}", line.split(' ').nth(5).unwrap(), of_super.collect::<Vec<_>>().join(","))
            };
            [of(&at), of(first.path())]
        };
        let remount =
            |words: &str| run(extant().args(["mount", "-o", words]).args([&*image, &*at])).status.code();
        let start = ["ro,nosuid,nodev,relatime rw", "rw,nodev,relatime rw"];
        assert_eq!(shown(), start, "{part}");
        for words in ["remount", "remount,commit=7"] {
            assert_eq!(remount(words), Some(0), "{words}");
            assert_eq!(shown(), start, "{part}: {words}");
        }
        assert_eq!(remount("remount,sync,noexec,suid"), Some(0));
        assert_eq!(shown(), ["ro,nodev,noexec,relatime rw,sync", "rw,nodev,relatime rw,sync"], "{part}");
        assert_eq!(remount("remount,async,exec,nosuid"), Some(0));
        assert_eq!(shown(), start, "{part}");
        assert_eq!(remount("remount,ro,data=journal"), Some(FAILURE), "the way of data stays");
        assert_eq!(shown(), start, "{part}: refused");
        assert_eq!(remount("remount,ro"), Some(0));
        assert_eq!(shown(), ["ro,nosuid,nodev,relatime ro", "rw,nodev,relatime ro"], "{part}");
        assert_eq!(remount("remount,noexec"), Some(0));
        assert_eq!(shown(), ["ro,nosuid,nodev,noexec,relatime ro", "rw,nodev,relatime ro"], "{part}");
        assert_eq!(remount("remount,rw,exec"), Some(0));
        assert_eq!(shown(), ["rw,nosuid,nodev,relatime rw", "rw,nodev,relatime rw"], "{part}");
        fs::write(at.join("written"), part).unwrap();
        drop(bind);
    }
    first.unmount();
    assert_clean(&image);
}

/// A clean image file that was mounted read-only turns writable, on its loop device and without one, and back; not while others read it,
/// nor where it cannot be written.
#[test]
fn an_image_file_mounted_read_only_turns_writable() {
    need!(may_mount());
    let helper = Helper::new();
    let (_dir, image) = image("-t ext4");
    for attach in ["loop", "plain"] {
        let before = fs::read(&image).unwrap();
        let mount = Mounted::new(&image, &format!("ro,attach={attach}"));
        let remount = |words: &str| {
            run(helper.call("mount.fuse.extant").args([&*image, mount.path()]).args(["-o", words]))
        };
        let other = Mounted::new(&image, "ro,attach=plain");
        let out = remount("remount,rw");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(FAILURE), "{attach}: another mount reads it");
        assert!(said.contains("opened for reading"), "{attach}: {said}");
        good(extant().arg("ls").arg(&image).arg("/"));
        other.unmount();
        assert!(before == fs::read(&image).unwrap(), "{attach}: nothing is written");
        let out = remount("remount,rw");
        assert!(out.status.success(), "{attach}: {}", String::from_utf8_lossy(&out.stderr));
        fs::write(mount.path().join(attach), attach).unwrap();
        assert_eq!(
            run(extant().arg("ls").arg(&image).arg("/")).status.code(),
            Some(1),
            "{attach}: it is in use"
        );
        assert!(remount("remount,ro").status.success());
        assert_eq!(fs::write(mount.path().join("x"), b"").unwrap_err().raw_os_error(), Some(30), "EROFS");
        assert_clean(&image);
        let out = remount("remount,rw");
        assert!(out.status.success(), "{attach}: {}", String::from_utf8_lossy(&out.stderr));
        fs::write(mount.path().join(format!("{attach}-again")), attach).unwrap();
        mount.unmount();
        assert_clean(&image);
    }
    for name in ["/loop", "/plain", "/loop-again", "/plain-again"] {
        good(extant().arg("cat").arg(&image).arg(name));
    }
}

/// An unclean block device mounted read-only: the kernel's own `ro` recovers it, and so do we.
#[test]
fn a_read_only_mount_recovers_a_block_device_and_an_image_file_stays_as_it_is() {
    need!(may_mount());
    let helper = Helper::new();
    let (dir, image) = image("-t ext4");
    let at = dir.join("at");
    fs::create_dir(&at).unwrap();
    let mut mount = Foreground::new(&image, "attach=plain");
    fs::write(mount.dir.join("file"), b"synced").unwrap();
    File::open(mount.dir.join("file")).unwrap().sync_all().unwrap();
    mount.child.kill().unwrap();
    mount.child.wait().unwrap();
    good(Command::new("umount").arg("-l").arg(&mount.dir));
    assert!(wants_recovery(&image));
    let before = fs::read(&image).unwrap();
    let mounted = Mounted::new(&image, "ro");
    assert_eq!(fs::read(mounted.path().join("file")).unwrap(), b"synced");
    mounted.unmount();
    assert!(before == fs::read(&image).unwrap(), "an image file stays as it is");
    let file = fs::OpenOptions::new().read(true).write(true).open(&image).unwrap();
    let device = LoopDevice::attach(&file, false).unwrap();
    good(helper.call("mount.fuse.extant").args([device.path(), &at]).args(["-o", "ro"]));
    assert!(!wants_recovery(&image));
    assert_eq!(fs::read(at.join("file")).unwrap(), b"synced");
    good(extant().arg("umount").arg(&at));
    assert_clean(&image);
}

/// `extant umount` returns when the image is clean, also where umount(2) does not wait.
#[test]
fn umount_returns_when_the_image_is_clean() {
    need!(may_mount());
    for attach in ["attach=plain", "attach=loop"] {
        let (_dir, image) = image("-t ext4");
        let mount = Mounted::new(&image, attach);
        for i in 0..200 {
            fs::write(mount.path().join(format!("{i}")), vec![i; 100_000]).unwrap();
        }
        mount.unmount();
        assert!(!wants_recovery(&image), "{attach}");
        assert_clean(&image);
    }
}

/// A mount waits for the server of the previous one, which may still be writing when the tree has let go of it.
#[test]
fn a_mount_waits_for_the_end_of_the_previous_one() {
    need!(may_mount());
    for options in ["rw", "attach=plain", "attach=loop"] {
        let (dir, image) = image("-t ext4");
        let at = dir.join("at");
        fs::create_dir(&at).unwrap();
        let file = fs::OpenOptions::new().read(true).write(true).open(&image).unwrap();
        let device = (options == "rw").then(|| LoopDevice::attach(&file, false).unwrap());
        let source = device.as_ref().map_or(&*image, LoopDevice::path);
        for round in 0..10 {
            good(extant().args(["mount", "-o", options]).args([source, &at]));
            if round == 9 && device.is_none() {
                assert_eq!(
                    run(extant().arg("mount").args([source, &at])).status.code(),
                    Some(FAILURE),
                    "busy"
                );
            }
            fs::write(at.join(format!("{round}")), vec![7; 2 << 20]).unwrap();
            // Returns at once: the server has everything left to write.
            good(Command::new("umount").args(["-i", "-l"]).arg(&at));
        }
        good(extant().args(["mount", "-o", options]).args([source, &at]));
        good(extant().arg("umount").arg(&at));
        drop((device, file));
        assert_clean(&image);
        let names = good(extant().arg("ls").arg(&image).arg("/")).stdout;
        assert_eq!(
            String::from_utf8_lossy(&names).split_ascii_whitespace().filter(|n| n.len() == 1).count(),
            10
        );
    }
}

/// In a mount namespace of its own, where `/sbin` has our helper and /etc/fstab our lines, mount(8) and umount(8) do it all.
#[test]
fn mount_by_fstab() {
    need!(may_mount(), env::tools(&["unshare", "mount", "umount"]));
    let overlays = fs::read_to_string("/proc/filesystems").unwrap().contains("overlay");
    need!(if overlays { Ok(()) } else { Err("the kernel has no overlayfs".to_owned()) });
    let (dir, image) = image("-t ext4");
    fs::create_dir(dir.join("at")).unwrap();
    let sbin = dir.join("sbin");
    fs::create_dir(&sbin).unwrap();
    for name in ["mount.fuse.extant", "mount.fuseblk.extant"] {
        symlink(env!("CARGO_BIN_EXE_extant"), sbin.join(name)).unwrap();
    }
    let line = format!(
        "{} {} fuse.extant noatime,nofail,x-systemd.automount,user_xattr 0 0\n",
        image.display(),
        dir.join("at").display()
    );
    fs::write(dir.join("fstab"), line).unwrap();
    let script = "set -e\n\
        mount -t overlay -o lowerdir=$1/sbin:$(readlink -f /sbin) overlay $(readlink -f /sbin)\n\
        mount --bind $1/fstab /etc/fstab\n\
        mount $1/at\n\
        echo one > $1/at/one\n\
        mount -o remount,ro $1/at\n\
        if echo two 2>/dev/null > $1/at/two; then exit 3; fi\n\
        mount -o remount,rw $1/at\n\
        echo three > $1/at/three\n\
        umount $1/at\n";
    let out = run(Command::new("unshare").args(["--mount", "sh", "-c", script, "sh"]).arg(dir.path()));
    assert!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    assert_clean(&image);
    let names = good(extant().arg("ls").arg(&image).arg("/")).stdout;
    let names = String::from_utf8_lossy(&names);
    assert!(names.contains("one") && names.contains("three") && !names.contains("two"), "{names}");
}

/// A plain user, where /dev/fuse may be opened by all: fusermount3 mounts and unmounts.
#[test]
fn a_plain_user() {
    need!(may_mount(), env::tools(&["unshare", "setpriv", "fusermount3", "mknod"]));
    let (dir, image) = image("-t ext4 -E root_owner=65534:65534");
    let at = dir.join("at");
    fs::create_dir(&at).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for path in [&image, &at] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
    let program = dir.join("extant");
    fs::copy(env!("CARGO_BIN_EXE_extant"), &program).unwrap();
    let script = "set -e\n\
        mknod $1/fuse c 10 229; chmod 666 $1/fuse; mount --bind $1/fuse /dev/fuse\n\
        exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -ec '\n\
          extant=$1/extant\n\
          $extant mount -o noatime $1/image $1/at\n\
          echo mine > $1/at/mine\n\
          ln -s mine $1/at/link\n\
          if chown 0 $1/at/mine 2>/dev/null; then exit 3; fi\n\
          $extant umount $1/at\n\
          $extant mount -o ro $1/image $1/at\n\
          test \"$(cat $1/at/link)\" = mine\n\
          if $extant mount $1/image $1/at 2>/dev/null; then exit 4; fi\n\
          $extant umount $1/at' sh $1\n";
    let out = run(Command::new("unshare").args(["--mount", "sh", "-c", script, "sh"]).arg(dir.path()));
    assert!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    assert_clean(&image);
}

/// Has pages of its own memory paged out and reads them back; says how many KiB were out. Random content, so that none is kept
/// compressed in memory.
const PAGED_OUT: &str = "
import mmap, random
pages = [b'swapped by extant' + random.Random(n).randbytes(4079) for n in range(1024)]
memory = mmap.mmap(-1, len(pages) * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.write(b''.join(pages))
memory.madvise(21)  # MADV_PAGEOUT
out = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmSwap')]
assert memory[:] == b''.join(pages)
print(out[0])
";

/// The kernel asks where a swap file's blocks are, and then reads and writes them by itself; nobody may change it meanwhile.
/// Written blocks serve and unwritten ones of fallocate(2), holes do not.
#[test]
fn a_swap_file() {
    need!(may_mount(), env::tools(&["mkswap", "swapon", "swapoff", "fallocate", "python3", "debugfs"]));
    let (_dir, image) = image("-t ext4 -b 4096");
    let mount = Mounted::new(&image, "attach=loop");
    let [written, unwritten, holes] = ["written", "unwritten", "holes"].map(|name| mount.path().join(name));
    fs::write(&written, vec![0; 6 << 20]).unwrap();
    good(Command::new("fallocate").args(["-l", "6MiB"]).arg(&unwritten));
    File::create(&holes).unwrap().set_len(6 << 20).unwrap();
    for path in [&written, &unwritten, &holes] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        good(Command::new("mkswap").arg(path));
    }
    assert!(!run(Command::new("swapon").arg(&holes)).status.success(), "it has holes");
    for path in [&written, &unwritten] {
        good(Command::new("swapon").args(["-p", "32767"]).arg(path));
        let busy = fs::OpenOptions::new().write(true).open(path).and_then(|f| f.write_all_at(b"x", 0));
        let removed = fs::remove_file(path);
        let paged = run(Command::new("python3").args(["-c", PAGED_OUT]));
        good(Command::new("swapoff").arg(path));
        assert_eq!(busy.unwrap_err().raw_os_error(), Some(26), "ETXTBSY");
        assert_eq!(removed.unwrap_err().raw_os_error(), Some(1), "EPERM");
        let out = String::from_utf8_lossy(&paged.stdout).trim().parse::<u32>();
        assert!(paged.status.success() && out.is_ok_and(|kib| kib > 0), "{paged:?}");
    }
    mount.unmount();
    assert_clean(&image);
    swapped_lies_in(&image, &["written", "unwritten"]);
}

/// What [`PAGED_OUT`] had swapped lies in blocks of each of these files, and nowhere else.
fn swapped_lies_in(image: &Path, names: &[&str]) {
    let blocks = |name: &&str| -> HashSet<usize> {
        let said = oracle::debugfs(image, &[&format!("blocks {name}")]);
        said.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    let files: Vec<HashSet<usize>> = names.iter().map(blocks).collect();
    let content = fs::read(image).unwrap();
    let is_swapped = |block: &[u8]| block.starts_with(b"swapped by extant");
    let swapped: Vec<usize> =
        content.chunks(4096).enumerate().filter(|(_, b)| is_swapped(b)).map(|(at, _)| at).collect();
    assert!(swapped.iter().all(|at| files.iter().any(|file| file.contains(at))), "{swapped:?} {files:?}");
    for (name, file) in names.iter().zip(&files) {
        assert!(swapped.iter().any(|at| file.contains(at)), "{name}: {swapped:?} {file:?}");
    }
}

/// A program that runs keeps its text, also where open(2) truncates without asking to write.
#[test]
fn a_running_program_is_not_truncated() {
    need!(may_mount(), env::tools(&["cat"]));
    let (_dir, image) = image("-t ext4");
    let mount = Mounted::new(&image, "");
    let program = mount.path().join("program");
    fs::copy("/bin/cat", &program).unwrap();
    let size = fs::metadata(&program).unwrap().len();
    let mut child = oracle::start(Command::new(&program).stdin(Stdio::piped())).unwrap();
    let truncate = || rustix::fs::open(&program, OFlags::RDONLY | OFlags::TRUNC, Mode::empty());
    assert_eq!(truncate().unwrap_err(), rustix::io::Errno::TXTBSY);
    assert_eq!(fs::metadata(&program).unwrap().len(), size);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    truncate().unwrap();
    assert_eq!(fs::metadata(&program).unwrap().len(), 0);
    mount.unmount();
    assert_clean(&image);
}

/// What goes wrong after the mount is said to syslog, and stays in the superblock for `extant info`.
#[test]
fn later_errors_reach_syslog_and_the_superblock() {
    need!(may_mount(), env::tools(&["unshare", "debugfs"]));
    let (dir, image) = image("-t ext4 -b 4096");
    let at = dir.join("at");
    fs::create_dir(&at).unwrap();
    let blocks = oracle::debugfs_write(&image, &["mkdir sub", "write /etc/hostname sub/file", "blocks sub"]);
    let block: u64 = blocks.split_whitespace().filter_map(|w| w.parse().ok()).next_back().expect("its block");
    fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap()
        .write_all_at(&[0xEE; 600], block * 4096 + 100)
        .unwrap();
    let log = UnixDatagram::bind(dir.join("log")).unwrap();
    let script = "set -e\n\
        t=$(mktemp -d); mount -t tmpfs none $t; mkdir $t/shm; mount --rbind /dev/shm $t/shm\n\
        cp -a /dev/fuse /dev/null $t; ln -s $1/log $t/log; mount --move $t /dev; rmdir $t\n\
        $2 mount -o attach=plain,errors=continue $1/image $1/at\n\
        if ls $1/at/sub >$1/said 2>&1; then exit 3; fi\n\
        $2 umount $1/at\n";
    let out = run(Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(env!("CARGO_BIN_EXE_extant")));
    assert!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    log.set_nonblocking(true).unwrap();
    let mut messages = Vec::new();
    let mut message = [0; 4096];
    while let Ok(len) = log.recv(&mut message) {
        messages.push(String::from_utf8_lossy(&message[..len]).into_owned());
    }
    // Facility daemon (3), severity error (3).
    let told = messages.iter().find(|m| m.starts_with("<27>extant["));
    assert!(told.is_some_and(|m| m.contains("inode") || m.contains("block")), "{messages:?}");
    let info = good(extant().args(["info", "--json"]).arg(&image)).stdout;
    let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
    assert!(info["errors"].as_u64().is_some_and(|n| n > 0), "{info}");
    let shown = good(extant().arg("info").arg(&image)).stdout;
    assert!(String::from_utf8_lossy(&shown).contains("first error"));
}

#[test]
fn a_mount_of_a_filesystem_with_recorded_errors_warns() {
    need!(may_mount(), env::tools(&["debugfs"]));
    let (dir, image) = image("-t ext4");
    let at = dir.join("at");
    fs::create_dir(&at).unwrap();
    for (state, warned) in [("1", false), ("3", true)] {
        oracle::debugfs_write(&image, &[&format!("ssv state {state}")]);
        let out = good(extant().arg("mount").args([&image, &at]));
        good(extant().arg("umount").arg(&at));
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(said.contains("errors on record"), warned, "state {state}: {said}");
    }
}

#[test]
fn symbolic_links_are_left_alone_if_asked() {
    need!(may_mount());
    let (_dir, image) = image("-t ext4");
    for (options, follows) in [("rw", true), ("nosymfollow", false), ("nosymfollow,symfollow", true)] {
        let mounted = Mounted::new(&image, options);
        let link = mounted.path().join("link");
        fs::write(mounted.path().join("file"), "content").unwrap();
        if follows {
            let _ = symlink("file", &link);
        }
        assert_eq!(fs::read(&link).is_ok(), follows, "{options}");
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("file"));
        mounted.unmount();
    }
}

/// fallocate(2) where nothing can be written, on a mount of ours and on the kernel's, and the library's.
#[test]
fn no_fallocate_on_a_read_only_mount() {
    need!(may_mount(), env::kernel_mounts());
    use extant::{Credentials, FallocateMode, Filesystem, MountOptions, Setup};
    let (dir, image) = image("-t ext4");
    let mount = Mounted::new(&image, "");
    fs::write(mount.path().join("file"), vec![1; 10_000]).unwrap();
    mount.unmount();
    let answers = |at: &Path| {
        let _open = oracle::files_on_a_mount();
        let path = at.join("file");
        let to_write = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap_err();
        let to_read = File::open(&path).unwrap();
        // Allocate, keep size, punch, punch without keep size, collapse, zero, insert, unshare.
        let modes = [0, 1, 3, 2, 8, 16, 32, 64].map(|mode| {
            let mode = rustix::fs::FallocateFlags::from_bits_retain(mode);
            rustix::fs::fallocate(&to_read, mode, 0, 4096).unwrap_err().raw_os_error()
        });
        (to_write.raw_os_error(), modes)
    };
    let theirs = extant_testkit::kernel::KernelMount::ro(&image);
    let expected = answers(theirs.path());
    theirs.unmount();
    let (erofs, ebadf, eopnotsupp) = (30, 9, 95);
    let modes = [ebadf, ebadf, ebadf, eopnotsupp, ebadf, ebadf, ebadf, ebadf];
    assert_eq!(expected, (Some(erofs), modes), "the kernel's");
    for options in ["ro,attach=plain", "ro,attach=loop"] {
        let mount = Mounted::of(&image, &dir.join("at"), options);
        assert_eq!(answers(mount.path()), expected, "{options}");
        mount.unmount();
    }
    let device = extant_device::OpenOptions::new().open(&image).unwrap();
    let options = MountOptions::parse("ro").unwrap();
    let fs = Filesystem::open(std::sync::Arc::new(device), Setup { options, ..Setup::default() }).unwrap();
    let cred = Credentials::root();
    let file = fs.lookup(&fs.root().unwrap(), b"file", &cred).unwrap();
    for mode in [0, 1, 3, 8, 16, 17, 32] {
        let (mode, keep) = FallocateMode::from_flags(mode).unwrap();
        let refused = fs.fallocate(&file, mode, 0, 4096, keep, &cred).unwrap_err();
        assert_eq!(refused.errno(), erofs, "{mode:?}");
    }
    drop(file);
    fs.unmount().unwrap();
}
