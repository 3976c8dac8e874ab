//! The program itself.

use std::process::{Command, Output};

const COMMANDS: [&str; 10] =
    ["demo", "test", "ci", "bench", "crash", "races", "fuzz", "suites", "shows", "tidy"];

/// Runs it where nothing can be built, so that a command that does its work after all comes to an end.
fn xtask(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_xtask");
    Command::new(program).args(args).env("CARGO", "/bin/false").env("PATH", "").output().unwrap()
}

#[test]
fn who_asks_for_help_gets_it_and_nothing_else() {
    for command in COMMANDS {
        for args in [vec![command, "--help"], vec![command, "-h"], vec![command, "--long", "--help"]] {
            let output = xtask(&args);
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            let first = format!("cargo xtask {command}");
            assert!(text.starts_with(&first) && text.lines().count() < 10, "{args:?}: {text}");
        }
    }
    for args in [&[][..], &["help"], &["--help"], &["-h"]] {
        let text = String::from_utf8(xtask(args).stdout).unwrap();
        assert!(COMMANDS.iter().all(|name| text.contains(&format!("\n  {name} "))), "{args:?}: {text}");
    }
}

#[test]
fn unknown_words_are_refused_before_anything_is_done() {
    for command in COMMANDS.into_iter().filter(|name| *name != "test") {
        let output = xtask(&[command, "--frobnicate"]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains("--frobnicate"), "{command}: {text}");
    }
    let output = xtask(&["bench", "frobnicate"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("no group frobnicate"), "{text}");
}
