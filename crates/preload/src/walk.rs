//! From a path of the program to a place in the image, or out of it again.
//!
//! A path is walked name by name as path_resolution(7) says. Absolute targets of symbolic links are paths of the whole system, as
//! the program that made them saw it: they lead into the image only below the root; `..` of the image's root leads out.

use std::ffi::{CString, c_char};
use std::sync::Arc;

use extant::{Credentials, Error, FileType, Filesystem, InodeRef};
use libc::c_int;

use crate::abi::{Answer, Errno};
use crate::config::{self, Config, Cwd, DirId};
use crate::{mount, table, user};

/// A path argument, and where a call about it is to go if it is not answered here.
pub(crate) struct Route {
    dirfd: c_int,
    path: *const c_char,
    /// A path outside, where a walk through the image ended.
    moved: Option<CString>,
}

impl Route {
    pub(crate) fn new(dirfd: c_int, path: *const c_char) -> Self {
        Self { dirfd, path, moved: None }
    }

    /// What the C library is to be given. Absolute if it was changed: then the descriptor of a directory does not matter.
    pub(crate) fn path(&self) -> *const c_char {
        self.moved.as_ref().map_or(self.path, |moved| moved.as_ptr())
    }

    pub(crate) fn dirfd(&self) -> c_int {
        self.dirfd
    }

    /// The path as given; EFAULT for none.
    pub(crate) fn text(&self) -> Result<&[u8], Errno> {
        // SAFETY: the program says that it is a C string, which stays while the call is answered.
        unsafe { user::string(self.path) }
    }

    fn move_out(&mut self, path: Vec<u8>) -> Result<(), Errno> {
        self.moved = Some(CString::new(path).map_err(|_| Errno(libc::EINVAL))?);
        Ok(())
    }
}

/// Where a path leads: a directory of the image, a name in it, and what is there.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) fs: Arc<Filesystem>,
    pub(crate) cred: Credentials,
    /// The directory of the last name; what is meant itself where there is no last name.
    pub(crate) dir: InodeRef,
    /// The last name; `None` for the root, and for a path that ends with `.` or `..`.
    pub(crate) name: Option<Vec<u8>>,
    /// What is there.
    inode: Option<InodeRef>,
    /// How it ended, if not with a name.
    end: End,
    /// A slash at the end: only a directory will do.
    pub(crate) slash: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Name,
    Root,
    Dot,
    DotDot,
}

impl Place {
    /// What is there.
    pub(crate) fn inode(&self) -> Result<&InodeRef, Errno> {
        let inode = self.inode.as_ref().ok_or(Errno(libc::ENOENT))?;
        if self.slash && !inode.is_dir() {
            return Err(Errno(libc::ENOTDIR));
        }
        Ok(inode)
    }

    /// It is where the image appears: what has its name outside.
    pub(crate) fn is_root(&self) -> bool {
        self.end == End::Root
    }

    pub(crate) fn exists(&self) -> bool {
        self.inode.is_some()
    }

    /// The last name, for making something that is no directory.
    pub(crate) fn new_name(&self) -> Result<&[u8], Errno> {
        if self.exists() {
            return Err(Errno(libc::EEXIST));
        }
        if self.slash {
            return Err(Errno(libc::ENOENT));
        }
        self.name.as_deref().ok_or(Errno(libc::EEXIST))
    }

    /// The last name, for making a directory.
    pub(crate) fn new_dir_name(&self) -> Result<&[u8], Errno> {
        if self.exists() {
            return Err(Errno(libc::EEXIST));
        }
        self.name.as_deref().ok_or(Errno(libc::EEXIST))
    }

    /// The last name of a directory to be removed, or of anything to be renamed: not the root, `.` or `..`.
    pub(crate) fn old_name(&self, dot: c_int, dot_dot: c_int) -> Result<&[u8], Errno> {
        match (&self.name, self.end) {
            (Some(name), _) => Ok(name),
            (None, End::Dot) => Err(Errno(dot)),
            (None, End::DotDot) => Err(Errno(dot_dot)),
            (None, End::Root | End::Name) => Err(Errno(libc::EBUSY)),
        }
    }
}

/// How to walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walking {
    /// A symbolic link at the end is followed.
    pub(crate) follow: bool,
    /// With the real ids in place of the effective ones (access(2)).
    pub(crate) real_ids: bool,
    /// The last name is what is meant, not what it leads to: `..` is not gone through there, nor a link with a slash after it.
    pub(crate) name_only: bool,
}

pub(crate) const FOLLOW: Walking = Walking { follow: true, real_ids: false, name_only: false };
pub(crate) const NO_FOLLOW: Walking = Walking { follow: false, ..FOLLOW };
/// For a name that is to be made or removed.
pub(crate) const NAME: Walking = Walking { name_only: true, ..NO_FOLLOW };
/// With the real ids (access(2)).
pub(crate) const REAL_IDS: Walking = Walking { real_ids: true, ..FOLLOW };

/// Most symbolic links that one path may lead through.
const MAX_LINKS: usize = 40;
const PATH_MAX: usize = 4096;

/// Where a walk begins.
enum Start {
    Root,
    Dir(DirId),
    Inode(InodeRef),
}

/// Walks the path of `route`. `Ok(None)`: it is not ours, or leads out of the image; the C library is to answer.
pub(crate) fn resolve(route: &mut Route, how: Walking) -> Answer<Place> {
    if route.path.is_null() {
        return Ok(None);
    }
    let Some(config) = config::config() else { return Ok(None) };
    let Some((start, path)) = enter(config, route)? else { return Ok(None) };
    let fs = mount::filesystem(config)?;
    let cred = mount::credentials(how.real_ids);
    let dir = match start {
        Start::Root => fs.root()?,
        Start::Dir(id) => cwd_inode(&fs, id)?,
        Start::Inode(inode) => inode,
    };
    if path.len() >= PATH_MAX {
        return Err(Errno(libc::ENAMETOOLONG));
    }
    let walk = Walk { config, fs, cred, dir, left: Vec::new(), links: 0, slash: false, end: End::Root };
    match walk.run(&path, how)? {
        Found::Inside(place) => Ok(Some(place)),
        Found::Outside(path) => {
            route.move_out(path)?;
            Ok(None)
        }
    }
}

/// Whether the walk of `route` begins in the image: what a call refuses whatever the path, it refuses then.
pub(crate) fn is_inside(route: &Route) -> bool {
    match config::config() {
        Some(config) if !route.path.is_null() => !matches!(enter(config, route), Ok(None)),
        _ => false,
    }
}

/// Where the walk of `route` begins, and the path that is left; `None` if it is not ours.
fn enter(config: &Config, route: &Route) -> Answer<(Start, Vec<u8>)> {
    let path = route.text()?;
    if path.first() == Some(&b'/') {
        return Ok(config.below(path).map(|rest| (Start::Root, rest.to_vec())));
    }
    // A call that allows it has looked before.
    let existing = if path.is_empty() { Err(Errno(libc::ENOENT)) } else { Ok(()) };
    if route.dirfd == libc::AT_FDCWD {
        let cwd = config::cwd(config);
        if let Cwd::Inside(id) = cwd {
            existing?;
            return Ok(Some((Start::Dir(id), path.to_vec())));
        }
        let Some(whole) = config::from_outside(&cwd, path) else { return Ok(None) };
        return Ok(config.below(&whole).map(|rest| (Start::Root, rest.to_vec())));
    }
    let Some(description) = table::find(route.dirfd)? else { return Ok(None) };
    existing?;
    if !description.inode().is_dir() {
        return Err(Errno(libc::ENOTDIR));
    }
    Ok(Some((Start::Inode(description.inode().clone()), path.to_vec())))
}

/// The inode of the working directory. One that was removed is empty and has no way out.
pub(crate) fn cwd_inode(fs: &Arc<Filesystem>, id: DirId) -> Result<InodeRef, Errno> {
    match fs.inode_generation(id.ino, id.generation) {
        Ok(inode) if inode.is_dir() => Ok(inode),
        Ok(_) | Err(Error::Stale) => Err(Errno(libc::ENOENT)),
        Err(error) => Err(error.into()),
    }
}

enum Found {
    Inside(Place),
    /// A path of the whole system.
    Outside(Vec<u8>),
}

/// A walk under way.
struct Walk<'a> {
    config: &'a Config,
    fs: Arc<Filesystem>,
    cred: Credentials,
    dir: InodeRef,
    /// Names that are left, the next one last.
    left: Vec<Vec<u8>>,
    links: usize,
    slash: bool,
    end: End,
}

/// Whether a path's end says that only a directory will do.
fn wants_dir(path: &[u8]) -> bool {
    path.ends_with(b"/") || path.ends_with(b"/.") || path == b"."
}

impl Walk<'_> {
    fn run(mut self, path: &[u8], how: Walking) -> Result<Found, Errno> {
        self.push(path);
        while let Some(name) = self.left.pop() {
            let last = self.left.is_empty();
            if name == b".." {
                self.end = End::DotDot;
                if last && how.name_only {
                    break;
                }
                if self.dir.ino() == self.fs.root()?.ino() {
                    if let Some(path) = self.leave(self.config.above().to_vec())? {
                        return Ok(Found::Outside(path));
                    }
                    continue;
                }
                self.dir = self.fs.lookup(&self.dir, b"..", &self.cred)?;
                continue;
            }
            if name == b"." {
                self.end = End::Dot;
                self.check_search()?;
                continue;
            }
            let child = match self.fs.lookup(&self.dir, &name, &self.cred) {
                Ok(child) => child,
                Err(Error::NotFound) if last => return Ok(Found::Inside(self.place_at(name, None))),
                Err(error) => return Err(error.into()),
            };
            if child.kind() == FileType::Symlink && (!last || how.follow || (self.slash && !how.name_only)) {
                if let Some(path) = self.go_through(&child)? {
                    return Ok(Found::Outside(path));
                }
                continue;
            }
            if last {
                return Ok(Found::Inside(self.place_at(name, Some(child))));
            }
            if !child.is_dir() {
                return Err(Errno(libc::ENOTDIR));
            }
            self.dir = child;
        }
        let here = self.dir.clone();
        Ok(Found::Inside(self.place(None, Some(here))))
    }

    fn check_search(&self) -> Result<(), Errno> {
        Ok(self.fs.access(&self.dir, extant::Access::EXEC, &self.cred)?)
    }

    /// Puts the names of `path` before those that are left.
    fn push(&mut self, path: &[u8]) {
        if self.left.is_empty() {
            self.slash |= wants_dir(path);
        }
        // `.` counts at the end only: it is not the name of something to be made or removed.
        let dot = path.ends_with(b"/.") || path == b".";
        if dot {
            self.left.push(b".".to_vec());
        }
        self.left.extend(config::names(path).rev().map(<[u8]>::to_vec));
    }

    /// Puts a link's target in the place of its name; a path if it leads out.
    fn go_through(&mut self, link: &InodeRef) -> Result<Option<Vec<u8>>, Errno> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno(libc::ELOOP));
        }
        let target = self.fs.readlink(link)?;
        if target.first() == Some(&b'/') {
            return self.leave(target);
        }
        self.push(&target);
        Ok(None)
    }

    /// Goes on at the absolute path `to` of the whole system with the names that are left: into the image again, or out.
    fn leave(&mut self, mut to: Vec<u8>) -> Result<Option<Vec<u8>>, Errno> {
        for name in std::mem::take(&mut self.left).iter().rev() {
            to.push(b'/');
            to.extend_from_slice(name);
        }
        if self.slash {
            to.push(b'/');
        }
        let Some(rest) = self.config.below(&to) else { return Ok(Some(to)) };
        self.dir = self.fs.root()?;
        self.end = End::Root;
        let rest = rest.to_vec();
        self.push(&rest);
        Ok(None)
    }

    fn place_at(mut self, name: Vec<u8>, inode: Option<InodeRef>) -> Place {
        self.end = End::Name;
        self.place(Some(name), inode)
    }

    fn place(self, name: Option<Vec<u8>>, inode: Option<InodeRef>) -> Place {
        let Self { fs, cred, dir, slash, end, .. } = self;
        Place { fs, cred, dir, name, inode, end, slash }
    }
}
