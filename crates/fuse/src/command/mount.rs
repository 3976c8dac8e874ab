//! `extant mount`.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use extant::{Filesystem, MountOptions, Setup};
use extant_device::{BlockDevice, FileDevice, Live, OpenError, Window, partition_window};
use extant_format::{Incompat, Superblock};
use extant_sync::Arc;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::options::flags_of;
use super::previous::{self, Holder};
use super::{Attach, CommandError, Options, daemon, log};
use crate::adapter::{Adapter, AdapterOptions, control_remount, control_second_mount};
use crate::mount::{
    How, LoopDevice, MountEntry, MountRequest, find_mount, mount_again, mount_as_user, mount_direct, mounts,
    remount, remount_super, unmount,
};
use crate::session::{Session, SessionOptions};

/// The status with which a server ends that met damage under `errors=panic`.
const EXIT_PANIC: i32 = 70;

/// What `extant mount` is asked to do.
#[derive(Clone, Debug, Default)]
pub struct MountArgs {
    /// Image file or block device.
    pub image: PathBuf,
    /// Directory.
    pub dir: PathBuf,
    /// `-o`.
    pub options: Vec<String>,
    /// `-f`: stay in the foreground.
    pub foreground: bool,
    /// This is the server that [`mount`] has started in the background.
    pub server: bool,
}

/// Mounts. In the background, returns once the mount is ready; in the foreground, after it has ended and the image is
/// clean.
pub fn mount(args: &MountArgs) -> Result<(), CommandError> {
    let list = with_absolute_paths(&args.options.join(","))?;
    let options = Options::parse(&list)?;
    let dir = absolute(&args.dir)?;
    if options.remount {
        return remount_at(&dir, &list);
    }
    let image = absolute(&args.image)?;
    if !dir.is_dir() {
        return Err(CommandError::failure(format!("{}: not a directory", dir.display())));
    }
    if !args.foreground && mounted_already(&image, &dir, &options, &list)? {
        return Ok(());
    }
    if args.foreground || args.server {
        return serve(&image, &dir, &options, args.server);
    }
    let words = ["mount", "--server", "-o"].map(OsString::from);
    let mut again: Vec<OsString> = words.to_vec();
    again.push(if list.is_empty() { "defaults".into() } else { list.into() });
    again.extend(["--".into(), image.into(), dir.into()]);
    daemon::start(&again)
}

/// A block device that is mounted by extant is mounted a second time by showing the same tree there too, as the kernel does
/// with its own file systems: one file system with one set of options, and flags for each mount. One is read-only if the other
/// is; what else the first mount cannot give is refused.
fn mounted_already(image: &Path, dir: &Path, options: &Options, list: &str) -> Result<bool, CommandError> {
    let at = |e: &dyn std::fmt::Display| CommandError::failure(format!("{}: {e}", dir.display()));
    if !is_block_device(image) {
        return Ok(false);
    }
    let all = mounts().map_err(|e| at(&e))?;
    let is_first = |m: &MountEntry| m.is_ours() && m.source == image && m.root == Path::new("/");
    let is_visible = |m: &MountEntry| File::open(&m.target).is_ok_and(|d| m.is_shown_by(&d).unwrap_or(false));
    let Some(first) = all.iter().find(|m| is_first(m) && is_visible(m)) else {
        // One that is covered is found to be in use when the device is opened.
        return Ok(false);
    };
    let refused = |why: &str| {
        let (image, first) = (image.display(), first.target.display());
        Err(CommandError::failure(format!("{image} is already mounted on {first}: {why}")))
    };
    let mut flags = options.flags;
    match (first.is_read_only(), flags.contains(MountFlags::RDONLY)) {
        (false, true) => {
            return refused(
                "for writing, and a second mount cannot be read-only (`mount -o remount,bind,ro` can)",
            );
        }
        (true, false) => {
            log::start(tracing::Level::WARN);
            let (image, first) = (image.display(), first.target.display());
            tracing::warn!("WARNING: {image} is mounted read-only on {first}: mounted read-only");
            flags |= MountFlags::RDONLY;
        }
        _ => {}
    }
    let root = File::open(&first.target).map_err(|e| at(&e))?;
    match control_second_mount(&root, list) {
        Ok(Ok(())) => {}
        Ok(Err((_, why))) => return refused(&why),
        Err(e) => return Err(at(&e)),
    }
    mount_again(first, dir, flags).map_err(|e| at(&e))?;
    Ok(true)
}

/// Whether what `options` have mounted can be mounted a second time with the options `list`; if not, why.
fn allows_second(options: &Options, fs: &Filesystem, list: &str) -> Result<(), String> {
    let asked = Options::parse(list).map_err(|e| e.reason)?;
    let mut words: Vec<String> = options.not_shared(&asked).into_iter().map(str::to_owned).collect();
    words.extend(fs.options_not_in_force(&asked.ext4).map_err(|e| e.to_string())?);
    if words.is_empty() {
        return Ok(());
    }
    let words = words.join("`, `");
    Err(format!(
        "`{words}` would be otherwise than there, and both mounts have the same options (`remount` changes them)"
    ))
}

/// The same options where the paths in them are absolute: a server in the background has another working directory.
fn with_absolute_paths(list: &str) -> Result<String, CommandError> {
    let word = |word: &str| match word.split_once('=') {
        Some((name @ "journal_path", path)) => {
            let path = absolute(Path::new(path))?;
            let text = path.to_str().filter(|text| !text.contains(','));
            let text = text.ok_or_else(|| {
                CommandError::usage(format!(
                    "`{name}={}`: no mount option can hold this path",
                    path.display()
                ))
            })?;
            Ok(format!("{name}={text}"))
        }
        _ => Ok(word.to_owned()),
    };
    let words: Result<Vec<String>, CommandError> = list.split(',').map(word).collect();
    Ok(words?.join(","))
}

fn absolute(path: &Path) -> Result<PathBuf, CommandError> {
    path.canonicalize().map_err(|e| CommandError::failure(format!("{}: {e}", path.display())))
}

/// `-o remount`: the kernel's flags and the server's options. Towards read-only the kernel goes first, since it refuses
/// while files are open for writing; back, the server does. What no word names stays as it is: of the filesystem, and of this mount,
/// which may be read-only by itself.
fn remount_at(dir: &Path, list: &str) -> Result<(), CommandError> {
    let at = |e: &dyn std::fmt::Display| CommandError::failure(format!("{}: remount: {e}", dir.display()));
    let entry = find_mount(dir).map_err(|e| at(&e))?;
    let Some(entry) = entry.filter(MountEntry::is_ours) else {
        return Err(CommandError::failure(format!("{}: not mounted by extant", dir.display())));
    };
    let now = flags_of(&entry);
    let options = Options::parse_onto(list, now)?;
    let with_own = |flags: MountFlags, read_only: bool| {
        (flags - MountFlags::RDONLY) | if read_only { MountFlags::RDONLY } else { MountFlags::empty() }
    };
    let own_now = with_own(now, entry.is_read_only_here());
    let read_only = options.flags.contains(MountFlags::RDONLY);
    let own_read_only = if options.names_read_only() { read_only } else { entry.is_read_only_here() };
    let own = with_own(options.flags, own_read_only);
    let root = File::open(dir).map_err(|e| at(&e))?;
    let tell = || match control_remount(&root, &options.ext4) {
        Ok(Ok(())) => Ok(()),
        Ok(Err((_, words))) => Err(at(&words)),
        Err(e) => Err(at(&e)),
    };
    let change = || remount_super(dir, now, options.flags).and_then(|()| remount(dir, own));
    if read_only {
        let changed = change().map_err(|e| at(&e));
        changed.and_then(|()| tell()).map_err(|mut refused| {
            // As it was: the kernel must not keep what the server refused, nor a half.
            let back = remount_super(dir, options.flags, now).and_then(|()| remount(dir, own_now));
            if let Err(error) = back {
                refused.reason.push_str(&format!("; the kernel's flags stay changed: {error}"));
            }
            refused
        })
    } else {
        tell()?;
        change().map_err(|e| at(&e))
    }
}

/// Opens the file system, mounts it, serves it until it is unmounted.
fn serve(image: &Path, dir: &Path, options: &Options, background: bool) -> Result<(), CommandError> {
    log::start(match (options.trace, background) {
        (true, _) => tracing::Level::TRACE,
        (false, false) => tracing::Level::INFO,
        // Whoever waits for the mount is told of trouble only.
        (false, true) => tracing::Level::WARN,
    });
    if background {
        daemon::leave_terminal();
    }
    let Opened { fs, files, offset } = open(image, options, Some(dir))?;
    let adapter = AdapterOptions {
        writeback_cache: options.writeback_cache,
        device_offset: Some(offset),
        ..AdapterOptions::default()
    };
    let adapter = Adapter::new(fs, adapter);
    let own = Arc::clone(&files[0]);
    let (mine, served) = (options.clone(), Arc::downgrade(adapter.filesystem()));
    adapter.set_second_mount(move |list| match served.upgrade() {
        Some(fs) => allows_second(&mine, &fs, list),
        None => Err("it is being unmounted".into()),
    });
    // Whoever has waited for umount(2) may have the image, while this process still ends.
    adapter.set_at_end(move || files.iter().for_each(|file| drop(file.unlock())));
    let done = attach(image, dir, options, &adapter, &own).and_then(|(device, how)| {
        let session = SessionOptions {
            readers: options.readers,
            pin: options.pin,
            transport: options.transport,
            ..SessionOptions::default()
        };
        let session = Session::start(device, &adapter, session)
            .map_err(|e| CommandError::failure(format!("{}: {e}", dir.display())))?;
        adapter.set_notifier(session.notifier());
        unmount_on_signal(dir.to_owned(), how)?;
        previous::say_serving();
        if background {
            daemon::tell_ready();
        }
        session.run(&adapter).map_err(|e| CommandError::failure(format!("{}: FUSE: {e}", dir.display())))
    });
    adapter.finish();
    let ended = adapter.ended().unwrap_or(Ok(()));
    done?;
    ended.map_err(|e| CommandError::failure(format!("{}: unmount: {e}", image.display())))
}

/// A file system, and the devices that it is on.
pub(super) struct Opened {
    pub(super) fs: Arc<Filesystem>,
    files: Vec<Arc<FileDevice>>,
    /// Where it begins on the first of them, in bytes.
    offset: u64,
}

/// Opens device and file system.
pub(super) fn open(
    image: &Path,
    options: &Options,
    mounted_at: Option<&Path>,
) -> Result<Opened, CommandError> {
    let at = |e: &dyn std::fmt::Display| CommandError::failure(format!("{}: {e}", image.display()));
    let mut ext4 = MountOptions::parse(&options.ext4).map_err(|e| CommandError::usage(e.to_string()))?;
    // A block device is opened for writing for a read-only mount too: it is recovered, and may turn writable. An image file that
    // is mounted read-only stays as it is.
    let wanted = !ext4.read_only;
    let recover_on_device = ext4.read_only && !ext4.noload && is_block_device(image);
    let file = match open_device(image, wanted || recover_on_device, mounted_at) {
        Err(error) if error.errno() == Errno::ROFS.raw_os_error() => {
            ext4.read_only = true;
            open_device(image, false, mounted_at).map_err(|e| at(&e))?
        }
        Err(OpenError::Io { .. }) if !wanted && recover_on_device => {
            open_device(image, false, mounted_at).map_err(|e| at(&e))?
        }
        other => other.map_err(|e| at(&e))?,
    };
    let mut files = vec![Arc::clone(&file)];
    let device: Arc<dyn BlockDevice> = file;
    let write_protected = wanted && ext4.read_only;
    refuse_unclean_and_protected(image, &*device, &ext4)?;
    let mut offset = 0;
    let device: Arc<dyn BlockDevice> = match (options.partition, options.offset) {
        (Some(_), Some(_)) => {
            return Err(CommandError::usage("`offset=` and `partition=` exclude each other"));
        }
        (Some(number), None) => {
            let window = partition_window(device, number).map_err(|e| at(&e))?;
            offset = window.start();
            Arc::new(window)
        }
        (None, Some(start)) => {
            let len = device.size().checked_sub(start).filter(|len| *len > 0);
            let len = len.ok_or_else(|| at(&format!("it has no byte {start}")))?;
            offset = start;
            Arc::new(Window::new(device, start, len).map_err(|e| at(&e))?)
        }
        (None, None) => device,
    };
    let mut journal_device: Option<Arc<dyn BlockDevice>> = None;
    if let Some(path) = &ext4.journal_path {
        let failed = |e: OpenError| CommandError::failure(format!("{}: {e}", path.display()));
        let file = match open_device(path, !ext4.read_only || recover_on_device, None) {
            Err(OpenError::Io { .. }) if ext4.read_only => open_device(path, false, None).map_err(failed)?,
            other => other.map_err(failed)?,
        };
        if recover_on_device && file.is_read_only() {
            refuse_unclean(image, &*device, &ext4, "its journal's device is write-protected")?;
        }
        files.push(Arc::clone(&file));
        journal_device = Some(file);
    }
    let mounted_at = mounted_at.map(|d| d.as_os_str().as_bytes().to_vec());
    let setup = Setup { options: ext4, journal_device, mounted_at, recover_on_device, ..Setup::default() };
    let fs = Filesystem::open(device, setup).map_err(|e| at(&e))?;
    if write_protected {
        tracing::warn!("{}: WARNING: source write-protected, mounted read-only", image.display());
    }
    fs.on_panic(|| {
        tracing::error!("errors=panic: damage was found, and the server ends at once");
        // Handlers of libraries are no part of that, and it is called with locks held that they might want.
        extant_sys::exit_at_once(EXIT_PANIC);
    });
    Ok(Opened { fs, files, offset })
}

fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device())
}

/// A write-protected block device whose journal needs recovery is not mounted without `noload`, as the kernel does not: who
/// mounts a disk expects what is on it. (Of an image file the journal is replayed in memory.)
fn refuse_unclean_and_protected(
    image: &Path,
    device: &dyn BlockDevice,
    ext4: &MountOptions,
) -> Result<(), CommandError> {
    let protected = |path: &Path| {
        is_block_device(path) && File::open(path).and_then(extant_sys::blkdev::is_read_only).unwrap_or(false)
    };
    if protected(image) { refuse_unclean(image, device, ext4, "it is write-protected") } else { Ok(()) }
}

/// Refuses a filesystem that needs recovery, without `noload`: `why` it cannot be recovered.
fn refuse_unclean(
    image: &Path,
    device: &dyn BlockDevice,
    ext4: &MountOptions,
    why: &str,
) -> Result<(), CommandError> {
    let mut bytes = [0; 1024];
    if ext4.noload || device.read_at(1024, &mut bytes).is_err() {
        return Ok(());
    }
    match Superblock::read(&bytes) {
        Ok(sb) if sb.features().incompat.contains(Incompat::RECOVER) => Err(CommandError::failure(format!(
            "mount: {0}: cannot mount {0} read-only: its journal needs recovery and {why}; `noload` mounts it as it is",
            image.display()
        ))),
        _ => Ok(()),
    }
}

/// Opens a device; one that a previous mount is letting go of, when it has. `dir` is where it will be mounted.
fn open_device(path: &Path, write: bool, dir: Option<&Path>) -> Result<Arc<FileDevice>, OpenError> {
    // The kernel claims a block device for a `fuseblk` mount itself.
    let open = || extant_device::OpenOptions::new().write(write).claimed_by_mount(true).open(path);
    let mut done = open();
    // Each turn waits for the end of another process.
    while let Err(OpenError::InUse { live, .. }) = &done {
        match previous::wait_for(path) {
            Holder::Stays => break,
            Holder::Ended => done = open(),
            Holder::Gone => {
                // Its server has let go; the kernel may not have yet.
                if let (Live::Claimed, Some(dir)) = (live, dir) {
                    previous::wait_for_kernel(path, dir);
                }
                // What is found now counts.
                done = open();
                break;
            }
        }
    }
    Ok(Arc::new(done?))
}

/// Mounts `image` on `dir` in the best way there is.
fn attach(
    image: &Path,
    dir: &Path,
    options: &Options,
    adapter: &Adapter,
    file: &FileDevice,
) -> Result<(OwnedFd, How), CommandError> {
    let at = |e: &dyn std::fmt::Display| CommandError::failure(format!("{}: {e}", dir.display()));
    let fs = adapter.filesystem();
    let mut request = MountRequest::new(image, dir);
    request.flags = options.flags;
    request.flags.set(MountFlags::RDONLY, fs.is_read_only());
    // The kernel's largest block size of a mount is a page.
    request.block_size = fs.geometry().block_size().min(4096);
    request.allow_other = options.lets_others();
    if !rustix::process::geteuid().is_root() {
        return Ok((mount_as_user(&request).map_err(|e| at(&e))?, How::Fusermount));
    }
    let kind = std::fs::metadata(image).map_err(|e| at(&e))?.file_type();
    if kind.is_block_device() {
        request.block_device = true;
        return Ok((mount_direct(&request).map_err(|e| at(&e))?, How::SystemCall));
    }
    if options.attach != Attach::Plain {
        match on_loop(image, &request) {
            Ok((device, token)) => {
                file.add_own_loop(token);
                return Ok((device, How::SystemCall));
            }
            Err(e) if options.attach == Attach::Loop => return Err(at(&format!("on a loop device: {e}"))),
            Err(e) => tracing::warn!(
                "{}: no loop device ({e}): mounted without one, where only fsync(2) is durable and sync(2) is not",
                dir.display()
            ),
        }
    }
    Ok((mount_direct(&request).map_err(|e| at(&e))?, How::SystemCall))
}

/// Mounts on a loop device that is only a token: nobody reads or writes it, but a mount with a block device is told of
/// sync(2), and its umount(2) waits for the server. That of a read-only mount is writable where the image could be opened so: the
/// kernel refuses to turn a mount writable whose device is not.
fn on_loop(image: &Path, request: &MountRequest) -> io::Result<(OwnedFd, PathBuf)> {
    let open = |write| OpenOptions::new().read(true).write(write).open(image);
    let (file, read_only) = match open(true) {
        Ok(file) => (file, false),
        Err(_) if request.flags.contains(MountFlags::RDONLY) => (open(false)?, true),
        Err(e) => return Err(e),
    };
    let token = LoopDevice::attach(&file, read_only)?;
    let path = token.path().to_owned();
    let request = MountRequest { source: path.clone(), block_device: true, ..request.clone() };
    // The device detaches itself when the mount ends: `token` is closed here, the mount holds it on.
    Ok((mount_direct(&request)?, path))
}

/// Unmounts `dir` when this process is asked to end.
fn unmount_on_signal(dir: PathBuf, _: How) -> Result<(), CommandError> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|e| CommandError::system(format!("signals: {e}")))?;
    let spawned = extant_sync::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            let done = unmount(&dir, false).or_else(|error| {
                // It must end, but not under the feet of those who use it: it leaves the tree now, and ends with
                // its last user.
                tracing::warn!(signal, "{}: {error}: unmounting when nobody uses it any more", dir.display());
                unmount(&dir, true)
            });
            if let Err(error) = done {
                tracing::error!(signal, "{}: cannot unmount: {error}", dir.display());
            }
        }
    });
    spawned.map(drop).map_err(|e| CommandError::system(format!("a thread for signals: {e}")))
}
