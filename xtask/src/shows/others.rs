//! Claims that another command checks: tests, suites, the crash lab, benchmarks.

use std::process::Command;
use std::time::Instant;

use super::Shown;
use crate::bench::{self, Rounds};
use crate::proc;
use crate::rig::{Rig, quiet};
use crate::suites;

/// Runs this program again with other arguments; the figure is the last line it says.
fn again(args: &[&str], bound: &str) -> Result<Shown, String> {
    let exe = std::env::current_exe().map_err(|err| err.to_string())?;
    Ok(last_line(Command::new(exe).args(args), bound))
}

fn last_line(command: &mut Command, bound: &str) -> Shown {
    let (text, held) = match quiet(command) {
        Ok(text) => (text, true),
        Err(text) => (text, false),
    };
    let line = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("nothing was said");
    Shown::new(line.trim(), bound, held)
}

/// Integration tests of a package in a release build: some must run, and none be skipped.
fn tests(package: &str, filter: &str, bound: &str) -> Result<(Shown, String), String> {
    let mut cargo = proc::cargo();
    cargo.args(["test", "--release", "--locked", "-p", package, "--test", "it", filter, "--", "--nocapture"]);
    let (text, held) = match quiet(&mut cargo) {
        Ok(text) => (text, true),
        Err(text) => (text, false),
    };
    let skipped = text.lines().find(|l| l.contains("skipped: "));
    let result = text.lines().rev().find(|l| l.starts_with("test result:"));
    let ran = result.is_some_and(|l| !l.contains(" 0 passed"));
    let line = skipped.or(result).unwrap_or_else(|| text.lines().last().unwrap_or("nothing was said"));
    Ok((Shown::new(line.trim(), bound, held && ran && skipped.is_none()), text))
}

pub(crate) fn demo(_: &Rig) -> Result<Shown, String> {
    again(&["demo"], "it says that everything held")
}

pub(crate) fn ci(_: &Rig) -> Result<Shown, String> {
    let start = Instant::now();
    let shown = last_line(&mut Command::new(".ci/run"), "");
    let minutes = start.elapsed().as_secs_f64() / 60.0;
    let figure = format!("{minutes:.0} minutes; {}", shown.figure);
    Ok(Shown::new(figure, "succeeds in at most 45 minutes", shown.held && minutes <= 45.0))
}

pub(crate) fn both_ways(_: &Rig) -> Result<Shown, String> {
    let (shown, text) =
        tests("extant-cli", "both_ways", "equal content and e2fsck clean for at least 25 combinations")?;
    let combinations = text.lines().filter(|l| l.starts_with("-t ext")).count();
    let figure = format!("{combinations} combinations; {}", shown.figure);
    Ok(Shown::new(figure, shown.bound, shown.held && combinations >= 25))
}

/// Runs the test that makes docs/fallocate.md.
pub(crate) fn fallocate_table(_: &Rig) -> Result<Shown, String> {
    let file = std::env::current_dir().map_err(|err| err.to_string())?.join("docs/fallocate.md");
    let mut cargo = proc::cargo();
    cargo.args([
        "test",
        "--locked",
        "-p",
        "extant-cli",
        "--test",
        "it",
        "fallocate_table",
        "--",
        "--nocapture",
    ]);
    let (text, held) = match quiet(cargo.env("EXTANT_TABLE", file)) {
        Ok(text) => (text, true),
        Err(text) => (text, false),
    };
    let line = text
        .lines()
        .find(|l| l.contains("fallocate: "))
        .or_else(|| text.lines().find(|l| l.contains("skipped: ")));
    // Without root there is no kernel to compare with.
    let held = held && line.is_some_and(|l| !l.contains("skipped"));
    let figure = line.or_else(|| text.lines().last()).unwrap_or("nothing was said");
    Ok(Shown::new(figure.trim(), "same answer, content, size and blocks; e2fsck clean", held))
}

pub(crate) fn fields(_: &Rig) -> Result<Shown, String> {
    Ok(tests("extant", "bookkeeping", "no field differs without a reason")?.0)
}

fn suite(rig: &Rig, name: &str, bound: &str) -> Result<Shown, String> {
    Ok(match suites::one(rig, name, true) {
        Ok(what) => Shown::new(what, bound, true),
        Err(what) => Shown::new(what, bound, false),
    })
}

pub(crate) fn pjdfstest(rig: &Rig) -> Result<Shown, String> {
    suite(rig, "pjdfstest", "none that passes on the kernel's ext4 fails")
}

pub(crate) fn fsx(rig: &Rig) -> Result<Shown, String> {
    suite(rig, "fsx", "1,000,000 operations, e2fsck clean")
}

pub(crate) fn ltp_fsx(rig: &Rig) -> Result<Shown, String> {
    suite(rig, "ltp-fsx", "1,000,000 operations, e2fsck clean")
}

pub(crate) fn fsx_sharpness(rig: &Rig) -> Result<Shown, String> {
    let bound = "each of five bugs is noticed within three runs of 20,000 operations, and nothing without";
    Ok(match suites::fsx_sharpness(rig) {
        Ok(figure) => Shown::new(figure, bound, true),
        Err(figure) => Shown::new(figure, bound, false),
    })
}

pub(crate) fn fsstress(rig: &Rig) -> Result<Shown, String> {
    suite(rig, "fsstress", "e2fsck clean")
}

pub(crate) fn xfstests(rig: &Rig) -> Result<Shown, String> {
    let bound =
        "at least 225 of those that the kernel's ext4 passes, every other with its cause in docs/xfstests.md";
    suite(rig, "xfstests", bound)
}

pub(crate) fn killed(_: &Rig) -> Result<Shown, String> {
    Ok(tests(
        "extant-cli",
        "killed",
        "what was promised survives SIGKILL of the server, on each kind of mount",
    )?
    .0)
}

pub(crate) fn crash(_: &Rig) -> Result<Shown, String> {
    again(&["crash", "--long"], "at least 50,000 states, all consistent and all that was synced there")
}

/// A group of benchmarks: every bound must hold.
fn group(name: &str) -> Result<Shown, String> {
    let build = ["build", "--release", "--locked", "-q", "-p", "extant-cli", "-p", "extant-bench"];
    if !proc::succeeds(proc::cargo().args(build))? {
        return Err("the benchmark does not build".into());
    }
    let figures = bench::one_group(name, Rounds(5))?;
    figures.iter().for_each(bench::Figure::print);
    let bounded: Vec<&bench::Figure> = figures.iter().filter(|f| f.bound.is_some()).collect();
    let text = |f: &&bench::Figure| {
        let bound = f.bound.map(|b| b.to_string()).unwrap_or_default();
        format!("{} {:.2} ({bound}{})", f.name, f.figure, if f.holds() { "" } else { ": NOT held" })
    };
    let line: Vec<String> = bounded.iter().map(text).collect();
    Ok(Shown::new(line.join("; "), "each as written beside it", bounded.iter().all(|f| f.holds())))
}

pub(crate) fn reading(_: &Rig) -> Result<Shown, String> {
    group("reading")
}

pub(crate) fn writing(_: &Rig) -> Result<Shown, String> {
    group("writing")
}

pub(crate) fn mounted(_: &Rig) -> Result<Shown, String> {
    group("mounted")
}

pub(crate) fn unpinned(_: &Rig) -> Result<Shown, String> {
    group("unpinned")
}

pub(crate) fn mmap(_: &Rig) -> Result<Shown, String> {
    group("mmap")
}

pub(crate) fn ranges(_: &Rig) -> Result<Shown, String> {
    group("ranges")
}

/// `crates/fs/tests/it/map_stress.rs`, one after the other.
pub(crate) fn map_threads(_: &Rig) -> Result<Shown, String> {
    let options = ["--release", "-p", "extant", "--test", "it", "map_stress::"];
    let more = ["--".to_owned(), "--test-threads=1".to_owned()];
    let (held, count) = crate::tests::run_with(&options, &more, &[("EXTANT_STRESS", "600")])?;
    let bound = "5 passed: no lost update, no foreign byte, e2fsck clean, equal on the kernel";
    Ok(Shown::new(count.to_string(), bound, held && count.passed == 5))
}

/// The test makes the file, reads and compares it all the time, and checks what is left.
pub(crate) fn defrag(_: &Rig) -> Result<Shown, String> {
    let mut cargo = crate::proc::cargo();
    cargo.args(["test", "--release", "-q", "-p", "extant-cli", "--test", "it", "extents::a_mount_in_use"]);
    let said = crate::proc::output(cargo.args(["--", "--nocapture"]).env("EXTANT_DEFRAG", "long"))?;
    let figure = said.lines().find_map(|line| line.split_once("defrag: ")).map(|(_, figure)| figure);
    let figure = figure.ok_or_else(|| format!("no figure in: {said}"))?;
    let number = |part: usize| figure.split(", ").nth(part)?.split(' ').next()?.parse::<u32>().ok();
    let (after, read) = (number(1), number(2));
    let bound = "at most 4 extents, read meanwhile and never another byte, e2fsck clean";
    Ok(Shown::new(figure, bound, after.is_some_and(|after| after <= 4) && read.is_some_and(|read| read > 0)))
}

pub(crate) fn mkfs(_: &Rig) -> Result<Shown, String> {
    group("mkfs")
}

pub(crate) fn scaling(_: &Rig) -> Result<Shown, String> {
    group("scaling")
}
