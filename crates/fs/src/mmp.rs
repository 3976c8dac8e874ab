//! Multiple-mount protection: a block that says who has the filesystem open, kept alive by a thread.
//!
//! Taking it (kernel ext4 documentation, "Multiple Mount Protection"): a clean block is free; a block in use is watched for
//! twice the interval it names, and free if it did not change; then one's own number is written, and after another
//! interval it must still be there.

use std::sync::{Arc, Weak};
use std::time::Duration;

use extant_device::BlockDevice;
use extant_format::mmp::{Mmp as Record, MmpSeq};
use extant_format::{Csum, Incompat, Pblk, Superblock};
use extant_sync::Mutex;

use crate::background::Stop;
use crate::error::{Error, Result};
use crate::filesystem::{Filesystem, Mode};

/// The least interval, in seconds.
const MIN_INTERVAL: u16 = 1;
/// The longest that a stored interval may make a mount wait.
const MAX_INTERVAL: u16 = 300;

/// The held protection of a mount.
pub(crate) struct Mmp {
    device: Arc<dyn BlockDevice>,
    block: Pblk,
    block_size: u32,
    csum: Csum,
    record: Record,
    interval: u16,
}

impl Mmp {
    /// Takes the filesystem for writing; `None` if it has no such block, or for reading.
    pub(crate) fn acquire(
        device: &Arc<dyn BlockDevice>,
        sb: &Superblock,
        read_only: bool,
    ) -> Result<Option<Self>> {
        if read_only || !sb.features().incompat.contains(Incompat::MMP) {
            return Ok(None);
        }
        let Some((block, interval)) = sb.mmp() else { return Ok(None) };
        if !sb.geometry().contains(block) {
            return Err(Error::Incompatible("its multiple-mount protection block lies outside".into()));
        }
        let mut mmp = Self {
            device: Arc::clone(device),
            block,
            block_size: sb.geometry().block_size(),
            csum: *sb.csum(),
            record: Record::new(interval),
            interval: interval.clamp(MIN_INTERVAL, MAX_INTERVAL),
        };
        mmp.record = mmp.read()?;
        mmp.take()?;
        Ok(Some(mmp))
    }

    fn offset(&self) -> u64 {
        self.block.0 * u64::from(self.block_size)
    }

    fn read(&self) -> Result<Record> {
        let mut bytes = [0; 1024];
        self.device.read_at(self.offset(), &mut bytes)?;
        Ok(Record::read(self.block, &bytes, &self.csum)?)
    }

    fn write(&mut self, seq: MmpSeq) -> Result<()> {
        let mut bytes = [0; 1024];
        self.device.read_at(self.offset(), &mut bytes)?;
        self.record.seq = seq;
        self.record.time =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_secs());
        self.record.check_interval = self.interval;
        self.record.encode(self.block, &mut bytes, &self.csum)?;
        self.device.write_at(self.offset(), &bytes)?;
        self.device.flush()?;
        Ok(())
    }

    fn take(&mut self) -> Result<()> {
        let stop = Stop::default();
        match self.record.seq {
            MmpSeq::Clean => {}
            MmpSeq::Fsck => {
                return Err(Error::Incompatible("a checker has it open (multiple-mount protection)".into()));
            }
            in_use => {
                let interval = self.record.check_interval.clamp(self.interval, MAX_INTERVAL);
                let watch = Duration::from_secs(u64::from(interval) * 2 + 1);
                stop.wait(watch);
                if self.read()?.seq != in_use {
                    return Err(busy());
                }
            }
        }
        let mine = MmpSeq::InUse(number());
        self.record.nodename = [0; 64];
        self.record.nodename[..6].copy_from_slice(b"extant");
        self.write(mine)?;
        stop.wait(Duration::from_secs(u64::from(self.interval) * 2 + 1));
        if self.read()?.seq == mine { Ok(()) } else { Err(busy()) }
    }

    /// Counts up until the mount ends, then marks the block clean. Somebody else's number stops the mount. While it is read-only
    /// nobody counts: others may take the filesystem, see [`Self::confirm`].
    pub(crate) fn keep_alive(held: &Mutex<Self>, fs: &Weak<Filesystem>, stop: &Stop) {
        let interval = Duration::from_secs(u64::from(held.lock().interval));
        while !stop.wait(interval) {
            let Some(fs) = fs.upgrade() else { break };
            if fs.mode() != Mode::ReadWrite {
                continue;
            }
            let kept = held.lock().confirm();
            if kept.is_err() {
                tracing::error!("multiple-mount protection: somebody else writes to the filesystem");
                fs.set_mode(Mode::Shutdown);
                // Not an abort, which would be recorded: the journal is somebody else's now.
                fs.journal.stop();
                if let Err(e) = fs.hide_devices() {
                    tracing::error!("multiple-mount protection: mappings that show the device stay: {e}");
                }
                return;
            }
        }
        let mut held = held.lock();
        // Who has taken it meanwhile keeps it.
        let ended = held.check_ours().and_then(|()| held.write(MmpSeq::Clean));
        if let Err(e) = ended {
            tracing::error!("multiple-mount protection: {e}");
        }
    }

    /// Counts up, if the number in the block is still the one that was last written.
    ///
    /// # Errors
    /// `Incompatible` if somebody else has taken the filesystem; the device's.
    pub(crate) fn confirm(&mut self) -> Result<()> {
        self.check_ours()?;
        self.write(self.record.seq.next())
    }

    fn check_ours(&self) -> Result<()> {
        if self.read()?.seq == self.record.seq { Ok(()) } else { Err(busy()) }
    }

    /// Gives the filesystem back.
    pub(crate) fn release(mut self) -> Result<()> {
        self.write(MmpSeq::Clean)
    }
}

fn busy() -> Error {
    Error::Incompatible("another host or process has it open (multiple-mount protection)".into())
}

/// A number that another host does not choose at the same time.
fn number() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (random % 0xE24D_4D4F) as u32 + 1
}
