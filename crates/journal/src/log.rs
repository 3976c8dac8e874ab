//! Where the log's blocks are, and reading and writing them.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use extant_device::BlockDevice;
use extant_format::Pblk;
use extant_format::jbd2::Superblock;

use crate::cache::{MAX_TRANSFER, MAX_VECTORS};
use crate::{Error, Result};

/// Consecutive journal blocks at consecutive device blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRun {
    /// First block of the journal.
    pub first: u32,
    /// Where it is, in blocks of the log's device.
    pub pblk: Pblk,
    /// How many.
    pub len: u32,
}

/// Where the journal's blocks are: in an inode of the filesystem, or on a device of their own.
#[derive(Clone, Debug)]
pub struct LogPlace {
    device: Arc<dyn BlockDevice>,
    block_size: u32,
    /// Ascending, without a gap from block 0.
    runs: Vec<LogRun>,
    blocks: u32,
    superblock_at: u32,
    external: bool,
    /// See [`LogPlace::with_window`].
    window: u32,
}

/// What recovery reads of the log at once, in bytes.
const WINDOW: u32 = 1 << 20;

/// Incompatible feature of an external journal's ext4 superblock.
const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
const EXT4_SUPERBLOCK_AT: u64 = 1024;

impl LogPlace {
    /// A journal inside the filesystem on `device`: `extents` are the journal inode's blocks in file order (place and
    /// length), without holes. `fs_blocks` bounds them.
    pub fn internal(
        device: Arc<dyn BlockDevice>,
        block_size: u32,
        fs_blocks: u64,
        extents: impl IntoIterator<Item = (Pblk, u32)>,
    ) -> Result<Self> {
        let mut runs: Vec<LogRun> = Vec::new();
        let mut blocks = 0u32;
        for (pblk, len) in extents {
            let end = pblk.0.checked_add(u64::from(len)).filter(|end| *end <= fs_blocks);
            if pblk.0 == 0 || end.is_none() {
                return Err(Error::Place(format!("its blocks {}+{len} lie outside the filesystem", pblk.0)));
            }
            let first = blocks;
            blocks = blocks
                .checked_add(len)
                .ok_or_else(|| Error::Place("it is longer than 2^32 blocks".into()))?;
            match runs.last_mut() {
                Some(last) if last.pblk.0 + u64::from(last.len) == pblk.0 => last.len += len,
                _ => runs.push(LogRun { first, pblk, len }),
            }
        }
        Ok(Self { device, block_size, runs, blocks, superblock_at: 0, external: false, window: WINDOW })
    }

    /// A journal on a device of its own. Its ext4 superblock must carry the UUID that the filesystem's
    /// `s_journal_uuid` names, and its journal superblock must list `fs_uuid` as its user.
    pub fn external(
        device: Arc<dyn BlockDevice>,
        block_size: u32,
        journal_uuid: [u8; 16],
        fs_uuid: [u8; 16],
    ) -> Result<Self> {
        let total = check_external_superblock(&*device, block_size, journal_uuid)?;
        let blocks = u32::try_from(total.min(device.size() / u64::from(block_size)))
            .map_err(|_| Error::Place("the device is larger than 2^32 blocks".into()))?;
        let superblock_at = if block_size == 1024 { 2 } else { 1 };
        let runs = vec![LogRun { first: 0, pblk: Pblk(0), len: blocks }];
        let place = Self { device, block_size, runs, blocks, superblock_at, external: true, window: WINDOW };
        let sb = place.read_superblock()?;
        match sb.users()[..] {
            [user] if user == fs_uuid => Ok(place),
            [_] => Err(Error::Place("the external journal belongs to another filesystem".into())),
            [] => Err(Error::Place("the external journal has no user".into())),
            _ => Err(Error::Place("the external journal has several users".into())),
        }
    }

    /// The same, but recovery reads `bytes` of the log at once (a block at least): a test that wants to know what recovery
    /// depends on has it read only what it looks at.
    #[must_use]
    pub fn with_window(self, bytes: u32) -> Self {
        Self { window: bytes, ..self }
    }

    /// Blocks that recovery reads at once.
    pub(crate) fn window(&self) -> u32 {
        (self.window / self.block_size).clamp(1, 1024)
    }

    /// Blocks of the journal's place.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Bytes a block.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Whether the log has a device of its own.
    #[must_use]
    pub fn is_external(&self) -> bool {
        self.external
    }

    /// The device the log is on.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Where the journal is on its device.
    #[must_use]
    pub fn runs(&self) -> &[LogRun] {
        &self.runs
    }

    /// Reads and checks the journal superblock.
    pub fn read_superblock(&self) -> Result<Superblock> {
        let mut bytes = vec![0; self.block_size as usize];
        self.read(self.superblock_at, &mut bytes)?;
        Ok(Superblock::decode(&bytes, self.block_size, u64::from(self.blocks))?)
    }

    pub(crate) fn write_superblock(&self, sb: &Superblock) -> Result<()> {
        let (offset, _) = self.locate(self.superblock_at)?;
        self.device.write_at(offset, &sb.to_bytes()).map_err(|e| self.failed("write", self.superblock_at, e))
    }

    pub(crate) fn flush(&self) -> Result<()> {
        self.device.flush().map_err(|source| Error::Flush(Arc::new(source)))
    }

    /// Byte offset of a journal block, and how many blocks follow on from there.
    fn locate(&self, block: u32) -> Result<(u64, u32)> {
        let outside = || Error::Place(format!("block {block} lies outside its {} blocks", self.blocks));
        let at = self.runs.partition_point(|run| run.first <= block);
        let run = at.checked_sub(1).and_then(|i| self.runs.get(i)).ok_or_else(outside)?;
        let skip = block - run.first;
        if skip >= run.len {
            return Err(outside());
        }
        let offset =
            (run.pblk.0 + u64::from(skip)).checked_mul(u64::from(self.block_size)).ok_or_else(outside)?;
        Ok((offset, run.len - skip))
    }

    /// Reads consecutive journal blocks into `buf`.
    pub(crate) fn read(&self, block: u32, buf: &mut [u8]) -> Result<()> {
        let size = self.block_size as usize;
        let mut at = block;
        let mut rest = buf;
        while !rest.is_empty() {
            let (offset, run) = self.locate(at)?;
            let blocks = (rest.len() / size).min(run as usize);
            let (now, later) = rest.split_at_mut(blocks * size);
            self.device
                .read_vectored_at(offset, &mut [IoSliceMut::new(now)])
                .map_err(|e| self.failed("read", at, e))?;
            at += blocks as u32;
            rest = later;
        }
        Ok(())
    }

    /// Writes consecutive journal blocks, in as few writes as the place allows.
    pub(crate) fn write(&self, block: u32, blocks: &[&[u8]]) -> Result<()> {
        let most = (MAX_TRANSFER / self.block_size as usize).clamp(1, MAX_VECTORS);
        let mut at = block;
        let mut rest = blocks;
        while !rest.is_empty() {
            let (offset, run) = self.locate(at)?;
            let (now, later) = rest.split_at(rest.len().min(run as usize).min(most));
            let slices: Vec<IoSlice<'_>> = now.iter().map(|b| IoSlice::new(b)).collect();
            self.device.write_vectored_at(offset, &slices).map_err(|e| self.failed("write", at, e))?;
            at += now.len() as u32;
            rest = later;
        }
        Ok(())
    }

    /// Writes one journal block so that it is durable on return.
    pub(crate) fn write_durably(&self, block: u32, bytes: &[u8]) -> Result<()> {
        let (offset, _) = self.locate(block)?;
        self.device.write_fua_at(offset, &[IoSlice::new(bytes)]).map_err(|e| self.failed("write", block, e))
    }

    fn failed(&self, what: &'static str, block: u32, source: std::io::Error) -> Error {
        Error::Log { what, block, source: Arc::new(source) }
    }
}

/// Checks the ext4 superblock of a journal device; blocks of the device by it.
fn check_external_superblock(device: &dyn BlockDevice, block_size: u32, uuid: [u8; 16]) -> Result<u64> {
    let mut sb = [0u8; 1024];
    device.read_at(EXT4_SUPERBLOCK_AT, &mut sb).map_err(|e| Error::Log {
        what: "read",
        block: 0,
        source: Arc::new(e),
    })?;
    let le32 = |at: usize| u32::from_le_bytes([sb[at], sb[at + 1], sb[at + 2], sb[at + 3]]);
    if sb[0x38..0x3A] != [0x53, 0xEF] || le32(0x60) & INCOMPAT_JOURNAL_DEV == 0 {
        return Err(Error::Place("the device given is not an external journal".into()));
    }
    if sb[0x68..0x78] != uuid {
        return Err(Error::Place("the external journal's UUID is not the one the filesystem names".into()));
    }
    if le32(0x18).checked_add(10).and_then(|log| 1u32.checked_shl(log)) != Some(block_size) {
        return Err(Error::Place("the external journal's block size is not the filesystem's".into()));
    }
    Ok(u64::from(le32(0x4)))
}
