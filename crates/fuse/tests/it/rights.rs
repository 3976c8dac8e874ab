//! What the kernel's VFS does not check, and the server must: who may call which ioctl, see which attribute, take the last blocks. The
//! same calls on the kernel's own mount say what is right.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use extant::{Credentials, QuotaKind, QuotaLimits};
use extant_testkit::kernel::KernelMount;
use extant_testkit::{env, oracle};
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use crate::ext4::{finish, mounted};
use crate::served::may_mount;

const NOBODY: u32 = 65534;
const OWNER: u32 = 1000;

/// Calls each command on a descriptor that was opened for reading only, as somebody: user 0 with its capabilities (`root`) or without
/// (`bare`), or a user without any. Prints the errors.
const CALLS: &str = "
import ctypes, fcntl, os, sys
path, who, calls = sys.argv[1:]
file = os.open(path, os.O_RDONLY)
if who == 'bare':
    head, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(head, none) != 0:
        sys.exit('capset')
elif who != 'root':
    os.setgroups([])
    os.setresgid(int(who), int(who), int(who))
    os.setresuid(int(who), int(who), int(who))
for call in calls.split():
    number, argument = call.split(':')
    number = int(number, 16)
    data = bytearray(bytes.fromhex(argument).ljust((number >> 16) & 0x3fff, bytes(1)))
    try:
        fcntl.ioctl(file, number, data)
        print(number, 0)
    except OSError as error:
        print(number, error.errno)
";

/// Number and argument, as hex digits: flags, project, generations, label, trim; the same numbers of 32 bits, which are not a program's
/// of 64 bits to call.
const COMMANDS: [&str; 17] = [
    "80086601:",
    "40086602:40000800",
    "80046601:",
    "40046602:10000800",
    "801c581f:",
    "401c5820:80",
    "80087601:",
    "80086603:",
    "80047601:",
    "80046603:",
    "40087602:07",
    "40086604:08",
    "40047602:09",
    "40046604:0a",
    "81009431:",
    "41009432:6e6577",
    "c0185879:0000000000000000ffffffffffffffff",
];

/// Those only where they are refused: a shutdown, and (of ours) the remount.
const DRASTIC: &str = "8004587d:02000000";
const REMOUNT: &str = "d00045e1:";

fn call(path: &Path, who: &str, calls: &[&str]) -> Vec<(u32, i32)> {
    let mut python = oracle::command("python3");
    let said = oracle::run_ok(python.args(["-c", CALLS]).arg(path).arg(who).arg(calls.join(" ")));
    let pairs = said.lines().map(|line| line.split_once(' ').expect("two numbers"));
    pairs.map(|(number, errno)| (number.parse().unwrap(), errno.parse().unwrap())).collect()
}

#[test]
fn ioctls_ask_for_the_same_rights_as_the_kernels() {
    if !may_mount("ioctls_ask_for_the_same_rights_as_the_kernels") {
        return;
    }
    need!(env::kernel_mounts(), env::tools(&["mke2fs", "e2fsck", "python3"]));
    let scratch = env::scratch();
    for features in ["-t ext4 -O ^metadata_csum", "-t ext4 -O metadata_csum"] {
        let image = scratch.sparse("image", 16 << 20);
        oracle::mke2fs(&image, 16 << 20, features);
        let kernel = KernelMount::rw(&image);
        fs::write(kernel.path().join("f"), b"text").unwrap();
        rustix::fs::chown(kernel.path().join("f"), Some(Uid::from_raw(OWNER)), None).unwrap();
        let all = |path: &Path| {
            ["bare", "65534", "1000", "root"].map(|who| {
                let mut calls = COMMANDS.to_vec();
                if who != "root" {
                    calls.push(DRASTIC);
                }
                (who, call(path, who, &calls))
            })
        };
        let right = all(&kernel.path().join("f"));
        kernel.unmount();
        let (mount, adapter) = mounted(&image, "rw");
        let ours = all(&mount.join("f"));
        for ((who, right), (_, ours)) in right.iter().zip(&ours) {
            for (right, ours) in right.iter().zip(ours) {
                assert_eq!(ours, right, "{features}, {who}: number {:x}, errno", right.0);
            }
        }
        for (who, expected) in [("bare", 1), ("65534", 1), ("1000", 1), ("root", 0)] {
            assert_eq!(call(&mount.join("f"), who, &[REMOUNT]), [(0xd000_45e1, expected)], "{who}");
        }
        finish(mount, &adapter);
        oracle::assert_clean(&image);
        fs::remove_file(&image).unwrap();
    }
}

/// Flags that the kernel leaves to the filesystem: for root, as there.
#[test]
fn root_may_have_a_files_data_journalled() {
    if !may_mount("root_may_have_a_files_data_journalled") {
        return;
    }
    need!(env::kernel_mounts(), env::tools(&["mke2fs", "e2fsck", "python3"]));
    let scratch = env::scratch();
    let image = scratch.sparse("image", 16 << 20);
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let set = |path: &Path| {
        fs::write(path, b"text").unwrap();
        rustix::fs::chown(path, Some(Uid::from_raw(OWNER)), None).unwrap();
        ["bare", "1000", "root"].map(|who| call(path, who, &["40086602:00400800"])[0].1)
    };
    let kernel = KernelMount::rw(&image);
    let right = set(&kernel.path().join("of the kernel"));
    kernel.unmount();
    let (mount, adapter) = mounted(&image, "rw");
    assert_eq!(set(&mount.join("ours")), right);
    // Root of a container may lack the capability.
    assert_eq!(right, [1, 1, i32::from(may_take_resources().is_err())]);
    finish(mount, &adapter);
    oracle::assert_clean(&image);
}

/// Whether this process has `CAP_SYS_RESOURCE`, which root of a container may lack. (It has it again in a user
/// namespace of its own; the tests want the ids 0 to 65535 mapped there.)
fn may_take_resources() -> Result<(), String> {
    let mine = rustix::thread::capabilities(None).map_err(|e| e.to_string())?;
    let has = mine.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE);
    if has { Ok(()) } else { Err("no CAP_SYS_RESOURCE".into()) }
}

/// Runs `f` in a thread that is nobody.
fn as_nobody<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    as_user(NOBODY, f)
}

fn as_user<R: Send>(id: u32, f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            f()
        });
        thread.join().unwrap()
    })
}

fn open(path: &Path, flags: OFlags) -> OwnedFd {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

#[test]
fn trusted_attributes_are_listed_to_administrators() {
    if !may_mount("trusted_attributes_are_listed_to_administrators") {
        return;
    }
    need!(env::kernel_mounts(), env::tools(&["mke2fs", "e2fsck"]));
    let scratch = env::scratch();
    let image = scratch.sparse("image", 16 << 20);
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let lists = |path: &Path| {
        let _open = oracle::files_on_a_mount();
        fs::write(path, b"text").unwrap();
        rustix::fs::setxattr(path, "trusted.x", b"1", XattrFlags::empty()).unwrap();
        rustix::fs::setxattr(path, "user.y", b"2", XattrFlags::empty()).unwrap();
        let file = open(path, OFlags::RDONLY);
        let list = || {
            let mut names = vec![0; 1000];
            let len = rustix::fs::flistxattr(&file, &mut names[..]).unwrap();
            names.truncate(len);
            String::from_utf8(names).unwrap()
        };
        // The size alone is asked for before the names are.
        let size = || rustix::fs::flistxattr(&file, &mut [0_u8; 0]).unwrap();
        [list(), as_nobody(list), size().to_string(), as_nobody(size).to_string()]
    };
    let kernel = KernelMount::rw(&image);
    let right = lists(&kernel.path().join("of the kernel"));
    kernel.unmount();
    let (mount, adapter) = mounted(&image, "rw");
    let ours = lists(&mount.join("ours"));
    let sorted = |text: &String| {
        let mut names: Vec<String> = text.split('\0').map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(ours.each_ref().map(sorted), right.each_ref().map(sorted));
    assert_eq!(ours[1], "user.y\0");
    finish(mount, &adapter);
    oracle::assert_clean(&image);
}

/// Makes directories until there is no space for any, in whatever leaf of the one above its name would be.
fn fill_with_directories(dir: impl AsFd) {
    let mut failed = 0;
    for n in 0.. {
        match rustix::fs::mkdirat(&dir, format!("{n:0200}"), Mode::RWXU) {
            Ok(()) => failed = 0,
            Err(errno) => {
                assert_eq!(errno, Errno::NOSPC, "directory {n}");
                failed += 1;
            }
        }
        if failed > 100 {
            return;
        }
    }
}

#[test]
fn reserved_blocks_are_roots_for_everything() {
    if !may_mount("reserved_blocks_are_roots_for_everything") {
        return;
    }
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let scratch = env::scratch();
    let image = scratch.sparse("image", 8 << 20);
    // Room for many more directories than there are blocks for.
    oracle::mke2fs(&image, 8 << 20, "-t ext4 -b 1024 -m 20 -N 8000 -O ^has_journal");
    let (mount, adapter) = mounted(&image, "rw");
    {
        let _open = oracle::files_on_a_mount();
        fs::create_dir(mount.join("open")).unwrap();
        rustix::fs::chown(mount.join("open"), Some(Uid::from_raw(NOBODY)), None).unwrap();
        fs::write(mount.join("f"), b"text").unwrap();
        let dir = open(&mount.join("open"), OFlags::RDONLY);
        as_nobody(|| fill_with_directories(&dir));
        // Each of these needs a block that only root can have.
        for n in 0..12 {
            let long = |kind: &str| mount.join(&format!("{kind}{n:0200}"));
            fs::hard_link(mount.join("f"), long("link")).expect("link");
            fs::create_dir(mount.join(&format!("d{n}"))).expect("mkdir");
            fs::rename(mount.join(&format!("d{n}")), long("renamed")).expect("rename");
            std::os::unix::fs::symlink("x".repeat(500), long("symlink")).expect("symlink");
            let file = format!("file{n}");
            fs::write(mount.join(&file), vec![b'x'; 3000]).expect("write");
            let value = vec![b'x'; 500];
            rustix::fs::setxattr(mount.join(&file), format!("user.{n}"), &value, XattrFlags::empty())
                .expect("setxattr");
        }
    }
    finish(mount, &adapter);
    oracle::assert_clean(&image);
}

#[test]
fn root_passes_a_users_quota() {
    if !may_mount("root_passes_a_users_quota") {
        return;
    }
    need!(may_take_resources(), env::tools(&["mke2fs", "e2fsck"]));
    let scratch = env::scratch();
    let image = scratch.sparse("image", 32 << 20);
    oracle::mke2fs(&image, 32 << 20, "-t ext4 -b 4096 -O quota");
    let (mount, adapter) = mounted(&image, "rw,usrquota");
    {
        let _open = oracle::files_on_a_mount();
        let fs = adapter.filesystem();
        let owned = |name: &str, len: usize| {
            fs::write(mount.join(name), vec![1; len]).unwrap();
            File::open(mount.join(name)).unwrap().sync_all().unwrap();
            rustix::fs::chown(mount.join(name), Some(Uid::from_raw(OWNER)), None)
        };
        owned("f", 102_400).unwrap();
        let limits = QuotaLimits { space_hard: 100, ..QuotaLimits::default() };
        fs.set_quota(QuotaKind::User, OWNER, limits, &Credentials::root()).unwrap();
        let file = open(&mount.join("f"), OFlags::WRONLY | OFlags::APPEND);
        let more = || rustix::io::write(&file, &[2; 20_000]);
        assert_eq!(as_user(OWNER, more), Err(Errno::DQUOT));
        assert_eq!(more(), Ok(20_000));
        let allocate = || rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 200_000, 20_000);
        assert_eq!(as_user(OWNER, allocate), Err(Errno::DQUOT));
        allocate().unwrap();
        owned("g", 20_000).expect("root gives a file away");
        assert_eq!(fs::metadata(mount.join("g")).unwrap().uid(), OWNER);
        rustix::fs::unlinkat(CWD, mount.join("g"), rustix::fs::AtFlags::empty()).unwrap();
    }
    finish(mount, &adapter);
    oracle::assert_clean(&image);
}
