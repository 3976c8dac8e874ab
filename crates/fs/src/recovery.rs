//! Journal recovery at mount.

use std::sync::Arc;

use extant_device::BlockDevice;
use extant_format::Superblock;
use extant_journal::{LogPlace, recover as replay};

use crate::error::{Error, Result};

/// Replays the journal onto `device` if it needs it; true if it did. For writing, the log is then marked empty.
pub(crate) fn recover(
    device: &Arc<dyn BlockDevice>,
    sb: &Superblock,
    log: &LogPlace,
    read_only: bool,
) -> Result<bool> {
    let recovery = replay(log, device, sb.geometry().blocks_count())?;
    let needed = recovery.was_needed();
    if !recovery.fast_commits().is_empty() {
        // Refused as a whole: leaving them out would lose what was synced.
        return Err(Error::Incompatible(
            "its journal holds fast commits, which are not supported yet: recover it with e2fsck".into(),
        ));
    }
    if !read_only {
        recovery.finish(device)?;
    }
    Ok(needed)
}
