//! Mounting, and what a mount keeps in the superblock.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use extant_alloc::{AllocError, AllocOptions, Allocator, ErrorSink, overhead_clusters};
use extant_device::{BlockDevice, Counting, Overlay};
use extant_format::dir::DirLayout;
use extant_format::hash::HashVersion;
use extant_format::inode::InodeFormat;
use extant_format::superblock::{SbFlags, SbTime, State};
use extant_format::{Compat, Features, FormatError, Incompat, RoCompat, Superblock};
use extant_journal::{BlockCache, Buf, CommitObserver, Journal, JournalOptions, LogPlace, WantedFeatures};
use extant_map::MapFs;
use extant_sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use extant_sync::{Mutex, Rank, RwLock, thread};
use extant_vm::{CacheConfig, PageCache};

use crate::bootstrap;
use crate::error::{CorruptKind, Error, Place, Result};
use crate::filesystem::{Filesystem, Mode, rename_lock};
use crate::freeze::{Gate, Level};
use crate::icache::InodeCache;
use crate::options::{DataMode, MountOptions, Presets, Resolved};
use crate::orphan::Orphans;
use crate::time::{Clock, SystemClock};
use crate::xattr::{SharedBlocks, SharedValues};

/// What a filesystem is opened with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Mount options.
    pub options: MountOptions,
    /// The external journal, where the filesystem has one.
    pub journal_device: Option<Arc<dyn BlockDevice>>,
    /// Where it is mounted, for the superblock's record.
    pub mounted_at: Option<Vec<u8>>,
    /// Where times come from.
    pub clock: Arc<dyn Clock>,
    /// In-core inodes to keep at most; fewer with a `cache_size` below 256 MiB.
    pub inode_capacity: usize,
    /// Whether a read-only mount recovers the image itself where the device can be written, as the kernel does: the journal is
    /// replayed onto the device and orphans are processed. Not with `noload`. Otherwise a read-only mount writes nothing.
    pub recover_on_device: bool,
    /// A directory of a tmpfs for the memory of mapped files, in place of the system's own: one mounted with `huge=` makes large
    /// files much cheaper to fill and to map.
    pub map_dir: Option<std::path::PathBuf>,
    /// The guard that a schedule test takes away.
    #[cfg(feature = "shuttle")]
    pub mutant: crate::Mutant,
    /// Where the generations of new inodes start; `None`: anywhere. With this and a clock that stands still the same work
    /// gives the same image.
    pub generation: Option<u32>,
    /// Bytes of the log that recovery reads at once; `None`: a megabyte. See [`LogPlace::with_window`].
    pub log_window: Option<u32>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            options: MountOptions::default(),
            journal_device: None,
            mounted_at: None,
            clock: Arc::new(SystemClock),
            inode_capacity: 1 << 15,
            recover_on_device: false,
            map_dir: None,
            #[cfg(feature = "shuttle")]
            mutant: crate::Mutant::None,
            generation: None,
            log_window: None,
        }
    }
}

impl Setup {
    /// For reading only: nothing is written to the device, an unclean journal is replayed in memory.
    #[must_use]
    pub fn read_only() -> Self {
        let options = MountOptions { read_only: true, ..MountOptions::default() };
        Self { options, ..Self::default() }
    }

    /// With mount options from their comma-separated form.
    ///
    /// # Errors
    /// A word that is unknown or has a bad value.
    pub fn with_options(list: &str) -> Result<Self> {
        Ok(Self { options: MountOptions::parse(list)?, ..Self::default() })
    }
}

/// What only mounting and unmounting look at.
pub(crate) struct MountState {
    pub(crate) counting: Arc<Counting>,
    /// `s_state` said clean when it was mounted.
    pub(crate) was_valid: bool,
    pub(crate) kbytes_before: u64,
    pub(crate) threads: Mutex<Vec<thread::JoinHandle<()>>>,
    /// Ends the threads.
    pub(crate) stop: Arc<crate::background::Stop>,
    pub(crate) mounted_at: Option<Vec<u8>>,
    /// It has been mounted for writing since it was opened: orphans are processed.
    pub(crate) begun: AtomicBool,
    /// That succeeded, and its threads run.
    pub(crate) started: AtomicBool,
    /// A remount has failed after it had begun: nothing more is written, and none succeeds.
    pub(crate) half_begun: AtomicBool,
    /// Multiple-mount protection, while the filesystem may be written to.
    pub(crate) mmp: Mutex<Option<crate::mmp::Protection>>,
    /// Held over what changes the mount as a whole: remount, freeze, thaw, an orderly shutdown, unmount.
    pub(crate) whole: Mutex<()>,
    /// It is frozen; changes under `whole`.
    pub(crate) frozen: AtomicBool,
    /// The process ends with the mount.
    pub(crate) ending: AtomicBool,
    /// The superblock said that the orphan file has entries when it was mounted.
    pub(crate) had_orphans: bool,
    /// Held over a flush of times that changed in memory only.
    pub(crate) flushing_times: Mutex<()>,
    /// Damage that the allocator found before there was a filesystem to record it, until it is mounted for writing.
    pub(crate) found_early: Mutex<Vec<Error>>,
}

impl Filesystem {
    /// Mounts the filesystem on `device`.
    ///
    /// Read-only, nothing is written to the device: a journal that needs it is replayed into memory; but see
    /// [`Setup::recover_on_device`]. For writing, the journal is replayed in place, orphans are processed, and the superblock
    /// says that the filesystem is in use until [`Filesystem::unmount`].
    ///
    /// # Errors
    /// `Incompatible` for features or options that are not supported, and for writing through a journal that is too small for the
    /// largest operation; damage; the device's errors.
    pub fn open(device: Arc<dyn BlockDevice>, setup: Setup) -> Result<Arc<Self>> {
        let sb = bootstrap::read_super(&*device, setup.options.sb)?;
        let setup = Setup { options: setup.options.over_superblock(&sb), ..setup };
        let read_only = setup.options.read_only || device.is_read_only();
        gate(&sb, &setup.options, read_only, device.size())?;
        let recovers = read_only && recovers_on_device(&device, &sb, &setup);
        let overlaid = read_only && !recovers && !may_turn_writable(&device, &sb, &setup);
        let writes = !read_only || recovers;
        let counting = Arc::new(Counting::new(device));
        let target: Arc<dyn BlockDevice> = if overlaid {
            Arc::new(Overlay::new(Arc::clone(&counting) as _))
        } else {
            Arc::clone(&counting) as _
        };
        crate::dax::check_mount(&sb, &setup.options, &*target)?;
        // Whatever fails from here on, it is given back, after all else.
        let mmp = crate::mmp::Protection::acquire(&target, &sb, !writes)?;
        let log = find_log(&target, &sb, &setup)?.map(|log| match setup.log_window {
            Some(bytes) => log.with_window(bytes),
            None => log,
        });
        let replayed = match &log {
            Some(log) if !setup.options.noload => {
                crate::recovery::recover(&target, &counting, &sb, &setup, log, !writes)?
            }
            _ => false,
        };
        let sb = if replayed { bootstrap::read_super(&*target, setup.options.sb)? } else { sb };
        let fs = build(target, counting, sb, &setup, overlaid, log)?;
        fs.hold_mmp(mmp)?;
        fs.begin_mount(read_only, recovers)?;
        fs.start_threads();
        Ok(fs)
    }

    /// What a mount does first. On an error whose mount has written nothing yet nothing is written any more.
    fn begin_mount(&self, read_only: bool, recovers: bool) -> Result<()> {
        if let Err(e) = self.root() {
            self.set_mode(Mode::ReadOnly);
            return Err(e);
        }
        if recovers {
            self.recover_to_read_only()?;
        } else if read_only {
            self.set_mode(Mode::ReadOnly);
        } else {
            let begun = self.begin();
            if begun.is_err() && !self.mount.begun.load(Ordering::Acquire) {
                self.set_mode(Mode::ReadOnly);
            }
            return begun;
        }
        self.release_mmp()
    }

    /// A read-only mount that recovers the image: orphans are processed as for writing, then the superblock says clean. It does
    /// not count as a mount; a later one for writing does.
    fn recover_to_read_only(&self) -> Result<()> {
        if self.check_journal_size().is_err() {
            // The log was replayed; orphans wait for a mount with a larger one.
            self.set_mode(Mode::ReadOnly);
            return Ok(());
        }
        self.mark_in_use()?;
        self.quota_open()?;
        self.process_orphans()?;
        self.to_read_only()
    }

    /// What a mount for writing does first: orphans, and the superblock's record of the mount.
    ///
    /// # Errors
    /// `Incompatible` with nothing written: the journal is too small. Damage; the device's.
    pub(crate) fn begin(&self) -> Result<()> {
        self.announce()?;
        self.take_up()
    }

    /// What comes before the first change: the superblock says that there may be something to recover. A log under one that does not is
    /// wiped, so nothing may be committed before.
    pub(crate) fn announce(&self) -> Result<()> {
        self.check_journal_size()?;
        self.mount.begun.store(true, Ordering::Release);
        self.mark_mounted()
    }

    /// The first changes.
    pub(crate) fn take_up(&self) -> Result<()> {
        self.quota_open()?;
        self.process_orphans()?;
        self.record_found_early()
    }

    fn mark_mounted(&self) -> Result<()> {
        let now = self.clock.now().sec.max(0) as u64;
        {
            let mut sb = self.sb.lock();
            if sb.state().contains(State::ERROR) {
                tracing::warn!("the filesystem has errors on record: it wants to be checked (e2fsck)");
            }
            let (count, _) = sb.mount_counts();
            sb.set_mnt_count(count.saturating_add(1));
            sb.set_time(SbTime::Mount, now);
            if let Some(path) = &self.mount.mounted_at {
                sb.set_last_mounted(path);
            }
        }
        self.mark_in_use()
    }

    /// Changes the superblock in memory and at once on the device, outside of any transaction; flushed.
    ///
    /// The first backup is written before the primary: a crash may tear either write at a sector, never both, and the
    /// checksum tells which (`bootstrap::read_super`). As a rule the primary cannot be torn: one sector of it changes.
    pub(crate) fn store_super(&self, change: impl FnOnce(&mut Superblock)) -> Result<()> {
        let (primary, backup) = {
            let mut sb = self.sb.lock();
            change(&mut sb);
            (sb.clone(), backup_of(&sb))
        };
        if let Some((at, bytes)) = backup {
            self.device.write_at(at, &bytes)?;
            self.device.flush()?;
        }
        let at = self.sb_offset();
        self.cache.write_through(&self.sb_buf, |bytes| {
            let primary = primary.encode_over(&bytes[at..at + 1024]);
            bytes[at..at + 1024].copy_from_slice(&primary);
        })?;
        self.device.flush()?;
        Ok(())
    }

    /// [`Self::unmount`] by the thread that is about to end the process. Pages that are in memory are still there for loads. Where a page would
    /// have to come, or a store to go through, other threads wait for that end, which a signal would bring about in its place; this one
    /// gets SIGBUS.
    ///
    /// # Errors
    /// As [`Self::unmount`].
    pub fn unmount_at_end(&self) -> Result<()> {
        self.mount.ending.store(true, Ordering::Release);
        let done = self.unmount();
        if matches!(done, Err(Error::Busy)) {
            self.mount.ending.store(false, Ordering::Release);
        } else {
            self.end_by_this_thread();
        }
        done
    }

    /// Writes everything, marks the filesystem clean, and ends the mount. Inodes still referred to answer `Shutdown` from
    /// then on, and an access of a mapping for which a page would have to come is SIGBUS.
    ///
    /// # Errors
    /// What could not be written; the mount has ended all the same.
    pub fn unmount(&self) -> Result<()> {
        let _whole = self.mount.whole.lock();
        let mode = self.mode();
        if mode == Mode::Closed {
            return Ok(());
        }
        if self.pages.stats().pins > 0 {
            return Err(Error::Busy);
        }
        // Before anything is evicted, which would wait for it.
        self.thaw_to_unmount();
        // Whoever comes now waits for the end: what would be stored after the last writeback would be lost.
        self.gate.close(Level::Write);
        self.gate.close(Level::Fault);
        if self.pages.stats().pins > 0 {
            self.open_gates();
            return Err(Error::Busy);
        }
        // Not left to the evictor: it can do nothing any more for a filesystem that is being dropped.
        while mode == Mode::ReadWrite && self.evict_next() {}
        let flushed = if mode == Mode::ReadWrite {
            let written = self.write_everything();
            // Nothing is counted any more, but for what is freed at the very end.
            self.hold_quota_files(false).and(written)
        } else {
            Ok(())
        };
        let lost = self.drop_unwritten();
        for (ino, bytes) in &lost {
            tracing::error!("{bytes} bytes of inode {ino} could not be written and are lost");
        }
        let all = if lost.is_empty() { Ok(()) } else { Err(Error::Io(std::io::Error::from_raw_os_error(5))) };
        let flushed = flushed.and(all);
        self.stop_threads();
        let flushed = if mode == Mode::ReadWrite && !self.journal.is_aborted() {
            self.evict_all_dead();
            // What readers touched since.
            flushed.and(self.flush_times())
        } else {
            flushed
        };
        let result = match mode {
            // Lost content is reported, and leaves the filesystem as consistent as ever. An aborted journal is not closed, but
            // says why.
            Mode::ReadWrite => {
                let ended = self.end_clean();
                flushed.and(ended)
            }
            // Closed and left to recovery when that happened; somebody else may have it by now.
            Mode::ReadOnly if self.mount.half_begun.load(Ordering::Acquire) => Ok(()),
            // Damage made it read-only.
            Mode::ReadOnly if self.journal.is_aborted() => {
                let left = self.confirm_mmp().and_then(|()| self.leave_record());
                self.journal.close().map_err(Error::from).and(left)
            }
            Mode::ReadOnly => Ok(()),
            Mode::Shutdown | Mode::Closed => {
                let _ = self.journal.close();
                Err(Error::Shutdown)
            }
        };
        // Somebody else may have the image from here on.
        self.pages.forget_grace();
        self.set_mode(Mode::Closed);
        // A mapping that is there still stores to the device no more: its next access is a fault, which is refused.
        let hidden = self.hide_devices();
        // Who waited is refused; faults of a process that ends wait on (`Mount::ending`).
        self.open_gates();
        // From here on it may be somebody else's.
        let released = self.release_mmp();
        result.and(hidden).and(released)
    }

    /// A frozen filesystem that is unmounted has nobody left who could thaw it.
    fn thaw_to_unmount(&self) {
        if self.mount.frozen.swap(false, Ordering::AcqRel) {
            // If this cannot be written, the image stays as clean as the freeze left it.
            let _ = self.mark_thawed();
            self.open_gates();
        }
    }

    /// Writes all that is dirty, as sync does, and waits for evictions.
    pub(crate) fn write_everything(&self) -> Result<()> {
        // What a device put into a mapping without a pin makes no file dirty by itself.
        let found = self.pages.find_unseen_changes().map_err(Error::from);
        let data = self.write_back_all().and(found);
        self.flush_times()?;
        self.settle_tails()?;
        self.icache.wait_evicted();
        self.commit_and_flush()?;
        data
    }

    /// Closes the journal and writes the superblock of a clean filesystem.
    fn end_clean(&self) -> Result<()> {
        self.journal.close()?;
        self.write_clean_super(true)
    }

    /// The superblock as it is when nothing is under way.
    pub(crate) fn write_clean_super(&self, unmounted: bool) -> Result<()> {
        let now = self.clock.now().sec.max(0) as u64;
        let free_blocks = self.alloc.free_clusters() << self.geo.log_cluster_ratio();
        let free_inodes = self.alloc.free_inode_count() as u32;
        let kbytes = self.mount.kbytes_before + self.mount.counting.counts().bytes_written / 1024;
        let valid = self.mount.was_valid;
        // What could not be freed, or even be looked at, is left to the next mount.
        let orphans = self.orphans.fill_slots().unwrap_or(self.mount.had_orphans);
        self.store_super(|sb| {
            sb.set_free_blocks(free_blocks);
            sb.set_free_inodes(free_inodes);
            sb.set_time(SbTime::Write, now);
            sb.set_kbytes_written(kbytes);
            if unmounted {
                let mut features = sb.features();
                features.incompat.remove(Incompat::RECOVER);
                if !orphans {
                    features.ro_compat.remove(RoCompat::ORPHAN_PRESENT);
                }
                let _ = sb.set_features(features);
                if valid {
                    sb.set_state(sb.state() | State::VALID);
                }
            }
        })
    }
}

/// The superblock as its first backup has it, and the byte that is at.
fn backup_of(sb: &Superblock) -> Option<(u64, [u8; 1024])> {
    let (group, at) = bootstrap::first_backup(sb)?;
    let mut backup = sb.clone();
    backup.update(|raw| raw.s_block_group_nr.set(group.0 as u16)).ok()?;
    Some((at, backup.encode()))
}

/// Whether a read-only mount is asked to recover the image, there is something to recover, and nothing stands against writing.
fn recovers_on_device(device: &Arc<dyn BlockDevice>, sb: &Superblock, setup: &Setup) -> bool {
    let features = sb.features();
    // A log that is only to be wiped is wiped, as by the kernel.
    let needed = || {
        features.incompat.contains(Incompat::RECOVER)
            || features.ro_compat.contains(RoCompat::ORPHAN_PRESENT)
            || sb.last_orphan().0 != 0
            || log_is_empty(device, sb, setup) == Some(false)
    };
    setup.recover_on_device
        && needed()
        && !setup.options.noload
        && !device.is_read_only()
        && !setup.journal_device.as_ref().is_some_and(extant_device::BlockDevice::is_read_only)
        && gate(sb, &setup.options, false, device.size()).is_ok()
}

/// Whether a read-only mount may use the device itself, so that it can turn writable: nothing is to be replayed, and
/// nothing stands against writing.
fn may_turn_writable(device: &Arc<dyn BlockDevice>, sb: &Superblock, setup: &Setup) -> bool {
    let unclean = sb.features().incompat.contains(Incompat::RECOVER);
    let journal = setup.journal_device.as_ref().is_some_and(extant_device::BlockDevice::is_read_only);
    if !device.may_turn_writable() || setup.options.noload || unclean || journal {
        return false;
    }
    gate(sb, &setup.options, false, device.size()).is_ok() && log_is_empty(device, sb, setup) == Some(true)
}

/// Whether the log says that there is nothing in it, or there is none; `None` if that is not to be found out.
fn log_is_empty(device: &Arc<dyn BlockDevice>, sb: &Superblock, setup: &Setup) -> Option<bool> {
    let log = find_log(device, sb, setup).ok()?;
    log.map_or(Some(true), |log| log.read_superblock().ok().map(|sb| sb.start() == 0))
}

/// Refuses what this program cannot mount, each with a sentence.
fn gate(sb: &Superblock, options: &MountOptions, read_only: bool, size: u64) -> Result<()> {
    let refuse = |why: String| Err(Error::Incompatible(why.into()));
    let features = sb.features();
    if features.incompat.contains(Incompat::JOURNAL_DEV) {
        return refuse("this is an external journal, not a filesystem".into());
    }
    let unknown = features.incompat.unsupported();
    if !unknown.is_empty() {
        return refuse(format!("it uses features that are not supported: {unknown}"));
    }
    if sb.geometry().size_bytes() > u128::from(size) {
        return refuse(format!(
            "the filesystem has {} blocks of {} bytes, but the image only {size} bytes",
            sb.geometry().blocks_count(),
            sb.geometry().block_size()
        ));
    }
    if read_only {
        return Ok(());
    }
    let unknown = features.ro_compat.unsupported();
    if !unknown.is_empty() {
        return refuse(format!("features {unknown} allow reading only: mount it with `ro`"));
    }
    if features.ro_compat.intersects(RoCompat::READONLY | RoCompat::SHARED_BLOCKS) {
        return refuse("it is marked read-only: mount it with `ro`".into());
    }
    if options.data.is_some() && !features.compat.contains(Compat::HAS_JOURNAL) {
        return refuse("`data=` needs a journal".into());
    }
    if options.data == Some(DataMode::Journal) && options.delalloc == Some(true) {
        return refuse("`data=journal` and `delalloc` exclude each other".into());
    }
    Ok(())
}

/// Where the journal is, if there is one.
fn find_log(device: &Arc<dyn BlockDevice>, sb: &Superblock, setup: &Setup) -> Result<Option<LogPlace>> {
    if !sb.features().compat.contains(Compat::HAS_JOURNAL) {
        return Ok(None);
    }
    let block_size = sb.geometry().block_size();
    if let Some(ino) = sb.journal_inode() {
        let runs = bootstrap::journal_extents(device, sb, ino)?;
        let place = LogPlace::internal(Arc::clone(device), block_size, sb.geometry().blocks_count(), runs)?;
        return Ok(Some(place));
    }
    let Some((uuid, _)) = sb.external_journal() else {
        return Err(Error::Incompatible("the journal feature is set, but no journal is named".into()));
    };
    match &setup.journal_device {
        Some(journal) => Ok(Some(LogPlace::external(Arc::clone(journal), block_size, uuid, sb.uuid())?)),
        None if setup.options.read_only && setup.options.noload => Ok(None),
        None => {
            let what = "its journal is on another device: name it, with `--journal`, or for a mount with `journal_path=`";
            Err(Error::Incompatible(what.into()))
        }
    }
}

/// How much memory caches take together.
fn cache_size(options: &MountOptions) -> u64 {
    const MAX: u64 = 1 << 30;
    options.cache_size.unwrap_or_else(|| (memory_bytes() / 4).clamp(16 << 20, MAX)).max(4 << 20)
}

/// Bytes for open free maps of groups, beside the caches: 8 KiB each with blocks of 4 KiB.
fn free_map_memory(options: &MountOptions) -> usize {
    (cache_size(options) / 16).clamp(1 << 20, 64 << 20) as usize
}

/// The machine's memory, or a gigabyte where that is not known.
fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map_or(1 << 30, |k| k.saturating_mul(1024))
}

/// The mount's clock, as the journal reads it.
#[derive(Debug)]
struct JournalClock(Arc<dyn Clock>);

impl extant_journal::Clock for JournalClock {
    fn now(&self) -> Duration {
        let now = self.0.now();
        Duration::new(now.sec.max(0).unsigned_abs(), now.nsec)
    }
}

fn open_journal(
    cache: &Arc<BlockCache>,
    sb: &Superblock,
    log: Option<LogPlace>,
    (resolved, clock): (&Resolved, &Arc<dyn Clock>),
    read_only: bool,
) -> Result<Arc<Journal>> {
    let features = sb.features();
    let options = JournalOptions {
        features: Some(WantedFeatures {
            checksums: features.ro_compat.contains(RoCompat::METADATA_CSUM),
            bit64: features.incompat.contains(Incompat::BIT64),
        }),
        commit_interval: Some(Duration::from_secs(u64::from(resolved.commit_secs))),
        barrier: resolved.barrier,
        clock: Arc::new(JournalClock(Arc::clone(clock))),
        ..JournalOptions::default()
    };
    match log {
        Some(log) if !read_only => Ok(Journal::open(Arc::clone(cache), log, options)?),
        // A read-only mount changes nothing; the journal is only there because everything has one.
        _ => {
            let commit_interval = if read_only { None } else { options.commit_interval };
            Ok(Journal::without_log(Arc::clone(cache), JournalOptions { commit_interval, ..options })?)
        }
    }
}

/// Bytes of `cache_size` for each in-core inode that is kept: one takes about a kilobyte, beside the caches.
const INODE_SHARE: u64 = 8 << 10;

fn inode_capacity(setup: &Setup) -> usize {
    let share = usize::try_from(cache_size(&setup.options) / INODE_SHARE).unwrap_or(usize::MAX);
    setup.inode_capacity.min(share)
}

pub(crate) fn presets(sb: &Superblock) -> Presets {
    let (resuid, resgid) = sb.reserved_owner();
    let (stride, width) = sb.raid();
    Presets {
        default_mount_opts: sb.default_mount_opts().bits(),
        errors: sb.raw().s_errors.get(),
        resuid,
        resgid,
        stripe: if width != 0 { width } else { stride },
    }
}

/// The superblock's presets under the options; those that it stores (`s_mount_opts`) are among them already.
fn resolve(sb: &Superblock, setup: &Setup) -> Result<Resolved> {
    setup.options.resolve(&presets(sb))
}

fn dir_layout(sb: &Superblock, features: Features) -> DirLayout {
    DirLayout {
        block_size: sb.geometry().block_size(),
        filetype: features.incompat.contains(Incompat::FILETYPE),
        checksummed: sb.csum().has_metadata(),
        hash_in_entry: false,
        inodes_count: sb.geometry().inodes_count(),
    }
}

/// A filesystem over `device`, without threads; nothing is written. `read_only`: without the log, too.
pub(crate) fn build(
    device: Arc<dyn BlockDevice>,
    counting: Arc<Counting>,
    sb: Superblock,
    setup: &Setup,
    read_only: bool,
    log: Option<LogPlace>,
) -> Result<Arc<Filesystem>> {
    let resolved = resolve(&sb, setup)?;
    let (geo, features) = (*sb.geometry(), sb.features());
    let metadata = cache_size(&setup.options) / 4;
    let cache = BlockCache::new(Arc::clone(&device), geo.block_size(), geo.blocks_count(), metadata);
    let journal_runs: Vec<_> = log
        .as_ref()
        .filter(|l| !l.is_external())
        .map_or_else(Vec::new, |l| l.runs().iter().map(|r| (r.pblk, u64::from(r.len))).collect());
    let journal_blocks = journal_runs.iter().map(|r| r.1).sum();
    let mut alloc_options = AllocOptions::from_superblock(&sb);
    alloc_options.stripe = resolved.stripe;
    alloc_options.discard = resolved.discard;
    alloc_options.system = journal_runs;
    alloc_options.memory = free_map_memory(&setup.options);
    let sink = Arc::new(DamageSink { fs: OnceLock::new(), early: Mutex::new(Rank::LEAF, Vec::new()) });
    alloc_options.on_error = Some(damage_sink(&sink));
    let alloc = Allocator::open(Arc::clone(&cache), Arc::clone(&device), &sb, alloc_options)?;
    let journal = open_journal(&cache, &sb, log, (&resolved, &setup.clock), read_only)?;
    let observer: std::sync::Weak<dyn CommitObserver> =
        Arc::downgrade(&(Arc::clone(&alloc) as Arc<dyn CommitObserver>));
    journal.add_observer(observer);
    let stop: Arc<crate::background::Stop> = Arc::default();
    let observer: std::sync::Weak<dyn CommitObserver> =
        Arc::downgrade(&(Arc::clone(&stop) as Arc<dyn CommitObserver>));
    journal.add_observer(observer);
    let sb_buf: Buf = cache.read(extant_format::Pblk(if geo.block_size() == 1024 { 1 } else { 0 }))?;
    let flags = sb.flags();
    let hash_version = HashVersion::from_raw(sb.def_hash_version()).unwrap_or(HashVersion::HalfMd4);
    let mount = MountState {
        was_valid: sb.state().contains(State::VALID),
        kbytes_before: sb.kbytes_written(),
        counting,
        threads: Mutex::new(Rank::LEAF, Vec::new()),
        stop,
        mounted_at: setup.mounted_at.clone(),
        begun: AtomicBool::new(false),
        started: AtomicBool::new(false),
        half_begun: AtomicBool::new(false),
        mmp: Mutex::new(Rank::LEAF, None),
        whole: Mutex::new(Rank::MOUNT, ()),
        frozen: AtomicBool::new(false),
        ending: AtomicBool::new(false),
        had_orphans: sb.features().ro_compat.contains(RoCompat::ORPHAN_PRESENT),
        flushing_times: Mutex::new(Rank::FLUSH_TIMES, ()),
        found_early: Mutex::new(Rank::LEAF, std::mem::take(&mut *sink.early.lock())),
    };
    let budget = usize::try_from(cache_size(&setup.options) / 4 * 3).unwrap_or(usize::MAX);
    let config = CacheConfig { budget, ..CacheConfig::default() };
    let pages = PageCache::new(Arc::clone(&device), geo.block_size(), config);
    let fs = Arc::new_cyclic(|this| Filesystem {
        this: this.clone(),
        pages,
        dev_read_only: read_only,
        csum: *sb.csum(),
        features,
        inode_format: InodeFormat::new(&sb),
        layout: dir_layout(&sb, features),
        hash_version,
        hash_unsigned: flags.contains(SbFlags::UNSIGNED_HASH),
        hash_seed: sb.hash_seed(),
        want_extra_isize: sb.want_extra_isize(),
        overhead: overhead_clusters(&sb, journal_blocks),
        data_mode: resolved.data,
        options: RwLock::new(Rank::LEAF, Arc::new(resolved)),
        map: MapFs::new(Arc::clone(&cache), Arc::clone(&alloc), &sb),
        status_budget: extant_map::StatusBudget::new(1 << 20),
        itables: geo
            .group_numbers()
            .map(|g| alloc.group_desc(g).map_or(extant_format::Pblk(0), |d| d.inode_table))
            .collect(),
        icache: InodeCache::new(inode_capacity(setup)),
        orphans: Orphans::new(),
        quotas: std::sync::OnceLock::new(),
        shared_blocks: SharedBlocks::new(),
        shared_values: SharedValues::new(),
        lazy_init: crate::lazy_init::LazyInit::default(),
        late_features: crate::late_features::LateFeatures::missing(features),
        clock: Arc::clone(&setup.clock),
        gate: Gate::new(),
        maps: crate::mapping::Maps::in_dir(setup.map_dir.clone()),
        rename_lock: rename_lock(),
        mode: AtomicU8::new(if read_only { Mode::ReadOnly } else { Mode::ReadWrite } as u8),
        saw_errors: AtomicBool::new(false),
        on_panic: std::sync::OnceLock::new(),
        dirty_times: Mutex::new(Rank::LEAF, Vec::new()),
        owed_tails: Mutex::new(Rank::LEAF, Vec::new()),
        #[cfg(feature = "shuttle")]
        mutant: setup.mutant,
        next_generation: AtomicU32::new(setup.generation.unwrap_or_else(crate::create::random_seed)),
        mount,
        sb: Mutex::new(Rank::LEAF, sb),
        sb_buf,
        geo,
        cache,
        journal,
        alloc,
        device,
    });
    let _ = sink.fs.set(Arc::downgrade(&fs));
    Ok(fs)
}

/// Where damage that the allocator finds goes.
struct DamageSink {
    fs: OnceLock<Weak<Filesystem>>,
    early: Mutex<Vec<Error>>,
}

/// How much of what is found before there is a filesystem is kept: the record has room for the first and the last, and a count.
const MOST_EARLY: usize = 64;

/// Brings damage that the allocator finds to the choke point of `errors=`.
fn damage_sink(sink: &Arc<DamageSink>) -> ErrorSink {
    let sink = Arc::clone(sink);
    Arc::new(move |e| {
        let place = match e {
            AllocError::CorruptGroup { group } => Place::Group(*group),
            AllocError::Format(FormatError::Corrupt { place, .. } | FormatError::Checksum { place, .. }) => {
                (*place).into()
            }
            AllocError::NotData { pblk, .. } => Place::Block(*pblk),
            AllocError::NotInode { ino } => Place::Inode(*ino),
            _ => Place::Superblock,
        };
        let error = Error::corrupt(place, CorruptKind::Allocation(e.to_string().into()));
        match sink.fs.get().map(Weak::upgrade) {
            Some(Some(fs)) => fs.on_damage(&error),
            // It is going away.
            Some(None) => {}
            None => {
                tracing::error!("{error}");
                let mut early = sink.early.lock();
                if early.len() < MOST_EARLY {
                    early.push(error);
                }
            }
        }
    })
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        if let Err(e) = self.unmount() {
            tracing::error!("unmount: {e}");
        }
    }
}
