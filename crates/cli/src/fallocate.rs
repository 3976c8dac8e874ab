//! `fallocate`: space for ranges of a file, and ranges out of it and into it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use extant::{FallocateMode, NewInode};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::fail::{At as _, Failure, OnHost as _, Outcome};
use crate::image::ImageArgs;
use crate::onmount::may_be_on_mount;
use crate::volume::{Volume, means_directory};

/// Between two attempts while another program has the kernel drop what it caches.
const PAUSE: Duration = Duration::from_millis(2);

/// Give a file space, or take ranges out of it: of an image (IMAGE PATH), or on a mount of an image (PATH)
///
/// Without a letter, the range gets blocks that read as zeros; the file is made if it is missing. SIZE and OFFSET are bytes, or have a
/// suffix: K M G T (of 1024), KB MB GB TB (of 1000).
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// The file in the image
    path: Option<OsString>,
    /// Length of the range
    #[arg(short, long, value_name = "SIZE", value_parser = bytes)]
    length: u64,
    /// Where the range begins
    #[arg(short = 'o', long, value_name = "OFFSET", default_value = "0", value_parser = bytes)]
    range_offset: u64,
    /// Take the range out: what is behind it moves down
    #[arg(short, long, group = "mode")]
    collapse_range: bool,
    /// Put a hole in: what is there and behind it moves up
    #[arg(short, long, group = "mode")]
    insert_range: bool,
    /// Make the range a hole; the size stays
    #[arg(short, long, group = "mode")]
    punch_hole: bool,
    /// Make the range zeros, with blocks behind them
    #[arg(short, long, group = "mode")]
    zero_range: bool,
    /// The size stays, also where the range goes past it
    #[arg(short = 'n', long, conflicts_with_all = ["collapse_range", "insert_range"])]
    keep_size: bool,
}

impl Args {
    /// The mode word of fallocate(2).
    fn mode(&self) -> FallocateFlags {
        let mut mode = FallocateFlags::empty();
        mode.set(FallocateFlags::KEEP_SIZE, self.keep_size || self.punch_hole);
        mode.set(FallocateFlags::PUNCH_HOLE, self.punch_hole);
        mode.set(FallocateFlags::ZERO_RANGE, self.zero_range);
        mode.set(FallocateFlags::COLLAPSE_RANGE, self.collapse_range);
        mode.set(FallocateFlags::INSERT_RANGE, self.insert_range);
        mode
    }

    /// Whether the file is made if it is missing.
    fn makes(&self) -> bool {
        (self.mode() - FallocateFlags::KEEP_SIZE).is_empty()
    }
}

/// Reads a number of bytes as fallocate(1) does.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("{text}: not a number of bytes"))?;
    let mut letters = suffix.chars();
    let power = match letters.next().map(|c| c.to_ascii_uppercase()) {
        None => 0,
        Some('K') => 1,
        Some('M') => 2,
        Some('G') => 3,
        Some('T') => 4,
        Some('P') => 5,
        Some('E') => 6,
        Some(_) => return Err(format!("{text}: the suffixes are K M G T P E, with B or iB behind them")),
    };
    let unit: u64 = match letters.as_str() {
        "" | "iB" => 1024,
        "B" if power > 0 => 1000,
        _ => return Err(format!("{text}: the suffixes are K M G T P E, with B or iB behind them")),
    };
    let scaled = unit.checked_pow(power).and_then(|unit| unit.checked_mul(number));
    scaled.ok_or_else(|| format!("{text}: too many bytes"))
}

/// `extant fallocate`
pub(crate) fn run(args: &Args) -> Outcome {
    let first = &args.image.image;
    match &args.path {
        None if may_be_on_mount(first) => on_mount(args, first).on(first),
        None => {
            let what =
                format!("{}: it is on no mount of ours, and as an image it needs a path", first.display());
            Err(Failure::new(what))
        }
        Some(path) => in_image(args, path.as_bytes()),
    }
}

/// What the kernel passes on it is asked for, since it knows best what it caches; the rest goes past it.
fn on_mount(args: &Args, path: &Path) -> io::Result<()> {
    let file = File::options().read(true).write(true).create(args.makes()).truncate(false).open(path)?;
    let mode = args.mode();
    if !mode.intersects(FallocateFlags::COLLAPSE_RANGE | FallocateFlags::INSERT_RANGE) {
        return Ok(rustix::fs::fallocate(&file, mode, args.range_offset, args.length)?);
    }
    file.sync_data()?;
    loop {
        match extant_fuse::private::fallocate(&file, mode.bits(), args.range_offset, args.length) {
            // Nothing was done: the server says so before it begins.
            Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => {
                std::thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

fn in_image(args: &Args, path: &[u8]) -> Outcome {
    let (mode, keep_size) = FallocateMode::from_flags(args.mode().bits()).at(path)?;
    if args.makes() && means_directory(path) {
        // As open(2) with O_CREAT, whatever is there.
        return Err(Failure::inside(path, &extant::Error::IsDirectory));
    }
    let volume = Volume::write(&args.image)?;
    let (dir, name) = volume.parent(path)?;
    let there = volume.child(&dir, &name).at(path)?;
    let inode = match there {
        None if args.makes() => {
            volume.fs.mknod(&dir, &name, &NewInode::file(0o644), &volume.cred).at(path)?
        }
        _ => volume.resolve(path)?,
    };
    volume.fs.fallocate(&inode, mode, args.range_offset, args.length, keep_size, &volume.cred).at(path)?;
    drop((inode, dir));
    volume.close()
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes() {
        for (text, want) in [
            ("0", 0),
            ("4096", 4096),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("4KB", 4000),
            ("3m", 3 << 20),
            ("2G", 2 << 30),
            ("1TB", 1_000_000_000_000),
        ] {
            assert_eq!(bytes(text), Ok(want), "{text}");
        }
        for text in ["", "k", "-1", "1B", "1x", "1KiBs", "99E", "1.5K"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
