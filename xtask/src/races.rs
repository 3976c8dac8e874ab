//! `cargo xtask races`: the scenarios of every room that has the feature `shuttle`, under a scheduler that explores
//! interleavings. Each room is built alone: the feature swaps the locks of all that it uses.

use crate::proc::{self, Verdict};
use crate::tests;

/// How often the long form repeats everything; each run draws new schedules.
const LONG: u32 = 20;
/// Schedules of each scenario that counts them, in the long form's first round.
const LONG_SCHEDULES: &str = "100000";

/// The long form's build. What a release gains by being linked as one is not worth its time here.
const RELEASE: &[&str] =
    &["--release", "--config", "profile.release.lto=\"off\"", "--config", "profile.release.codegen-units=16"];
/// Of these each scenario runs so many for an estimate.
const SOME_SCHEDULES: &str = "1000";

/// `cargo xtask races [--long | --estimate]`. Prints a table: each scenario that counts its schedules, and each mutant with the number of
/// schedules after which it was noticed. `--estimate` runs some of each, in the build of the long form's first round, and says how long that
/// would take.
pub(crate) fn command(args: &[String]) -> Verdict {
    let long = match args {
        [] => false,
        [only] if only == "--long" => true,
        [only] if only == "--estimate" => return estimate(),
        other => return Err(format!("{other:?}: only --long and --estimate are known")),
    };
    let times = if long { LONG } else { 1 };
    let (mut held, mut count) = (true, tests::Count::default());
    if long {
        // Many schedules want a release build.
        (held, count) = round(RELEASE, Some(LONG_SCHEDULES), &mut Vec::new())?;
    }
    let (ok, more) = run(times)?;
    held &= ok;
    count.passed += more.passed;
    count.failed += more.failed;
    println!(
        "races: {count}, {times} rounds{}",
        if long { " and one of 100,000 schedules a scenario" } else { "" }
    );
    Ok(held && count.passed > 0)
}

/// Runs all of it so many times.
pub(crate) fn run(times: u32) -> Result<(bool, tests::Count), String> {
    let mut total = tests::Count::default();
    let mut held = true;
    for _ in 0..times {
        let (ok, count) = round(&[], None, &mut Vec::new())?;
        held &= ok;
        total.passed += count.passed;
        total.failed += count.failed;
    }
    Ok((held && total.passed > 0, total))
}

/// How long each scenario's schedules would take, from a thousandth or so of them.
fn estimate() -> Verdict {
    let mut rates = Vec::new();
    let (held, count) = round(RELEASE, Some(SOME_SCHEDULES), &mut rates)?;
    let wanted: f64 = LONG_SCHEDULES.parse().map_err(|_| "a number")?;
    let seconds: f64 = rates.iter().map(|rate| wanted / rate).sum();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "races: {count}; {LONG_SCHEDULES} schedules of each of {} scenarios: {:.1} h of one processor, {:.1} h on {threads}; then \
         {LONG} rounds of the short form",
        rates.len(),
        seconds / 3600.0,
        seconds / 3600.0 / threads as f64
    );
    Ok(held && count.passed > 0)
}

/// Schedules a second, from a line that ends with `[N schedules in S s]`.
fn rate(line: &str) -> Option<f64> {
    let (schedules, rest) = line.rsplit_once('[')?.1.split_once(" schedules in ")?;
    let seconds: f64 = rest.strip_suffix(" s]")?.parse().ok()?;
    Some(schedules.parse::<f64>().ok()? / seconds.max(0.01))
}

/// Runs every room once, and prints its scenarios' lines; adds their rates.
fn round(
    more: &[&str],
    schedules: Option<&str>,
    rates: &mut Vec<f64>,
) -> Result<(bool, tests::Count), String> {
    let mut total = tests::Count::default();
    let mut held = true;
    for room in &rooms()? {
        // A folder of its own, so that the ordinary builds stay.
        let mut options = vec!["-p", room, "--features", "shuttle", "--target-dir", "target/races"];
        options.extend(more);
        let (ok, count) = tests::run_with(&options, &[], schedules.map(|n| ("EXTANT_RACES", n)))?;
        held &= ok;
        total.passed += count.passed;
        total.failed += count.failed;
        let log =
            std::fs::read_to_string("target/test.log").map_err(|err| format!("target/test.log: {err}"))?;
        let lines = log.lines().filter_map(|line| line.find("races: ").map(|at| &line[at..]));
        for line in lines.collect::<std::collections::BTreeSet<_>>() {
            println!("{line}");
            rates.extend(rate(line));
        }
    }
    Ok((held && total.passed > 0, total))
}

/// Packages with the feature.
fn rooms() -> Result<Vec<String>, String> {
    let text = proc::output(proc::cargo().args(["metadata", "--format-version=1", "--no-deps", "--locked"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text).map_err(|err| err.to_string())?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata: no packages")?;
    let with = packages.iter().filter(|p| p["features"].get("shuttle").is_some());
    Ok(with.filter_map(|p| p["name"].as_str()).map(str::to_owned).collect())
}
