//! `cargo xtask bench`: the same work on us, the kernel and the others, interleaved, medians and ratios.
//!
//! These machines are shared and noisy: only ratios of runs that stand next to each other count. Images live in
//! memory, so the device is a copy.

mod dax;
mod inproc;
mod mapped;
mod measure;
mod mounted;
mod peers;
mod place;
mod ranges;
mod report;

use std::process::Command;

use crate::proc::{self, Verdict};
pub(crate) use measure::{Metric, Series, json_line, ratio};
pub(crate) use place::make_image;
pub(crate) use report::Figure;

/// How often each side runs.
#[derive(Clone, Copy)]
pub(crate) struct Rounds(pub(crate) usize);

pub(crate) const GROUPS: &[&str] = &[
    "writing",
    "reading",
    "scaling",
    "mkfs",
    "peers",
    "mounted",
    "unpinned",
    "writeback",
    "mmap",
    "ranges",
    "dax",
];

/// `cargo xtask bench [--long|--short] [--no-build] [--huge] [GROUP[=CASE]…]`; `mmap --huge` is `mmap=huge`.
pub(crate) fn run(args: &[String]) -> Verdict {
    let (options, named) = crate::options(args, &["--long", "--short", "--no-build", "--huge"])?;
    let [long, short, built, huge] =
        ["--long", "--short", "--no-build", "--huge"].map(|name| options.contains(&name));
    if let Some(unknown) = named.iter().find(|group| !is_group(group)) {
        return Err(no_group(unknown));
    }
    let groups: Vec<&str> = if named.is_empty() { GROUPS.to_vec() } else { named };
    if !built
        && !proc::succeeds(proc::cargo().args([
            "build",
            "--release",
            "-p",
            "extant-cli",
            "-p",
            "extant-bench",
        ]))?
    {
        return Ok(false);
    }
    let rounds = Rounds(if long {
        9
    } else if short {
        1
    } else {
        3
    });
    let mut all = Vec::new();
    for group in groups {
        let group = if huge && group == "mmap" { "mmap=huge" } else { group };
        println!("\n{group}");
        let figures = one_group(group, rounds)?;
        figures.iter().for_each(Figure::print);
        report::save(&group.replace(['=', ' ', '+', ','], "-"), &figures)?;
        all.extend(figures);
    }
    let bounded = all.iter().filter(|f| f.bound.is_some()).count();
    let held = all.iter().filter(|f| f.bound.is_some() && f.holds()).count();
    println!("\nbench at {}: {held} of {bounded} bounds held, {} figures", commit(), all.len());
    Ok(held == bounded)
}

fn is_group(group: &str) -> bool {
    let name = group.split_once('=').map_or(group, |(name, _)| name);
    GROUPS.contains(&name)
}

fn no_group(group: &str) -> String {
    format!("no group {group}; there are {}", GROUPS.join(", "))
}

/// The figures of one group, for `cargo xtask shows` as well.
pub(crate) fn one_group(group: &str, rounds: Rounds) -> Result<Vec<Figure>, String> {
    let (name, only) = group.split_once('=').map_or((group, None), |(n, o)| (n, Some(o)));
    match name {
        "writing" => inproc::writing(rounds, only),
        "reading" => inproc::reading(rounds, only),
        "mkfs" => peers::mkfs(rounds),
        "peers" => peers::reading(rounds),
        "scaling" => inproc::scaling(rounds, only),
        "mmap" => mapped::run(rounds, only),
        "ranges" => ranges::run(rounds, only),
        "dax" => dax::run(rounds),
        "mounted" => mounted::run(rounds, Some(0), only),
        "unpinned" => mounted::run(rounds, None, only),
        "writeback" => mounted::writeback(rounds, Some(0), only),
        _ => Err(no_group(group)),
    }
}

/// The commit that was measured, with a mark if the tree is not clean.
pub(crate) fn commit() -> String {
    proc::output(Command::new("git").args(["describe", "--always", "--dirty"]))
        .map_or_else(|_| "an unknown commit".into(), |s| s.trim().to_owned())
}
