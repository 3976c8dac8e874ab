//! Running the program.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

/// What the program said and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Ran {
    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// Standard output as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|err| panic!("{err}: {}", self.text()))
    }
}

/// `extant` with these arguments.
pub(crate) fn extant(args: &[&dyn AsRef<OsStr>]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_extant"));
    command.args(args.iter().map(AsRef::as_ref)).stdin(Stdio::null());
    let output = extant_testkit::oracle::output(&mut command).expect("extant starts");
    Ran {
        status: output.status.code().unwrap_or(-1),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// [`extant`], which must succeed.
#[track_caller]
pub(crate) fn ok(args: &[&dyn AsRef<OsStr>]) -> Ran {
    let ran = extant(args);
    assert!(ran.status == 0, "exit status {}: {}{}", ran.status, ran.text(), ran.err);
    ran
}
