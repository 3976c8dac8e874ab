//! Servers that forget to answer, panic, block, and a kernel that must be told of changes.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use extant_fuse::wire::{
    Attr, AttrOut, EntryOut, FopenFlags, FsyncIn, GetattrIn, OpenIn, OpenOut, ROOT_ID, ReadIn,
};
use extant_fuse::{Bytes, Empty, Errno, Reply, Request, Server, SessionOptions};

use crate::served::{Served, may_mount};

/// Files `a` (node 2) and its like; each test's behaviour hangs on the node.
#[derive(Default)]
struct Odd {
    fsyncs: Mutex<u32>,
    changed: Condvar,
    release: AtomicBool,
    version: AtomicU32,
    interrupted: AtomicBool,
    destroyed: AtomicU32,
}

const FORGETFUL: u64 = 2;
const PANICS: u64 = 3;
const PLAIN: u64 = 4;
const WAITS_FOR_SIGNAL: u64 = 5;
/// `f0` to `f9`.
const FIRST_OF_MANY: u64 = 10;

fn attr(node: u64, size: u64) -> Attr {
    let mode = if node == ROOT_ID { 0o040_755 } else { 0o100_644 };
    Attr { ino: node, size, mode, nlink: 1, blksize: 4096, ..Attr::default() }
}

impl Odd {
    fn content(&self) -> Vec<u8> {
        format!("version {}", self.version.load(Ordering::SeqCst)).into_bytes()
    }
}

impl Server for Odd {
    fn destroy(&self) {
        self.destroyed.fetch_add(1, Ordering::SeqCst);
    }

    fn lookup(&self, _: &Request<'_>, name: &[u8], reply: Reply<'_, EntryOut>) {
        let nodeid = match name {
            b"forgetful" => FORGETFUL,
            b"panics" => PANICS,
            b"plain" => PLAIN,
            b"waits" => WAITS_FOR_SIGNAL,
            [b'f', digit @ b'0'..=b'9'] => FIRST_OF_MANY + u64::from(digit - b'0'),
            _ => return reply.error(Errno::NOENT),
        };
        let attr = attr(nodeid, self.content().len() as u64);
        reply.ok(&EntryOut { nodeid, entry_valid: 3600, attr_valid: 3600, attr, ..EntryOut::default() });
    }

    fn getattr(&self, req: &Request<'_>, _: &GetattrIn, reply: Reply<'_, AttrOut>) {
        let attr = attr(req.node(), self.content().len() as u64);
        reply.ok(&AttrOut { attr_valid: 3600, attr, ..AttrOut::default() });
    }

    fn open(&self, req: &Request<'_>, _: &OpenIn, reply: Reply<'_, OpenOut>) {
        match req.node() {
            // `reply` is dropped.
            FORGETFUL => {}
            PANICS => panic!("on purpose"),
            WAITS_FOR_SIGNAL => {
                *self.fsyncs.lock().unwrap() += 1;
                self.changed.notify_all();
                while !req.interrupted() {
                    std::thread::yield_now();
                }
                self.interrupted.store(true, Ordering::SeqCst);
                reply.error(Errno::INTR);
            }
            _ => reply.ok(&OpenOut { open_flags: FopenFlags::KEEP_CACHE.bits(), ..OpenOut::default() }),
        }
    }

    fn read(&self, _: &Request<'_>, _: &ReadIn, reply: Reply<'_, Bytes>) {
        reply.bytes(&self.content());
    }

    fn fsync(&self, _: &Request<'_>, _: &FsyncIn, reply: Reply<'_, Empty>) {
        let mut fsyncs = self.fsyncs.lock().unwrap();
        *fsyncs += 1;
        self.changed.notify_all();
        while !self.release.load(Ordering::SeqCst) {
            fsyncs = self.changed.wait(fsyncs).unwrap();
        }
        reply.done();
    }
}

#[test]
fn a_dropped_reply_and_a_panic_answer_eio() {
    if !may_mount("a_dropped_reply_and_a_panic_answer_eio") {
        return;
    }
    let server = Arc::new(Odd::default());
    let mount = Served::new(Arc::clone(&server));
    for name in ["forgetful", "panics"] {
        let error = fs::File::open(mount.join(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()), "{name}");
    }
    assert_eq!(fs::read(mount.join("plain")).unwrap(), b"version 0");
    mount.finish().unwrap();
    assert_eq!(server.destroyed.load(Ordering::SeqCst), 1);
}

#[test]
fn requests_are_served_while_all_readers_are_in_fsync() {
    if !may_mount("requests_are_served_while_all_readers_are_in_fsync") {
        return;
    }
    let server = Arc::new(Odd::default());
    let mount = Served::with(Arc::clone(&server), SessionOptions { readers: 2, ..SessionOptions::default() });
    std::thread::scope(|scope| {
        for i in 0..6 {
            // Different files: the kernel holds a file's lock over its fsync.
            let path = mount.join(&format!("f{i}"));
            scope.spawn(move || fs::File::open(path).unwrap().sync_all().unwrap());
        }
        let mut fsyncs = server.fsyncs.lock().unwrap();
        while *fsyncs < 6 {
            fsyncs = server.changed.wait(fsyncs).unwrap();
        }
        drop(fsyncs);
        // Every fsync is inside the server; this would wait for ever if nobody read requests.
        assert_eq!(fs::read(mount.join("plain")).unwrap(), b"version 0");
        server.release.store(true, Ordering::SeqCst);
        server.changed.notify_all();
    });
    mount.finish().unwrap();
}

#[test]
fn a_notification_drops_what_the_kernel_caches() {
    if !may_mount("a_notification_drops_what_the_kernel_caches") {
        return;
    }
    let server = Arc::new(Odd::default());
    let mount = Served::new(Arc::clone(&server));
    assert_eq!(fs::read(mount.join("plain")).unwrap(), b"version 0");
    server.version.store(1, Ordering::SeqCst);
    assert_eq!(fs::read(mount.join("plain")).unwrap(), b"version 0", "cached");
    mount.notifier().inval_inode(PLAIN, 0, 0).unwrap();
    assert_eq!(fs::read(mount.join("plain")).unwrap(), b"version 1");
    mount.notifier().store(PLAIN, 8, b"7").unwrap();
    assert_eq!(fs::read(mount.join("plain")).unwrap(), b"version 7");
    mount.notifier().inval_entry(ROOT_ID, b"plain").unwrap();
    assert_eq!(mount.notifier().inval_entry(ROOT_ID, b"unknown"), Err(Errno::NOENT));
    mount.finish().unwrap();
}

#[test]
fn a_killed_caller_interrupts_its_request() {
    if !may_mount("a_killed_caller_interrupts_its_request") {
        return;
    }
    let server = Arc::new(Odd::default());
    let mount = Served::new(Arc::clone(&server));
    let mut command = std::process::Command::new("cat");
    command.arg(mount.join("waits")).stderr(std::process::Stdio::null());
    let mut child = extant_testkit::oracle::start(&mut command).unwrap();
    let mut reads = server.fsyncs.lock().unwrap();
    while *reads == 0 {
        reads = server.changed.wait(reads).unwrap();
    }
    drop(reads);
    child.kill().unwrap();
    child.wait().unwrap();
    while !server.interrupted.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    mount.finish().unwrap();
}
