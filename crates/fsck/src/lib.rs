//! Checking ext2, ext3 and ext4 images: a second opinion that reads through `extant-format` alone.
//!
//! [`check`] runs all passes over a device and returns a [`Report`] of [`Finding`]s; it changes nothing. Passes, in order:
//! superblock and descriptors; inodes, their maps and attributes; blocks with several owners; directories and their
//! indexes; connectivity; reference counts; bitmaps and counts; quota files.
//!
//! **Bounded on any bytes.** Geometry is checked before anything is sized by it; bitmaps exist only for groups in which
//! something is claimed; a tree block is entered once, whoever claims it; a directory block is read once; findings are
//! capped. **Parallel** over groups and directories above a size; small images are checked by the caller's thread alone.
//!
//! The journal is not replayed: an image that needs recovery is checked as it is, with a note. Who wants it replayed
//! passes an overlay device in which it has been.

mod blocks;
pub mod cli;
mod context;
mod dirs;
mod external;
mod finding;
mod index;
mod inodes;
mod json;
mod map;
mod quota;
mod references;
mod shared;
mod special;
mod summary;
mod superblock;
mod xattrs;

use extant_device::BlockDevice;

pub use finding::{Finding, Kind, Pass, Place, Severity};

/// Devices up to this size are checked without further threads.
const SMALL: u64 = 256 << 20;

/// How to check.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Use the superblock in this block, of a filesystem with blocks of this many bytes.
    pub superblock: Option<(u64, u32)>,
    /// Threads to use; 0: as many as there are processors, or one for small devices.
    pub threads: usize,
    /// Findings to keep; further ones are counted only.
    pub max_findings: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { superblock: None, threads: 0, max_findings: 10_000 }
    }
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order of passes.
    pub findings: Vec<Finding>,
    /// Findings beyond [`Options::max_findings`].
    pub left_out: u64,
    /// Sizes, where the superblock was usable.
    pub totals: Totals,
    clean: bool,
    fatal: bool,
}

/// How much there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Inodes in use.
    pub inodes: u64,
    /// All inodes.
    pub inodes_count: u64,
    /// Blocks in use.
    pub blocks: u64,
    /// All blocks.
    pub blocks_count: u64,
    /// Directories.
    pub directories: u64,
}

impl Report {
    /// Whether the filesystem is consistent. Notes do not count.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.clean
    }

    /// Whether the check could not be finished.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        self.fatal
    }

    /// As e2fsck's: 0 clean, 4 errors left, 8 the check could not be done.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match (self.fatal, self.clean) {
            (true, _) => 8,
            (false, false) => 4,
            (false, true) => 0,
        }
    }

    /// The findings that make it not clean.
    pub fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| f.kind.severity() > Severity::Note)
    }
}

/// Checks the filesystem on `dev`, which is only read.
#[must_use]
pub fn check(dev: &dyn BlockDevice, options: &Options) -> Report {
    check_with_journal(dev, None, options)
}

/// The same with the external journal of the filesystem, where it has one and that is at hand. An external journal may also be
/// checked as `dev`, alone.
#[must_use]
pub fn check_with_journal(
    dev: &dyn BlockDevice,
    journal: Option<&dyn BlockDevice>,
    options: &Options,
) -> Report {
    let sink = context::Sink::new(options.max_findings);
    let totals = run(dev, journal, options, &sink).unwrap_or_default();
    let (clean, fatal) = (!sink.has_errors(), sink.is_fatal());
    let (mut findings, left_out) = sink.into_parts();
    // Threads report as they go; the order within an inode or group is kept.
    findings.sort_by_key(|f| (f.pass, f.place));
    Report { findings, left_out, totals, clean, fatal }
}

/// What the superblock counts, if it says that the filesystem need not be checked: cleanly unmounted, no errors on record, nothing to
/// recover, nothing wrong with itself and the descriptors, and no check due for the number of mounts or, at `now` (seconds of the
/// epoch), for its age. These are e2fsck's reasons to leave a filesystem alone that it is not forced to check, but that `e2fsck -n`
/// passes over a journal that needs recovery.
#[must_use]
pub fn need_not_be_checked(
    dev: &dyn BlockDevice,
    journal: Option<&dyn BlockDevice>,
    options: &Options,
    now: u64,
) -> Option<Totals> {
    if options.superblock.is_some() || external::superblock_of(dev).is_some() {
        return None;
    }
    let sink = context::Sink::new(1);
    let mut cx = superblock::open(dev, &Options { threads: 1, ..*options }, &sink)?;
    cx.journal = journal;
    superblock::check(&mut cx);
    let totals = superblock::says_clean(&cx, now);
    // A note counts, too: such as one that it was not unmounted.
    if sink.into_parts().0.is_empty() { totals } else { None }
}

fn run<'d>(
    dev: &'d dyn BlockDevice,
    journal: Option<&'d dyn BlockDevice>,
    options: &Options,
    sink: &'d context::Sink,
) -> Option<Totals> {
    if let Some(raw) = external::superblock_of(dev).filter(|_| options.superblock.is_none()) {
        return Some(external::check_alone(dev, &raw, sink));
    }
    let threads = match options.threads {
        0 if dev.size() <= SMALL => 1,
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(16),
        n => n.min(64),
    };
    let mut cx = superblock::open(dev, &Options { threads, ..*options }, sink)?;
    cx.journal = journal;
    superblock::check(&mut cx);
    if sink.is_fatal() {
        return None;
    }
    let inodes = inodes::check(&cx);
    if sink.is_fatal() {
        return None;
    }
    shared::check(&cx, &inodes);
    let tree = dirs::check(&cx, &inodes);
    if references::connectivity(&cx, &inodes, &tree) {
        references::links(&cx, &inodes);
    }
    summary::check(&cx, &inodes);
    quota::check(&cx, &inodes);
    let used = inodes.groups.iter().flatten().filter(|i| i.is(inodes::Info::USED)).count();
    let clusters: u64 = cx.claims.count();
    Some(Totals {
        inodes: used as u64,
        inodes_count: u64::from(cx.geo.inodes_count()),
        blocks: clusters << cx.geo.log_cluster_ratio(),
        blocks_count: cx.geo.blocks_count(),
        directories: inodes.dirs.len() as u64,
    })
}
