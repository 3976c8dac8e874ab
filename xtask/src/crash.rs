//! `cargo xtask crash`: the crash lab (`crates/fs/tests/it/crash.rs`) in its release build.

use crate::proc::{self, Verdict};

/// `cargo xtask crash [--long [I/N]]`: the short form; all scripts of one and two changes and a sample of three; or part I of N
/// of them. `SEED=` chooses the samples.
pub(crate) fn command(args: &[String]) -> Verdict {
    let mut cargo = proc::cargo();
    cargo.args([
        "test",
        "--locked",
        "--release",
        "-p",
        "extant",
        "--test",
        "it",
        "crash::",
        "--",
        "--nocapture",
    ]);
    match args {
        [] => {}
        [long] if long == "--long" => {
            cargo.env("EXTANT_CRASH", "long");
        }
        [long, part] if long == "--long" && part.contains('/') => {
            cargo.env("EXTANT_CRASH", "long").env("EXTANT_CRASH_PART", part);
        }
        other => return Err(format!("{other:?}: only --long and a part I/N are known")),
    }
    let status = cargo.status().map_err(|err| format!("cargo: {err}"))?;
    Ok(status.success())
}
