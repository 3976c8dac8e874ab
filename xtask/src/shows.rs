//! `cargo xtask shows NAME…`: reruns what the project claims about itself, one claim a name: prints the figure, the bound
//! and the verdict. With `--record` each result is added to `docs/measured.md` with the commit.

mod checker;
mod damage;
mod images;
mod manifest;
mod million;
mod mounted;
mod others;
mod unmapped;

use std::fmt;
use std::io::Write as _;
use std::process::Command;
use std::time::Instant;

use crate::proc::{self, Verdict};
use crate::rig::Rig;

/// What a claim turned out to be.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    /// What was measured.
    pub(crate) figure: String,
    /// What it must be.
    pub(crate) bound: String,
    /// Whether it is.
    pub(crate) held: bool,
}

impl Shown {
    pub(crate) fn new(figure: impl Into<String>, bound: impl Into<String>, held: bool) -> Self {
        Self { figure: figure.into(), bound: bound.into(), held }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.held { "held" } else { "NOT held" };
        write!(f, "{}; bound: {}; {verdict}", self.figure, self.bound)
    }
}

/// A claim that this command can rerun.
pub(crate) struct Claim {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn(&Rig) -> Result<Shown, String>,
}

/// Short for one line of the table below.
const fn claim(name: &'static str, about: &'static str, run: fn(&Rig) -> Result<Shown, String>) -> Claim {
    Claim { name, about, run }
}

const CLAIMS: &[Claim] = &[
    claim("demo", "cargo xtask demo", others::demo),
    claim("ci", ".ci/run in at most 45 minutes", others::ci),
    claim("git", "clone and fsck of a large repository on a mount", mounted::git),
    claim("cargo-build", "cargo build of this workspace on a mount", mounted::cargo_build),
    claim("untar", "untar of 12,000 files on a mount, compared one by one", mounted::untar),
    claim("sqlite", "SQLite in WAL mode on a mount, integrity check", mounted::sqlite),
    claim("postgres", "PostgreSQL initdb and pgbench on a mount", mounted::postgres),
    claim("rsync", "rsync -aAXH to a mount and back", mounted::rsync),
    claim(
        "both-ways",
        "written by us, by the kernel, by us, over the feature combinations",
        others::both_ways,
    ),
    claim(
        "dumpe2fs-fields",
        "each field of dumpe2fs -h that differs from the kernel's is explained",
        others::fields,
    ),
    claim("pjdfstest", "no failure that the kernel's ext4 does not have", others::pjdfstest),
    claim("fsx", "fsx, 1,000,000 operations on a mount", others::fsx),
    claim("ltp-fsx", "ltp/fsx, 1,000,000 operations on a mount", others::ltp_fsx),
    claim(
        "fsx-sharpness",
        "ltp/fsx over the preloaded library notices each of five bugs of one line",
        others::fsx_sharpness,
    ),
    claim("fsstress", "4 processes, then e2fsck", others::fsstress),
    claim("xfstests", "generic/quick as ext4, mode B", others::xfstests),
    claim("killed", "what survives SIGKILL of the server, for each kind of mount", others::killed),
    claim("checker-images", "our checker says what e2fsck says of EXTANT_IMAGES", checker::images),
    claim("checker-fields", "the same of 200 images with one damaged field", checker::fields),
    claim("crash", "every crash state of scripts of one and two operations", others::crash),
    claim("reading", "20,000 files, 380 MB, read in process against the kernel", others::reading),
    claim("writing", "files created and written in process against the kernel", others::writing),
    claim("mounted", "whole work on a mount against the null server and the kernel", others::mounted),
    claim("unpinned", "the same on all processors: not slower than fuse2fs", others::unpinned),
    claim("mmap", "mapped files in process against the kernel's ext4 and tmpfs", others::mmap),
    claim(
        "map-threads",
        "mapped files under real threads, 10 minutes each of three kinds",
        others::map_threads,
    ),
    claim(
        "unmapped-path",
        "files that nobody maps cost what they cost before there were mappings",
        unmapped::path,
    ),
    claim(
        "fallocate-table",
        "every mode of fallocate on every edge, as the kernel; writes docs/fallocate.md",
        others::fallocate_table,
    ),
    claim(
        "ranges",
        "punch, collapse, insert in a file of 100,000 extents against the kernel",
        others::ranges,
    ),
    claim(
        "defrag",
        "400 MiB in 6,000 pieces brought to 4 extents on a mount, while it is read",
        others::defrag,
    ),
    claim("mkfs", "mkfs -d of 20,000 files against mkext4 and mke2fs", others::mkfs),
    claim("mkfs-reproducible", "two runs of mkfs -d give the same bytes", images::reproducible),
    claim("scaling", "4 threads against 1", others::scaling),
    claim("million", "1,000,000 files listed, opened and read within cache_size and 64 MiB", million::walk),
    claim("sparse-20t", "an image of 20 TiB: made, mounted, written above 16 TiB", images::sparse),
];

/// `cargo xtask shows [--record] [NAME…]`; without a name, the list.
pub(crate) fn command(args: &[String]) -> Verdict {
    let (options, names) = crate::options(args, &["--record"])?;
    let record = !options.is_empty();
    if names.is_empty() {
        for claim in CLAIMS {
            println!("{:<20} {}", claim.name, claim.about);
        }
        return Ok(true);
    }
    let mut claims = Vec::new();
    for name in names {
        let all = name == "all";
        let found: Vec<&Claim> = CLAIMS.iter().filter(|c| all || c.name == name).collect();
        if found.is_empty() {
            return Err(format!("no claim {name}; without a name all are listed"));
        }
        claims.extend(found);
    }
    let rig = Rig::build()?;
    let (mut held, mut broken) = (0, 0);
    for claim in claims {
        let start = Instant::now();
        let shown = (claim.run)(&rig).unwrap_or_else(|err| Shown::new(err, "it runs to its end", false));
        println!("{}: {shown} ({} s)", claim.name, start.elapsed().as_secs());
        if record {
            add_to_record(claim.name, &shown)?;
        }
        *(if shown.held { &mut held } else { &mut broken }) += 1;
    }
    println!("shows: {held} held, {broken} not held");
    Ok(broken == 0)
}

/// Where results stand.
const RECORD: &str = "docs/measured.md";

/// Adds a row to the table of results.
pub(crate) fn add_to_record(name: &str, shown: &Shown) -> Result<(), String> {
    let commit = proc::output(Command::new("git").args(["rev-parse", "--short", "HEAD"]))?;
    let day = proc::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let one_line = |text: &str| text.lines().next().unwrap_or_default().replace('|', "/");
    let verdict = if shown.held { "held" } else { "not held" };
    let (figure, bound) = (one_line(&shown.figure), one_line(&shown.bound));
    let row = format!("| {} | {} | {name} | {figure} | {bound} | {verdict} |\n", day.trim(), commit.trim());
    let file = std::fs::OpenOptions::new().append(true).open(RECORD);
    file.and_then(|mut f| f.write_all(row.as_bytes())).map_err(|err| format!("{RECORD}: {err}"))
}
