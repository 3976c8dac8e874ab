//! Checksums of metadata: crc32c (`metadata_csum`), crc16 of descriptors (`uninit_bg`).
//!
//! ext4's crc32c runs without the usual final inversion, from a seed; a structure's place (group or inode
//! number) goes in before its bytes. Source: the kernel's ext4 documentation, "Checksums".

use crate::features::{Features, Incompat, RoCompat};
use crate::types::{GroupNr, Ino};

/// crc32c of `data` continued from `seed`, in ext4's convention (no inversion at either end; start with `!0`).
#[must_use]
pub fn crc32c(seed: u32, data: &[u8]) -> u32 {
    !::crc32c::crc32c_append(!seed, data)
}

static CRC16: crc::Crc<u16> = crc::Crc::<u16>::new(&crc::CRC_16_MODBUS);

/// crc16 as `uninit_bg` uses it (polynomial 0x8005 reflected, start 0xffff, no inversion), over all `parts`.
#[must_use]
pub fn crc16(parts: &[&[u8]]) -> u16 {
    let mut digest = CRC16.digest();
    for part in parts {
        digest.update(part);
    }
    digest.finalize()
}

/// Checksum of a superblock's 1024 bytes (`s_checksum` covers what is before it; no seed).
#[must_use]
pub fn superblock(bytes: &[u8; 1024]) -> u32 {
    crc32c(!0, &bytes[..0x3fc])
}

/// Which checksums a filesystem has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CsumKind {
    /// None.
    None,
    /// crc16 of group descriptors only.
    Gdt,
    /// crc32c of all metadata.
    Metadata,
}

/// A filesystem's checksum functions with their seed. Small and `Copy`: every room keeps one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Csum {
    kind: CsumKind,
    seed: u32,
    uuid: [u8; 16],
}

impl Csum {
    /// From the superblock's features, UUID and `s_checksum_seed`.
    #[must_use]
    pub fn new(features: Features, uuid: [u8; 16], checksum_seed: u32) -> Self {
        let kind = if features.ro_compat.contains(RoCompat::METADATA_CSUM) {
            CsumKind::Metadata
        } else if features.ro_compat.contains(RoCompat::GDT_CSUM) {
            CsumKind::Gdt
        } else {
            CsumKind::None
        };
        let seed =
            if features.incompat.contains(Incompat::CSUM_SEED) { checksum_seed } else { crc32c(!0, &uuid) };
        Self { kind, seed, uuid }
    }

    /// Which checksums there are.
    #[must_use]
    pub const fn kind(&self) -> CsumKind {
        self.kind
    }

    /// Whether all metadata carries crc32c.
    #[must_use]
    pub const fn has_metadata(&self) -> bool {
        matches!(self.kind, CsumKind::Metadata)
    }

    /// The filesystem's seed.
    #[must_use]
    pub const fn seed(&self) -> u32 {
        self.seed
    }

    /// crc32c of `data` from the filesystem's seed (MMP; xattr blocks put their block number first).
    #[must_use]
    pub fn metadata(&self, data: &[u8]) -> u32 {
        crc32c(self.seed, data)
    }

    /// The seed of everything that belongs to an inode: filesystem seed, inode number, generation.
    #[must_use]
    pub fn inode_seed(&self, ino: Ino, generation: u32) -> u32 {
        let both = u64::from(ino.0) | u64::from(generation) << 32;
        crc32c(self.seed, &both.to_le_bytes())
    }

    /// `bg_checksum` of a whole descriptor (`desc` is `s_desc_size` bytes, its own checksum is left out);
    /// 0 without checksums.
    #[must_use]
    pub fn group_desc(&self, group: GroupNr, desc: &[u8]) -> u16 {
        const CSUM: usize = 0x1e;
        let group = group.0.to_le_bytes();
        let (head, tail) = desc.split_at(desc.len().min(CSUM));
        let tail = tail.get(2..).unwrap_or(&[]);
        match self.kind {
            CsumKind::None => 0,
            CsumKind::Gdt => crc16(&[&self.uuid, &group, head, tail]),
            CsumKind::Metadata => {
                // The group, and the descriptor's first 32 bytes with no checksum.
                let mut first = [0; 4 + CSUM + 2];
                first[..4].copy_from_slice(&group);
                first[4..4 + head.len()].copy_from_slice(head);
                (crc32c(crc32c(self.seed, &first), tail) & 0xffff) as u16
            }
        }
    }

    /// Checksum of a bitmap: of `clusters_per_group / 8` bytes of a block bitmap, `inodes_per_group / 8` of an
    /// inode bitmap. Stored in the descriptor, cut to 16 bits in descriptors of 32 bytes.
    #[must_use]
    pub fn bitmap(&self, bytes: &[u8]) -> u32 {
        crc32c(self.seed, bytes)
    }

    /// Checksum of an inode's bytes (the whole `s_inode_size`) with its checksum fields taken as zero. Cut to 16
    /// bits where `i_checksum_hi` does not fit in `i_extra_isize`.
    #[must_use]
    pub fn inode(&self, ino: Ino, generation: u32, bytes: &[u8]) -> u32 {
        // The words that have the checksum are copied, to leave it out; before and behind them whole words are left.
        const AT: usize = 0x78;
        const LO: usize = 0x7c - AT;
        const HI: usize = 0x82 - AT;
        let has_hi = bytes.len() > 128 && inode_has_checksum_hi(bytes);
        let (before, rest) = bytes.split_at(AT.min(bytes.len()));
        let (with, behind) = rest.split_at(16.min(rest.len()));
        let mut words = [0; 16];
        words[..with.len()].copy_from_slice(with);
        words[LO..LO + 2].fill(0);
        if has_hi {
            words[HI..HI + 2].fill(0);
        }
        let mut crc = crc32c(self.inode_seed(ino, generation), before);
        crc = crc32c(crc, &words[..with.len()]);
        crc = crc32c(crc, behind);
        if has_hi { crc } else { crc & 0xffff }
    }

    /// Checksum of an extent block: everything before its tail, from the inode's seed.
    #[must_use]
    pub fn extent_block(inode_seed: u32, before_tail: &[u8]) -> u32 {
        crc32c(inode_seed, before_tail)
    }
}

/// Whether an inode's record has `i_checksum_hi` (record beyond 128 bytes and `i_extra_isize` at least 4).
#[must_use]
pub(crate) fn inode_has_checksum_hi(bytes: &[u8]) -> bool {
    match bytes.get(0x80..0x84) {
        Some(b) => u16::from_le_bytes([b[0], b[1]]) >= 4,
        None => false,
    }
}

#[cfg(test)]
mod tests;
