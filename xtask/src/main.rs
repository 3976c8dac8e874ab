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

const HELP: &str = "\
cargo xtask COMMAND

  demo             makes an image, mounts it, works on it, unmounts, checks it
  test [ARGS…]     all tests (ARGS go to cargo test); installs missing system packages
  ci [--quick]     formatting, lints, tidy, documentation, tests; --quick leaves out what is slow
  bench [--long]   the same work on us, the kernel and the others
  crash [--long [I/N | --parts N]] [--kind NAME]… [--record]
                   every legal crash state of short scripts, recovered and checked; part I of N; all N parts, if they have not
                   passed at this commit before
  races [--long]   scenarios of the rooms under a scheduler that explores interleavings
  fuzz [--long]    damaged images: errors only
  suites [--long] [NAME…]
                   pjdfstest, fsx, fsstress against a mount of ours; SUITES= is the folder that holds them
  shows [--record] NAME…
                   reruns what the project claims: figure, bound, verdict; without a name the list
  tidy             the project's own rules: edges between rooms, unsafe, file lengths, links, words
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match args.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &args[..]),
    };
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
        "demo" => demo::command(),
        "ci" => ci::command(rest),
        "tidy" => tidy::command(),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
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
