//! `cargo xtask crash`: the crash lab (`crates/fs/tests/it/crash.rs`) in its release build.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use crate::proc::{self, Verdict};

/// States that the whole of the long form must have judged.
const MOST_OF_IT: u64 = 50_000;

/// What the lab's lines add up to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    filesystems: u64,
    scripts: u64,
    refused: u64,
    states: u64,
    images: u64,
}

/// `cargo xtask crash [--long [I/N]]`: the short form; all scripts of one and two changes and a sample of three; or part I of N
/// of them. `SEED=` chooses the samples. Ends with the counts and a verdict.
pub(crate) fn command(args: &[String]) -> Verdict {
    let (mut cargo, mut least) = (proc::cargo(), 1);
    let test =
        ["test", "--locked", "--release", "-p", "extant", "--test", "it", "crash::", "--", "--nocapture"];
    cargo.args(test).stdin(Stdio::null()).stdout(Stdio::piped());
    match args {
        [] => {}
        [long] if long == "--long" => {
            cargo.env("EXTANT_CRASH", "long");
            least = MOST_OF_IT;
        }
        [long, part] if long == "--long" && part.contains('/') => {
            cargo.env("EXTANT_CRASH", "long").env("EXTANT_CRASH_PART", part);
        }
        other => return Err(format!("{other:?}: only --long and a part I/N are known")),
    }
    let mut child = cargo.spawn().map_err(|err| format!("cargo: {err}"))?;
    let mut sum = Sum::default();
    for line in BufReader::new(child.stdout.take().ok_or("no output")?).lines() {
        let line = line.map_err(|err| format!("cargo: {err}"))?;
        println!("{line}");
        sum.add(&line);
    }
    let passed = child.wait().map_err(|err| format!("cargo: {err}"))?.success();
    let held = passed && sum.states >= least;
    println!(
        "crash: {}: {} states of {} scripts on {} kinds of filesystem ({} scripts refused by a feature), each recovered by us and \
         checked; {} distinct recovered images, each checked by e2fsck and read by the kernel; at least {least} states asked for",
        if held { "pass" } else { "FAIL" },
        sum.states,
        sum.scripts,
        sum.filesystems,
        sum.refused,
        sum.images,
    );
    Ok(held)
}

impl Sum {
    /// Adds `crash lab: 22 scripts, 0 refused, 1995 states, 45 distinct recovered images: …`; other lines are none of its business.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("crash lab: ") else { return };
        let counts = counts.split(": ").next().unwrap_or_default();
        let mut numbers = counts.split(", ").map(|part| part.split(' ').next()?.parse::<u64>().ok());
        let mut next = || numbers.next().flatten().unwrap_or(0);
        self.filesystems += 1;
        self.scripts += next();
        self.refused += next();
        self.states += next();
        self.images += next();
    }
}

#[cfg(test)]
mod tests {
    use super::Sum;

    #[test]
    fn lines_of_the_lab_are_added_up() {
        let mut sum = Sum::default();
        let line = "crash lab: 22 scripts, 4 refused, 1995 states, 45 distinct recovered images: 4 KiB blocks, data=writeback";
        // The test program may have begun the line.
        for line in [line, &format!("test crash::x ... {line}"), "test crash::y ... ok"] {
            sum.add(line);
        }
        assert_eq!(sum, Sum { filesystems: 2, scripts: 44, refused: 8, states: 3990, images: 90 });
    }
}
