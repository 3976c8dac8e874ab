//! Servers whose requests wait for other requests.

use std::fs;
use std::sync::{Arc, Condvar, Mutex};

use extant_fuse::wire::{Attr, AttrOut, EntryOut, GetattrIn, OpenIn, OpenOut, ROOT_ID};
use extant_fuse::{Errno, Reply, Request, Server, SessionOptions};

use crate::served::{Served, may_mount};

/// Readers beyond those that always run.
const SPARES: u32 = 16;

#[derive(Default)]
struct Counts {
    waiting: u32,
    /// Those whom nobody would have read for.
    refused: u32,
    released: bool,
}

/// Files `0`, `1`, …, whose open(2) waits.
#[derive(Default)]
struct Waits {
    counts: Mutex<Counts>,
    changed: Condvar,
}

impl Waits {
    fn change(&self, f: impl FnOnce(&mut Counts)) {
        f(&mut self.counts.lock().unwrap());
        self.changed.notify_all();
    }

    fn wait_until(&self, f: impl Fn(&Counts) -> bool) {
        drop(self.changed.wait_while(self.counts.lock().unwrap(), |counts| !f(counts)).unwrap());
    }
}

fn attr(node: u64) -> Attr {
    let mode = if node == ROOT_ID { 0o040_755 } else { 0o100_644 };
    Attr { ino: node, mode, nlink: 1, blksize: 4096, ..Attr::default() }
}

impl Server for Waits {
    fn lookup(&self, _: &Request<'_>, name: &[u8], reply: Reply<'_, EntryOut>) {
        let Some(number) = std::str::from_utf8(name).ok().and_then(|n| n.parse::<u64>().ok()) else {
            return reply.error(Errno::NOENT);
        };
        let nodeid = 100 + number;
        let attr = attr(nodeid);
        reply.ok(&EntryOut { nodeid, entry_valid: 3600, attr_valid: 3600, attr, ..EntryOut::default() });
    }

    fn getattr(&self, req: &Request<'_>, _: &GetattrIn, reply: Reply<'_, AttrOut>) {
        reply.ok(&AttrOut { attr_valid: 3600, attr: attr(req.node()), ..AttrOut::default() });
    }

    fn open(&self, req: &Request<'_>, _: &OpenIn, reply: Reply<'_, OpenOut>) {
        let waited = req.wait(|| {
            self.change(|counts| counts.waiting += 1);
            self.wait_until(|counts| counts.released);
        });
        match waited {
            Some(()) => reply.ok(&OpenOut::default()),
            None => {
                self.change(|counts| counts.refused += 1);
                reply.error(Errno::AGAIN);
            }
        }
    }
}

#[test]
fn nobody_waits_for_a_request_that_nobody_would_read() {
    if !may_mount("nobody_waits_for_a_request_that_nobody_would_read") {
        return;
    }
    let server = Arc::new(Waits::default());
    let mount = Served::with(Arc::clone(&server), SessionOptions { readers: 1, ..SessionOptions::default() });
    let opens = SPARES + 1;
    let refused = std::thread::scope(|scope| {
        let all: Vec<_> = (0..opens)
            .map(|i| {
                let path = mount.join(&i.to_string());
                scope.spawn(move || fs::File::open(path).err().and_then(|e| e.raw_os_error()))
            })
            .collect();
        // Each but the last is served by another reader: this would wait for ever if none took the place of the first.
        server.wait_until(|counts| counts.waiting + counts.refused == opens);
        server.change(|counts| counts.released = true);
        all.into_iter().filter_map(|open| open.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(refused, [Errno::AGAIN.raw_os_error()]);
    mount.finish().unwrap();
}
