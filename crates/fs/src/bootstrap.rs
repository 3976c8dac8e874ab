//! What a mount reads before the metadata cache may exist: the superblock, and where the journal is.

use std::sync::Arc;

use extant_device::BlockDevice;
use extant_format::extent::Node;
use extant_format::geometry::SUPERBLOCK_OFFSET;
use extant_format::indirect;
use extant_format::inode::{Inode as RawInode, InodeFormat};
use extant_format::superblock::SbTime;
use extant_format::{FormatError, GroupDesc, GroupNr, Incompat, Ino, Pblk, Superblock};

use crate::error::{CorruptKind, Error, Place, Result};

/// Reads the superblock: the primary one, or the one at `sb` KiB. That one says what the filesystem is; what is under way in it
/// (orphans, errors, whether it is clean) only the primary one knows, where it is whole and of the same filesystem.
pub(crate) fn read_super(device: &dyn BlockDevice, sb: Option<u64>) -> Result<Superblock> {
    let Some(kib) = sb else { return read_primary(device) };
    let mut named = Superblock::read(&super_bytes(device, offset_of(kib)?)?)?;
    if let Some(primary) = primary_of(device, &named) {
        named.take_use_of(&primary)?;
    }
    // It is written in the primary's place.
    named.update(|raw| raw.s_block_group_nr.set(0))?;
    Ok(named)
}

/// The superblock in which the filesystem's state is kept, and the byte that is at: the primary one, or the one at `sb` KiB where the
/// primary is not of the same filesystem.
pub(crate) fn read_state(device: &dyn BlockDevice, sb: Option<u64>) -> Result<(u64, Superblock)> {
    let Some(kib) = sb else { return Ok((SUPERBLOCK_OFFSET, read_primary(device)?)) };
    let at = offset_of(kib)?;
    let named = Superblock::read(&super_bytes(device, at)?)?;
    Ok(primary_of(device, &named).map_or((at, named), |primary| (SUPERBLOCK_OFFSET, primary)))
}

/// Whether the primary superblock says that nothing is to be replayed. A backup does not know: mkfs and the kernel write it as a rule
/// without a word of what is under way, so where only a backup is left the journal is replayed, as e2fsck does.
pub(crate) fn says_clean(device: &dyn BlockDevice, sb: &Superblock) -> Result<bool> {
    let Ok(primary) = Superblock::read(&super_bytes(device, SUPERBLOCK_OFFSET)?) else { return Ok(false) };
    Ok(primary.uuid() == sb.uuid() && !primary.features().incompat.contains(Incompat::RECOVER))
}

fn offset_of(kib: u64) -> Result<u64> {
    kib.checked_mul(1024).ok_or(Error::Invalid("sb="))
}

fn super_bytes(device: &dyn BlockDevice, offset: u64) -> Result<[u8; 1024]> {
    if offset.checked_add(1024).is_none_or(|end| end > device.size()) {
        return Err(Error::Incompatible(
            format!("no superblock at byte {offset}: past the end of the image").into(),
        ));
    }
    let mut bytes = [0; 1024];
    device.read_at(offset, &mut bytes)?;
    Ok(bytes)
}

fn read_primary(device: &dyn BlockDevice) -> Result<Superblock> {
    let bytes = super_bytes(device, SUPERBLOCK_OFFSET)?;
    match Superblock::read(&bytes) {
        Err(FormatError::Checksum { .. }) => {
            backup_of_torn(device, &bytes).ok_or(Error::Checksum(Place::Superblock))
        }
        sb => Ok(sb?),
    }
}

/// The primary superblock, if it is whole and of the same filesystem as `other`.
fn primary_of(device: &dyn BlockDevice, other: &Superblock) -> Option<Superblock> {
    let primary = Superblock::read(&super_bytes(device, SUPERBLOCK_OFFSET).ok()?).ok()?;
    (primary.uuid() == other.uuid()).then_some(primary)
}

/// The copy of a superblock whose write was torn (its two sectors are of different writes, so the checksum is wrong): a mount
/// writes the first backup before the primary. A backup that is older than what is torn was not written by such a mount.
fn backup_of_torn(device: &dyn BlockDevice, torn: &[u8]) -> Option<Superblock> {
    let torn = Superblock::from_raw(Superblock::raw_from(torn).ok()?).ok()?;
    let at = first_backup(&torn)?.1;
    let mut bytes = [0; 1024];
    device.read_at(at, &mut bytes).ok()?;
    let mut backup = Superblock::read(&bytes).ok()?;
    let written = |sb: &Superblock| sb.time(SbTime::Write).max(sb.time(SbTime::Mount));
    if backup.uuid() != torn.uuid() || written(&backup) < written(&torn) {
        return None;
    }
    backup.update(|raw| raw.s_block_group_nr.set(0)).ok()?;
    tracing::warn!("the superblock's last write was torn; its backup is used");
    Some(backup)
}

/// The first group with a backup of the superblock, and the byte it is at.
pub(crate) fn first_backup(sb: &Superblock) -> Option<(GroupNr, u64)> {
    let geo = sb.geometry();
    let group = geo.super_groups().find(|group| group.0 != 0)?;
    Some((group, geo.super_offset(group)?))
}

/// Reads one block.
fn block(device: &dyn BlockDevice, sb: &Superblock, pblk: Pblk) -> Result<Vec<u8>> {
    let size = sb.geometry().block_size();
    let mut bytes = vec![0; size as usize];
    let offset = pblk.0.checked_mul(size.into()).filter(|_| sb.geometry().contains(pblk));
    let offset = offset.ok_or_else(|| bad_journal("a block of its map lies outside the filesystem"))?;
    device.read_at(offset, &mut bytes)?;
    Ok(bytes)
}

fn bad_journal(what: &str) -> Error {
    Error::corrupt(Place::Journal, CorruptKind::Journal(what.into()))
}

/// Reads an inode straight from the device.
pub(crate) fn raw_inode(device: &dyn BlockDevice, sb: &Superblock, ino: Ino) -> Result<RawInode> {
    let geo = sb.geometry();
    let at = geo.inode_location(ino).ok_or_else(|| bad_journal("its inode number is impossible"))?;
    let (desc_block, desc_at) =
        geo.desc_location(at.group).ok_or_else(|| bad_journal("its inode's group has no descriptor"))?;
    let bytes = block(device, sb, desc_block)?;
    let size = geo.desc_size();
    let desc = bytes.get(desc_at as usize..desc_at as usize + usize::from(size));
    let desc = GroupDesc::decode(at.group, desc.unwrap_or_default(), size)?;
    let table = desc.inode_table.checked_add(at.block.into()).ok_or_else(|| bad_journal("inode table"))?;
    let bytes = block(device, sb, table)?;
    Ok(InodeFormat::new(sb).read(ino, bytes.get(at.offset as usize..).unwrap_or_default())?)
}

/// The blocks of the journal inode `ino`, in order.
pub(crate) fn journal_extents(
    device: &Arc<dyn BlockDevice>,
    sb: &Superblock,
    ino: Ino,
) -> Result<Vec<(Pblk, u32)>> {
    let raw = raw_inode(&**device, sb, ino)?;
    if !raw.is_regular() || raw.links_count == 0 {
        return Err(bad_journal("its inode is no file"));
    }
    let want = raw.size / u64::from(sb.geometry().block_size());
    if want > sb.geometry().blocks_count() {
        return Err(bad_journal("it is larger than the filesystem"));
    }
    let mut walk =
        Walk { device: &**device, sb, ino, generation: raw.generation, runs: Vec::new(), have: 0, want };
    if raw.has_extents() {
        let depth = Node::open(&raw.i_block, ino, None, None)?.depth();
        walk.extents(&raw.i_block, None, depth)?;
    } else {
        walk.indirect(&raw)?;
    }
    if walk.have < want {
        return Err(bad_journal("its file has a hole"));
    }
    Ok(walk.runs)
}

struct Walk<'a> {
    device: &'a dyn BlockDevice,
    sb: &'a Superblock,
    ino: Ino,
    generation: u32,
    runs: Vec<(Pblk, u32)>,
    have: u64,
    want: u64,
}

impl Walk<'_> {
    fn push(&mut self, pblk: Pblk, len: u32) {
        let len = u64::from(len).min(self.want - self.have) as u32;
        if len == 0 {
            return;
        }
        self.have += u64::from(len);
        match self.runs.last_mut() {
            Some((first, n))
                if first.0 + u64::from(*n) == pblk.0 && u64::from(*n) + u64::from(len) < 1 << 31 =>
            {
                *n += len;
            }
            _ => self.runs.push((pblk, len)),
        }
    }

    /// Depth is checked to fall by one at each level, so this ends.
    fn extents(&mut self, bytes: &[u8], at: Option<Pblk>, depth: u16) -> Result<()> {
        let (geo, csum) = (self.sb.geometry(), self.sb.csum());
        let node = match at {
            None => {
                let node = Node::open(bytes, self.ino, None, Some(depth))?;
                node.check(self.ino, None, geo)?;
                node
            }
            Some(pblk) => Node::read_block(bytes, self.ino, self.generation, pblk, depth, geo, csum)?,
        };
        if node.is_leaf() {
            for extent in node.extents() {
                if self.have == self.want {
                    break;
                }
                if u64::from(extent.lblk.0) != self.have {
                    return Err(bad_journal("its file has a hole"));
                }
                self.push(extent.pblk, extent.len);
            }
            return Ok(());
        }
        for index in node.indexes() {
            let child = block(self.device, self.sb, index.child)?;
            self.extents(&child, Some(index.child), depth - 1)?;
        }
        Ok(())
    }

    fn indirect(&mut self, raw: &RawInode) -> Result<()> {
        for slot in 0..15 {
            let pointer = u32_at(&raw.i_block, slot * 4);
            let level = slot.saturating_sub(indirect::NDIR_BLOCKS as usize - 1);
            self.pointer(pointer, level)?;
        }
        Ok(())
    }

    fn pointer(&mut self, pointer: u32, level: usize) -> Result<()> {
        if self.have == self.want {
            return Ok(());
        }
        if pointer == 0 {
            return Err(bad_journal("its file has a hole"));
        }
        if level == 0 {
            self.push(Pblk(pointer.into()), 1);
            return Ok(());
        }
        let bytes = block(self.device, self.sb, Pblk(pointer.into()))?;
        for at in 0..bytes.len() / 4 {
            if self.have == self.want {
                break;
            }
            self.pointer(u32_at(&bytes, at * 4), level - 1)?;
        }
        Ok(())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}
