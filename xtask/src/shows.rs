//! `cargo xtask shows NAME…`: reruns what the project claims about itself, one claim a name: prints the figure, the bound
//! and the verdict. With `--record` each result is added to `docs/measured.md` with the commit.

mod checker;
mod damage;
mod images;
mod manifest;
mod million;
mod mounted;

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

const CLAIMS: &[Claim] = &[
    Claim { name: "git", about: "clone and fsck of a large repository on a mount", run: mounted::git },
    Claim {
        name: "cargo-build",
        about: "cargo build of this workspace on a mount",
        run: mounted::cargo_build,
    },
    Claim {
        name: "untar",
        about: "untar of 12,000 files on a mount, compared one by one",
        run: mounted::untar,
    },
    Claim { name: "sqlite", about: "SQLite in WAL mode on a mount, integrity check", run: mounted::sqlite },
    Claim { name: "postgres", about: "PostgreSQL initdb and pgbench on a mount", run: mounted::postgres },
    Claim { name: "rsync", about: "rsync -aAXH to a mount and back", run: mounted::rsync },
    Claim {
        name: "checker-images",
        about: "our checker says what e2fsck says of EXTANT_IMAGES",
        run: checker::images,
    },
    Claim {
        name: "checker-fields",
        about: "the same of 200 images with one damaged field",
        run: checker::fields,
    },
    Claim {
        name: "mkfs-reproducible",
        about: "two runs of mkfs -d give the same bytes",
        run: images::reproducible,
    },
    Claim {
        name: "sparse-20t",
        about: "an image of 20 TiB: made, mounted, written above 16 TiB",
        run: images::sparse,
    },
    Claim {
        name: "million",
        about: "1,000,000 files listed, opened and read in bounded memory, in process and on a mount",
        run: million::walk,
    },
];

/// `cargo xtask shows [--record] [NAME…]`; without a name, the list.
pub(crate) fn command(args: &[String]) -> Verdict {
    let record = args.iter().any(|a| a == "--record");
    let names: Vec<&String> = args.iter().filter(|a| *a != "--record").collect();
    if names.is_empty() {
        for claim in CLAIMS {
            println!("{:<20} {}", claim.name, claim.about);
        }
        return Ok(true);
    }
    let mut claims = Vec::new();
    for name in names {
        let all = name == "all";
        let found: Vec<&Claim> = CLAIMS.iter().filter(|c| all || c.name == *name).collect();
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
fn add_to_record(name: &str, shown: &Shown) -> Result<(), String> {
    let commit = proc::output(Command::new("git").args(["rev-parse", "--short", "HEAD"]))?;
    let day = proc::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let one_line = |text: &str| text.lines().next().unwrap_or_default().replace('|', "/");
    let verdict = if shown.held { "held" } else { "not held" };
    let (figure, bound) = (one_line(&shown.figure), one_line(&shown.bound));
    let row = format!("| {} | {} | {name} | {figure} | {bound} | {verdict} |\n", day.trim(), commit.trim());
    let file = std::fs::OpenOptions::new().append(true).open(RECORD);
    file.and_then(|mut f| f.write_all(row.as_bytes())).map_err(|err| format!("{RECORD}: {err}"))
}
