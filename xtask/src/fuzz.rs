//! `cargo xtask fuzz`: images with damaged metadata, read and written to, and failing devices; no panic, no endless walk, no memory
//! beyond the bound. `SEED=` chooses where to begin.

use std::process::Command;

use crate::packages;
use crate::proc::{self, Verdict};

/// Seconds of the short and of the long form.
const SHORT: &str = "120";
const LONG: &str = "3600";

/// `cargo xtask fuzz [--long]`.
pub(crate) fn command(args: &[String]) -> Verdict {
    let seconds = match args {
        [] => SHORT,
        [only] if only == "--long" => LONG,
        other => return Err(format!("{other:?}: only --long is known")),
    };
    packages::ensure(packages::FOR_TESTS)?;
    // With debug assertions: an arithmetic overflow is to be seen.
    if !proc::succeeds(proc::cargo().args(["build", "--locked", "--quiet", "-p", "extant-trials"]))? {
        return Err("the trials do not build".into());
    }
    proc::succeeds(Command::new("target/debug/extant-trials").args(["fuzz", seconds]))
}
