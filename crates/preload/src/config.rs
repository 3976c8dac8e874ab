//! The environment, which paths are ours, and the working directory.

use std::ffi::CStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::user::complain;

/// What the environment asks for.
#[derive(Debug)]
pub(crate) struct Config {
    /// The image, an absolute path.
    pub(crate) image: Vec<u8>,
    /// Where it appears: absolute, without `.`, `..`, double slashes or one at its end.
    root: Vec<u8>,
    /// Mount options.
    pub(crate) options: String,
}

/// The variable that tells a program that is started with a working directory inside the image.
pub(crate) const CWD_VARIABLE: &CStr = c"EXTANT_CWD";

static CONFIG: OnceLock<Option<Config>> = OnceLock::new();

/// What the environment asked for when the program was loaded; `None` if nothing.
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get_or_init(read_environment).as_ref()
}

pub(crate) fn variable(name: &CStr) -> Option<Vec<u8>> {
    // SAFETY: a C string.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: getenv gives a C string; nobody changes the environment while the first call is being answered.
    Some(unsafe { CStr::from_ptr(value) }.to_bytes().to_vec())
}

fn read_environment() -> Option<Config> {
    let (image, root) = match (variable(c"EXTANT_IMAGE"), variable(c"EXTANT_ROOT")) {
        (Some(image), Some(root)) => (image, root),
        (None, None) => return None,
        _ => {
            complain("both EXTANT_IMAGE and EXTANT_ROOT are needed; nothing is served");
            return None;
        }
    };
    let cwd = host_cwd().unwrap_or_default();
    let options = String::from_utf8_lossy(&variable(c"EXTANT_OPTIONS").unwrap_or_default()).into_owned();
    let config = Config { image: joined(&cwd, &image), root: normal(&joined(&cwd, &root)), options };
    if config.root == b"/" {
        complain("EXTANT_ROOT may not be the root of all; nothing is served");
        return None;
    }
    if config.below(&normal(&config.image)).is_some() {
        complain("EXTANT_IMAGE lies below EXTANT_ROOT; nothing is served");
        return None;
    }
    Some(config)
}

/// `path` as seen from the directory `from`.
pub(crate) fn joined(from: &[u8], path: &[u8]) -> Vec<u8> {
    if path.first() == Some(&b'/') {
        return path.to_vec();
    }
    let mut whole = from.to_vec();
    whole.push(b'/');
    whole.extend_from_slice(path);
    whole
}

/// An absolute path without `.`, `..` and empty names, as text alone.
fn normal(path: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(path.len());
    for name in names(path) {
        match name {
            b".." => whole.truncate(whole.iter().rposition(|b| *b == b'/').unwrap_or(0)),
            name => {
                whole.push(b'/');
                whole.extend_from_slice(name);
            }
        }
    }
    if whole.is_empty() {
        whole.push(b'/');
    }
    whole
}

/// The names of a path, without empty ones and `.`.
pub(crate) fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".")
}

impl Config {
    /// Where it appears.
    pub(crate) fn root(&self) -> &[u8] {
        &self.root
    }

    /// What is left of an absolute path below the root; `None` for a path elsewhere. `..` before that point is taken as text;
    /// what is left may have `..` that leads out again.
    pub(crate) fn below<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        if let Some(rest) = path.strip_prefix(&*self.root)
            && matches!(rest.first(), None | Some(b'/'))
        {
            return Some(rest);
        }
        let plain = !path.windows(2).any(|two| matches!(two, b"//" | b"/."));
        if plain { None } else { self.below_unclean(path) }
    }

    fn below_unclean<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let root: Vec<&[u8]> = names(&self.root).collect();
        let (mut here, mut at): (Vec<&[u8]>, usize) = (Vec::new(), 0);
        for piece in path.split(|b| *b == b'/') {
            at += piece.len();
            match piece {
                b"" | b"." => {}
                b".." => drop(here.pop()),
                name => here.push(name),
            }
            if here == root {
                return Some(&path[at..]);
            }
            at += 1;
        }
        None
    }

    /// Whether the root lies below the directory `dir`: then relative paths may lead to it.
    fn is_below(&self, dir: &[u8]) -> bool {
        dir == b"/" || self.root.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
    }

    /// The directory that the root would be in.
    pub(crate) fn above(&self) -> &[u8] {
        let end = self.root.iter().rposition(|b| *b == b'/').unwrap_or(0);
        if end == 0 { b"/" } else { &self.root[..end] }
    }
}

/// The working directory that the kernel knows.
fn host_cwd() -> Option<Vec<u8>> {
    let mut room = vec![0_u8; 4096];
    // SAFETY: the buffer and its length belong together.
    let n = unsafe { libc::syscall(libc::SYS_getcwd, room.as_mut_ptr(), room.len()) };
    let n = usize::try_from(n).ok().filter(|n| *n > 0)?;
    room.truncate(n - 1);
    // A directory that cannot be reached from here has a name in brackets.
    (room.first() == Some(&b'/')).then_some(room)
}

/// A directory of the image, by what stays true when the filesystem is closed and opened again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DirId {
    pub(crate) ino: extant::Ino,
    pub(crate) generation: u32,
}

/// Where relative paths start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Cwd {
    /// Outside of the image.
    Host,
    /// Outside of the image, in this directory, from which a path without `..` can lead in.
    Above(Vec<u8>),
    /// Inside.
    Inside(DirId),
}

static CWD: RwLock<Option<Cwd>> = RwLock::new(None);

/// Where relative paths start.
pub(crate) fn cwd(config: &Config) -> Cwd {
    if let Some(cwd) = &*CWD.read().unwrap_or_else(PoisonError::into_inner) {
        return cwd.clone();
    }
    outside(config)
}

fn outside(config: &Config) -> Cwd {
    match host_cwd() {
        Some(dir) if config.is_below(&dir) => Cwd::Above(dir),
        _ => Cwd::Host,
    }
}

/// The kernel's working directory changed, or is the one that counts again.
pub(crate) fn set_cwd_outside(config: &Config) {
    let cwd = outside(config);
    *CWD.write().unwrap_or_else(PoisonError::into_inner) = Some(cwd);
}

pub(crate) fn set_cwd_inside(dir: DirId) {
    *CWD.write().unwrap_or_else(PoisonError::into_inner) = Some(Cwd::Inside(dir));
}

/// What an absolute form of the relative `path` is, where it can lead to the image from outside.
pub(crate) fn from_outside(cwd: &Cwd, path: &[u8]) -> Option<Vec<u8>> {
    match cwd {
        Cwd::Above(dir) => Some(joined(dir, path)),
        Cwd::Host if path.split(|b| *b == b'/').any(|name| name == b"..") => {
            host_cwd().map(|dir| joined(&dir, path))
        }
        Cwd::Host | Cwd::Inside(_) => None,
    }
}

/// The umask as the program last set it.
static UMASK: AtomicU32 = AtomicU32::new(0o022);

pub(crate) fn umask() -> u16 {
    UMASK.load(Ordering::Relaxed) as u16
}

pub(crate) fn set_umask(mask: u32) {
    UMASK.store(mask & 0o777, Ordering::Relaxed);
}

/// Runs before the program's `main`.
pub(crate) fn begin() {
    let Some(config) = config() else { return };
    // SAFETY: always succeeds; no other thread runs yet.
    let mask = unsafe { libc::syscall(libc::SYS_umask, 0) };
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_umask, mask) };
    set_umask(u32::try_from(mask).unwrap_or(0o022));
    set_cwd_outside(config);
    if let Some(text) = variable(CWD_VARIABLE) {
        let id = std::str::from_utf8(&text).ok().and_then(parse_cwd);
        match id {
            Some(id) => set_cwd_inside(id),
            None => complain("EXTANT_CWD is not what this library writes; ignored"),
        }
    }
}

/// `EXTANT_CWD=inode:generation`, for a program that is started with a working directory inside the image.
pub(crate) fn cwd_variable(config: &Config) -> Option<Vec<u8>> {
    match cwd(config) {
        Cwd::Inside(id) => {
            let name = CWD_VARIABLE.to_string_lossy();
            Some(format!("{name}={}:{}\0", id.ino.0, id.generation).into_bytes())
        }
        Cwd::Host | Cwd::Above(_) => None,
    }
}

fn parse_cwd(text: &str) -> Option<DirId> {
    let (ino, generation) = text.split_once(':')?;
    Some(DirId { ino: extant::Ino(ino.parse().ok()?), generation: generation.parse().ok()? })
}

#[cfg(test)]
mod tests;
