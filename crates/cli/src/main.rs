//! The program `extant`: ext4 images without a mount, a kernel or root.
//!
//! | module | what |
//! |---|---|
//! | `info` | the command `info` |
//! | `mount` | `mount`, `umount`, `exec` |
//! | `manual` | `completions`, `man` |
//! | `image` | opening an image |
//! | `fail`, `out`, `show` | messages; how numbers, times and names are printed |
//!
//! Commands that only read never change the image: what a journal replay writes goes to memory.

mod fail;
mod image;
mod info;
mod manual;
mod mount;
mod out;
mod show;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::fail::Outcome;

/// ext4 in user space: look into images, change them, make, check and mount them
#[derive(Parser, Debug)]
#[command(name = "extant", version, about, max_term_width = 100, subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Info(info::Args),
    Mount(mount::MountArgs),
    Umount(mount::UmountArgs),
    Exec(mount::ExecArgs),
    #[command(hide = true)]
    NullServer(mount::NullArgs),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
}

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let done = if args.next().is_some_and(|program| mount::is_helper(&program)) {
        mount::helper(&args.collect::<Vec<_>>())
    } else {
        run(Cli::parse().command)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Info(args) => info::run(&args),
        Command::Mount(args) => mount::mount(args),
        Command::Umount(args) => mount::umount(args),
        Command::Exec(args) => mount::exec(args),
        Command::NullServer(args) => mount::null(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }
}
