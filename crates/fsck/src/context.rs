//! What all passes share: the device, the geometry, the blocks claimed so far, and where findings go.

use crate::blocks::{BlockMap, spans};
use crate::finding::{Finding, Kind, Pass, Place, Severity};
use extant_device::BlockDevice;
use extant_format::inode::RawInode;
use extant_format::{
    Compat, Csum, Features, Geometry, GroupDesc, Incompat, Ino, InodeFlags, Pblk, RoCompat, Superblock,
};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use zerocopy::FromBytes;

/// Where findings go; shared by all threads.
pub(crate) struct Sink {
    findings: Mutex<Vec<Finding>>,
    max: usize,
    left_out: AtomicU64,
    errors: AtomicBool,
    fatal: AtomicBool,
}

impl Sink {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            findings: Mutex::new(Vec::new()),
            max,
            left_out: AtomicU64::new(0),
            errors: AtomicBool::new(false),
            fatal: AtomicBool::new(false),
        }
    }

    pub(crate) fn add(&self, pass: Pass, place: Place, kind: Kind) {
        match kind.severity() {
            Severity::Note => {}
            Severity::Error => self.errors.store(true, Ordering::Relaxed),
            Severity::Fatal => {
                self.errors.store(true, Ordering::Relaxed);
                self.fatal.store(true, Ordering::Relaxed);
            }
        }
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        if findings.len() < self.max {
            findings.push(Finding { pass, place, kind });
        } else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_fatal(&self) -> bool {
        self.fatal.load(Ordering::Relaxed)
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.errors.load(Ordering::Relaxed)
    }

    pub(crate) fn into_parts(self) -> (Vec<Finding>, u64) {
        (self.findings.into_inner().unwrap_or_else(PoisonError::into_inner), self.left_out.into_inner())
    }
}

/// What the passes share.
pub(crate) struct Context<'d> {
    pub(crate) dev: &'d dyn BlockDevice,
    /// The external journal, if it is at hand.
    pub(crate) journal: Option<&'d dyn BlockDevice>,
    pub(crate) sb: Superblock,
    pub(crate) geo: Geometry,
    pub(crate) csum: Csum,
    pub(crate) features: Features,
    pub(crate) descs: Vec<GroupDesc>,
    /// Groups whose tables lie inside the filesystem; others are not read.
    pub(crate) readable: Vec<bool>,
    /// By group, inodes that the scan of its table looks at.
    pub(crate) in_tables: Vec<u32>,
    /// Clusters that anything claims.
    pub(crate) claims: BlockMap,
    /// Clusters claimed more than once.
    pub(crate) shared: BlockMap,
    /// Clusters of the filesystem's own metadata.
    pub(crate) metadata: BlockMap,
    pub(crate) sink: &'d Sink,
    pub(crate) threads: usize,
    /// Shared tree blocks entered.
    pub(crate) entered: AtomicU64,
    /// Descriptor blocks that a wrong `s_first_meta_bg` speaks of beyond those there are.
    pub(crate) extra_desc_blocks: u32,
    /// Below this an i_dtime is not a time but the link of the orphan list.
    pub(crate) low_dtime: u32,
}

impl Context<'_> {
    pub(crate) fn found(&self, pass: Pass, place: Place, kind: Kind) {
        self.sink.add(pass, place, kind);
    }

    pub(crate) fn block_size(&self) -> usize {
        self.geo.block_size() as usize
    }

    pub(crate) fn compat(&self, feature: Compat) -> bool {
        self.features.compat.contains(feature)
    }

    pub(crate) fn incompat(&self, feature: Incompat) -> bool {
        self.features.incompat.contains(feature)
    }

    pub(crate) fn ro_compat(&self, feature: RoCompat) -> bool {
        self.features.ro_compat.contains(feature)
    }

    /// Reads one block; `buf` has the length of a block.
    pub(crate) fn read_block(&self, block: Pblk, buf: &mut [u8]) -> bool {
        let Some(offset) = block.0.checked_mul(u64::from(self.geo.block_size())) else {
            return false;
        };
        self.dev.read_at(offset, buf).is_ok()
    }

    /// Reads the record of an inode whose group's table is readable.
    pub(crate) fn read_inode(&self, ino: Ino, record: &mut Vec<u8>) -> bool {
        let Some(place) = self.geo.inode_location(ino) else {
            return false;
        };
        let group = place.group.0 as usize;
        if self.readable.get(group) != Some(&true) {
            return false;
        }
        record.resize(usize::from(self.geo.inode_size()), 0);
        let block = self.descs[group].inode_table.0 + u64::from(place.block);
        let offset = block * u64::from(self.geo.block_size()) + u64::from(place.offset);
        self.dev.read_at(offset, record).is_ok()
    }

    /// Whether a tree block that was entered before may be entered again: only where blocks are shared on purpose, and
    /// not for ever.
    pub(crate) fn may_enter_shared(&self) -> bool {
        self.ro_compat(RoCompat::SHARED_BLOCKS)
            && self.entered.fetch_add(1, Ordering::Relaxed) < 4 * self.geo.blocks_count()
    }

    /// Claims blocks for something; true if any of them was claimed before. Those are noted as shared.
    pub(crate) fn claim(&self, start: Pblk, len: u64) -> bool {
        let mut again = false;
        for span in spans(&self.geo, start, len) {
            again |= self.claims.claim(span, Some(&self.shared)).is_some();
        }
        again
    }
}

/// An inode's record taken apart, without any check.
#[derive(Clone)]
pub(crate) struct Record {
    pub(crate) ino: Ino,
    pub(crate) raw: RawInode,
    pub(crate) flags: InodeFlags,
    pub(crate) mode: u16,
}

impl Record {
    /// From the bytes of a record, at least 128 of them; fields past the end read as zero.
    pub(crate) fn new(ino: Ino, bytes: &[u8]) -> Option<Self> {
        let mut full = [0; size_of::<RawInode>()];
        let n = bytes.len().min(full.len());
        full[..n].copy_from_slice(&bytes[..n]);
        let raw = RawInode::read_from_bytes(&full).ok()?;
        let flags = InodeFlags::from_bits_retain(raw.i_flags.get());
        Some(Self { ino, raw, flags, mode: raw.i_mode.get() })
    }

    pub(crate) fn format(&self) -> u16 {
        self.mode & 0xf000
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.format() == 0x4000
    }

    pub(crate) fn is_reg(&self) -> bool {
        self.format() == 0x8000
    }

    pub(crate) fn is_symlink(&self) -> bool {
        self.format() == 0xa000
    }

    /// `i_size` with both halves.
    pub(crate) fn size(&self) -> u64 {
        u64::from(self.raw.i_size_lo.get()) | u64::from(self.raw.i_size_high.get()) << 32
    }

    pub(crate) fn file_acl(&self, wide: bool) -> Pblk {
        let high = if wide { u64::from(self.raw.l_i_file_acl_high.get()) << 32 } else { 0 };
        Pblk(u64::from(self.raw.i_file_acl_lo.get()) | high)
    }

    pub(crate) fn links(&self) -> u16 {
        self.raw.i_links_count.get()
    }

    pub(crate) fn has(&self, flag: InodeFlags) -> bool {
        self.flags.contains(flag)
    }

    /// Word `n` of `i_block`.
    pub(crate) fn word(&self, n: usize) -> u32 {
        self.raw.i_block.get(n * 4..n * 4 + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }
}
