//! Features that a filesystem gets when it first needs them: `large_file` with a file of 2 GiB, `ext_attr` with an attribute.
//!
//! The superblock says so in a handle of its own before the change, and so in the same transaction or an earlier one: no state
//! that a crash leaves has the file without the feature. The feature without the file is nothing amiss.

use extant_format::{Compat, Features, RoCompat, Superblock};
use extant_sync::atomic::{AtomicU8, Ordering};

use crate::error::Result;
use crate::filesystem::Filesystem;

/// The size from which a file needs `large_file`.
pub(crate) const LARGE_FILE: u64 = 1 << 31;
/// Of a superblock of revision 0, which has no features (kernel ext4 documentation, "Super Block", `s_rev_level`).
const FIRST_INO: u32 = 11;
const INODE_SIZE: u16 = 128;

/// Such a feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum LateFeature {
    LargeFile = 1,
    ExtAttr = 2,
}

/// Those that the filesystem has not yet.
#[derive(Debug)]
pub(crate) struct LateFeatures(AtomicU8);

impl LateFeatures {
    pub(crate) fn missing(features: Features) -> Self {
        let large = !features.ro_compat.contains(RoCompat::LARGE_FILE);
        let attr = !features.compat.contains(Compat::EXT_ATTR);
        let bit = |missing, feature: LateFeature| if missing { feature as u8 } else { 0 };
        Self(AtomicU8::new(bit(large, LateFeature::LargeFile) | bit(attr, LateFeature::ExtAttr)))
    }
}

impl Filesystem {
    /// Before a change that needs `feature`. No handle is open; one credit in one of its own where the feature is missing.
    pub(crate) fn need_feature(&self, feature: LateFeature) -> Result<()> {
        if self.late_features.0.load(Ordering::Acquire) & feature as u8 == 0 {
            return Ok(());
        }
        let mut handle = self.journal.start(1)?;
        let mut set = Ok(());
        self.write_super(&mut handle, |sb| set = add(sb, feature))?;
        handle.finish()?;
        set?;
        self.late_features.0.fetch_and(!(feature as u8), Ordering::AcqRel);
        Ok(())
    }

    /// Before a file gets `size` bytes; as [`Self::need_feature`].
    pub(crate) fn need_size(&self, size: u64) -> Result<()> {
        if size < LARGE_FILE { Ok(()) } else { self.need_feature(LateFeature::LargeFile) }
    }
}

fn add(sb: &mut Superblock, feature: LateFeature) -> Result<()> {
    Ok(sb.update(|raw| {
        // The kernel raises the revision too.
        if raw.s_rev_level.get() == 0 {
            raw.s_rev_level.set(1);
            raw.s_first_ino.set(FIRST_INO);
            raw.s_inode_size.set(INODE_SIZE);
        }
        let mut features = raw.features();
        match feature {
            LateFeature::LargeFile => features.ro_compat |= RoCompat::LARGE_FILE,
            LateFeature::ExtAttr => features.compat |= Compat::EXT_ATTR,
        }
        raw.set_features(features);
    })?)
}
