//! Multiple-mount protection: a block that says who has the filesystem open, kept alive by a thread.
//!
//! Taking it (kernel ext4 documentation, "Multiple Mount Protection"): a clean block is free; a block in use is watched for
//! twice the interval it names, and free if it did not change; then one's own number is written, and after another
//! interval it must still be there.
//!
//! While the filesystem is frozen nothing is written, here neither: as with the kernel, others may take it then, and a thaw that comes
//! too late ends the mount.
//!
//! It is held from before the first write (the recovery) until after the last one (the superblock's), and let go whenever the
//! filesystem turns read-only, is unmounted, or cannot be mounted after all.

use std::sync::{Arc, Weak};
use std::time::Duration;

use extant_device::BlockDevice;
use extant_format::mmp::{Mmp as Record, MmpSeq};
use extant_format::{Csum, Incompat, Pblk, Superblock};
use extant_journal::Journal;
use extant_sync::{Mutex, Rank, thread};

use crate::background::Stop;
use crate::error::{Error, Result};
use crate::filesystem::{Filesystem, Mode};

/// The least interval, in seconds.
const MIN_INTERVAL: u16 = 1;
/// The longest that a stored interval may make a mount wait.
const MAX_INTERVAL: u16 = 300;

/// The filesystem is taken: as long as this lives its thread counts up. Dropped, it is given back, so that nobody waits for an owner
/// that there is not; whoever holds it writes nothing after that.
pub(crate) struct Protection {
    block: Arc<Mutex<Block>>,
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What the thread that counts shares with who holds the protection.
struct Shared {
    stop: Stop,
    watched: Mutex<Watched>,
}

/// Whom the thread has to stop when somebody else takes the filesystem.
struct Watched {
    lost: bool,
    mount: Option<(Weak<Filesystem>, Arc<Journal>)>,
}

/// The block, while it names us.
struct Block {
    device: Arc<dyn BlockDevice>,
    block: Pblk,
    block_size: u32,
    csum: Csum,
    record: Record,
    /// The number before, which is still there if the write of the last one failed.
    before: Option<MmpSeq>,
    interval: u16,
    /// The filesystem is frozen: nobody counts.
    resting: bool,
}

impl Protection {
    /// Takes the filesystem on `device` for writing; `None` if it has no such block, or for reading.
    ///
    /// # Errors
    /// `Incompatible` if somebody else has it; the device's.
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
        let mut block = Block {
            device: Arc::clone(device),
            block,
            block_size: sb.geometry().block_size(),
            csum: *sb.csum(),
            record: Record::new(interval),
            before: None,
            interval: interval.clamp(MIN_INTERVAL, MAX_INTERVAL),
            resting: false,
        };
        block.record = block.read()?;
        block.take()?;
        let block = Arc::new(Mutex::new(Rank::MMP, block));
        let shared = Arc::new(Shared::new());
        let thread = {
            let (block, shared) = (Arc::clone(&block), Arc::clone(&shared));
            thread::spawn(move || keep_alive(&block, &shared))
        };
        Ok(Some(Self { block, shared, thread: Some(thread) }))
    }

    /// Says whom to stop if somebody else takes the filesystem.
    ///
    /// # Errors
    /// `Incompatible`: somebody has.
    fn watch(&self, fs: &Filesystem) -> Result<()> {
        let mut watched = self.shared.watched.lock();
        watched.mount = Some((Weak::clone(&fs.this), Arc::clone(&fs.journal)));
        if watched.lost { Err(busy()) } else { Ok(()) }
    }

    /// Gives the filesystem back: the last that is written to it.
    ///
    /// # Errors
    /// `Incompatible`: somebody else has taken it, and keeps it; the device's.
    pub(crate) fn release(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.shared.stop.set();
        // The thread itself may drop the last reference to the filesystem.
        if thread.thread().id() != thread::current().id() {
            let _ = thread.join();
        }
        self.block.lock().give_back()
    }
}

impl Drop for Protection {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            tracing::error!("multiple-mount protection: {e}");
        }
    }
}

impl Filesystem {
    /// Keeps the protection that was taken for this filesystem until [`Self::release_mmp`].
    ///
    /// # Errors
    /// `Incompatible`: somebody else has taken it meanwhile. Nothing more is written then.
    pub(crate) fn hold_mmp(&self, protection: Option<Protection>) -> Result<()> {
        let Some(protection) = protection else { return Ok(()) };
        let ours = protection.watch(self);
        *self.mount.mmp.lock() = Some(protection);
        if ours.is_err() {
            self.set_mode(Mode::Shutdown);
            // Not an abort, which would be recorded: the journal is somebody else's now.
            self.journal.stop();
        }
        ours
    }

    /// Lets go of the protection, if it is held: the last that is written to the device.
    ///
    /// # Errors
    /// As [`Protection::release`].
    pub(crate) fn release_mmp(&self) -> Result<()> {
        let held = self.mount.mmp.lock().take();
        held.map_or(Ok(()), Protection::release)
    }

    /// For a freeze: the block stays as it is from here on, as everything else, until [`Self::wake_mmp`].
    pub(crate) fn rest_mmp(&self) {
        if let Some(block) = self.mmp_block() {
            block.lock().resting = true;
        }
    }

    /// Counts again. If somebody else has taken the filesystem meanwhile, all writing ends.
    ///
    /// # Errors
    /// `Incompatible`: somebody has; the device's, when that could not be found out.
    pub(crate) fn wake_mmp(&self) -> Result<()> {
        let Some(block) = self.mmp_block() else { return Ok(()) };
        let mut block = block.lock();
        let woken = if std::mem::take(&mut block.resting) { block.confirm() } else { Ok(()) };
        drop(block);
        if let Err(e) = &woken {
            tracing::error!("multiple-mount protection: {e}; nothing more is written");
            self.set_mode(Mode::Shutdown);
            self.journal.stop();
        }
        woken
    }

    fn mmp_block(&self) -> Option<Arc<Mutex<Block>>> {
        self.mount.mmp.lock().as_ref().map(|held| Arc::clone(&held.block))
    }

    /// Refuses to go on if somebody else has the filesystem by now.
    ///
    /// # Errors
    /// `Incompatible`; the device's.
    pub(crate) fn confirm_mmp(&self) -> Result<()> {
        self.mmp_block().map_or(Ok(()), |block| block.lock().confirm())
    }
}

/// Counts up until the protection is given back. Somebody else's number ends all writing; when an error has ended it before, nobody
/// counts: others may take the filesystem, see [`Filesystem::confirm_mmp`].
fn keep_alive(block: &Mutex<Block>, shared: &Shared) {
    let _harmless = extant_sys::transfers::harmless();
    let interval = Duration::from_secs(u64::from(block.lock().interval));
    while !shared.stop.wait(interval) {
        if shared.is_over() {
            continue;
        }
        let kept = block.lock().keep();
        if let Err(e) = kept {
            tracing::error!("multiple-mount protection: {e}; nothing more is written");
            shared.end_writing();
            return;
        }
    }
}

impl Shared {
    fn new() -> Self {
        let watched = Watched { lost: false, mount: None };
        Self { stop: Stop::default(), watched: Mutex::new(Rank::LEAF, watched) }
    }

    /// Whether nothing is written any more.
    fn is_over(&self) -> bool {
        self.watched.lock().mount.as_ref().is_some_and(|(_, journal)| journal.is_aborted())
    }

    fn end_writing(&self) {
        let mount = {
            let mut watched = self.watched.lock();
            watched.lost = true;
            watched.mount.clone()
        };
        let Some((fs, journal)) = mount else { return };
        // While it is being dropped there is only the journal to be stopped.
        let fs = fs.upgrade();
        if let Some(fs) = &fs {
            fs.set_mode(Mode::Shutdown);
        }
        // Not an abort, which would be recorded: the journal is somebody else's now.
        journal.stop();
        if let Some(Err(e)) = fs.map(|fs| fs.end_stores()) {
            tracing::error!("multiple-mount protection: mappings can still be stored to: {e}");
        }
    }
}

impl Block {
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
        self.record.nodename = [0; 64];
        self.record.nodename[..6].copy_from_slice(b"extant");
        let taken = self.claim(MmpSeq::InUse(number()));
        if taken.is_err() {
            // What is half taken is given back, if it was not somebody else who was faster. The error is the claim's.
            let _ = self.give_back();
        }
        taken
    }

    /// Writes one's own number, and looks after a while whether it is still there.
    fn claim(&mut self, mine: MmpSeq) -> Result<()> {
        self.write(mine)?;
        Stop::default().wait(Duration::from_secs(u64::from(self.interval) * 2 + 1));
        self.check_ours()
    }

    /// Counts up, if the number in the block is still the one that was last written.
    ///
    /// # Errors
    /// `Incompatible` if somebody else has taken the filesystem; the device's.
    fn confirm(&mut self) -> Result<()> {
        self.check_ours()?;
        self.before = Some(self.record.seq);
        self.write(self.record.seq.next())?;
        self.before = None;
        Ok(())
    }

    /// The same at each interval, unless the filesystem is frozen.
    fn keep(&mut self) -> Result<()> {
        if self.resting { Ok(()) } else { self.confirm() }
    }

    fn check_ours(&self) -> Result<()> {
        let there = self.read()?.seq;
        if there == self.record.seq || Some(there) == self.before { Ok(()) } else { Err(busy()) }
    }

    /// Marks the block clean, after everything that was written before; but who has taken the filesystem meanwhile keeps it.
    fn give_back(&mut self) -> Result<()> {
        let flushed = self.device.flush();
        self.check_ours()?;
        self.write(MmpSeq::Clean)?;
        Ok(flushed?)
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

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
