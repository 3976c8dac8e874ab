//! Journal recovery at mount: the log, then the fast commits after it.
//!
//! Fast commits describe changes of files, not of blocks, so they are applied by a filesystem: one that is opened over an
//! overlay of the recovered device, for this alone. What it changed is then written to the log as one transaction, and only
//! after that in place. So a crash finds either the log as it was, with its fast commits, or one more transaction in it; in
//! neither case half of a replay.

mod blocks;
mod fast_commit;

use std::sync::Arc;
use std::time::Duration;

use extant_device::{BlockDevice, Counting, Overlay};
use extant_format::superblock::State;
use extant_format::{Pblk, Superblock};
use extant_journal::{LogPlace, Recovery, pass_over, recover as replay};

use crate::bootstrap;
use crate::error::Result;
use crate::mount::{Setup, build};

/// Replays the journal onto `device` if it needs it; true if it did. For writing, the log is then marked empty.
///
/// Where the superblock says that no recovery is needed nothing is replayed: what the log holds is none of this filesystem's changes.
/// A mount says so before its first commit, and no longer only when its log is empty; so this is the log of another one that was
/// made with the same UUID on the same external journal, or of one that `mke2fs -S` made over. The kernel wipes it too.
///
/// `counting` is what lies beneath `device`.
pub(crate) fn recover(
    device: &Arc<dyn BlockDevice>,
    counting: &Arc<Counting>,
    sb: &Superblock,
    setup: &Setup,
    log: &LogPlace,
    read_only: bool,
) -> Result<bool> {
    let says_clean = bootstrap::says_clean(&**device, sb)?;
    let mut recovery =
        if says_clean { pass_over(log)? } else { replay(log, device, sb.geometry().blocks_count())? };
    let needed = recovery.was_needed() && !says_clean;
    if recovery.was_needed() && says_clean {
        tracing::warn!("the journal has data, but the superblock needs no recovery: they are not replayed");
    }
    let errno = recovery.recorded_errno();
    if !recovery.fast_commits().is_empty() {
        apply_fast_commits(device, counting, setup, log, &mut recovery, read_only)?;
    }
    if errno != 0 {
        tracing::warn!(
            errno,
            "the journal says that the last mount ended with an error: the filesystem wants a check"
        );
    }
    if !read_only {
        if errno != 0 {
            note_error(device, setup)?;
        }
        recovery.finish(device)?;
    }
    Ok(needed || errno != 0)
}

/// Takes over into the superblock that the journal was aborted: with a device that failed, it was all that could be written.
fn note_error(device: &Arc<dyn BlockDevice>, setup: &Setup) -> Result<()> {
    let (at, mut sb) = bootstrap::read_state(&**device, setup.options.sb)?;
    let before = sb.encode();
    sb.set_state(sb.state() | State::ERROR);
    device.write_at(at, &sb.encode_over(&before))?;
    Ok(device.flush()?)
}

fn apply_fast_commits(
    device: &Arc<dyn BlockDevice>,
    counting: &Arc<Counting>,
    setup: &Setup,
    log: &LogPlace,
    recovery: &mut Recovery,
    read_only: bool,
) -> Result<()> {
    let sb = bootstrap::read_super(&**device, setup.options.sb)?;
    let block_size = sb.geometry().block_size() as usize;
    let changes = Arc::new(Overlay::new(Arc::clone(device)));
    // Opened as for reading: no threads, no log, no record of a mount.
    let over: Arc<dyn BlockDevice> = Arc::clone(&changes) as _;
    let fs = build(over, Arc::clone(counting), sb, setup, true, Some(log.clone()))?;
    fast_commit::replay(&fs, recovery.fast_commits())?;
    drop(fs);
    tracing::info!(records = recovery.fast_commits().len(), "fast commits applied");
    if !read_only {
        let blocks = changes.changed_blocks(block_size)?;
        let blocks: Vec<_> = blocks.into_iter().map(|(block, bytes)| (Pblk(block), bytes)).collect();
        let now = Duration::from_secs(setup.clock.now().sec.max(0) as u64);
        if !recovery.log_fast_commits(device, &blocks, now)? {
            tracing::warn!("the log has no room for what the fast commits change: a crash now wants a check");
        }
    }
    Ok(changes.apply()?)
}
