//! The commands `mount`, `umount`, `exec`, and the helper of mount(8).

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use extant_fuse::command::{self, CommandError, Unmounted, Waits};
use extant_fuse::null::{NullOptions, NullServer};
use extant_fuse::{SessionOptions, Transport};

use crate::fail::{Failure, Outcome};

/// Mount an image on a directory (FUSE). Returns once the mount is ready
#[derive(clap::Args, Debug)]
#[command(after_help = mount_help())]
pub(crate) struct MountArgs {
    /// Mount options, separated by commas, see below; of two that contradict each other the last one counts
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in the foreground; end with status 0 only after the image is clean
    #[arg(short, long)]
    foreground: bool,
    /// This process is the server of a mount that another one waits for
    #[arg(long, hide = true)]
    server: bool,
    /// Image file or block device
    image: PathBuf,
    /// Directory to mount on
    dir: PathBuf,
}

/// What `mount` takes and promises, for `--help` and the manual.
const MOUNT_HELP: &str = "\
What is durable when the server is killed or the machine stops: fsync(2), fdatasync(2), O_SYNC and O_DSYNC on every kind of mount.
sync(2) and syncfs(2) only on a block device, and on an image file that root mounts, which goes on a loop device. On an image file
mounted plainly (attach=plain, by a user, or by `extant exec`) the kernel answers sync(2) by itself: there only fsync is durable.

Options of the mount:
  ro, rw, remount              an image file mounted ro stays as it is; a block device is recovered first
  allow_other, noallow_other   others than who mounts may enter (default: if root mounts)
  default_permissions          the kernel checks modes and ACLs (always)
  writeback_cache, nowriteback_cache
                               the kernel collects small writes (default: no)
  attach=auto|loop|plain       how an image file is mounted: on a loop device, or plainly
  offset=BYTES, partition=N    where in the image the filesystem is
  transport=dev|uring          how requests come: from /dev/fuse (default), or by io_uring
  readers=N, pin               threads that read requests (default: one per processor); pinned to processors
  trace                        every request to the log
  nosuid, nodev, noexec, nosymfollow, sync, dirsync, noatime, relatime, strictatime, nodiratime, lazytime
                               as of mount(8)

Options of ext4, as of ext4(5):
  noload, norecovery           do not replay the journal (with ro)
  sb=N                         the superblock at N KiB
  journal_path=PATH            the external journal
  data=ordered|writeback|journal, commit=SECONDS, barrier[=0|1], nobarrier, data_err=abort|ignore
  errors=continue|remount-ro|panic
  acl, noacl, user_xattr, nouser_xattr, grpid, nogrpid, resuid=N, resgid=N
  usrquota, grpquota, prjquota, noquota, usrjquota=FILE, grpjquota=FILE, jqfmt=vfsv0|vfsv1
  discard, nodiscard, auto_da_alloc, noauto_da_alloc, stripe=N, init_itable[=N], noinit_itable
  minixdf, bsddf, max_dir_size_kb=N, inode_readahead_blks=N, mbcache, nombcache
  dax[=inode|always|never], dax_switch=live|deferred (Extant's own)
  pmem=on|off                  the device is persistent memory, or not (Extant's own; default: as the kernel says)
  cache_size=BYTES             caches together (Extant's own; suffixes k, m, g)

Accepted, without effect:
";

/// [`MOUNT_HELP`], with every word that changes nothing.
fn mount_help() -> String {
    let width = 27;
    let words = extant::WITHOUT_EFFECT.iter().map(|(word, why)| format!("  {word:<width$}  {why}\n"));
    MOUNT_HELP.to_owned() + &words.collect::<String>()
}

/// Unmount a directory. Returns once the image is clean
#[derive(clap::Args, Debug)]
pub(crate) struct UmountArgs {
    /// Take it out of the tree now, end it with its last user; do not wait
    #[arg(short, long)]
    lazy: bool,
    /// Directory it is mounted on
    dir: PathBuf,
}

/// Run a command that sees an image mounted at $EXTANT_ROOT, without any right; ends with its status
#[derive(clap::Args, Debug)]
pub(crate) struct ExecArgs {
    /// Mount options, as of `mount`
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Keep the ids and device nodes that the command asks for: chown and mknod work as for root, and the image holds what was
    /// asked; ids are shown as they are in the image
    #[arg(long)]
    fakeroot: bool,
    /// Image file or block device
    image: PathBuf,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Mount a file system in memory on the same transport: what FUSE itself costs
#[derive(clap::Args, Debug)]
pub(crate) struct NullArgs {
    /// Let the kernel's page cache collect writes
    #[arg(long)]
    writeback_cache: bool,
    /// Seconds that names and attributes may be cached
    #[arg(long, default_value_t = 86_400)]
    ttl: u64,
    /// Threads that read requests, 0 for one per processor
    #[arg(long, default_value_t = 0)]
    readers: usize,
    /// Pin them to processors
    #[arg(long)]
    pin: bool,
    /// Let requests come by io_uring
    #[arg(long)]
    uring: bool,
    /// Directory to mount on
    dir: PathBuf,
}

pub(crate) fn mount(args: MountArgs) -> Outcome {
    let MountArgs { options, foreground, server, image, dir } = args;
    command::mount(&command::MountArgs { image, dir, options, foreground, server }).map_err(failure)
}

pub(crate) fn umount(args: UmountArgs) -> Outcome {
    let dir = args.dir.display().to_string();
    let waits = |what| match what {
        Waits::Namespaces(holders) => {
            let holders: Vec<String> = holders.iter().map(i32::to_string).collect();
            let holders = holders.join(", ");
            eprintln!(
                "extant: {dir}: unmounted here; waiting for the mount namespaces of processes {holders}"
            );
        }
        Waits::Server(pid) => eprintln!(
            "extant: {dir}: unmounted here; waiting for its server, process {pid}, which is writing, or kept by files that are open \
             on a copy of the mount that was unmounted lazily"
        ),
    };
    let args = command::UmountArgs { dir: args.dir, lazy: args.lazy };
    let done = command::umount(&args, waits).map_err(failure)?;
    if let Unmounted::StillMounted(places) = done {
        let places: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
        let places = places.join(", ");
        eprintln!("extant: {dir}: unmounted; the image stays in use: it is mounted on {places} still");
    }
    Ok(())
}

pub(crate) fn exec(args: ExecArgs) -> Outcome {
    let ExecArgs { options, fakeroot, image, command } = args;
    match command::exec(&command::ExecArgs { image, options, fakeroot, command }).map_err(failure)? {
        0 => Ok(()),
        status => Err(Failure::silent(status)),
    }
}

/// Serves in the foreground; prints `ready` once it is mounted.
pub(crate) fn null(args: &NullArgs) -> Outcome {
    let null = NullOptions { writeback_cache: args.writeback_cache, ttl: args.ttl };
    let transport = if args.uring { Transport::Ring } else { Transport::Device };
    let session =
        SessionOptions { readers: args.readers, pin: args.pin, transport, ..SessionOptions::default() };
    NullServer::mount_and_run(null, session, &args.dir, || println!("ready"))
        .map_err(|e| Failure::new(format!("{}: {e}", args.dir.display())))
}

/// Whether the program was started under a name that mount(8) looks for in /sbin.
pub(crate) fn is_helper(program: &OsStr) -> bool {
    let name = std::path::Path::new(program).file_name().and_then(OsStr::to_str).unwrap_or("");
    matches!(name, "mount.fuse.extant" | "mount.fuseblk.extant" | "mount.extant")
}

/// Serves mount(8).
pub(crate) fn helper(args: &[OsString]) -> Outcome {
    command::mount_helper(args).map_err(failure)
}

fn failure(error: CommandError) -> Failure {
    if error.reason.is_empty() {
        return Failure::silent(error.status);
    }
    Failure::new(error.reason).status(error.status)
}
