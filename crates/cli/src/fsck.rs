//! `extant fsck`: the arguments and everything else are the checker's own.

use std::ffi::OsString;
use std::io;

use extant_fsck::cli;

use crate::fail::{Failure, Outcome};

/// Check a filesystem; nothing is changed
#[derive(clap::Args, Debug)]
#[command(disable_help_flag = true, override_usage = cli::SYNOPSIS, after_help = cli::HELP)]
pub(crate) struct Args {
    /// The checker's options, and the image
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

/// Exits as e2fsck does: 0 clean, 4 errors, 8 not checked, 16 wrong arguments.
pub(crate) fn run(args: Args) -> Outcome {
    match cli::run(args.args, &mut io::stdout(), &mut io::stderr()) {
        0 => Ok(()),
        status => Err(Failure::silent(status)),
    }
}
