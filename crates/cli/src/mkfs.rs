//! `extant mkfs`: mke2fs's options, in any place.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use extant_mkfs::{MkfsError, Progress, Silent};

use crate::fail::{Failure, Outcome};

/// Make an ext2, ext3 or ext4 filesystem, empty or with the contents of a directory or tar archive
#[derive(ClapArgs, Debug)]
#[command(disable_help_flag = true, override_usage = "extant mkfs [OPTIONS as of mke2fs] [-d DIRECTORY|TAR|-] IMAGE [SIZE]", after_help = extant_mkfs::cli::HELP)]
pub(crate) struct Args {
    /// mke2fs's options, the image, and its size (blocks, or with k, m, g, t)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, num_args = 0.., value_name = "OPTIONS")]
    args: Vec<OsString>,
}

pub(crate) fn run(args: Args) -> Outcome {
    if args.args.iter().any(|a| a == "--help" || a == "-h") {
        println!("{}\n\n{}", extant_mkfs::cli::USAGE, extant_mkfs::cli::HELP.trim_end());
        return Ok(());
    }
    let command = extant_mkfs::cli::parse(args.args).map_err(failure)?;
    let bar = Bar::default();
    let shown = !command.quiet && std::io::stderr().is_terminal();
    let progress: &dyn Progress = if shown { &bar } else { &Silent };
    let done = extant_mkfs::run(&command, &mut std::io::stdout(), progress);
    if shown {
        bar.clear();
    }
    done.map_err(failure)
}

fn failure(error: MkfsError) -> Failure {
    match &error {
        MkfsError::Open(open) => Failure::open(open),
        other => Failure::new(format!("mkfs: {other}")),
    }
}

/// A line on the terminal that is written over.
#[derive(Default)]
struct Bar {
    stage: Mutex<Stage>,
    done: AtomicU64,
}

#[derive(Default)]
struct Stage {
    what: &'static str,
    total: u64,
    shown: Option<Instant>,
}

/// How often the line changes at most.
const EVERY: Duration = Duration::from_millis(100);

impl Bar {
    fn clear(&self) {
        let _ = std::io::stderr().write_all(b"\r\x1b[K");
    }
}

impl Progress for Bar {
    fn stage(&self, what: &'static str, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        if let Ok(mut stage) = self.stage.lock() {
            *stage = Stage { what, total, shown: None };
        }
    }

    fn advance(&self, units: u64) {
        let done = self.done.fetch_add(units, Ordering::Relaxed) + units;
        // Whoever finds the line busy leaves it to the one who writes it.
        let Ok(mut stage) = self.stage.try_lock() else { return };
        if stage.shown.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        stage.shown = Some(Instant::now());
        let text = match stage.total {
            0 => format!("\r\x1b[K{}: {done}", stage.what),
            total => format!("\r\x1b[K{}: {} %", stage.what, u128::from(done) * 100 / u128::from(total)),
        };
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}
