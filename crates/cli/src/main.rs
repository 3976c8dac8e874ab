//! The program `extant`: ext4 images without a mount, a kernel or root.
//!
//! | module | what |
//! |---|---|
//! | `info` | the command `info` |
//! | `manual` | `completions`, `man` |
//! | `image` | opening an image |
//! | `fail`, `out`, `show` | messages; how numbers, times and names are printed |
//!
//! Commands that only read never change the image: what a journal replay writes goes to memory.

mod fail;
mod image;
mod info;
mod manual;
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
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Info(args) => info::run(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }
}
