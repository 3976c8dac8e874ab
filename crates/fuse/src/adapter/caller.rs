//! Who asks.
//!
//! With `ALLOW_IDMAP` the kernel says the caller's ids only where something is made; elsewhere both are -1, since it has
//! checked all access itself (`default_permissions`). What only a file system knows to be privileged, the kernel does not
//! check: some ioctls, reserved blocks, quota. Then the caller's own entry in /proc is asked. `docs/ioctls.md` has a table of who
//! checks what.

use std::os::unix::fs::FileExt;
use std::time::Instant;
use std::{fs, io};

use extant::{Caps, Credentials, Error, InodeRef};

use super::Adapter;
use crate::server::Request;

/// An id that the kernel does not tell.
const UNKNOWN: u32 = u32::MAX;

/// Capability numbers (capabilities(7)) and what the library calls them.
const CAPS: [(u32, Caps); 9] = [
    (0, Caps::CHOWN),
    (1, Caps::DAC_OVERRIDE),
    (2, Caps::DAC_READ_SEARCH),
    (3, Caps::FOWNER),
    (4, Caps::FSETID),
    (9, Caps::LINUX_IMMUTABLE),
    (21, Caps::SYS_ADMIN),
    (24, Caps::SYS_RESOURCE),
    (27, Caps::MKNOD),
];

/// The caller of a request whose access the kernel has checked. Where it does not say who it is, everything that the
/// kernel checks is granted; and nothing that it leaves to us, whatever the id: root in a container is user 0, too.
pub(super) fn checked(req: &Request<'_>) -> Credentials {
    let mut cred = Credentials::checked(req.uid(), req.gid());
    if req.uid() == UNKNOWN {
        cred.caps = Caps::ALL;
    }
    cred.caps = cred.caps.without(Caps::SYS_RESOURCE);
    cred
}

/// `cred`, which is [`checked`], with what /proc says that the caller may take beyond others: the reserved blocks, more than its quota.
/// Ids that the kernel has told stay, since it has mapped them.
pub(super) fn with_resources(req: &Request<'_>, mut cred: Credentials) -> Credentials {
    let Some(own) = of_process(req.pid()) else { return cred };
    if cred.uid == UNKNOWN {
        (cred.uid, cred.gid) = (own.uid, own.gid);
    }
    if own.has(Caps::SYS_RESOURCE) {
        cred.caps = cred.caps.with(Caps::SYS_RESOURCE);
    }
    cred.groups = own.groups;
    cred
}

/// Whether the caller has `CAP_SYS_ADMIN`, which the kernel asks for where it says who may see `trusted.` attributes.
pub(super) fn is_admin(req: &Request<'_>) -> bool {
    privileged(req).has(Caps::SYS_ADMIN)
}

/// Whether it may matter who asks.
pub(super) fn lacks_space(error: &Error) -> bool {
    matches!(error, Error::NoSpace | Error::NoInodes | Error::QuotaExceeded)
}

impl Adapter {
    /// Runs `f` as `cred`, which is [`checked`]. If there is no space or quota for everybody: once more, when what was removed before has
    /// gone, as who the caller is.
    pub(super) fn with_space<T>(
        &self,
        req: &Request<'_>,
        cred: Credentials,
        f: impl Fn(&Credentials) -> extant::Result<T>,
    ) -> extant::Result<T> {
        match f(&cred) {
            Err(error) if lacks_space(&error) => self.once_more(req, cred, f),
            done => done,
        }
    }

    /// The second half of [`Self::with_space`].
    #[cold]
    pub(super) fn once_more<T>(
        &self,
        req: &Request<'_>,
        cred: Credentials,
        f: impl FnOnce(&Credentials) -> extant::Result<T>,
    ) -> extant::Result<T> {
        self.wait_for_space(req);
        f(&with_resources(req, cred))
    }

    /// What was removed just before this request came may still be on its way out.
    fn wait_for_space(&self, req: &Request<'_>) {
        let busy = |inode: &InodeRef| self.files.any_of(inode);
        let came = Instant::now();
        // Most often there is nothing to wait for. Where nobody would read the FORGETs, waiting for them is of no use.
        if self.nodes.time_left(came, came, &busy).is_some() {
            req.wait(|| self.nodes.wait_forgotten(came, &busy));
        }
    }
}

/// The caller with what it may do, as /proc knows it; nobody without any right if it is not to be seen from here.
pub(super) fn privileged(req: &Request<'_>) -> Credentials {
    let mut cred = unchecked(req).unwrap_or_else(|| Credentials::checked(UNKNOWN, UNKNOWN));
    cred.access_checked = true;
    cred
}

/// The same, with access that nobody has checked: for what the kernel does not know that it is asked for. `None` if the caller is not
/// to be seen from here.
pub(super) fn unchecked(req: &Request<'_>) -> Option<Credentials> {
    of_process(req.pid())
}

fn of_process(pid: u32) -> Option<Credentials> {
    if pid == 0 {
        return None;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line =
        |name: &str| status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':').map(str::trim));
    // Real, effective, saved, filesystem.
    let fsid = |name| line(name)?.split_ascii_whitespace().nth(3)?.parse::<u32>().ok();
    let groups: Vec<u32> = line("Groups")?.split_ascii_whitespace().filter_map(|g| g.parse().ok()).collect();
    let mut cred = Credentials::user(fsid("Uid")?, fsid("Gid")?, &groups);
    // A user's own mount is that user's to command. Root is many: what one of them may do, its capabilities say.
    let server = rustix::process::geteuid();
    if !server.is_root() && cred.uid == server.as_raw() {
        cred.caps = Caps::ALL;
        return Some(cred);
    }
    cred.caps = Caps::NONE;
    if same_user_namespace(pid) {
        let effective = u64::from_str_radix(line("CapEff")?, 16).ok()?;
        for (number, cap) in CAPS {
            if effective & 1 << number != 0 {
                cred.caps = cred.caps.with(cap);
            }
        }
    }
    Some(cred)
}

/// The word at `address` in the memory of the caller, which waits for the answer.
pub(super) fn read_word(req: &Request<'_>, address: u64) -> io::Result<u32> {
    let mut word = [0; 4];
    fs::File::open(format!("/proc/{}/mem", req.pid()))?.read_exact_at(&mut word, address)?;
    Ok(u32::from_ne_bytes(word))
}

/// Capabilities in a namespace below ours count for nothing here.
fn same_user_namespace(pid: u32) -> bool {
    let theirs = fs::read_link(format!("/proc/{pid}/ns/user"));
    matches!((theirs, fs::read_link("/proc/self/ns/user")), (Ok(a), Ok(b)) if a == b)
}
