//! All automation of the project: `cargo xtask …`. Run without arguments for the list of commands.

mod bench;
mod ci;
mod crash;
mod demo;
mod fuzz;
mod packages;
mod proc;
mod races;
mod rig;
mod shows;
mod suites;
mod tests;
mod tidy;

use std::process::ExitCode;

/// Each command and what there is to say of it.
const COMMANDS: &[(&str, &str)] = &[
    ("demo", "  demo             makes an image, mounts it, works on it, unmounts, checks it"),
    ("test", "  test [ARGS…]     all tests (ARGS go to cargo test); installs missing system packages"),
    ("ci", "  ci [--quick]     formatting, lints, tidy, documentation, tests; --quick leaves out what is slow"),
    (
        "bench",
        "  bench [--long | --short] [--no-build] [--huge] [GROUP[=CASE]]…
                   the same work on us, the kernel and the others; --huge is for mmap",
    ),
    (
        "crash",
        "  crash [--long [I/N | --parts N]] [--kind NAME]… [--record]
                   every legal crash state of short scripts, recovered and checked; part I of N; all N parts, if they have not
                   passed at this commit before",
    ),
    (
        "races",
        "  races [--long | --estimate] [--room PACKAGE]
                   scenarios of the rooms under a scheduler that explores interleavings",
    ),
    ("fuzz", "  fuzz [--long]    damaged images: errors only"),
    (
        "suites",
        "  suites [--long] [--record] [NAME…]
                   pjdfstest, fsx, fsstress against a mount of ours; SUITES= is the folder that holds them",
    ),
    (
        "shows",
        "  shows [--record] NAME…
                   reruns what the project claims: figure, bound, verdict; without a name the list",
    ),
    ("tidy", "  tidy             the project's own rules: edges between rooms, unsafe, file lengths, links, words"),
];

/// What `help` prints.
fn help() -> String {
    let about: Vec<&str> = COMMANDS.iter().map(|(_, about)| *about).collect();
    format!("cargo xtask COMMAND\n\n{}\n", about.join("\n"))
}

/// What a command prints that is asked for help, instead of doing anything.
fn usage(command: &str, args: &[String]) -> Option<String> {
    // What is behind `--` is another program's.
    let asked = args.iter().take_while(|arg| *arg != "--").any(|arg| matches!(arg.as_str(), "--help" | "-h"));
    let (_, about) = COMMANDS.iter().find(|(name, _)| *name == command).filter(|_| asked)?;
    let more = match command {
        "bench" => format!("\n\ngroups: {}", bench::GROUPS.join(", ")),
        "suites" => format!("\n\nsuites: {}", suites::names().join(", ")),
        _ => String::new(),
    };
    Some(format!("cargo xtask {}{more}\n", about.trim_start()))
}

/// Splits options, of which only those named are known, from the rest.
fn options<'a>(args: &'a [String], known: &[&str]) -> Result<(Vec<&'a str>, Vec<&'a str>), String> {
    let (given, rest): (Vec<&str>, Vec<&str>) =
        args.iter().map(String::as_str).partition(|arg| arg.starts_with('-'));
    match given.iter().find(|option| !known.contains(option)) {
        Some(unknown) if known.is_empty() => Err(format!("{unknown}: there are no options")),
        Some(unknown) => Err(format!("{unknown}: only {} are known", known.join(", "))),
        None => Ok((given, rest)),
    }
}

/// For a command that takes nothing.
fn nothing(args: &[String]) -> Result<(), String> {
    args.first().map_or(Ok(()), |arg| Err(format!("{arg}: it takes no arguments")))
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match args.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &args[..]),
    };
    if let Some(usage) = usage(command, rest) {
        print!("{usage}");
        return ExitCode::SUCCESS;
    }
    if let Err(err) = proc::enter_root() {
        eprintln!("cargo xtask: {err}");
        return ExitCode::FAILURE;
    }
    let held = match command {
        "test" => tests::command(rest),
        "bench" => bench::run(rest),
        "races" => races::command(rest),
        "crash" => crash::command(rest),
        "suites" => suites::command(rest),
        "shows" => shows::command(rest),
        "fuzz" => fuzz::command(rest),
        "demo" => nothing(rest).and_then(|()| demo::command()),
        "ci" => ci::command(rest),
        "tidy" => nothing(rest).and_then(|()| tidy::command()),
        "help" | "--help" | "-h" => {
            print!("{}", help());
            Ok(true)
        }
        other => Err(format!("no command {other}; cargo xtask help lists them")),
    };
    match held {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("cargo xtask {command}: {err}");
            ExitCode::FAILURE
        }
    }
}
