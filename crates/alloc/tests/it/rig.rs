//! An allocator over an image that mke2fs made.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};

use extant_alloc::{AllocOptions, Allocator, Claim, ClaimRequest, Privilege};
use extant_device::{BlockDevice, OpenOptions};
use extant_format::{Lblk, Pblk, Superblock};
use extant_journal::{BlockCache, CommitObserver, Handle, Journal, JournalOptions};
use extant_testkit::env::Scratch;
use extant_testkit::{env, oracle};

/// An allocator without a journal's log, and its image.
pub(crate) struct Rig {
    pub(crate) scratch: Scratch,
    pub(crate) image: PathBuf,
    pub(crate) sb: Superblock,
    pub(crate) journal: Arc<Journal>,
    pub(crate) alloc: Arc<Allocator>,
    pub(crate) errors: Arc<Mutex<Vec<String>>>,
}

impl Rig {
    pub(crate) fn new(args: &str, size: u64) -> Self {
        Self::with(args, size, |_| {})
    }

    /// With a change of the image before it is opened.
    pub(crate) fn with(args: &str, size: u64, prepare: impl FnOnce(&std::path::Path)) -> Self {
        let scratch = env::scratch();
        let image = scratch.join("image");
        oracle::mke2fs(&image, size, args);
        prepare(&image);
        Self::open(scratch, image, |_| {})
    }

    pub(crate) fn open(scratch: Scratch, image: PathBuf, change: impl FnOnce(&mut AllocOptions)) -> Self {
        let device: Arc<dyn BlockDevice> =
            Arc::new(OpenOptions::new().write(true).open(&image).expect("image"));
        let mut bytes = [0; 1024];
        device.read_at(1024, &mut bytes).expect("superblock");
        let sb = Superblock::read(&bytes).expect("superblock");
        let geo = *sb.geometry();
        let cache = BlockCache::new(Arc::clone(&device), geo.block_size(), geo.blocks_count(), 16 << 20);
        let errors = Arc::new(Mutex::new(Vec::new()));
        let mut options = AllocOptions::from_superblock(&sb);
        let sink = Arc::clone(&errors);
        options.on_error = Some(Arc::new(move |e| sink.lock().expect("errors").push(e.to_string())));
        change(&mut options);
        let alloc = Allocator::open(Arc::clone(&cache), device, &sb, options).expect("allocator");
        let quiet = JournalOptions { commit_interval: None, ..JournalOptions::default() };
        let journal = Journal::without_log(Arc::clone(&cache), quiet).expect("journal");
        let observer: Arc<dyn CommitObserver> = Arc::<Allocator>::clone(&alloc);
        let observer: Weak<dyn CommitObserver> = Arc::downgrade(&observer);
        journal.add_observer(observer);
        Self { scratch, image, sb, journal, alloc, errors }
    }

    /// Runs `work` in a handle with plenty of credits.
    pub(crate) fn handle<R>(&self, work: impl FnOnce(&mut Handle) -> R) -> R {
        let mut handle = self.journal.start(500).expect("handle");
        let result = work(&mut handle);
        handle.finish().expect("finish");
        result
    }

    pub(crate) fn commit(&self) {
        self.journal.commit_all().expect("commit");
    }

    /// Claims `len` blocks near `goal`, paid for on the spot.
    pub(crate) fn claim(&self, goal: u64, len: u32) -> Option<Claim> {
        let mut res = self.alloc.reserve(self.clusters(len), 0, Privilege::Reserved).ok()?;
        let request = ClaimRequest::plain(Pblk(goal), Lblk(0), len);
        Some(self.alloc.claim(&request, &mut res).expect("what is reserved can be claimed"))
    }

    /// Claims and publishes; returns the run.
    pub(crate) fn take(&self, goal: u64, len: u32) -> Option<(u64, u32)> {
        let mut claim = self.claim(goal, len)?;
        let n = claim.len();
        self.handle(|h| self.alloc.publish(h, &mut claim, n)).expect("publish");
        Some((claim.pblk().0, n))
    }

    pub(crate) fn free(&self, pblk: u64, len: u64) {
        self.handle(|h| self.alloc.free(h, Pblk(pblk), len)).expect("free");
    }

    fn clusters(&self, blocks: u32) -> u64 {
        self.sb.geometry().clusters_for(u64::from(blocks))
    }

    /// Closed and opened again.
    pub(crate) fn reopen(self) -> Self {
        self.reopen_with(|_| {})
    }

    /// The same, with other options.
    pub(crate) fn reopen_with(mut self, change: impl FnOnce(&mut AllocOptions)) -> Self {
        self.close();
        let Self { scratch, image, journal, alloc, .. } = self;
        drop(journal);
        drop(alloc);
        Self::open(scratch, image, change)
    }

    /// Everything to the disk, the superblock's counts too.
    pub(crate) fn close(&mut self) {
        self.commit();
        self.journal.close().expect("close");
        let blocks = self.alloc.free_clusters() << self.sb.geometry().log_cluster_ratio();
        let inodes = self.alloc.free_inode_count();
        self.sb
            .update(|raw| {
                raw.set_free_blocks_count(blocks);
                raw.s_free_inodes_count.set(inodes as u32);
            })
            .expect("superblock");
        let image = std::fs::OpenOptions::new().write(true).open(&self.image).expect("image");
        image.write_all_at(&self.sb.encode(), 1024).expect("superblock");
    }
}
