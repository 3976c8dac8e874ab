//! Races of the allocator under the exploring runtime, and a mutant that it must catch.

use std::sync::OnceLock;

use extant_alloc::{AllocOptions, Allocator, Claim, ClaimRequest, InodeWindow, Privilege};
use extant_device::{BlockDevice, MemoryDevice};
use extant_format::{GroupNr, Lblk, Pblk, Superblock, Tid, bitmap};
use extant_journal::{BlockCache, CommitObserver, Journal, JournalOptions};
use extant_sync::{Arc, Weak, model, thread};
use extant_testkit::{env, need, oracle};

const SIZE: u64 = 2 << 20;
const BLOCK: usize = 1024;

/// The bytes of an image of one group that mke2fs made once.
fn image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| made("-t ext4 -b 1024 -m 0 -O ^has_journal,^resize_inode -N 16"))
}

/// The same of eight groups.
fn groups_image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| made("-t ext4 -b 1024 -m 0 -O ^has_journal,^resize_inode -g 256 -N 64"))
}

fn made(args: &str) -> Vec<u8> {
    let scratch = env::scratch();
    let path = scratch.join("image");
    oracle::mke2fs(&path, SIZE, args);
    std::fs::read(path).expect("image")
}

#[derive(Clone)]
struct Rig {
    device: Arc<dyn BlockDevice>,
    journal: Arc<Journal>,
    alloc: Arc<Allocator>,
}

impl Rig {
    fn new() -> Self {
        Self::over(image(), |_| {})
    }

    fn over(image: &[u8], change: impl FnOnce(&mut AllocOptions)) -> Self {
        let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(SIZE));
        device.write_at(0, image).expect("image");
        let sb = Superblock::read(&image[1024..2048]).expect("superblock");
        let cache = BlockCache::new(Arc::clone(&device), BLOCK as u32, SIZE / BLOCK as u64, 1 << 20);
        let mut options = AllocOptions::from_superblock(&sb);
        change(&mut options);
        let alloc = Allocator::open(Arc::clone(&cache), Arc::clone(&device), &sb, options).expect("open");
        let quiet = JournalOptions { commit_interval: None, ..JournalOptions::default() };
        let journal = Journal::without_log(cache, quiet).expect("journal");
        let observer: Arc<dyn CommitObserver> = Arc::<Allocator>::clone(&alloc);
        let observer: Weak<dyn CommitObserver> = Arc::downgrade(&observer);
        journal.add_observer(observer);
        Self { device, journal, alloc }
    }

    fn claim(&self, goal: u64, len: u32) -> Option<Claim> {
        let mut res = self.alloc.reserve(u64::from(len), 0, Privilege::Pool).ok()?;
        let request = ClaimRequest::plain(Pblk(goal), Lblk(0), len);
        Some(self.alloc.claim(&request, &mut res).expect("reserved clusters can be claimed"))
    }

    fn publish(&self, claim: &mut Claim) {
        let mut handle = self.journal.start(4).expect("handle");
        let n = claim.len();
        self.alloc.publish(&mut handle, claim, n).expect("publish");
        handle.finish().expect("finish");
    }

    fn free(&self, pblk: u64, len: u64) -> Tid {
        let mut handle = self.journal.start(4).expect("handle");
        self.alloc.free(&mut handle, Pblk(pblk), len).expect("free");
        handle.finish().expect("finish")
    }

    /// Whether the device, as a crash would leave it, says that a block is in use.
    fn used_on_device(&self, pblk: u64) -> bool {
        let place = self.alloc.group_desc(GroupNr(0)).expect("group").block_bitmap;
        let mut map = [0; BLOCK];
        self.device.read_at(place.0 * BLOCK as u64, &mut map).expect("bitmap");
        bitmap::test(&map, pblk as u32 - 1)
    }
}

fn together(tasks: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = tasks.into_iter().map(|task| thread::spawn(task)).collect();
    for t in threads {
        t.join().expect("no panic inside");
    }
}

/// The name of this scenario, in the lab's table.
const REUSE: &str = "a freed block beside a claim of it";

/// A frees a block that holds a file's data; B wants a block just there. When B has it, a crash must not bring the old
/// file back over B's data.
fn reuse(early: bool) {
    let rig = Rig::new();
    let mut old = rig.claim(500, 1).expect("space");
    let pblk = old.pblk().0;
    rig.publish(&mut old);
    rig.journal.commit_all().expect("commit");
    let (a, b) = (rig.clone(), rig.clone());
    together(vec![
        Box::new(move || {
            let tid = a.free(pblk, 1);
            if early {
                a.alloc.committed(tid);
            }
            a.journal.wait_commit(tid).expect("commit");
        }),
        Box::new(move || {
            for _ in 0..3 {
                let claim = b.claim(pblk, 1).expect("space");
                if claim.pblk().0 == pblk {
                    assert!(!b.used_on_device(pblk), "block {pblk} would be shared after a crash");
                }
                thread::yield_now();
            }
        }),
    ]);
}

#[test]
fn a_freed_block_is_reused_after_its_commit_only() {
    need!(env::tools(&["mke2fs"]));
    image();
    model::Lab::new(REUSE, 600).holds(|| reuse(false));
}

#[test]
fn mutant_reuse_before_the_commit_is_caught() {
    need!(env::tools(&["mke2fs"]));
    image();
    model::Lab::new(REUSE, 600).notices("waiting for the commit", 2000, || reuse(true));
}

/// Claims, windows, publications and frees of three threads: no cluster twice, none lost.
#[test]
fn claims_windows_and_frees() {
    need!(env::tools(&["mke2fs"]));
    image();
    let scenario = || {
        let rig = Rig::new();
        let usable = rig.alloc.usable_clusters();
        let tasks = (0..3u64).map(|t| -> Box<dyn FnOnce() + Send> {
            let rig = rig.clone();
            Box::new(move || {
                let window = InodeWindow::new();
                let mut res = rig.alloc.reserve(20, 0, Privilege::Pool).expect("space");
                let request = ClaimRequest::file(Pblk(300), Lblk(0), 20, 40 + 60 * t, &window);
                let mut claim = rig.alloc.claim(&request, &mut res).expect("space");
                let n = u64::from(claim.len());
                rig.publish(&mut claim);
                rig.free(claim.pblk().0, n);
                if t == 0 {
                    rig.journal.commit_all().expect("commit");
                }
            })
        });
        together(tasks.collect());
        rig.journal.commit_all().expect("commit");
        assert_eq!(rig.alloc.usable_clusters(), usable);
        let all = rig.alloc.reserve(usable, 0, Privilege::Pool).expect("nothing is lost");
        drop(all);
    };
    model::Lab::new("claims, windows and frees", 400).holds(scenario);
}

/// The disk is nearly full and all that is left sits in another file's window: both get what they were promised.
#[test]
fn the_last_blocks_in_somebodys_window() {
    need!(env::tools(&["mke2fs"]));
    image();
    let scenario = || {
        let rig = Rig::new();
        let all = rig.alloc.usable_clusters();
        let mut most = rig.alloc.reserve(all, 0, Privilege::Pool).expect("space");
        let mut held = Vec::new();
        while most.data() > 0 {
            let request = ClaimRequest::plain(Pblk(0), Lblk(0), most.data() as u32);
            held.push(rig.alloc.claim(&request, &mut most).expect("space"));
        }
        // One run of 40 blocks is free: the first file takes all of it ahead.
        let largest = held.iter_mut().max_by_key(|c| c.len()).expect("claims");
        drop(largest.split_off(largest.len() - 40));
        let (a, b) = (rig.clone(), rig.clone());
        together(vec![
            Box::new(move || {
                let window = InodeWindow::new();
                let mut res = a.alloc.reserve(10, 0, Privilege::Pool).expect("space");
                let request = ClaimRequest::file(Pblk(0), Lblk(0), 10, 1000, &window);
                let first = a.alloc.claim(&request, &mut res).expect("promised");
                assert!(!first.is_empty());
            }),
            Box::new(move || {
                let mut res = b.alloc.reserve(30, 0, Privilege::Pool).expect("space");
                let mut mine = Vec::new();
                while res.data() > 0 {
                    let request = ClaimRequest::plain(Pblk(0), Lblk(0), 30);
                    mine.push(b.alloc.claim(&request, &mut res).expect("promised"));
                }
            }),
        ]);
    };
    model::Lab::new("the last blocks in somebody's window", 2000).holds(scenario);
}

/// A trim has the last free clusters on the device when somebody claims what he was promised: he waits for them.
#[test]
fn claims_beside_a_trim() {
    need!(env::tools(&["mke2fs"]));
    image();
    let scenario = || {
        let rig = Rig::new();
        let all = rig.alloc.usable_clusters();
        let (a, b) = (rig.clone(), rig.clone());
        together(vec![
            Box::new(move || {
                a.alloc.trim(Pblk(0), Pblk(u64::MAX), 1, &|| false).expect("trim");
            }),
            Box::new(move || {
                let mut res = b.alloc.reserve(all, 0, Privilege::Pool).expect("space");
                let mut mine = Vec::new();
                while res.data() > 0 {
                    let request = ClaimRequest::plain(Pblk(0), Lblk(0), res.data() as u32);
                    mine.push(b.alloc.claim(&request, &mut res).expect("promised"));
                }
            }),
        ]);
    };
    model::Lab::new("claims beside a trim", 1000).holds(scenario);
}

/// Free maps are closed as soon as another one is wanted, while others claim from them, publish, take ahead and free: each
/// thread finds its clusters, none is given twice (an assertion of the free map), and in the end all are found again.
#[test]
fn free_maps_are_closed_beside_claims_and_frees() {
    need!(env::tools(&["mke2fs"]));
    groups_image();
    let scenario = || {
        let rig = Rig::over(groups_image(), |options| options.memory = 0);
        let tasks = (0..3u64).map(|t| -> Box<dyn FnOnce() + Send> {
            let rig = rig.clone();
            Box::new(move || {
                for step in 0..3 {
                    // Whole groups, and parts of them; neighbours want the same ones.
                    let goal = 256 * ((t + step) % 3 + 2) + 1;
                    let len = if step == 0 { 256 } else { 30 };
                    let Some(mut claim) = rig.claim(goal, len) else { continue };
                    if step == 2 {
                        continue;
                    }
                    rig.publish(&mut claim);
                    rig.free(claim.pblk().0, claim.len().into());
                    if t == step {
                        rig.journal.commit_all().expect("commit");
                    }
                }
            })
        });
        let usable = rig.alloc.usable_clusters();
        together(tasks.collect());
        rig.journal.commit_all().expect("commit");
        assert_eq!(rig.alloc.usable_clusters(), usable);
        let mut all = rig.alloc.reserve(usable, 0, Privilege::Pool).expect("nothing is lost");
        let mut held = Vec::new();
        while all.data() > 0 {
            let request = ClaimRequest::plain(Pblk(0), Lblk(0), all.data() as u32);
            held.push(rig.alloc.claim(&request, &mut all).expect("nothing is hidden"));
        }
    };
    model::Lab::new("free maps closed beside claims and frees", 600).holds(scenario);
}
