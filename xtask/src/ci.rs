//! `cargo xtask ci`: everything that must hold before a change lands.

use std::time::Instant;

use crate::packages;
use crate::proc::{self, Verdict};
use crate::{races, tests, tidy};

/// `cargo xtask ci [--quick]`. All steps run even if one fails; the last line counts the tests.
pub(crate) fn command(args: &[String]) -> Verdict {
    let quick = match args {
        [] => false,
        [only] if only == "--quick" => true,
        other => return Err(format!("{other:?}: only --quick is known")),
    };
    packages::ensure(packages::FOR_TESTS)?;
    let mut steps = Steps::default();
    steps.run("fmt", || proc::succeeds(proc::cargo().args(["fmt", "--all", "--", "--check"])));
    steps.run("tidy", tidy::command);
    steps.run("clippy", || {
        let lint = ["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"];
        proc::succeeds(proc::cargo().args(lint))
    });
    if !quick {
        steps.run("doc", || {
            let doc = ["doc", "--workspace", "--no-deps", "--document-private-items", "--locked", "--quiet"];
            proc::succeeds(proc::cargo().args(doc).env("RUSTDOCFLAGS", "-D warnings"))
        });
    }
    let options: &[&str] =
        if quick { &["--workspace", "--lib", "--bins", "--tests"] } else { &["--workspace"] };
    let mut count = tests::Count::default();
    steps.run("test", || {
        let (held, counted) = tests::run(options, &[])?;
        count = counted;
        Ok(held)
    });
    if !quick {
        steps.run("races", || {
            let (held, counted) = races::run()?;
            count.passed += counted.passed;
            count.failed += counted.failed;
            Ok(held)
        });
    }
    steps.summary();
    println!("{count}");
    Ok(steps.failed.is_empty())
}

#[derive(Default)]
struct Steps {
    done: Vec<String>,
    failed: Vec<&'static str>,
}

impl Steps {
    fn run(&mut self, name: &'static str, step: impl FnOnce() -> Verdict) {
        println!("== {name}");
        let start = Instant::now();
        let held = step().unwrap_or_else(|err| {
            println!("{name}: {err}");
            false
        });
        let word = if held { "ok" } else { "FAILED" };
        self.done.push(format!("{name}: {word}, {} s", start.elapsed().as_secs()));
        if !held {
            self.failed.push(name);
        }
    }

    fn summary(&self) {
        println!("== {}", self.done.join("; "));
        if !self.failed.is_empty() {
            println!("failed: {}", self.failed.join(", "));
        }
    }
}
