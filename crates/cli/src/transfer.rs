//! `get`, `put`, `import`, `export`: trees between an image and the host.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::copy::{self, Owned, Sink};
use crate::edit::{Owner, make_dirs, owner};
use crate::fail::{Failure, OnHost as _, Outcome};
use crate::image::{ImageArgs, ReadArgs};
use crate::volume::Volume;

/// Copy files and directories out of an image
#[derive(clap::Args, Debug)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    image: ReadArgs,
    /// Paths in the image, then the host's target: a new name, or a folder that is there
    #[arg(required = true, num_args = 2..)]
    paths: Vec<OsString>,
}

/// Copy files and folders into an image
#[derive(clap::Args, Debug)]
pub(crate) struct PutArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// The host's files, then the path in the image: a new name, or a directory that is there
    #[arg(required = true, num_args = 2..)]
    paths: Vec<OsString>,
    /// Owner of all that is copied: UID, UID:GID or :GID; as on the host if not given
    #[arg(long, value_parser = owner)]
    owner: Option<Owner>,
}

/// Copy a whole folder or tar archive into an image
#[derive(clap::Args, Debug)]
pub(crate) struct ImportArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// A folder, or a tar archive (plain, gzip, zstd or xz); - is an archive on standard input
    source: PathBuf,
    /// The directory in the image that it goes into; made if it is missing
    #[arg(long, default_value = "/")]
    to: OsString,
    /// Owner of all that is copied: UID, UID:GID or :GID
    #[arg(long, value_parser = owner)]
    owner: Option<Owner>,
}

/// Copy a directory of an image, or all of it, to a folder or tar archive
#[derive(clap::Args, Debug)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    image: ReadArgs,
    /// A folder (made if it is missing), or a file that ends in .tar, .tar.gz, .tar.zst or .tar.xz; - is an archive on
    /// standard output
    target: PathBuf,
    /// The directory in the image
    #[arg(long, default_value = "/")]
    from: OsString,
    /// Owner of all that is copied: UID, UID:GID or :GID
    #[arg(long, value_parser = owner)]
    owner: Option<Owner>,
}

/// Feeds a source into a sink, with another owner where that is asked for.
fn pour(source: &mut dyn copy::Source, sink: &mut dyn Sink, owner: Option<Owner>) -> Outcome {
    match owner {
        Some(owner) => source.feed(&mut Owned { owner, to: &mut *sink })?,
        None => source.feed(sink)?,
    }
    sink.finish()
}

/// `extant get`
pub(crate) fn get(args: &GetArgs) -> Outcome {
    let volume = Volume::read(&args.image)?;
    let (target, sources) = args.paths.split_last().ok_or_else(|| Failure::new("get needs two paths"))?;
    let target = Path::new(target);
    let into = target.is_dir();
    if sources.len() > 1 && !into {
        return Err(
            Failure::new(format!("{}: no folder", target.display())).hint("several files need a folder")
        );
    }
    let (folder, new_name) = if into { (target, None) } else { split_host(target)? };
    for path in sources {
        let path = path.as_bytes();
        let top = volume.resolve(path)?;
        let name = new_name.map_or_else(|| last_name(path), |name| name.as_bytes().to_vec());
        let mut source = copy::from_volume::VolumeSource { volume: &volume, top, path: trimmed(path), name };
        pour(&mut source, &mut copy::to_host::HostSink::new(folder), None)?;
    }
    volume.close()
}

/// The folder of a host's path, and the last name.
fn split_host(path: &Path) -> Outcome<(&Path, Option<&OsStr>)> {
    let name =
        path.file_name().ok_or_else(|| Failure::new(format!("{}: this needs a name", path.display())))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((folder, Some(name)))
}

/// The last name of a path; none for the root.
fn last_name(path: &[u8]) -> Vec<u8> {
    trimmed(path).rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec()
}

/// A path without slashes at its end.
fn trimmed(path: &[u8]) -> Vec<u8> {
    let keep = path.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
    path[..keep].to_vec()
}

/// `extant put`
pub(crate) fn put(args: &PutArgs) -> Outcome {
    let volume = Volume::write(&args.image)?;
    let (target, sources) = args.paths.split_last().ok_or_else(|| Failure::new("put needs two paths"))?;
    let target = target.as_bytes();
    let (dir, dir_path, new_name) = match volume.resolve(target) {
        Ok(dir) if dir.is_dir() => (dir, target.to_vec(), None),
        _ if sources.len() > 1 || target.ends_with(b"/") => {
            return Err(
                Failure::inside(target, &extant::Error::NotDirectory).hint("`extant mkdir -p` makes it")
            );
        }
        _ => {
            let (dir, name) = volume.parent(target)?;
            let above = trimmed(target).rsplitn(2, |b| *b == b'/').nth(1).unwrap_or_default().to_vec();
            (dir, above, Some(name))
        }
    };
    for path in sources {
        let path = Path::new(path);
        let name = match (&new_name, path.file_name()) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => name.as_bytes().to_vec(),
            (None, None) => return Err(Failure::new(format!("{}: this needs a name", path.display()))),
        };
        let mut sink = copy::to_volume::VolumeSink::new(&volume, dir.clone(), &dir_path);
        pour(&mut copy::from_host::HostSource::new(path, &name), &mut sink, args.owner)?;
    }
    volume.close()
}

/// `extant import`
pub(crate) fn import(args: &ImportArgs) -> Outcome {
    let mut source: Box<dyn copy::Source> = if args.source.is_dir() {
        Box::new(copy::from_host::HostSource::new(&args.source, b""))
    } else {
        Box::new(copy::from_archive::ArchiveSource::open(&args.source)?)
    };
    let volume = Volume::write(&args.image)?;
    let to = args.to.as_bytes();
    let dir = make_dirs(&volume, to, 0o755)?;
    pour(&mut *source, &mut copy::to_volume::VolumeSink::new(&volume, dir, to), args.owner)?;
    volume.close()
}

/// `extant export`
pub(crate) fn export(args: &ExportArgs) -> Outcome {
    let volume = Volume::read(&args.image)?;
    let from = args.from.as_bytes();
    let top = volume.resolve(from)?;
    if !top.is_dir() {
        return Err(
            Failure::inside(from, &extant::Error::NotDirectory).hint("`extant get` copies single files")
        );
    }
    let mut source =
        copy::from_volume::VolumeSource { volume: &volume, top, path: trimmed(from), name: Vec::new() };
    let name = args.target.as_os_str().as_bytes();
    if name == b"-" {
        let out = BufWriter::with_capacity(256 << 10, std::io::stdout().lock());
        pour(&mut source, &mut copy::to_archive::ArchiveSink::new(out, "standard output"), args.owner)?;
    } else if let Some(packed) = Packed::of(name)? {
        write_archive(&args.target, packed, &mut source, args.owner)?;
    } else {
        if !args.target.is_dir() {
            std::fs::create_dir(&args.target).on(&args.target)?;
        }
        pour(&mut source, &mut copy::to_host::HostSink::new(&args.target), args.owner)?;
    }
    volume.close()
}

/// How an archive is packed.
enum Packed {
    Not,
    Gzip,
    Zstd,
    Xz,
}

impl Packed {
    /// By the file's name; none if it is no archive's. One that is packed in another way is not taken for a folder.
    fn of(name: &[u8]) -> Outcome<Option<Self>> {
        let name = name.rsplit(|b| *b == b'/').next().unwrap_or(name);
        let ends = |end: &[u8]| name.ends_with(end);
        Ok(Some(match () {
            () if ends(b".tar") => Self::Not,
            () if ends(b".tar.gz") || ends(b".tgz") => Self::Gzip,
            () if ends(b".tar.zst") || ends(b".tzst") => Self::Zstd,
            () if ends(b".tar.xz") || ends(b".txz") => Self::Xz,
            () if name.windows(5).any(|part| part == b".tar.") => {
                let what =
                    format!("{}: an archive packed in a way that is not known", crate::show::name(name));
                return Err(Failure::new(what).hint("known are .tar.gz, .tar.zst and .tar.xz"));
            }
            () => return Ok(None),
        }))
    }
}

/// Each layer is ended by itself: what one cannot write when it is dropped nobody would hear of.
fn write_archive(
    path: &Path,
    packed: Packed,
    source: &mut dyn copy::Source,
    owner: Option<Owner>,
) -> Outcome {
    let name = path.display().to_string();
    let mut out = BufWriter::with_capacity(256 << 10, File::create(path).on(path)?);
    match packed {
        Packed::Not => pour(source, &mut copy::to_archive::ArchiveSink::new(&mut out, &name), owner)?,
        Packed::Gzip => {
            let mut gzip = flate2::write::GzEncoder::new(&mut out, flate2::Compression::default());
            pour(source, &mut copy::to_archive::ArchiveSink::new(&mut gzip, &name), owner)?;
            gzip.finish().on(path)?;
        }
        Packed::Zstd => {
            let mut zstd = zstd::Encoder::new(&mut out, 3).on(path)?;
            pour(source, &mut copy::to_archive::ArchiveSink::new(&mut zstd, &name), owner)?;
            zstd.finish().on(path)?;
        }
        Packed::Xz => {
            let mut xz = liblzma::write::XzEncoder::new(&mut out, 6);
            pour(source, &mut copy::to_archive::ArchiveSink::new(&mut xz, &name), owner)?;
            xz.finish().on(path)?;
        }
    }
    out.flush().on(path)
}
