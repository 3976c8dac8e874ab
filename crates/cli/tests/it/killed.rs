//! What survives when the server is killed: for each kind of mount, the promises of docs/mount.md.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use extant_testkit::kernel::{Loop, wait_until_detached};
use extant_testkit::{Scratch, env, need, oracle, scratch};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::mounted::{Mounted, extant};
use crate::run::ok;

/// A user of no importance.
const NOBODY: u32 = 65_534;

/// What is done on the mount before the server is killed, always ended by a write that nothing follows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// fsync(2) of a file, and of a directory after a rename.
    Fsync,
    /// syncfs(2). sync(2) is that of every filesystem of the machine, of which a test must not depend: the kernel asks a server
    /// the same for both.
    Sync,
}

impl Work {
    fn script(self) -> &'static str {
        match self {
            Self::Fsync => {
                "set -e; cd \"$1\"
                head -c 10000 /dev/zero | tr '\\0' k >kept; sync kept; sync .
                echo old >old; sync old; mv old new; sync .
                echo unsynced >unsynced"
            }
            Self::Sync => {
                "set -e; cd \"$1\"
                head -c 10000 /dev/zero | tr '\\0' k >kept
                echo synced >synced; mkdir dir; echo inner >dir/inner; ln kept dir/link; sync -f .
                echo unsynced >unsynced"
            }
        }
    }
}

fn image(dir: &Scratch) -> PathBuf {
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, &format!("-t ext4 -E root_owner={NOBODY}:{NOBODY}"));
    image
}

fn run(command: &mut Command) {
    let out = oracle::output(command).expect("a program starts");
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Does the work on `dir`, kills the server that serves it, and takes the dead mount away.
fn work_and_kill(dir: &Path, mut shell: Command, work: Work) {
    let server = server_of(dir);
    run(shell.args(["-c", work.script(), "sh"]).arg(dir));
    kill(server);
    rustix::mount::unmount(dir, UnmountFlags::empty()).expect("unmount");
}

/// The process that serves `dir`: the one that was started with it.
fn server_of(dir: &Path) -> Pid {
    let serves = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        words.contains(&&b"--server"[..]) && words.contains(&dir.as_os_str().as_encoded_bytes())
    };
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let mut pids = entries.filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.find(serves).and_then(Pid::from_raw).expect("the server runs")
}

/// SIGKILL; back when the process is gone.
fn kill(pid: Pid) {
    let fd: OwnedFd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("pidfd");
    rustix::process::pidfd_send_signal(&fd, Signal::KILL).expect("kill");
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).expect("poll");
}

/// The image wants a replay and nothing else, and what was promised is there.
fn check(image: &Path, work: Work) {
    let replayed = oracle::replay_journal(image);
    assert!(replayed.status <= 1, "{replayed}");
    oracle::assert_clean(image);
    let names = ok(&[&"ls", &image, &"/"]).text();
    let has = |name: &str| names.split_whitespace().any(|n| n == name);
    let content = |path: &str| ok(&[&"cat", &image, &path]).out;
    match work {
        Work::Fsync => {
            assert!(has("kept") && content("/kept") == [b'k'; 10_000], "fsync of a file: {names}");
            assert!(has("new") && !has("old"), "fsync of a directory after a rename: {names}");
            assert_eq!(content("/new"), b"old\n");
        }
        Work::Sync => {
            assert!(has("synced") && has("dir"), "sync(2): {names}");
            assert_eq!(content("/synced"), b"synced\n");
            assert_eq!(content("/dir/inner"), b"inner\n");
            assert_eq!(content("/dir/link"), [b'k'; 10_000]);
        }
    }
}

/// Where the kernel tells the server nothing of sync(2), it does nothing: what was not fsynced is as old as the last commit (which `commit=300`
/// keeps from coming), and the image is consistent.
fn check_unsynced(image: &Path) {
    let replayed = oracle::replay_journal(image);
    assert!(replayed.status <= 1, "{replayed}");
    oracle::assert_clean(image);
    let names = ok(&[&"ls", &image, &"/"]).text();
    assert!(!names.contains("synced"), "docs/mount.md says that sync(2) does nothing here: {names}");
}

fn sh() -> Command {
    oracle::command("sh")
}

#[test]
fn on_a_block_device_fsync_and_sync_survive() {
    need!(env::kernel_mounts(), env::fuse());
    for work in [Work::Fsync, Work::Sync] {
        let dir = scratch();
        let image = image(&dir);
        let device = Loop::attach(&image, false);
        let mounted = Mounted::of(device.device(), &dir.join("mnt"), "");
        work_and_kill(mounted.path(), sh(), work);
        mounted.gone();
        drop(device);
        check(&image, work);
    }
}

#[test]
fn on_an_image_file_fsync_and_sync_survive() {
    need!(env::kernel_mounts(), env::fuse());
    for work in [Work::Fsync, Work::Sync] {
        let dir = scratch();
        let image = image(&dir);
        let mounted = Mounted::new(&image, "attach=loop");
        work_and_kill(mounted.path(), sh(), work);
        mounted.gone();
        wait_until_detached(&image);
        check(&image, work);
    }
}

/// The kernel keeps sync(2) to itself here.
#[test]
fn on_a_plain_mount_fsync_survives_and_sync_does_nothing() {
    need!(env::root(), env::fuse());
    let dir = scratch();
    let image = image(&dir);
    let mounted = Mounted::new(&image, "attach=plain");
    work_and_kill(mounted.path(), sh(), Work::Fsync);
    mounted.gone();
    check(&image, Work::Fsync);
    let image = self::image(&dir);
    let mounted = Mounted::new(&image, "attach=plain,commit=300");
    work_and_kill(mounted.path(), sh(), Work::Sync);
    mounted.gone();
    check_unsynced(&image);
}

/// As on a plain mount.
#[test]
fn on_a_users_mount_fsync_survives_and_sync_does_nothing() {
    need!(
        env::root(),
        env::fuse(),
        env::tools(&["setpriv", "fusermount3", "unshare", "nsenter", "mknod", "umount"])
    );
    let program = env::tool("fusermount3").expect("asked for");
    let mode = std::fs::metadata(&program).map_or(0, |m| m.mode());
    need!(if mode & 0o4000 != 0 { Ok(()) } else { Err("fusermount3 is not set-user-id") });
    let dir = scratch();
    let place = Place::new(&dir);
    let mnt = dir.join("mnt");
    std::fs::create_dir(&mnt).expect("folder");
    let owned = |path: &Path| std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
    [dir.path(), &mnt].into_iter().for_each(owned);
    // Where the tests are built need not be for everybody.
    let program = dir.join("extant");
    std::fs::copy(extant().get_program(), &program).expect("a copy");
    for (options, work) in [("rw", Work::Fsync), ("commit=300", Work::Sync)] {
        let image = image(&dir);
        owned(&image);
        run(place.as_nobody(&program).args(["mount", "-o", options]).arg(&image).arg(&mnt));
        let server = server_of(&mnt);
        run(place.as_nobody("sh").args(["-c", work.script(), "sh"]).arg(&mnt));
        kill(server);
        run(place.inside("umount").arg(&mnt));
        match work {
            Work::Fsync => check(&image, work),
            Work::Sync => check_unsynced(&image),
        }
    }
}

/// A mount namespace in which `/dev/fuse` is for everybody, as on an ordinary machine. It ends with its last process.
struct Place {
    holder: Child,
}

impl Place {
    fn new(dir: &Scratch) -> Self {
        let script = "mknod \"$1/fuse\" c 10 229 && chmod 666 \"$1/fuse\" && mount --bind \"$1/fuse\" /dev/fuse && \
                      echo ready && read -r end";
        let mut holder = oracle::command("unshare");
        holder.args(["--mount", "sh", "-c", script, "sh"]).arg(dir.path());
        let mut holder =
            oracle::start(holder.stdin(Stdio::piped()).stdout(Stdio::piped())).expect("unshare starts");
        let mut said = String::new();
        let out = holder.stdout.take().expect("asked for");
        BufReader::new(out).read_line(&mut said).expect("read");
        assert_eq!(said, "ready\n", "no node of its own");
        Self { holder }
    }

    /// A program there.
    fn inside(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = oracle::command("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id())).arg("--").arg(program);
        command
    }

    fn as_nobody(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.inside("setpriv");
        command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".into()]);
        command.arg(program.as_ref());
        command
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It reads the end of its input.
        drop(self.holder.stdin.take());
        let _status = self.holder.wait();
    }
}

/// The command kills the program that serves it.
#[test]
fn under_exec_fsync_survives_and_sync_does_nothing() {
    need!(env::root(), env::fuse());
    for work in [Work::Fsync, Work::Sync] {
        let dir = scratch();
        let image = image(&dir);
        let script = work.script().replace("$1", "$EXTANT_ROOT") + "; kill -9 $PPID";
        let mut exec = extant();
        exec.args(["exec", "-o", "commit=300"]).arg(&image).args(["--", "sh", "-c", &script]);
        let out = oracle::output(&mut exec).expect("extant exec");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&out.status), Some(9), "{out:?}");
        match work {
            Work::Fsync => check(&image, work),
            Work::Sync => check_unsynced(&image),
        }
    }
}

/// `errors=panic`: damage ends the server, which has not touched the image after it.
#[test]
fn damage_ends_a_server_under_errors_panic() {
    need!(env::root(), env::fuse(), env::tools(&["debugfs"]));
    let dir = scratch();
    let image = image(&dir);
    ok(&[&"mkdir", &image, &"/dir"]);
    let listed = oracle::debugfs(&image, &["blocks /dir"]);
    let block: u64 = listed.split_whitespace().find_map(|w| w.parse().ok()).expect("one block");
    let mounted = Mounted::new(&image, "attach=plain,errors=panic,commit=300");
    std::fs::write(mounted.path().join("written"), "late").expect("write");
    let server = rustix::process::pidfd_open(server_of(mounted.path()), PidfdFlags::empty()).expect("pidfd");
    let size = oracle::dumpe2fs_header(&image)
        .iter()
        .find_map(|(name, value)| (name == "Block size").then(|| value.parse::<u64>().expect("a size")))
        .expect("a block size");
    let disk = std::fs::OpenOptions::new().write(true).open(&image).expect("the image");
    std::os::unix::fs::FileExt::write_all_at(&disk, &[0xA5; 512], block * size).expect("damage");
    let before = std::fs::read(&image).expect("the image");
    assert!(std::fs::read_dir(mounted.path().join("dir")).and_then(|mut d| d.next().transpose()).is_err());
    poll(&mut [PollFd::new(&server, PollFlags::IN)], None).expect("poll");
    assert!(
        std::fs::metadata(mounted.path())
            .is_err_and(|e| e.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()))
    );
    rustix::mount::unmount(mounted.path(), UnmountFlags::empty()).expect("unmount");
    mounted.gone();
    assert!(before == std::fs::read(&image).expect("the image"), "it was written after the damage was met");
}
