//! `fsck`: the checker's own arguments and exit status.

use std::ffi::OsString;

use crate::fail::{Failure, Outcome};

/// Check a filesystem and change nothing; exit status as e2fsck's
#[derive(clap::Args, Debug)]
#[command(disable_help_flag = true, override_usage = "extant fsck [OPTIONS] IMAGE", after_help = extant_fsck::cli::USAGE)]
pub(crate) struct Args {
    /// Options and the image
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, num_args = 0.., value_name = "OPTIONS")]
    args: Vec<OsString>,
}

/// `extant fsck`
pub(crate) fn run(args: Args) -> Outcome {
    match extant_fsck::cli::run(args.args, &mut std::io::stdout(), &mut std::io::stderr()) {
        0 => Ok(()),
        status => Err(Failure::silent(status)),
    }
}
