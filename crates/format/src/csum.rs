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
        let seed = crc32c(self.seed, &ino.0.to_le_bytes());
        crc32c(seed, &generation.to_le_bytes())
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
                let mut crc = crc32c(self.seed, &group);
                crc = crc32c(crc, head);
                crc = crc32c(crc, &[0, 0]);
                (crc32c(crc, tail) & 0xffff) as u16
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
        const LO: usize = 0x7c;
        const HI: usize = 0x82;
        let mut crc = self.inode_seed(ino, generation);
        crc = crc32c(crc, &bytes[..LO.min(bytes.len())]);
        crc = crc32c(crc, &[0, 0]);
        if bytes.len() <= 128 {
            return crc32c(crc, bytes.get(LO + 2..).unwrap_or(&[])) & 0xffff;
        }
        if !inode_has_checksum_hi(bytes) {
            return crc32c(crc, &bytes[LO + 2..]) & 0xffff;
        }
        crc = crc32c(crc, &bytes[LO + 2..HI]);
        crc = crc32c(crc, &[0, 0]);
        crc32c(crc, &bytes[HI + 2..])
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
