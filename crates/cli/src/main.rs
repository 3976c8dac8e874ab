//! The program `extant`: ext4 images without a mount, a kernel or root.
//!
//! | module | commands |
//! |---|---|
//! | `info` | `info` |
//! | `mkfs` | `mkfs` |
//! | `mount` | `mount`, `umount`, `exec` |
//! | `look` | `ls`, `tree`, `stat`, `cat`, `find` |
//! | `edit` | `mkdir`, `rm`, `mv`, `ln`, `chmod`, `chown` |
//! | `xattr` | `xattr` |
//! | `transfer`, `copy` | `get`, `put`, `import`, `export` |
//! | `filefrag`, `defrag`, `fallocate` | where files are on the device, and changing that; on an image or on a mount (`onmount`) |
//! | `quota` | usage and limits of users, groups, projects; on an image or on a mount |
//! | `manual` | `completions`, `man` |
//! | `image`, `volume` | opening an image; paths in it |
//! | `fail`, `show` | messages; how numbers, times and names are printed |
//!
//! Commands that only read never change the image: what a journal replay writes goes to memory.

mod copy;
mod defrag;
mod edit;
mod fail;
mod fallocate;
mod filefrag;
mod fsck;
mod glob;
mod image;
mod info;
mod look;
mod manual;
mod mkfs;
mod mount;
mod onmount;
mod out;
mod quota;
mod show;
mod transfer;
mod volume;
mod xattr;

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
    Mkfs(mkfs::Args),
    Fsck(fsck::Args),
    Mount(mount::MountArgs),
    Umount(mount::UmountArgs),
    Exec(mount::ExecArgs),
    #[command(hide = true)]
    NullServer(mount::NullArgs),
    Ls(look::ListArgs),
    Tree(look::TreeArgs),
    Stat(look::StatArgs),
    Cat(look::CatArgs),
    Find(look::FindArgs),
    Get(transfer::GetArgs),
    Put(transfer::PutArgs),
    Import(transfer::ImportArgs),
    Mkdir(edit::MkdirArgs),
    Rm(edit::RmArgs),
    Mv(edit::MvArgs),
    Ln(edit::LnArgs),
    Chmod(edit::ChmodArgs),
    Chown(edit::ChownArgs),
    Xattr(xattr::Args),
    Export(transfer::ExportArgs),
    Filefrag(filefrag::Args),
    Defrag(defrag::Args),
    Fallocate(fallocate::Args),
    Quota(quota::Args),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
}

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let done = if args.next().is_some_and(|program| mount::is_helper(&program)) {
        mount::helper(&args.collect::<Vec<_>>())
    } else {
        run(parse().command)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// The words of the command line. A wrong one ends the program with status 2, or with mount(8)'s status 1 where that is what
/// callers of `mount` and `umount` look for.
fn parse() -> Cli {
    Cli::try_parse_from(find_as_find(std::env::args_os())).unwrap_or_else(|wrong| {
        let mounts = std::env::args().nth(1).is_some_and(|command| matches!(&*command, "mount" | "umount"));
        if mounts && wrong.exit_code() != 0 {
            let _ = wrong.print();
            std::process::exit(i32::from(extant_fuse::command::status::USAGE));
        }
        wrong.exit()
    })
}

/// find(1) takes its tests with one dash; here they may have one or two.
fn find_as_find(args: impl Iterator<Item = std::ffi::OsString>) -> impl Iterator<Item = std::ffi::OsString> {
    const TESTS: [&str; 7] = ["-name", "-type", "-min-size", "-max-size", "-uid", "-inode", "-print0"];
    let mut is_find = false;
    args.enumerate().map(move |(n, arg)| {
        is_find |= n == 1 && arg == "find";
        if is_find && TESTS.iter().any(|test| arg == *test) {
            let mut double = std::ffi::OsString::from("-");
            double.push(arg);
            return double;
        }
        arg
    })
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Info(args) => info::run(&args),
        Command::Mkfs(args) => mkfs::run(args),
        Command::Fsck(args) => fsck::run(args),
        Command::Mount(args) => mount::mount(args),
        Command::Umount(args) => mount::umount(args),
        Command::Exec(args) => mount::exec(args),
        Command::NullServer(args) => mount::null(&args),
        Command::Ls(args) => look::list(&args),
        Command::Tree(args) => look::tree(&args),
        Command::Stat(args) => look::stat(&args),
        Command::Cat(args) => look::cat(&args),
        Command::Find(args) => look::find(&args),
        Command::Get(args) => transfer::get(&args),
        Command::Put(args) => transfer::put(&args),
        Command::Import(args) => transfer::import(&args),
        Command::Mkdir(args) => edit::mkdir(&args),
        Command::Rm(args) => edit::rm(&args),
        Command::Mv(args) => edit::mv(&args),
        Command::Ln(args) => edit::ln(&args),
        Command::Chmod(args) => edit::chmod(&args),
        Command::Chown(args) => edit::chown(&args),
        Command::Xattr(args) => xattr::run(&args),
        Command::Export(args) => transfer::export(&args),
        Command::Filefrag(args) => filefrag::run(&args),
        Command::Defrag(args) => defrag::run(&args),
        Command::Fallocate(args) => fallocate::run(&args),
        Command::Quota(args) => quota::run(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }
}
