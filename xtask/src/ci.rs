//! `cargo xtask ci`: everything that must hold before a change lands.

use std::iter;
use std::time::Instant;

use crate::packages;
use crate::proc::{self, Verdict};
use crate::{races, tests, tidy};

/// Tests that `--quick` leaves out: each takes more than a minute of a processor in a debug build.
const SLOW: &[&str] = &[
    "both_ways::",
    "crash::dax_stores",
    "damaged_tree::a_damaged_tree_is_treated_as_the_kernel_treats_it",
    "hostile::random_damage",
    "names::many_names_in_one_directory",
    "reading::what_the_kernel_wrote",
    "shift::a_tree_too_large_for_a_transaction_moves_in_parts",
];

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
        let skip = SLOW.iter().flat_map(|name| ["--skip", name]).map(String::from);
        let more: Vec<_> = if quick { iter::once("--".into()).chain(skip).collect() } else { Vec::new() };
        let (held, counted) = tests::run(options, &more)?;
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
