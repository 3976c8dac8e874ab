//! `defrag`: files in fewer pieces. The content of a file moves to blocks that a file without a name was given for it, stretch by
//! stretch, where it has fewer extents then.
//!
//! | module | what |
//! |---|---|
//! | this one | arguments, what is printed |
//! | `plan` | which stretches of a file get better |
//! | `file` | a file in an image, a file on a mount |

mod file;
mod plan;

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::fail::{Failure, OnHost as _, Outcome};
use crate::image::ImageArgs;
use crate::onmount::is_on_mount;
use crate::out::Out;
use crate::show;
use crate::volume::Volume;

use file::{InImage, OnMount};
use plan::{Change, Defraggable};

/// Make files lie in fewer pieces: of an image (IMAGE [PATH...]), or on a mount of an image (PATH...), while they are in use
///
/// Directories are gone through with all that is below them; without a path, the whole image. Extents are counted, and fragments: runs on
/// the device, which are what filefrag counts.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// The files and directories
    paths: Vec<OsString>,
    /// Say what there is to do, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Files too that stay as they are
    #[arg(short, long)]
    verbose: bool,
    /// One JSON object; before and after are extents
    #[arg(long)]
    json: bool,
}

/// What became of files, as it is printed.
struct Report<'a> {
    args: &'a Args,
    out: Out,
    objects: Vec<Value>,
    files: usize,
    better: usize,
    failed: usize,
    before: usize,
    after: usize,
    /// Inodes with several names that were seen.
    seen: HashSet<u64>,
}

/// `extant defrag`
pub(crate) fn run(args: &Args) -> Outcome {
    let mut report = Report {
        args,
        out: Out::new(),
        objects: Vec::new(),
        files: 0,
        better: 0,
        failed: 0,
        before: 0,
        after: 0,
        seen: HashSet::new(),
    };
    let first = &args.image.image;
    if is_on_mount(first) {
        for path in std::iter::once(first.clone()).chain(args.paths.iter().map(PathBuf::from)) {
            below_mount(&path, &mut report)?;
        }
    } else {
        in_image(args, &mut report)?;
    }
    report.finish()
}

fn in_image(args: &Args, report: &mut Report<'_>) -> Outcome {
    let volume = Volume::write(&args.image)?;
    let root = [OsString::from("/")];
    let paths = if args.paths.is_empty() { &root[..] } else { &args.paths };
    for path in paths {
        let path = path.as_bytes();
        let start = volume.resolve(path)?;
        if !start.is_dir() {
            report.file(path, &InImage::new(&volume, &start))?;
            continue;
        }
        volume.walk_tree(&start, path, &mut |below, _, inode| {
            if inode.is_regular() && report.is_new(inode.ino().0.into(), inode.attr().nlink) {
                report.file(below, &InImage::new(&volume, inode))?;
            }
            Ok(true)
        })?;
    }
    volume.close()
}

/// A file of a mount, or everything below a directory of it.
fn below_mount(path: &Path, report: &mut Report<'_>) -> Outcome {
    let device = std::fs::metadata(path).on(path)?.dev();
    let mut todo = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path).on(&path)?;
        if meta.dev() != device {
            continue;
        }
        if meta.is_dir() {
            let names: io::Result<Vec<PathBuf>> =
                std::fs::read_dir(&path).and_then(|dir| dir.map(|entry| Ok(entry?.path())).collect());
            let mut names = names.on(&path)?;
            names.sort_by(|a, b| b.cmp(a));
            todo.extend(names);
        } else if meta.is_file() && report.is_new(meta.ino(), u32::try_from(meta.nlink()).unwrap_or(2)) {
            let name = path.as_os_str().as_bytes();
            match OnMount::open(&path) {
                Ok(file) => report.file(name, &file)?,
                Err(error) => report.failure(name, &error)?,
            }
        }
    }
    Ok(())
}

impl Report<'_> {
    /// Whether an inode comes for the first time.
    fn is_new(&mut self, ino: u64, links: u32) -> bool {
        links < 2 || self.seen.insert(ino)
    }

    fn file(&mut self, path: &[u8], file: &impl Defraggable) -> Outcome {
        match plan::defragment(file, self.args.dry_run) {
            Ok(change) => self.change(path, change),
            Err(error) => self.failure(path, &error),
        }
    }

    fn change(&mut self, path: &[u8], change: Change) -> Outcome {
        let Change { before, after, fragments, moved } = change;
        self.files += 1;
        self.before += before;
        self.after += after;
        let better = after < before;
        self.better += usize::from(better);
        if self.args.json {
            let mut object = json!({
                "path": "", "before": before, "after": after,
                "fragments_before": fragments.0, "fragments_after": fragments.1, "moved": moved,
            });
            show::json_name(&mut object, "path", path);
            self.objects.push(object);
            return Ok(());
        }
        if !better && !self.args.verbose {
            return Ok(());
        }
        let words = match (better, self.args.dry_run) {
            (true, true) => format!("{before} extents in {} fragments, could be {after}", fragments.0),
            (true, false) => {
                format!(
                    "{before} extents in {} fragments, {after} in {} afterwards",
                    fragments.0, fragments.1
                )
            }
            (false, _) => format!("{before} extents in {} fragments", fragments.1),
        };
        self.out.line(&format!("{}: {words}", show::name(path)))
    }

    fn failure(&mut self, path: &[u8], error: &io::Error) -> Outcome {
        self.failed += 1;
        if self.args.json {
            let mut object = json!({ "path": "", "error": error.to_string() });
            show::json_name(&mut object, "path", path);
            self.objects.push(object);
            return Ok(());
        }
        eprintln!("extant: {}: {error}", show::name(path));
        Ok(())
    }

    fn finish(mut self) -> Outcome {
        let (files, better) = (self.files, self.better);
        if self.args.json {
            let totals = json!({
                "files": self.objects, "improved": better, "failed": self.failed,
                "before": self.before, "after": self.after,
            });
            self.out.json(&totals)?;
        } else {
            let may = if self.args.dry_run { "could be" } else { "are" };
            let line = format!(
                "{files} files, {better} of them {may} in fewer extents: {} before, {} after",
                self.before, self.after
            );
            self.out.line(&line)?;
        }
        self.out.finish()?;
        if self.failed > 0 {
            let what = format!("{} files could not be moved", self.failed);
            return Err(if self.args.json { Failure::silent(1) } else { Failure::new(what) });
        }
        Ok(())
    }
}
