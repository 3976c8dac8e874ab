//! Multiple-mount protection: the block in which whoever has the filesystem open counts up.
//!
//! Source: the kernel's ext4 documentation, "Multiple Mount Protection" (`struct mmp_struct`).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::csum::Csum;
use crate::error::{Corrupt, FormatError, Place};
use crate::types::Pblk;

/// `mmp_magic`: "MMP".
pub const MMP_MAGIC: u32 = 0x004D_4D50;
/// `mmp_seq` of a filesystem that nobody has open.
pub const MMP_SEQ_CLEAN: u32 = 0xFF4D_4D50;
/// `mmp_seq` while a checker has it open.
pub const MMP_SEQ_FSCK: u32 = 0xE24D_4D50;
/// Largest ordinary `mmp_seq`; counting starts again at 1.
pub const MMP_SEQ_MAX: u32 = 0xE24D_4D4F;
/// Shortest check interval in seconds.
pub const MMP_MIN_CHECK_INTERVAL: u16 = 5;
/// Longest check interval in seconds.
pub const MMP_MAX_CHECK_INTERVAL: u16 = 300;

/// `struct mmp_struct`; `mmp_checksum` covers what is before it, from the filesystem's seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are the kernel's, by name")]
pub struct RawMmp {
    pub mmp_magic: U32,
    pub mmp_seq: U32,
    pub mmp_time: U64,
    pub mmp_nodename: [u8; 64],
    pub mmp_bdevname: [u8; 32],
    pub mmp_check_interval: U16,
    pub mmp_pad1: U16,
    pub mmp_pad2: [U32; 226],
    pub mmp_checksum: U32,
}

const _: () = {
    assert!(size_of::<RawMmp>() == 1024);
    assert!(core::mem::offset_of!(RawMmp, mmp_check_interval) == 0x70);
    assert!(core::mem::offset_of!(RawMmp, mmp_checksum) == 0x3fc);
};

/// A decoded MMP block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mmp {
    /// The sequence number.
    pub seq: MmpSeq,
    /// Seconds since 1970 of the last update.
    pub time: u64,
    /// Host that has it open, zero-padded.
    pub nodename: [u8; 64],
    /// Device or image by that host's name, zero-padded.
    pub bdevname: [u8; 32],
    /// Seconds between updates.
    pub check_interval: u16,
}

/// `mmp_seq`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmpSeq {
    /// Nobody has it open.
    Clean,
    /// A checker has it open.
    Fsck,
    /// Somebody has it open, or had when it died.
    InUse(u32),
}

impl MmpSeq {
    /// From the field.
    #[must_use]
    pub const fn from_raw(seq: u32) -> Self {
        match seq {
            MMP_SEQ_CLEAN => Self::Clean,
            MMP_SEQ_FSCK => Self::Fsck,
            other => Self::InUse(other),
        }
    }

    /// To the field.
    #[must_use]
    pub const fn raw(self) -> u32 {
        match self {
            Self::Clean => MMP_SEQ_CLEAN,
            Self::Fsck => MMP_SEQ_FSCK,
            Self::InUse(seq) => seq,
        }
    }

    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        match self {
            Self::InUse(seq) if seq < MMP_SEQ_MAX => Self::InUse(seq + 1),
            _ => Self::InUse(1),
        }
    }
}

impl Mmp {
    /// A clean block, as a maker writes it.
    #[must_use]
    pub const fn new(check_interval: u16) -> Self {
        Self { seq: MmpSeq::Clean, time: 0, nodename: [0; 64], bdevname: [0; 32], check_interval }
    }

    /// Decodes and checks the start of an MMP block.
    ///
    /// # Errors
    /// [`Corrupt::Short`], [`Corrupt::Magic`], [`Corrupt::Range`] for a sequence number beyond the special ones,
    /// [`FormatError::Checksum`].
    pub fn read(block: Pblk, bytes: &[u8], csum: &Csum) -> Result<Self, FormatError> {
        let place = Place::Mmp(block);
        let corrupt = |kind| Err(FormatError::corrupt(place, kind));
        let Ok((raw, _)) = RawMmp::ref_from_prefix(bytes) else {
            return corrupt(Corrupt::Short { have: bytes.len() as u64, need: 1024 });
        };
        let found = raw.mmp_magic.get();
        if found != MMP_MAGIC {
            return corrupt(Corrupt::Magic { found, expected: MMP_MAGIC });
        }
        if csum.has_metadata() {
            let (stored, computed) = (raw.mmp_checksum.get(), csum.metadata(&bytes[..0x3fc]));
            if stored != computed {
                return Err(FormatError::Checksum { place, stored, computed });
            }
        }
        let seq = MmpSeq::from_raw(raw.mmp_seq.get());
        if let MmpSeq::InUse(value) = seq
            && value > MMP_SEQ_MAX
        {
            let (value, max) = (value.into(), MMP_SEQ_MAX.into());
            return corrupt(Corrupt::Range { field: "mmp_seq", value, min: 0, max });
        }
        Ok(Self {
            seq,
            time: raw.mmp_time.get(),
            nodename: raw.mmp_nodename,
            bdevname: raw.mmp_bdevname,
            check_interval: raw.mmp_check_interval.get(),
        })
    }

    /// Writes the 1024 bytes with their checksum into `bytes`; padding stays as it is.
    ///
    /// # Errors
    /// [`Corrupt::Short`].
    pub fn encode(&self, block: Pblk, bytes: &mut [u8], csum: &Csum) -> Result<(), FormatError> {
        let kind = Corrupt::Short { have: bytes.len() as u64, need: 1024 };
        let short = FormatError::corrupt(Place::Mmp(block), kind);
        let (raw, _) = RawMmp::mut_from_prefix(bytes).map_err(|_| short)?;
        raw.mmp_magic.set(MMP_MAGIC);
        raw.mmp_seq.set(self.seq.raw());
        raw.mmp_time.set(self.time);
        raw.mmp_nodename = self.nodename;
        raw.mmp_bdevname = self.bdevname;
        raw.mmp_check_interval.set(self.check_interval);
        if csum.has_metadata() {
            let sum = csum.metadata(&raw.as_bytes()[..0x3fc]);
            raw.mmp_checksum.set(sum);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::superblock;

    #[test]
    fn round_trip_and_wrong_bytes() {
        let sb = superblock(|_| ());
        let mut bytes = [0; 1024];
        let mmp = Mmp { seq: MmpSeq::InUse(9), time: 5, ..Mmp::new(7) };
        mmp.encode(Pblk(3), &mut bytes, sb.csum()).unwrap();
        assert_eq!(Mmp::read(Pblk(3), &bytes, sb.csum()).unwrap(), mmp);
        let place = Place::Mmp(Pblk(3));
        bytes[4] ^= 1;
        let e = Mmp::read(Pblk(3), &bytes, sb.csum()).unwrap_err();
        assert!(matches!(e, FormatError::Checksum { place: p, .. } if p == place));
        bytes[0] ^= 1;
        let e = Mmp::read(Pblk(3), &bytes, sb.csum()).unwrap_err();
        assert!(matches!(e, FormatError::Corrupt { kind: Corrupt::Magic { .. }, .. }));
        let e = Mmp::read(Pblk(3), &bytes[..1000], sb.csum()).unwrap_err();
        assert!(matches!(e, FormatError::Corrupt { kind: Corrupt::Short { have: 1000, .. }, .. }));
        let bad = Mmp { seq: MmpSeq::InUse(MMP_SEQ_MAX + 9), ..mmp };
        bad.encode(Pblk(3), &mut bytes, sb.csum()).unwrap();
        let e = Mmp::read(Pblk(3), &bytes, sb.csum()).unwrap_err();
        assert!(matches!(e, FormatError::Corrupt { kind: Corrupt::Range { field: "mmp_seq", .. }, .. }));
    }

    #[test]
    fn the_sequence_wraps() {
        assert_eq!(MmpSeq::Clean.next(), MmpSeq::InUse(1));
        assert_eq!(MmpSeq::InUse(MMP_SEQ_MAX).next(), MmpSeq::InUse(1));
        assert_eq!(MmpSeq::InUse(4).next().raw(), 5);
    }
}
