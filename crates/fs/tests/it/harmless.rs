//! The filesystem's own threads make no transfers to a program's memory, and say so: a look at what may be under way leaves them out. Each of
//! them is stopped inside of a call of the device, where it waits in read(2), as one does that reads from or writes to a slow one.
//! If it were not left out, the look would take that for a transfer, and while the device is busy no fsync of a mapped file would find that
//! nothing is under way.
//!
//! A look sees the whole process: each test has one of its own.

use std::cell::Cell;
use std::io::{PipeReader, Read, Write};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use extant::{Credentials, Filesystem, Setup};
use extant_device::{BlockDevice, MemoryDevice};
use extant_sys::transfers::{UnderWay, under_way};
use extant_testkit::env::{scratch, tools};
use extant_testkit::oracle::mke2fs;

use crate::mapping::{new_file, open, shared, userfaultfd};

const BLOCK: usize = 4096;

std::thread_local! {
    /// A thread of the test, which the device never stops.
    static OWN: Cell<bool> = const { Cell::new(false) };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Read,
    Write,
    WriteZeroes,
}

/// A device that stops the first thread of a name (or none) in a call of a kind, once, until something is in a pipe.
#[derive(Debug)]
struct Stopping {
    inner: MemoryDevice,
    next: Mutex<Option<(Call, Option<&'static str>)>>,
    reached: Mutex<Sender<u32>>,
    go: Mutex<PipeReader>,
}

impl Stopping {
    fn may_stop(&self, call: Call) {
        let thread = thread::current();
        let is_next = |next: &mut (Call, Option<&str>)| *next == (call, thread.name());
        if OWN.get() || self.next.lock().unwrap().take_if(is_next).is_none() {
            return;
        }
        self.reached.lock().unwrap().send(extant_sys::thread_number()).expect("the test waits");
        self.go.lock().unwrap().read_exact(&mut [0]).expect("a byte");
    }
}

impl BlockDevice for Stopping {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.may_stop(Call::Read);
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
        self.may_stop(Call::Write);
        self.inner.write_at(offset, buf)
    }
    fn flush(&self) -> std::io::Result<()> {
        self.inner.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.inner.discard(offset, len)
    }
    fn makes_zeros(&self) -> bool {
        true
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.may_stop(Call::WriteZeroes);
        self.inner.write_zeroes(offset, len)
    }
}

/// What `/proc` says of every other thread's system call.
fn others() -> Vec<(u32, String)> {
    let own = extant_sys::thread_number();
    let tasks = std::fs::read_dir("/proc/self/task").expect("threads");
    let numbers = tasks.map(|task| task.expect("a thread").file_name().to_str().unwrap().parse().unwrap());
    let lines = numbers.filter(|number| *number != own).filter_map(|number: u32| {
        let line = std::fs::read_to_string(format!("/proc/self/task/{number}/syscall"));
        // Or it has ended.
        Some((number, line.ok()?))
    });
    lines.collect()
}

/// Whether `stopped` waits in the device, and every other thread in a call that only waits, or in a fault.
fn all_wait(lines: &[(u32, String)], stopped: u32) -> bool {
    let number = |line: &str| line.split_ascii_whitespace().next().and_then(|n| n.parse::<i64>().ok());
    lines.iter().all(|(thread, line)| match number(line) {
        Some(libc::SYS_read) => *thread == stopped,
        Some(call) => {
            *thread != stopped
                && [-1, libc::SYS_futex, libc::SYS_ppoll, libc::SYS_poll, libc::SYS_restart_syscall]
                    .contains(&call)
        }
        None => false,
    })
}

/// What a look says while nobody but the stopped thread does anything.
fn look_beside(stopped: u32) -> UnderWay {
    loop {
        let before = others();
        if all_wait(&before, stopped) {
            let seen = under_way();
            if others() == before {
                return seen;
            }
        }
        thread::yield_now();
    }
}

/// Runs the test of this name in a process of its own; whether this is that process.
fn is_alone(test: &str) -> bool {
    const ASKED: &str = "EXTANT_HARMLESS";
    if std::env::var_os(ASKED).is_some() {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("harmless::{test}"), "--nocapture"]).env(ASKED, "1");
    let output = extant_testkit::oracle::output(&mut command).unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.contains("1 passed"), "{said}");
    false
}

/// Nothing else of the system has a context of libaio, which a look would see.
fn no_contexts() -> Result<(), String> {
    match std::fs::read_to_string("/proc/sys/fs/aio-nr").as_deref() {
        Ok("0\n") => Ok(()),
        other => Err(format!("a program of the system uses libaio: {other:?}")),
    }
}

/// What makes a thread of a mount do something.
struct Case {
    mke2fs: &'static str,
    options: &'static str,
    /// Which call it is stopped in, and its name.
    stop: (Call, Option<&'static str>),
    /// Before the mount.
    before: fn(&Arc<Filesystem>),
    cause: fn(&Arc<Filesystem>) -> Option<thread::JoinHandle<()>>,
}

const CASE: Case = Case {
    mke2fs: "",
    options: "commit=300,noinit_itable,cache_size=4m",
    stop: (Call::Write, None),
    before: |_| (),
    cause: |_| None,
};

fn left_out(case: &Case) {
    need!(tools(&["mke2fs"]), no_contexts());
    OWN.set(true);
    let dir = scratch();
    let path = dir.join("image");
    mke2fs(&path, 32 << 20, &format!("-t ext4 -b {BLOCK} {}", case.mke2fs));
    let (reached, stops) = channel();
    let (go, mut told) = std::io::pipe().expect("a pipe");
    let device = Arc::new(Stopping {
        inner: MemoryDevice::from_bytes(&std::fs::read(&path).expect("image")),
        next: Mutex::new(None),
        reached: Mutex::new(reached),
        go: Mutex::new(go),
    });
    let mount = || {
        let setup = Setup::with_options(case.options).expect("options");
        Filesystem::open(Arc::clone(&device) as Arc<dyn BlockDevice>, setup).expect("mount")
    };
    let fs = mount();
    (case.before)(&fs);
    fs.unmount().expect("unmount");
    drop(fs);
    let fs = mount();
    *device.next.lock().unwrap() = Some(case.stop);
    let helper = (case.cause)(&fs);
    let stopped = stops.recv().expect("a thread that comes to the device");
    let seen = look_beside(stopped);
    told.write_all(&[1]).expect("a byte");
    if let Some(helper) = helper {
        helper.join().expect("no panic inside");
    }
    fs.unmount().expect("unmount");
    // Not before: who ends the mount waits for the thread.
    assert_eq!(seen, UnderWay::Nothing, "a thread of the filesystem is taken for the program's");
}

#[test]
fn the_commit_thread() {
    if is_alone("the_commit_thread") {
        left_out(&Case {
            options: "commit=1,noinit_itable",
            stop: (Call::Write, Some("extant-commit")),
            cause: |fs| {
                new_file(fs, "a");
                None
            },
            ..CASE
        });
    }
}

#[test]
fn writeback_in_the_background() {
    if is_alone("writeback_in_the_background") {
        left_out(&Case {
            stop: (Call::Write, Some("writeback-0")),
            cause: |fs| {
                let file = open(fs, &new_file(fs, "a"), false);
                // More than the threads leave, less than writers write themselves.
                file.write_at(0, &[1; 1 << 20]).expect("a write");
                None
            },
            ..CASE
        });
    }
}

#[test]
fn eviction() {
    if is_alone("eviction") {
        left_out(&Case {
            stop: (Call::Read, None),
            before: |fs| {
                let file = open(fs, &new_file(fs, "a"), false);
                // More extents than the inode has room for: what frees them reads a block of the map.
                for at in 0..20 {
                    file.write_at(at * 2 * BLOCK as u64, &[1; BLOCK]).expect("a write");
                }
                file.fsync(false).expect("fsync");
            },
            cause: |fs| {
                let (root, cred) = (fs.root().unwrap(), Credentials::root());
                let file = fs.lookup(&root, b"a", &cred).expect("a file");
                fs.unlink(&root, b"a", &cred).expect("unlink");
                drop(file);
                None
            },
            ..CASE
        });
    }
}

#[test]
fn zeroing_of_inode_tables() {
    if is_alone("zeroing_of_inode_tables") {
        left_out(&Case {
            mke2fs: "-E nodiscard,lazy_itable_init=1",
            options: "commit=300",
            stop: (Call::WriteZeroes, None),
            ..CASE
        });
    }
}

#[test]
fn multiple_mount_protection() {
    if is_alone("multiple_mount_protection") {
        left_out(&Case { mke2fs: "-O mmp", ..CASE });
    }
}

#[test]
fn threads_that_answer_faults() {
    need!(userfaultfd());
    if is_alone("threads_that_answer_faults") {
        left_out(&Case {
            stop: (Call::Read, Some("extant-loads")),
            before: |fs| {
                let file = open(fs, &new_file(fs, "a"), false);
                file.write_at(0, &[7; BLOCK]).expect("a write");
            },
            cause: |fs| {
                let file = fs.lookup(&fs.root().unwrap(), b"a", &Credentials::root()).expect("a file");
                let map = open(fs, &file, false).map(0, BLOCK, &shared()).expect("a mapping");
                // It waits in its fault.
                Some(thread::spawn(move || {
                    assert_eq!(map.atomic_u64(0).load(Ordering::Relaxed), u64::from_ne_bytes([7; 8]));
                }))
            },
            ..CASE
        });
    }
}
