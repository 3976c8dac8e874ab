//! The filesystem: opened when it is first needed, closed at exit, before a fork that nothing is open over, and at exec.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use extant::{Credentials, Filesystem, Setup};
use extant_device::{BlockDevice, FileDevice};

use crate::abi::Errno;
use crate::config::{self, Config};
use crate::limit;
use crate::table;
use crate::user::complain;

/// A mounted filesystem and its device.
struct Mounted {
    fs: Arc<Filesystem>,
    device: Arc<FileDevice>,
}

static MOUNTED: RwLock<Option<Mounted>> = RwLock::new(None);

/// Mounting or unmounting: one at a time.
static CHANGE: Mutex<()> = Mutex::new(());

/// This process was forked while the filesystem was in use: it belongs to the parent.
static FORKED: AtomicBool = AtomicBool::new(false);

/// The program has threads of its own: what they are doing cannot be known at a fork.
static THREADED: AtomicBool = AtomicBool::new(false);

/// How the process is ending.
static END: AtomicU8 = AtomicU8::new(0);

pub(crate) fn is_forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}

pub(crate) fn check_not_forked() -> Result<(), Errno> {
    if is_forked() { Err(Errno(libc::ENOTCONN)) } else { Ok(()) }
}

pub(crate) fn note_thread() {
    THREADED.store(true, Ordering::Relaxed);
}

/// The filesystem, mounted now if it is not.
pub(crate) fn filesystem(config: &Config) -> Result<Arc<Filesystem>, Errno> {
    check_not_forked()?;
    if let Some(mounted) = &*MOUNTED.read().unwrap_or_else(PoisonError::into_inner) {
        return Ok(Arc::clone(&mounted.fs));
    }
    let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(mounted) = &*MOUNTED.read().unwrap_or_else(PoisonError::into_inner) {
        return Ok(Arc::clone(&mounted.fs));
    }
    let mounted = mount(config)?;
    let fs = Arc::clone(&mounted.fs);
    *MOUNTED.write().unwrap_or_else(PoisonError::into_inner) = Some(mounted);
    Ok(fs)
}

/// The filesystem if it is mounted.
pub(crate) fn mounted() -> Option<Arc<Filesystem>> {
    if is_forked() {
        return None;
    }
    MOUNTED.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|m| Arc::clone(&m.fs))
}

/// The library's own descriptors go where programs do not look for theirs: the last ones below the limit.
fn place_descriptors() {
    const MOST: u64 = 65_536;
    const ROOM: u64 = 256;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a structure to be filled.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let end = if done == 0 { limit.rlim_cur.min(MOST) } else { ROOM };
    let floor = end - (end / 4).min(ROOM);
    extant::descriptor::place(i32::try_from(floor).unwrap_or(0), table::note_own);
}

#[cold]
fn mount(config: &Config) -> Result<Mounted, Errno> {
    if END.load(Ordering::Acquire) != 0 {
        return Err(Errno(libc::EIO));
    }
    let image = OsStr::from_bytes(&config.image);
    let refuse = |errno, why: &dyn std::fmt::Display| {
        complain(&format!("{}: {why}", image.to_string_lossy()));
        Errno(errno)
    };
    place_descriptors();
    let mut setup = Setup::with_options(&config.options).map_err(|e| refuse(e.errno(), &e))?;
    setup.mounted_at = Some(config.root().to_vec());
    let device = extant_device::OpenOptions::new()
        .write(!setup.options.read_only)
        .open(image)
        .map_err(|e| refuse(e.errno(), &e))?;
    let device = Arc::new(device);
    // A block device has no limit, and what is only read needs none; the memory of mapped files goes by it, as far as it can be raised.
    let needs = if setup.options.read_only || device.is_block_device() { 0 } else { device.size() };
    limit::raise(needs).map_err(|hard| {
        let why = format!(
            "RLIMIT_FSIZE: {hard} bytes, as the hard limit, are less than the {needs} bytes of the image"
        );
        refuse(libc::EFBIG, &why)
    })?;
    let fs = Filesystem::open(Arc::clone(&device) as _, setup).map_err(|e| {
        limit::lower();
        refuse(e.errno(), &e)
    })?;
    #[cfg(feature = "test-flips")]
    crate::flips::start(&fs);
    Ok(Mounted { fs, device })
}

/// Unmounts; what could not be written is said on standard error. `at_end`: other threads that store to a mapping wait for the end of the
/// process, which they would bring about by a signal.
fn unmount(at_end: bool) {
    let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
    let mounted = MOUNTED.write().unwrap_or_else(PoisonError::into_inner).take();
    let Some(mounted) = mounted else { return };
    let done = if at_end { mounted.fs.unmount_at_end() } else { mounted.fs.unmount() };
    if let Err(error) = done {
        complain(&format!("unmount: {error}"));
    }
    // Copies of its descriptor may live on in children.
    if let Err(error) = mounted.device.unlock() {
        complain(&format!("unlocking the image: {error}"));
    }
    limit::lower();
}

/// Lets go of the image if nothing is open: so that a child can have it, and the parent again after it.
pub(crate) fn rest() {
    // Asked first: the child of a threaded program may find any lock held for ever.
    if is_forked() {
        return;
    }
    let idle = table::count() == 0 && !crate::calls::has_mappings() && !THREADED.load(Ordering::Relaxed);
    if idle {
        unmount(false);
    }
}

/// In the child after a fork.
pub(crate) fn forked() {
    // A lock may be held by a thread that is not here: nothing more than trying.
    let free = MOUNTED.try_read().is_ok_and(|mounted| mounted.is_none()) && CHANGE.try_lock().is_ok();
    if !(free && limit::is_free()) {
        FORKED.store(true, Ordering::Relaxed);
        limit::leave_to_kernel();
    }
    THREADED.store(false, Ordering::Relaxed);
}

/// The process ends: everything is written, and the image is clean. What is called later gets EIO.
pub(crate) fn end() {
    if is_forked() {
        return;
    }
    END.store(1, Ordering::Release);
    unmount(true);
}

/// Another program is about to take the place of this one: the image is made clean. [`exec_failed`] takes that back.
pub(crate) fn before_exec() -> bool {
    let Some(fs) = mounted() else { return false };
    match fs.freeze(&Credentials::root()) {
        Ok(()) => true,
        Err(error) => {
            complain(&format!("before exec: {error}"));
            false
        }
    }
}

pub(crate) fn exec_failed() {
    if let Some(fs) = mounted()
        && let Err(error) = fs.thaw(&Credentials::root())
    {
        complain(&format!("after a failed exec: {error}"));
    }
}

/// On whose behalf the program calls: its effective ids, or the real ones (access(2)).
pub(crate) fn credentials(real: bool) -> Credentials {
    // SAFETY: these cannot fail.
    let uid = if real { unsafe { libc::getuid() } } else { unsafe { libc::geteuid() } };
    // SAFETY: as above.
    let gid = if real { unsafe { libc::getgid() } } else { unsafe { libc::getegid() } };
    let mut groups = [0; 64];
    // The superuser needs no group.
    let count = if uid == 0 {
        0
    } else {
        // SAFETY: the buffer and its length belong together.
        unsafe { libc::getgroups(64, groups.as_mut_ptr()) }
    };
    let groups = &groups[..usize::try_from(count).unwrap_or(0)];
    Credentials::user(uid, gid, groups).with_umask(config::umask())
}
