//! `cargo xtask test`: runs all tests and counts them.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use crate::packages;
use crate::proc::{self, Verdict};

/// How many tests passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// `cargo xtask test [ARGS…]`.
pub(crate) fn command(args: &[String]) -> Verdict {
    packages::ensure(packages::FOR_TESTS)?;
    let (held, count) = run(&["--workspace"], args)?;
    println!("{count}");
    Ok(held)
}

/// Runs `cargo test` with these options; prints a line for each test binary and everything about failures. The whole
/// output goes to `target/test.log`.
pub(crate) fn run(options: &[&str], more: &[String]) -> Result<(bool, Count), String> {
    run_with(options, more, &[])
}

/// The same with variables in the tests' environment.
pub(crate) fn run_with(
    options: &[&str],
    more: &[String],
    variables: &[(&str, &str)],
) -> Result<(bool, Count), String> {
    let mut command = proc::cargo();
    command.envs(variables.iter().copied());
    command.args(["test", "--locked", "--no-fail-fast"]).args(options);
    let split = more.iter().position(|a| a == "--").unwrap_or(more.len());
    command.args(&more[..split]).args(["--", "--show-output"]).args(more.iter().skip(split + 1));
    // Cargo's own progress and the tests' output come through one pipe, in order.
    let (reader, writer) = std::io::pipe().map_err(|err| err.to_string())?;
    let again = writer.try_clone().map_err(|err| err.to_string())?;
    command.stdin(Stdio::null()).stdout(writer).stderr(again).env("RUST_BACKTRACE", "1");
    let mut child = command.spawn().map_err(|err| format!("{command:?}: {err}"))?;
    drop(command);
    let mut log =
        std::fs::File::create("target/test.log").map_err(|err| format!("target/test.log: {err}"))?;
    let mut digest = Digest::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.map_err(|err| err.to_string())?;
        let line = String::from_utf8_lossy(&line);
        writeln!(log, "{line}").map_err(|err| err.to_string())?;
        if let Some(line) = digest.line(&line) {
            println!("{line}");
        }
    }
    let status = child.wait().map_err(|err| err.to_string())?;
    for reason in &digest.skipped {
        println!("{reason}");
    }
    let mut count = digest.count;
    if !status.success() && count.failed == 0 {
        // A test that did not compile, or a test binary that died, is a failure too.
        println!("cargo test: {status}, see target/test.log");
        count.failed = 1;
    }
    Ok((status.success(), count))
}

/// Reads the output of `cargo test` line by line.
#[derive(Default)]
struct Digest {
    count: Count,
    skipped: BTreeSet<String>,
    binary: String,
    /// Between `successes:` and the next section: output of tests that passed.
    quiet: bool,
}

impl Digest {
    /// What to print for this line.
    fn line(&mut self, line: &str) -> Option<String> {
        let text = line.trim();
        if let Some(skip) = text.strip_prefix("skipped: ") {
            self.skipped.insert(format!("skipped: {skip}"));
            return None;
        }
        if let Some(result) = text.strip_prefix("test result: ") {
            return Some(self.result(result));
        }
        if text.starts_with("Running ") || text.starts_with("Doc-tests ") {
            text.clone_into(&mut self.binary);
            self.quiet = false;
            return None;
        }
        match text {
            "successes:" => self.quiet = true,
            "failures:" => self.quiet = false,
            _ => {}
        }
        let passing = text.starts_with("test ") && (text.ends_with("ok") || text.contains(" ... ok"));
        let noise = text.is_empty()
            || text.starts_with("running ")
            || text.starts_with("Compiling ")
            || text.starts_with("Downloaded ")
            || text.starts_with("Downloading ");
        (!self.quiet && !passing && !noise).then(|| line.to_owned())
    }

    fn result(&mut self, text: &str) -> String {
        let number = |what: &str| -> u64 {
            let before = text.split(what).next().unwrap_or_default();
            before.rsplit([' ', '.', ';']).find(|w| !w.is_empty()).and_then(|w| w.parse().ok()).unwrap_or(0)
        };
        let (passed, failed) = (number(" passed"), number(" failed"));
        self.count.passed += passed;
        self.count.failed += failed;
        self.quiet = false;
        format!("{:>5} passed {failed:>3} failed  {}", passed, self.binary)
    }
}

#[cfg(test)]
mod unit {
    use super::{Count, Digest};

    #[test]
    fn counts_and_skips_are_read_from_cargos_output() {
        let mut digest = Digest::default();
        let text = "     Running unittests src/lib.rs (target/debug/deps/a-1)\n\nrunning 3 tests\ntest a ... ok\n\
                    test b ... FAILED\n\nsuccesses:\n\n---- a stdout ----\nskipped: no mke2fs\nnoise\n\nfailures:\n\n\
                    ---- b stdout ----\nboom\n\ntest result: FAILED. 12 passed; 1 failed; 0 ignored; 0 measured\n";
        let printed: Vec<String> = text.lines().filter_map(|line| digest.line(line)).collect();
        assert_eq!(digest.count, Count { passed: 12, failed: 1 });
        assert!(digest.skipped.contains("skipped: no mke2fs"));
        assert!(printed.iter().any(|l| l == "boom"));
        assert!(!printed.iter().any(|l| l == "noise" || l.contains("a ... ok")));
    }
}
