//! `cargo xtask races`: the scenarios of every room that has the feature `shuttle`, under a scheduler that explores
//! interleavings. Each room is built alone: the feature swaps the locks of all that it uses.

use crate::proc::{self, Verdict};
use crate::tests;

/// How often the long form repeats everything; each run draws new schedules.
const LONG: u32 = 20;

/// `cargo xtask races [--long]`.
pub(crate) fn command(args: &[String]) -> Verdict {
    let times = match args {
        [] => 1,
        [only] if only == "--long" => LONG,
        other => return Err(format!("{other:?}: only --long is known")),
    };
    let (held, count) = run(times)?;
    println!("races: {count}, {times} rounds");
    Ok(held)
}

/// Runs all of it so many times.
pub(crate) fn run(times: u32) -> Result<(bool, tests::Count), String> {
    let rooms = rooms()?;
    let mut total = tests::Count::default();
    let mut held = true;
    for _ in 0..times {
        for room in &rooms {
            // A folder of its own, so that the ordinary builds stay.
            let options = ["-p", room, "--features", "shuttle", "--target-dir", "target/races"];
            let (ok, count) = tests::run(&options, &[])?;
            held &= ok;
            total.passed += count.passed;
            total.failed += count.failed;
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
