use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use extant::{Credentials, Error, Filesystem, InodeRef, Setup};
use extant_device::OpenOptions;
use extant_sync::Arc;
use extant_testkit::env::{self, Scratch};
use extant_testkit::oracle;
use zerocopy::FromZeros;

use super::node_of;
use crate::adapter::{Adapter, AdapterOptions, caller};
use crate::server::{Request, Stand};
use crate::wire::InHeader;

/// Longer than any of these tests takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// An adapter, and a directory without a name that the kernel still knows.
fn with_nameless() -> (Scratch, Adapter, InodeRef) {
    let scratch = env::scratch();
    let image = scratch.sparse("image", 16 << 20);
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let device = OpenOptions::new().write(true).open(&image).unwrap();
    let fs = Filesystem::open(Arc::new(device), Setup::default()).unwrap();
    let root = Credentials::root();
    let dir = fs.mkdir(&fs.root().unwrap(), b"dir", 0o755, &root).unwrap();
    let mut adapter = Adapter::new(fs, AdapterOptions::default());
    adapter.nodes.patience = PATIENCE;
    adapter.nodes.remember(&dir);
    adapter.nodes.lost_name(adapter.fs.rmdir(&adapter.fs.root().unwrap(), b"dir", &root).unwrap());
    (scratch, adapter, dir)
}

#[test]
fn an_inode_is_waited_for_while_its_loss_is_young() {
    let (_scratch, adapter, dir) = with_nameless();
    let (nodes, idle, now) = (&adapter.nodes, |_: &InodeRef| false, Instant::now());
    assert!(nodes.time_left(now, now, &idle).is_some_and(|left| left <= PATIENCE));
    assert_eq!(nodes.time_left(now, now, &|inode| *inode == dir), None, "it is open");
    assert_eq!(nodes.time_left(now - PATIENCE, now, &idle), None, "the caller came before");
    let later = now + PATIENCE;
    assert_eq!(nodes.time_left(later, later, &idle), None, "somebody's working directory");
    // Its last open file is closed: now the kernel may forget it.
    nodes.closed(dir.ino());
    assert!(nodes.time_left(later, later - PATIENCE / 2, &idle).is_some());
    nodes.forget(node_of(dir.ino()), 1);
    assert_eq!(nodes.time_left(Instant::now(), now, &idle), None, "forgotten");
}

/// Counts, and does what a reader that takes over would.
struct Reader<F> {
    left: AtomicU32,
    back: AtomicBool,
    take_over: F,
}

impl<F: Fn() -> bool> Stand for Reader<F> {
    fn leave(&self) -> bool {
        self.left.fetch_add(1, Ordering::Relaxed);
        (self.take_over)()
    }

    fn come_back(&self) {
        self.back.store(true, Ordering::Relaxed);
    }
}

#[test]
fn who_waits_for_space_has_another_reader_take_over() {
    let (_scratch, adapter, dir) = with_nameless();
    let (header, interrupted) = (InHeader::new_zeroed(), AtomicBool::new(false));
    // What is there to wait for comes when the other reader is there, and not without.
    let forgets = || {
        adapter.nodes.forget(node_of(dir.ino()), 1);
        true
    };
    for (taken_over, expected) in [(false, 1), (true, 1), (true, 0)] {
        let take_over = || taken_over && forgets();
        let reader = Reader { left: AtomicU32::new(0), back: AtomicBool::new(false), take_over };
        let request = Request::new(&header, &interrupted, &reader);
        let done = adapter.with_space(&request, caller::checked(&request), |_| Err::<(), _>(Error::NoSpace));
        assert!(matches!(done, Err(Error::NoSpace)));
        assert_eq!(reader.left.load(Ordering::Relaxed), expected);
        assert_eq!(reader.back.load(Ordering::Relaxed), expected == 1);
    }
}
