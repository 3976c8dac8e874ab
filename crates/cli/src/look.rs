//! `ls`, `tree`, `stat`, `cat`, `find`: looking into an image.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use extant::{Attr, InodeRef};
use extant_format::inode::FileType;
use serde_json::{Value, json};

use crate::fail::{At as _, Failure, Outcome};
use crate::glob;
use crate::image::ReadArgs;
use crate::out::Out;
use crate::show;
use crate::volume::{Entry, Visited, Volume, join};

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// List directories, or files
#[derive(clap::Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    image: ReadArgs,
    /// What to list; the root directory if nothing is given
    paths: Vec<OsString>,
    /// Type, permissions, links, owner, size, time
    #[arg(short, long)]
    long: bool,
    /// Inode numbers
    #[arg(short, long)]
    inode: bool,
    /// Directories themselves, not what is in them
    #[arg(short, long)]
    directory: bool,
    /// Directories below, too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// One JSON array of objects
    #[arg(long)]
    json: bool,
}

/// Show the tree below a directory
#[derive(clap::Args, Debug)]
pub(crate) struct TreeArgs {
    #[command(flatten)]
    image: ReadArgs,
    /// Where to begin; the root directory if nothing is given
    path: Option<OsString>,
    /// Go down this many levels only
    #[arg(short = 'L', long, value_name = "LEVELS")]
    level: Option<usize>,
    /// One JSON array of objects, in the tree's order, each with its depth
    #[arg(long)]
    json: bool,
}

/// Show all that an inode says
#[derive(clap::Args, Debug)]
pub(crate) struct StatArgs {
    #[command(flatten)]
    image: ReadArgs,
    /// What to look at
    #[arg(required = true)]
    paths: Vec<OsString>,
    /// Follow a symbolic link
    #[arg(short = 'L', long)]
    dereference: bool,
    /// One JSON array of objects
    #[arg(long)]
    json: bool,
}

/// Write files' contents to standard output
#[derive(clap::Args, Debug)]
pub(crate) struct CatArgs {
    #[command(flatten)]
    image: ReadArgs,
    /// The files
    #[arg(required = true)]
    paths: Vec<OsString>,
}

/// Find files by name, type, size, owner
#[derive(clap::Args, Debug)]
pub(crate) struct FindArgs {
    #[command(flatten)]
    image: ReadArgs,
    /// Where to begin; the root directory if nothing is given
    paths: Vec<OsString>,
    /// The last name matches this pattern (* ? [a-z])
    #[arg(long, value_name = "PATTERN")]
    name: Option<OsString>,
    /// The type: f d l p s c b
    #[arg(long = "type", value_name = "LETTER", value_parser = ["f", "d", "l", "p", "s", "c", "b"])]
    kind: Option<String>,
    /// At least this many bytes
    #[arg(long, value_name = "BYTES")]
    min_size: Option<u64>,
    /// At most this many bytes
    #[arg(long, value_name = "BYTES")]
    max_size: Option<u64>,
    /// The owner's number
    #[arg(long)]
    uid: Option<u32>,
    /// The inode number
    #[arg(long, value_name = "NUMBER")]
    inode: Option<u32>,
    /// End each path with a zero byte
    #[arg(short = '0', long)]
    print0: bool,
    /// One JSON array of objects
    #[arg(long)]
    json: bool,
}

fn paths_or_root(paths: &[OsString]) -> Vec<Vec<u8>> {
    if paths.is_empty() { vec![b"/".to_vec()] } else { paths.iter().map(|p| p.as_bytes().to_vec()).collect() }
}

/// `extant ls`
pub(crate) fn list(args: &ListArgs) -> Outcome {
    let volume = Volume::read(&args.image)?;
    let mut out = Out::new();
    let mut objects = Vec::new();
    let paths = paths_or_root(&args.paths);
    let several = paths.len() > 1 || args.recursive;
    for path in &paths {
        let inode = if args.directory { volume.resolve_link(path)? } else { volume.resolve(path)? };
        if args.directory || !inode.is_dir() {
            list_one(&volume, args, path, path, &inode, &mut out, &mut objects)?;
            continue;
        }
        list_dir(&volume, args, path, &inode, several, &mut out, &mut objects)?;
        if args.recursive {
            volume.walk_tree(&inode, path, &mut |below, _, child| {
                if child.is_dir() {
                    list_dir(&volume, args, below, child, true, &mut out, &mut objects)?;
                }
                Ok(true)
            })?;
        }
    }
    if args.json {
        out.json(&Value::Array(objects))?;
    }
    out.finish()?;
    volume.close()
}

fn list_dir(
    volume: &Volume,
    args: &ListArgs,
    path: &[u8],
    dir: &InodeRef,
    heading: bool,
    out: &mut Out,
    objects: &mut Vec<Value>,
) -> Outcome {
    if heading && !args.json {
        out.line(&format!("{}:", show::name(path)))?;
    }
    for entry in volume.entries(dir, path)? {
        let below = join(path, &entry.name);
        if !args.long && !args.json {
            // Names alone need no inodes.
            let number = if args.inode { format!("{:>8} ", entry.ino) } else { String::new() };
            out.line(&format!("{number}{}", show::name(&entry.name)))?;
            continue;
        }
        let inode = volume.fs.lookup(dir, &entry.name, &volume.cred).at(&below)?;
        list_one(volume, args, &below, &entry.name, &inode, out, objects)?;
    }
    Ok(())
}

fn list_one(
    volume: &Volume,
    args: &ListArgs,
    path: &[u8],
    name: &[u8],
    inode: &InodeRef,
    out: &mut Out,
    objects: &mut Vec<Value>,
) -> Outcome {
    if args.json {
        objects.push(object(volume, path, inode)?);
        return Ok(());
    }
    let mut line = if args.inode { format!("{:>8} ", inode.ino()) } else { String::new() };
    if args.long {
        line += &long_line(&volume.attr(inode));
    }
    line += &show::name(name);
    if args.long && inode.kind() == FileType::Symlink {
        line = format!("{line} -> {}", show::name(&volume.fs.readlink(inode).at(path)?));
    }
    out.line(&line)
}

fn long_line(attr: &Attr) -> String {
    let size = match attr.kind {
        FileType::CharDevice | FileType::BlockDevice => format!("{}, {}", attr.rdev.major, attr.rdev.minor),
        _ => attr.size.to_string(),
    };
    format!(
        "{} {:>4} {:>6} {:>6} {size:>12} {} ",
        show::mode(attr.kind, u32::from(attr.mode)),
        attr.nlink,
        attr.uid,
        attr.gid,
        show::time(attr.mtime.sec)
    )
}

/// An inode as a JSON object.
pub(crate) fn object(volume: &Volume, path: &[u8], inode: &InodeRef) -> Outcome<Value> {
    let attr = volume.attr(inode);
    let time = |t: extant_format::inode::Timestamp| json!({ "seconds": t.sec, "nanoseconds": t.nsec });
    let mut value = json!({
        "path": "",
        "inode": attr.ino.0,
        "generation": attr.generation,
        "type": show::type_word(attr.kind),
        "mode": format!("{:04o}", attr.mode & 0o7777),
        "links": attr.nlink,
        "uid": attr.uid,
        "gid": attr.gid,
        "size": attr.size,
        "allocated": attr.blocks * 512,
        "atime": time(attr.atime),
        "mtime": time(attr.mtime),
        "ctime": time(attr.ctime),
    });
    show::json_name(&mut value, "path", path);
    if let Some(born) = attr.btime {
        value["btime"] = time(born);
    }
    match attr.kind {
        FileType::Symlink => show::json_name(&mut value, "target", &volume.fs.readlink(inode).at(path)?),
        FileType::CharDevice | FileType::BlockDevice => {
            value["device"] = json!([attr.rdev.major, attr.rdev.minor]);
        }
        _ => {}
    }
    Ok(value)
}

/// `extant tree`
pub(crate) fn tree(args: &TreeArgs) -> Outcome {
    let volume = Volume::read(&args.image)?;
    let start = args.path.as_ref().map_or(b"/".to_vec(), |p| p.as_bytes().to_vec());
    let dir = volume.resolve(&start)?;
    let mut out = Out::new();
    let level = args.level.unwrap_or(usize::MAX);
    let objects = args.json.then(Vec::new);
    let mut drawing = Drawing { volume: &volume, level, dirs: 0, files: 0, objects };
    if !args.json {
        out.line(&show::name(&start))?;
    }
    drawing.draw(&dir, &start, &mut out)?;
    match drawing.objects {
        Some(objects) => out.json(&Value::Array(objects))?,
        None => out.line(&format!("{} directories, {} files", drawing.dirs, drawing.files))?,
    }
    out.finish()?;
    volume.close()
}

struct Drawing<'a> {
    volume: &'a Volume,
    level: usize,
    dirs: u64,
    files: u64,
    /// What is found, where it is not drawn.
    objects: Option<Vec<Value>>,
}

impl Drawing<'_> {
    fn draw(&mut self, dir: &InodeRef, path: &[u8], out: &mut Out) -> Outcome {
        // Depth first with an explicit stack; each level knows what is left of it.
        let first = self.volume.entries(dir, path)?;
        let mut stack = vec![(dir.clone(), path.to_vec(), first.into_iter().peekable())];
        let mut visited = Visited::default();
        visited.enter(dir, path)?;
        while let Some((dir, path, entries)) = stack.last_mut() {
            let Some(entry) = entries.next() else {
                stack.pop();
                continue;
            };
            let (dir, below) = (dir.clone(), join(path, &entry.name));
            let inode = self.volume.fs.lookup(&dir, &entry.name, &self.volume.cred).at(&below)?;
            if let Some(objects) = &mut self.objects {
                let mut found = object(self.volume, &below, &inode)?;
                found["depth"] = json!(stack.len());
                objects.push(found);
            } else {
                out.line(&self.line(&mut stack, &entry, &below, &inode)?)?;
            }
            if !inode.is_dir() {
                self.files += 1;
                continue;
            }
            self.dirs += 1;
            if stack.len() < self.level {
                visited.enter(&inode, &below)?;
                let entries = self.volume.entries(&inode, &below)?;
                stack.push((inode, below, entries.into_iter().peekable()));
            }
        }
        Ok(())
    }

    fn line(&self, stack: &mut [Level], entry: &Entry, path: &[u8], inode: &InodeRef) -> Outcome<String> {
        let mut line = String::new();
        let depth = stack.len();
        for (i, (_, _, entries)) in stack.iter_mut().enumerate() {
            let more = entries.peek().is_some();
            line += match (i + 1 == depth, more) {
                (true, true) => "├── ",
                (true, false) => "└── ",
                (false, true) => "│   ",
                (false, false) => "    ",
            };
        }
        line += &show::name(&entry.name);
        if inode.kind() == FileType::Symlink {
            line = format!("{line} -> {}", show::name(&self.volume.fs.readlink(inode).at(path)?));
        }
        Ok(line)
    }
}

type Level = (InodeRef, Vec<u8>, std::iter::Peekable<std::vec::IntoIter<Entry>>);

/// `extant stat`
pub(crate) fn stat(args: &StatArgs) -> Outcome {
    let volume = Volume::read(&args.image)?;
    let mut out = Out::new();
    let mut objects = Vec::new();
    for path in &args.paths {
        let path = path.as_bytes();
        let inode = if args.dereference { volume.resolve(path)? } else { volume.resolve_link(path)? };
        if args.json {
            let mut value = object(&volume, path, &inode)?;
            let names = volume.xattr_names(&inode, path)?;
            value["xattrs"] = names.iter().map(|n| Value::from(String::from_utf8_lossy(n))).collect();
            value["flags"] = json!(volume.attr(&inode).flags.bits());
            objects.push(value);
        } else {
            stat_text(&volume, path, &inode, &mut out)?;
        }
    }
    if args.json {
        out.json(&Value::Array(objects))?;
    }
    out.finish()?;
    volume.close()
}

fn stat_text(volume: &Volume, path: &[u8], inode: &InodeRef, out: &mut Out) -> Outcome {
    let attr = volume.attr(inode);
    let mut title = show::name(path);
    if attr.kind == FileType::Symlink {
        title = format!("{title} -> {}", show::name(&volume.fs.readlink(inode).at(path)?));
    }
    out.line(&title)?;
    let time = |t: extant_format::inode::Timestamp| format!("{}.{:09} UTC", show::time(t.sec), t.nsec);
    let mut rows = vec![
        ("type", show::type_word(attr.kind).to_owned()),
        ("inode", format!("{}, generation {}", attr.ino, attr.generation)),
        ("mode", format!("{:04o} {}", attr.mode & 0o7777, show::mode(attr.kind, u32::from(attr.mode)))),
        ("owner", format!("{}:{}", attr.uid, attr.gid)),
        ("links", attr.nlink.to_string()),
        ("size", format!("{} ({} allocated)", attr.size, attr.blocks * 512)),
        ("accessed", time(attr.atime)),
        ("modified", time(attr.mtime)),
        ("changed", time(attr.ctime)),
    ];
    if let Some(born) = attr.btime {
        rows.push(("born", time(born)));
    }
    if matches!(attr.kind, FileType::CharDevice | FileType::BlockDevice) {
        rows.push(("device", format!("{}, {}", attr.rdev.major, attr.rdev.minor)));
    }
    if !attr.flags.is_empty() {
        rows.push(("flags", crate::show::flags(attr.flags)));
    }
    let names = volume.xattr_names(inode, path)?;
    if !names.is_empty() {
        let names: Vec<String> = names.iter().map(|n| show::name(n)).collect();
        rows.push(("xattrs", names.join(" ")));
    }
    for (label, value) in rows {
        out.line(&format!("  {label:<9} {value}"))?;
    }
    Ok(())
}

/// `extant cat`
pub(crate) fn cat(args: &CatArgs) -> Outcome {
    let volume = Volume::read(&args.image)?;
    let mut out = Out::new();
    let mut buf = vec![0; CHUNK];
    for path in &args.paths {
        let path = path.as_bytes();
        let inode = volume.resolve(path)?;
        if inode.is_dir() {
            return Err(Failure::inside(path, &extant::Error::IsDirectory));
        }
        let mut offset = 0;
        loop {
            let len = volume.fs.read_at(&inode, offset, &mut buf).at(path)?;
            if len == 0 {
                break;
            }
            out.bytes(&buf[..len])?;
            offset += len as u64;
        }
    }
    out.finish()?;
    volume.close()
}

/// `extant find`
pub(crate) fn find(args: &FindArgs) -> Outcome {
    let volume = Volume::read(&args.image)?;
    let mut out = Out::new();
    let mut objects = Vec::new();
    for path in paths_or_root(&args.paths) {
        let start = volume.resolve_link(&path)?;
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec();
        let mut found = |path: &[u8], name: &[u8], inode: &InodeRef| -> Outcome {
            if !args.wants(name, &volume.attr(inode)) {
                return Ok(());
            }
            if args.json {
                objects.push(object(&volume, path, inode)?);
                return Ok(());
            }
            if args.print0 {
                out.bytes(path)?;
                return out.bytes(b"\0");
            }
            out.line(&show::name(path))
        };
        found(&path, &name, &start)?;
        if start.is_dir() {
            volume.walk_tree(&start, &path, &mut |below, entry, inode| {
                found(below, &entry.name, inode)?;
                Ok(true)
            })?;
        }
    }
    if args.json {
        out.json(&Value::Array(objects))?;
    }
    out.finish()?;
    volume.close()
}

impl FindArgs {
    fn wants(&self, name: &[u8], attr: &Attr) -> bool {
        let letter = match show::type_letter(attr.kind) {
            '-' => 'f',
            other => other,
        };
        self.name.as_ref().is_none_or(|pattern| glob::matches(pattern.as_bytes(), name))
            && self.kind.as_ref().is_none_or(|kind| kind.starts_with(letter))
            && self.min_size.is_none_or(|min| attr.size >= min)
            && self.max_size.is_none_or(|max| attr.size <= max)
            && self.uid.is_none_or(|uid| attr.uid == uid)
            && self.inode.is_none_or(|ino| attr.ino.0 == ino)
    }
}
