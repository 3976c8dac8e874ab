//! `mkdir`, `rm`, `mv`, `ln`, `chmod`, `chown`: changing names and attributes in an image.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use extant::{InodeRef, RenameFlags, SetAttr};
use extant_format::inode::FileType;

use crate::fail::{At as _, Failure, Outcome};
use crate::image::ImageArgs;
use crate::volume::{Visited, Volume, join, means_directory};

/// Make directories
#[derive(clap::Args, Debug)]
pub(crate) struct MkdirArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// The directories
    #[arg(required = true)]
    paths: Vec<OsString>,
    /// Make the directories above, too; no error if it is there
    #[arg(short, long)]
    parents: bool,
    /// Permissions, octal
    #[arg(short, long, default_value = "755", value_parser = octal)]
    mode: u32,
}

/// Remove files, or whole directories
#[derive(clap::Args, Debug)]
pub(crate) struct RmArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// What to remove
    #[arg(required = true)]
    paths: Vec<OsString>,
    /// Directories and all that is in them
    #[arg(short, long)]
    recursive: bool,
    /// No error if it is not there
    #[arg(short, long)]
    force: bool,
    /// Empty directories
    #[arg(short, long)]
    dir: bool,
}

/// Rename, or move into a directory
#[derive(clap::Args, Debug)]
pub(crate) struct MvArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// What to move, then where to: a new name, or a directory that is there
    #[arg(required = true, num_args = 2..)]
    paths: Vec<OsString>,
    /// Fail if the new name is taken
    #[arg(short, long)]
    no_replace: bool,
}

/// Make a hard or symbolic link
#[derive(clap::Args, Debug)]
pub(crate) struct LnArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// What it leads to
    target: OsString,
    /// The new name
    path: OsString,
    /// A symbolic link
    #[arg(short, long)]
    symbolic: bool,
}

/// Change permissions
#[derive(clap::Args, Debug)]
pub(crate) struct ChmodArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// Octal (755), or letters (u+x,go-w)
    mode: String,
    /// What to change
    #[arg(required = true)]
    paths: Vec<OsString>,
    /// Everything below, too
    #[arg(short = 'R', long)]
    recursive: bool,
}

/// Change owner and group
#[derive(clap::Args, Debug)]
pub(crate) struct ChownArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// UID, UID:GID or :GID, as numbers
    #[arg(value_parser = owner)]
    owner: Owner,
    /// What to change; symbolic links themselves
    #[arg(required = true)]
    paths: Vec<OsString>,
    /// Everything below, too
    #[arg(short = 'R', long)]
    recursive: bool,
}

/// An owner and a group, each perhaps not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

/// Reads an octal mode.
fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err("an octal number up to 7777 is needed".into()),
    }
}

/// Reads `UID`, `UID:GID` or `:GID`.
pub(crate) fn owner(text: &str) -> Result<Owner, String> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, ""));
    let number = |word: &str| -> Result<Option<u32>, String> {
        if word.is_empty() {
            return Ok(None);
        }
        let number = word.parse().map_err(|_| format!("{word}: names belong to the image; give a number"))?;
        Ok(Some(number))
    };
    match (number(uid)?, number(gid)?) {
        (None, None) => Err("UID, UID:GID or :GID is needed".into()),
        (uid, gid) => Ok(Owner { uid, gid }),
    }
}

/// `extant mkdir`
pub(crate) fn mkdir(args: &MkdirArgs) -> Outcome {
    let volume = Volume::write(&args.image)?;
    for path in &args.paths {
        let path = path.as_bytes();
        if args.parents {
            make_dirs(&volume, path, args.mode)?;
            continue;
        }
        let (dir, name) = volume.parent(path)?;
        volume.fs.mkdir(&dir, &name, args.mode as u16, &volume.cred).at(path)?;
    }
    volume.close()
}

/// Makes a directory and those above it; what is there already stays.
pub(crate) fn make_dirs(volume: &Volume, path: &[u8], mode: u32) -> Outcome<InodeRef> {
    let mut at = volume.fs.root().at(b"/")?;
    let mut done = Vec::new();
    for name in path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".") {
        done = join(&done, name);
        // Through links, as the system would.
        at = match volume.child(&at, name).at(&done)? {
            Some(inode) if inode.is_dir() => inode,
            Some(_) => {
                let inode = volume.resolve(&done)?;
                if !inode.is_dir() {
                    return Err(Failure::inside(&done, &extant::Error::NotDirectory));
                }
                inode
            }
            None => volume.fs.mkdir(&at, name, mode as u16, &volume.cred).at(&done)?,
        };
    }
    Ok(at)
}

/// `extant rm`
pub(crate) fn rm(args: &RmArgs) -> Outcome {
    let volume = Volume::write(&args.image)?;
    for path in &args.paths {
        let path = path.as_bytes();
        let (dir, name) = volume.parent(path)?;
        let Some(inode) = volume.child(&dir, &name).at(path)? else {
            if args.force {
                continue;
            }
            return Err(Failure::inside(path, &extant::Error::NotFound));
        };
        if !inode.is_dir() {
            refuse_slash(path)?;
            volume.fs.unlink(&dir, &name, &volume.cred).at(path)?;
        } else if args.recursive {
            remove_tree(&volume, &dir, &name, path)?;
        } else if args.dir {
            volume.fs.rmdir(&dir, &name, &volume.cred).at(path)?;
        } else {
            return Err(Failure::inside(path, &extant::Error::IsDirectory).hint("-r removes directories"));
        }
    }
    volume.close()
}

/// Removes a directory with all that is in it, deepest first.
fn remove_tree(volume: &Volume, dir: &InodeRef, name: &[u8], path: &[u8]) -> Outcome {
    let top = volume.fs.lookup(dir, name, &volume.cred).at(path)?;
    let mut visited = Visited::default();
    visited.enter(&top, path)?;
    let mut stack = vec![(dir.clone(), name.to_vec(), path.to_vec(), volume.entries(&top, path)?, top)];
    while let Some((above, name, path, entries, inode)) = stack.last_mut() {
        let Some(entry) = entries.pop() else {
            volume.fs.rmdir(above, name, &volume.cred).at(path)?;
            stack.pop();
            continue;
        };
        let (here, below) = (inode.clone(), join(path, &entry.name));
        let child = volume.fs.lookup(&here, &entry.name, &volume.cred).at(&below)?;
        if !child.is_dir() {
            volume.fs.unlink(&here, &entry.name, &volume.cred).at(&below)?;
            continue;
        }
        visited.enter(&child, &below)?;
        let entries = volume.entries(&child, &below)?;
        stack.push((here, entry.name, below, entries, child));
    }
    Ok(())
}

/// `extant mv`
pub(crate) fn mv(args: &MvArgs) -> Outcome {
    let volume = Volume::write(&args.image)?;
    let (to, from) = args.paths.split_last().ok_or_else(|| Failure::new("mv needs two paths"))?;
    let to = to.as_bytes();
    let flags = RenameFlags { noreplace: args.no_replace, ..RenameFlags::default() };
    let into = match volume.resolve(to) {
        Ok(inode) if inode.is_dir() => Some(inode),
        _ if from.len() > 1 => return Err(Failure::inside(to, &extant::Error::NotDirectory)),
        _ => None,
    };
    for path in from {
        let path = path.as_bytes();
        let (old_dir, old_name) = volume.parent(path)?;
        let (new_dir, new_name) = match &into {
            Some(dir) => (dir.clone(), old_name.clone()),
            None => volume.parent(to)?,
        };
        let old = volume.fs.lookup(&old_dir, &old_name, &volume.cred).at(path)?;
        if !old.is_dir() {
            refuse_slash(path)?;
            if into.is_none() {
                refuse_slash(to)?;
            }
        }
        volume.fs.rename(&old_dir, &old_name, &new_dir, &new_name, flags, &volume.cred).at(path)?;
    }
    volume.close()
}

/// Refuses a path with a slash at its end, of what is no directory.
fn refuse_slash(path: &[u8]) -> Outcome {
    if means_directory(path) { Err(Failure::inside(path, &extant::Error::NotDirectory)) } else { Ok(()) }
}

/// `extant ln`
pub(crate) fn ln(args: &LnArgs) -> Outcome {
    let volume = Volume::write(&args.image)?;
    let (target, path) = (args.target.as_bytes(), args.path.as_bytes());
    let (dir, name) = volume.parent(path)?;
    if means_directory(path) && volume.child(&dir, &name).at(path)?.is_none() {
        return Err(Failure::inside(path, &extant::Error::NotFound));
    }
    if args.symbolic {
        volume.fs.symlink(&dir, &name, target, &volume.cred).at(path)?;
    } else {
        let inode = volume.resolve_link(target)?;
        volume.fs.link(&inode, &dir, &name, &volume.cred).at(path)?;
    }
    volume.close()
}

/// `extant chmod`
pub(crate) fn chmod(args: &ChmodArgs) -> Outcome {
    let change = Mode::parse(&args.mode).map_err(|what| Failure::new(format!("{}: {what}", args.mode)))?;
    change_all(&args.image, &args.paths, args.recursive, true, |attr_mode, is_dir| SetAttr {
        mode: Some(change.apply(attr_mode, is_dir) as u16),
        ..SetAttr::default()
    })
}

/// `extant chown`
pub(crate) fn chown(args: &ChownArgs) -> Outcome {
    let Owner { uid, gid } = args.owner;
    change_all(&args.image, &args.paths, args.recursive, false, |_, _| SetAttr {
        uid,
        gid,
        ..SetAttr::default()
    })
}

/// Applies `change` (of the mode and of being a directory) to all paths. With `follow`, symbolic links that are given
/// are followed and those found below are left alone, as chmod does.
fn change_all(
    image: &ImageArgs,
    paths: &[OsString],
    recursive: bool,
    follow: bool,
    change: impl Fn(u32, bool) -> SetAttr,
) -> Outcome {
    let volume = Volume::write(image)?;
    let one = |path: &[u8], inode: &InodeRef| -> Outcome {
        let set = change(u32::from(volume.attr(inode).mode) & 0o7777, inode.is_dir());
        volume.fs.set_attr(inode, &set, &volume.cred).at(path).map(drop)
    };
    for path in paths {
        let path = path.as_bytes();
        let inode = if follow { volume.resolve(path)? } else { volume.resolve_link(path)? };
        one(path, &inode)?;
        if recursive && inode.is_dir() {
            volume.walk_tree(&inode, path, &mut |below, _, inode| {
                if !follow || inode.kind() != FileType::Symlink {
                    one(below, inode)?;
                }
                Ok(true)
            })?;
        }
    }
    volume.close()
}

/// A change of permissions.
#[derive(Debug, PartialEq, Eq)]
enum Mode {
    Absolute(u32),
    Clauses(Vec<Clause>),
}

/// `who`, operator, permission bits (as for all of user, group, others, plus set-id and sticky).
#[derive(Debug, PartialEq, Eq)]
struct Clause {
    who: u32,
    operator: char,
    bits: u32,
    /// `X`: x for directories, and for files that are executable for somebody.
    conditional: bool,
}

impl Mode {
    fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return octal(text).map(Self::Absolute);
        }
        let mut clauses = Vec::new();
        for part in text.split(',') {
            let at = part.find(['+', '-', '=']).ok_or("octal, or letters as in u+x,go-w")?;
            let mut who = 0;
            for c in part[..at].chars() {
                who |= match c {
                    'u' => 0o4700,
                    'g' => 0o2070,
                    'o' => 0o0007,
                    'a' => 0o6777,
                    other => return Err(format!("{other} is none of u, g, o, a")),
                };
            }
            // No letter means all, as chmod under a umask of 0.
            let who = if who == 0 { 0o6777 } else { who };
            clauses.push(clause(who, &part[at..])?);
        }
        Ok(Self::Clauses(clauses))
    }

    fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let clauses = match self {
            Self::Absolute(mode) => return *mode,
            Self::Clauses(clauses) => clauses,
        };
        clauses.iter().fold(mode, |mode, clause| {
            let mut bits = clause.bits & clause.who | clause.bits & 0o1000;
            if clause.conditional && (is_dir || mode & 0o111 != 0) {
                bits |= 0o111 & clause.who;
            }
            match clause.operator {
                '+' => mode | bits,
                '-' => mode & !bits,
                _ => mode & !(clause.who & 0o777) | bits,
            }
        })
    }
}

fn clause(who: u32, text: &str) -> Result<Clause, String> {
    let mut chars = text.chars();
    let operator = chars.next().ok_or("+, - or = is missing")?;
    let mut clause = Clause { who, operator, bits: 0, conditional: false };
    for c in chars {
        match c {
            'r' => clause.bits |= 0o444,
            'w' => clause.bits |= 0o222,
            'x' => clause.bits |= 0o111,
            'X' => clause.conditional = true,
            's' => clause.bits |= 0o6000,
            't' => clause.bits |= 0o1000,
            other => return Err(format!("{other} is none of r, w, x, X, s, t")),
        }
    }
    Ok(clause)
}

#[cfg(test)]
mod tests;
