//! A bare journal: no filesystem around it, blocks are numbers.

use std::sync::Arc;

use extant_device::BlockDevice;
use extant_format::Pblk;
use extant_format::jbd2::NewJournal;
use extant_journal::{BlockCache, Journal, JournalOptions, LogPlace, WantedFeatures};
use extant_testkit::SimDevice;

pub(crate) const BLOCKS: u64 = 4096;
pub(crate) const LOG_AT: u64 = 2000;
pub(crate) const LOG_LEN: u32 = 1024;

/// What a journal test runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) block_size: u32,
    pub(crate) log_len: u32,
    pub(crate) features: WantedFeatures,
}

impl Default for Setup {
    fn default() -> Self {
        Self { block_size: 1024, log_len: LOG_LEN, features: WantedFeatures { checksums: true, bit64: true } }
    }
}

impl Setup {
    /// A device whose blocks 2000.. are an empty journal.
    pub(crate) fn device(&self) -> Arc<SimDevice> {
        let device = SimDevice::new(BLOCKS * u64::from(self.block_size));
        let new = NewJournal {
            block_size: self.block_size,
            blocks: self.log_len,
            fast_commit_blocks: 0,
            external: None,
            uuid: [9; 16],
        };
        device.write_at(LOG_AT * u64::from(self.block_size), &new.superblock().to_bytes()).unwrap();
        device.flush().unwrap();
        device.restart_log();
        device
    }

    /// In two pieces, so that every test crosses a gap.
    pub(crate) fn place(&self, device: &Arc<SimDevice>) -> LogPlace {
        let device: Arc<dyn BlockDevice> = Arc::clone(device) as _;
        let first = self.log_len / 2;
        let extents = [(Pblk(LOG_AT), first), (Pblk(LOG_AT + u64::from(first)), self.log_len - first)];
        LogPlace::internal(device, self.block_size, BLOCKS, extents).unwrap()
    }

    pub(crate) fn cache(&self, device: &Arc<SimDevice>) -> Arc<BlockCache> {
        BlockCache::new(Arc::clone(device) as _, self.block_size, BLOCKS, 64 << 20)
    }

    pub(crate) fn options(&self) -> JournalOptions {
        JournalOptions { features: Some(self.features), commit_interval: None, ..JournalOptions::default() }
    }

    pub(crate) fn open(&self, device: &Arc<SimDevice>) -> Arc<Journal> {
        Journal::open(self.cache(device), self.place(device), self.options()).unwrap()
    }
}

/// Sets every byte of block `pblk` to `value` through a handle of its own.
pub(crate) fn fill(journal: &Arc<Journal>, pblk: u64, value: u8) -> extant_format::Tid {
    let mut handle = journal.start(1).unwrap();
    let buf = journal.cache().read(Pblk(pblk)).unwrap();
    handle.modify(&buf, |bytes| bytes.fill(value)).unwrap();
    handle.finish().unwrap()
}

/// First byte of a block on the device.
pub(crate) fn on_device(device: &SimDevice, block_size: u32, pblk: u64) -> u8 {
    let mut byte = [0];
    device.read_at(pblk * u64::from(block_size), &mut byte).unwrap();
    byte[0]
}
