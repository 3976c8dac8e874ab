//! `completions` and `man`: made from the same definitions that the arguments are read with.

use std::path::PathBuf;

use clap::CommandFactory as _;

use crate::Cli;
use crate::fail::{Failure, OnHost as _, Outcome};

/// Write a shell's completions to standard output
#[derive(clap::Args, Debug)]
pub(crate) struct CompletionsArgs {
    shell: clap_complete::Shell,
}

/// Write the manual pages into a folder
#[derive(clap::Args, Debug)]
pub(crate) struct ManArgs {
    /// The folder; it must be there
    folder: PathBuf,
}

/// `extant completions`
pub(crate) fn completions(args: &CompletionsArgs) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "extant", &mut text);
    std::io::Write::write_all(&mut std::io::stdout(), &text).map_err(|err| Failure::output(&err))
}

/// `extant man`
pub(crate) fn man(args: &ManArgs) -> Outcome {
    clap_mangen::generate_to(Cli::command(), &args.folder).on(&args.folder)
}
