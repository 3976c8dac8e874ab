//! What files that nobody maps cost since there are mappings: the commit before these against the present one.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Shown;
use crate::bench::{Metric, Series, json_line, make_image, ratio};
use crate::proc;
use crate::rig::{Rig, quiet};

/// Interleaved pairs of runs.
const PAIRS: usize = 15;
/// How much more processor time it may take.
const BOUND: f64 = 1.05;
/// The file with which mappings began.
const FIRST: &str = "crates/vm/src/fault.rs";
/// Where the old commit is unpacked and built; kept, for the next time.
const FOLDER: &str = "target/unmapped-path";

/// The work, in this order, on one image: its name here, and what the benchmark calls it.
const WORK: [(&str, &[&str]); 6] = [
    ("create", &["create", "files=5000", "dirs=50", "size=4096"]),
    ("read files", &["read-tree"]),
    ("write", &["seq-write", "mib=128"]),
    ("read", &["seq-read"]),
    ("random reads", &["random-read", "n=60000"]),
    ("random writes", &["random-write", "n=30000"]),
];

pub(super) fn path(rig: &Rig) -> Result<Shown, String> {
    let before = before_mappings()?;
    let old = old_benchmark(&before)?;
    build(Path::new("."), None)?;
    let programs = [old, proc::release("extant-bench")?];
    let image = rig.dir.join("unmapped.img");
    let mut series: Vec<[Series; 2]> = WORK.iter().map(|_| Default::default()).collect();
    for pair in 0..PAIRS {
        // Who is first is second the next time.
        for side in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
            make_image(&image, "400m")?;
            let place = format!("image:{}", image.display());
            for ((_, words), both) in WORK.iter().zip(&mut series) {
                let mut command = Command::new(&programs[side]);
                command.arg(words[0]).arg(&place).args(&words[1..]);
                let mut sample = json_line(&mut command)?;
                // What is left for the unmount counts too.
                sample.cpu_s += sample.extra.get("close_cpu_s").copied().unwrap_or(f64::NAN);
                both[side].0.push(sample);
            }
        }
    }
    let all =
        || WORK.iter().zip(&series).map(|((name, _), [old, new])| (*name, ratio(new, old, Metric::Cpu)));
    let words: Vec<String> = all().map(|(name, ratio)| format!("{name} {ratio:.3}")).collect();
    let figure = format!("processor time to that of {before}, median of {PAIRS} pairs: {}", words.join(", "));
    Ok(Shown::new(figure, format!("each at most {BOUND}"), all().all(|(_, ratio)| ratio <= BOUND)))
}

/// The commit before the first one with mappings.
fn before_mappings() -> Result<String, String> {
    let log = ["log", "--format=%H", "--diff-filter=A", "--", FIRST];
    let commits = proc::output(Command::new("git").args(log))?;
    let first = commits.lines().next_back().ok_or_else(|| format!("no commit that added {FIRST}"))?;
    let parent = ["rev-parse", "--short=8", &format!("{first}^")].map(str::to_owned);
    Ok(proc::output(Command::new("git").args(parent))?.trim().to_owned())
}

/// The benchmark as it was at a commit, built.
fn old_benchmark(commit: &str) -> Result<PathBuf, String> {
    let dir = Path::new(FOLDER).join(commit);
    if !dir.is_dir() {
        // Under another name until it is whole.
        let part = Path::new(FOLDER).join("part");
        let _ = std::fs::remove_dir_all(&part);
        std::fs::create_dir_all(&part).map_err(|err| format!("{}: {err}", part.display()))?;
        let archive = Path::new(FOLDER).join("part.tar");
        quiet(Command::new("git").args(["archive", "-o"]).arg(&archive).arg(commit))?;
        quiet(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&part))?;
        std::fs::rename(&part, &dir).map_err(|err| format!("{}: {err}", dir.display()))?;
    }
    let target = Path::new(FOLDER).join("build");
    build(&dir, Some(&target))?;
    let program = target.join("release/extant-bench");
    program.canonicalize().map_err(|err| format!("{}: {err}", program.display()))
}

/// Builds the benchmark, in the usual folder or in `target`; both sides as the present one is.
fn build(dir: &Path, target: Option<&Path>) -> Result<(), String> {
    let mut cargo = proc::cargo();
    cargo.args(["build", "--release", "--locked", "-q", "-p", "extant-bench"]).current_dir(dir);
    cargo.env("CARGO_PROFILE_RELEASE_LTO", "fat").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");
    if let Some(target) = target {
        let path = std::path::absolute(target).map_err(|err| format!("{}: {err}", target.display()))?;
        cargo.arg("--target-dir").arg(path);
    }
    if proc::succeeds(&mut cargo)? { Ok(()) } else { Err(format!("{} does not build", dir.display())) }
}
