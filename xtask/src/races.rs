//! `cargo xtask races`: the scenarios of every room that has the feature `shuttle`, under a scheduler that explores
//! interleavings. Each room is built alone: the feature swaps the locks of all that it uses.

use crate::proc::{self, Verdict};
use crate::tests;

/// Schedules of each scenario in the long form.
const LONG_SCHEDULES: &str = "100000";

/// The long form's build. What a release gains by being linked as one is not worth its time here.
const RELEASE: &[&str] =
    &["--release", "--config", "profile.release.lto=\"off\"", "--config", "profile.release.codegen-units=16"];
/// Every schedule makes and frees a filesystem with its memory: glibc keeps that rather than ask the kernel for pages that it has to clear
/// (measured: half of the time of a scenario with large images).
const ALLOCATOR: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296:glibc.malloc.top_pad=268435456",
);
/// Of these each scenario runs so many for an estimate.
const SOME_SCHEDULES: &str = "1000";

/// `cargo xtask races [--long | --estimate] [--room PACKAGE]`. Prints a table: each scenario with its schedules, and each mutant with the number of
/// schedules after which it was noticed. `--estimate` runs some of each, in the long form's build, and says how long that would take. `--room`
/// takes one of the rooms alone.
pub(crate) fn command(args: &[String]) -> Verdict {
    let (mut long, mut estimated, mut one) = (false, false, None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--long" => long = true,
            "--estimate" => estimated = true,
            "--room" => one = Some(args.next().ok_or("--room wants a package")?),
            other => return Err(format!("{other:?}: only --long, --estimate and --room are known")),
        }
    }
    let mut rooms = rooms()?;
    if let Some(name) = one {
        if !rooms.contains(name) {
            return Err(format!("{name}: not one of {}", rooms.join(", ")));
        }
        rooms = vec![name.clone()];
    }
    if estimated {
        return estimate(&rooms);
    }
    let (mut held, mut count) = (true, tests::Count::default());
    if long {
        // Many schedules want a release build.
        (held, count) = round(&rooms, RELEASE, Some(LONG_SCHEDULES), &mut Vec::new())?;
    }
    // A debug build looks at the order of locks.
    let (ok, more) = round(&rooms, &[], None, &mut Vec::new())?;
    held &= ok;
    count.passed += more.passed;
    count.failed += more.failed;
    let forms = if long {
        format!(", {LONG_SCHEDULES} schedules of each scenario and the short form")
    } else {
        String::new()
    };
    println!("races: {count}{forms}, of {}", rooms.join(", "));
    Ok(held && count.passed > 0)
}

/// Runs the short form.
pub(crate) fn run() -> Result<(bool, tests::Count), String> {
    let (held, total) = round(&rooms()?, &[], None, &mut Vec::new())?;
    Ok((held && total.passed > 0, total))
}

/// How long each scenario's schedules would take, from a thousandth or so of them.
fn estimate(rooms: &[String]) -> Verdict {
    let mut rates = Vec::new();
    let (held, count) = round(rooms, RELEASE, Some(SOME_SCHEDULES), &mut rates)?;
    let wanted: f64 = LONG_SCHEDULES.parse().map_err(|_| "a number")?;
    let seconds: f64 = rates.iter().map(|rate| wanted / rate).sum();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "races: {count}; {LONG_SCHEDULES} schedules of each of {} scenarios: {:.1} h of one processor, {:.1} h on {threads}; then \
         the short form",
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

/// Runs each of `rooms` once, and prints its scenarios' lines; adds their rates.
fn round(
    rooms: &[String],
    more: &[&str],
    schedules: Option<&str>,
    rates: &mut Vec<f64>,
) -> Result<(bool, tests::Count), String> {
    let mut total = tests::Count::default();
    let mut held = true;
    let variables: Vec<_> = schedules.map(|n| ("EXTANT_RACES", n)).into_iter().chain([ALLOCATOR]).collect();
    for room in rooms {
        // A folder of its own, so that the ordinary builds stay.
        let mut options = vec!["-p", room, "--features", "shuttle", "--target-dir", "target/races"];
        options.extend(more);
        let (ok, count) = tests::run_with(&options, &[], &variables)?;
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
