//! `filefrag`: the extents of files.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use extant::{FiemapExtent, FiemapFlags, FiemapHow};
use serde_json::{Value, json};

use crate::fail::{At as _, Failure, OnHost as _, Outcome};
use crate::image::ReadArgs;
use crate::onmount::{is_on_mount, open};
use crate::out::Out;
use crate::show;
use crate::volume::Volume;

/// Show in how many pieces files are: of an image (IMAGE PATH...), or on a mount of an image (PATH...)
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ReadArgs,
    /// The files and directories
    paths: Vec<OsString>,
    /// Every extent
    #[arg(short, long)]
    verbose: bool,
    /// Write what is in memory first, so that it has a place
    #[arg(short, long)]
    sync: bool,
    /// The place of the extended attributes instead
    #[arg(short = 'x', long)]
    xattr: bool,
    /// One JSON array of objects
    #[arg(long)]
    json: bool,
}

/// The extents of one file.
struct Listing {
    path: Vec<u8>,
    size: u64,
    block: u64,
    extents: Vec<FiemapExtent>,
}

/// `extant filefrag`
pub(crate) fn run(args: &Args) -> Outcome {
    let mut how = FiemapHow::empty();
    how.set(FiemapHow::SYNC, args.sync);
    how.set(FiemapHow::XATTR, args.xattr);
    let mut out = Out::new();
    let mut objects = Vec::new();
    let mut show = |listing: &Listing| -> Outcome {
        if args.json {
            objects.push(listing.object());
            return Ok(());
        }
        if args.verbose {
            listing.print_extents(&mut out)?;
        }
        let n = fragments(&listing.extents);
        let plural = if n == 1 { "" } else { "s" };
        out.line(&format!("{}: {n} extent{plural} found", show::name(&listing.path)))
    };
    let first = &args.image.at.image;
    if is_on_mount(first) {
        for path in std::iter::once(first.as_path()).chain(args.paths.iter().map(Path::new)) {
            show(&on_mount(path, how)?)?;
        }
    } else {
        if args.paths.is_empty() {
            let what =
                format!("{}: it is on no mount of ours, and as an image it needs paths", first.display());
            return Err(Failure::new(what));
        }
        let volume = Volume::read(&args.image)?;
        for path in &args.paths {
            show(&in_image(&volume, path.as_bytes(), how)?)?;
        }
        volume.close()?;
    }
    if args.json {
        out.json(&Value::Array(objects))?;
    }
    out.finish()
}

fn on_mount(path: &Path, how: FiemapHow) -> Outcome<Listing> {
    let file = open(path).on(path)?;
    let meta = file.metadata().on(path)?;
    let extents = extant_fuse::private::fiemap(&file, 0, u64::MAX, how).on(path)?;
    let block = rustix::fs::fstatvfs(&file).on(path)?.f_bsize;
    Ok(Listing { path: path.as_os_str().as_bytes().to_vec(), size: meta.size(), block, extents })
}

fn in_image(volume: &Volume, path: &[u8], how: FiemapHow) -> Outcome<Listing> {
    let inode = volume.resolve(path)?;
    // Nothing is dirty: there is nothing to write first, and nothing to write it with.
    let how = how - FiemapHow::SYNC;
    let extents = volume.fs.fiemap(&inode, 0, u64::MAX, how, usize::MAX).at(path)?;
    let block = u64::from(volume.fs.geometry().block_size());
    Ok(Listing { path: path.to_vec(), size: inode.size(), block, extents })
}

/// How many runs on the device the extents make: one that goes on where the one before ends is no more of them. This is what filefrag(8)
/// counts, whatever its word for them.
pub(crate) fn fragments(extents: &[FiemapExtent]) -> usize {
    let apart = extents.windows(2).filter(|two| two[0].physical + two[0].length != two[1].physical);
    apart.count() + usize::from(!extents.is_empty())
}

impl Listing {
    fn object(&self) -> Value {
        let extent = |extent: &FiemapExtent| {
            let flags: Vec<String> = self.words(extent);
            json!({
                "logical": extent.logical, "physical": extent.physical, "length": extent.length, "flags": flags,
            })
        };
        let extents: Vec<Value> = self.extents.iter().map(extent).collect();
        let mut object = json!({
            "path": "", "size": self.size, "block_size": self.block, "fragments": fragments(&self.extents),
            "extents": extents,
        });
        show::json_name(&mut object, "path", &self.path);
        object
    }

    /// As filefrag(8) prints them.
    fn print_extents(&self, out: &mut Out) -> Outcome {
        let block = self.block;
        let blocks = self.size.div_ceil(block);
        let path = show::name(&self.path);
        out.line(&format!("File size of {path} is {} ({blocks} blocks of {block} bytes)", self.size))?;
        out.line(" ext:     logical_offset:        physical_offset: length:   expected: flags:")?;
        let mut expected = None;
        for (n, extent) in self.extents.iter().enumerate() {
            let (logical, physical) = (extent.logical / block, extent.physical / block);
            let length = extent.length.div_ceil(block);
            let last = |first: u64| first + length.saturating_sub(1);
            let wanted = match expected {
                Some(wanted) if wanted != physical => format!("{wanted:>10}:"),
                _ => " ".repeat(11),
            };
            out.line(&format!(
                "{n:>4}: {logical:>8}..{:>8}: {physical:>10}..{:>10}: {length:>6}: {wanted} {}",
                last(logical),
                last(physical),
                self.words(extent).join(",")
            ))?;
            expected = Some(physical + length);
        }
        Ok(())
    }

    fn words(&self, extent: &FiemapExtent) -> Vec<String> {
        const WORDS: [(FiemapFlags, &str); 7] = [
            (FiemapFlags::LAST, "last"),
            (FiemapFlags::UNKNOWN, "unknown_loc"),
            (FiemapFlags::DELALLOC, "delalloc"),
            (FiemapFlags::NOT_ALIGNED, "not_aligned"),
            (FiemapFlags::DATA_INLINE, "inline"),
            (FiemapFlags::UNWRITTEN, "unwritten"),
            (FiemapFlags::MERGED, "merged"),
        ];
        let words = WORDS.iter().filter(|(flag, _)| extent.flags.contains(*flag)).map(|(_, word)| *word);
        let eof = (extent.logical + extent.length >= self.size).then_some("eof");
        words.chain(eof).map(str::to_owned).collect()
    }
}
