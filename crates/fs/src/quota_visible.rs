//! Old quota files: `aquota.user` and `aquota.group` in the root directory, made by quotacheck(8) (`usrjquota=`, `grpjquota=` with
//! `jqfmt=`; `usrquota`, `grpquota` with the files' usual names).
//!
//! They are kept as the hidden ones are, in the same transactions as what they count, from the mount on: there is nobody who
//! could call quotaon(8) for it. So that nobody else changes a file meanwhile it has the flags immutable and noatime, as
//! in the kernel; they go when the mount ends or turns read-only. Its blocks are metadata then, and reading it through its name
//! shows what the last sync has left. The files themselves are not counted, as quotacheck does not count them.

use extant_format::Ino;
use extant_format::inode::InodeFlags;
use extant_format::quota::{QuotaKind, Revision};

use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::icache::InodeRef;
use crate::inode::Inode;
use crate::options::QuotaOptions;
use crate::quota::{KINDS, Kind, Quotas};

/// What a quota file has while it is kept.
const HELD: InodeFlags = InodeFlags::IMMUTABLE.union(InodeFlags::NOATIME);

/// A quota file that the options name.
struct Named<'a> {
    file: &'a str,
    /// By `usrjquota=` or `grpjquota=`: it must be there.
    demanded: bool,
}

fn refused(why: String) -> Error {
    Error::Incompatible(why.into_boxed_str())
}

fn named(options: &QuotaOptions, kind: QuotaKind) -> Option<Named<'_>> {
    let (given, wanted, usual) = match kind {
        QuotaKind::User => (&options.user_file, options.user, "aquota.user"),
        QuotaKind::Group => (&options.group_file, options.group, "aquota.group"),
        QuotaKind::Project => return None,
    };
    match given {
        _ if options.none => None,
        Some(file) => Some(Named { file, demanded: true }),
        None => wanted.then_some(Named { file: usual, demanded: false }),
    }
}

/// The revision that `jqfmt=` asks for.
fn wanted_revision(options: &QuotaOptions) -> Result<Option<Revision>> {
    match options.format.as_deref() {
        Some("vfsv0") => Ok(Some(Revision::R0)),
        Some("vfsv1") => Ok(Some(Revision::R1)),
        Some(other) => {
            Err(refused(format!("`jqfmt={other}` is not supported: convert the files with convertquota")))
        }
        None => Ok(None),
    }
}

impl Filesystem {
    /// Opens the quota files that the options name, of a filesystem that is mounted for writing and has no hidden ones.
    ///
    /// # Errors
    /// `Incompatible` for a file that is demanded and not there or not right; damage.
    pub(crate) fn quota_open_visible(&self) -> Result<()> {
        let options = self.options();
        let quota = &options.given.quota;
        if (quota.user_file.is_some() || quota.group_file.is_some()) && quota.format.is_none() && !quota.none
        {
            return Err(refused("`usrjquota=` and `grpjquota=` need `jqfmt=`".into()));
        }
        let mut kinds = [None, None, None];
        for (i, kind) in KINDS.into_iter().enumerate() {
            let Some(wanted) = named(quota, kind) else { continue };
            kinds[i] = match self.visible_kind(kind, &wanted, wanted_revision(quota)?) {
                Ok(kind) => kind,
                Err(e) if wanted.demanded => return Err(e),
                Err(e) => {
                    tracing::warn!("{}: quota is not kept: {e}", wanted.file);
                    None
                }
            };
        }
        if kinds.iter().any(Option::is_some) {
            let _ = self.quotas.set(Quotas::new(kinds));
        }
        Ok(())
    }

    /// Of how many kinds the options name a file.
    pub(crate) fn visible_kinds(&self) -> u32 {
        let options = self.options();
        KINDS.into_iter().filter(|kind| named(&options.given.quota, *kind).is_some()).count() as u32
    }

    fn visible_kind(
        &self,
        kind: QuotaKind,
        wanted: &Named<'_>,
        revision: Option<Revision>,
    ) -> Result<Option<Kind>> {
        let name = wanted.file;
        if name.contains('/') {
            return Err(refused(format!("quota file `{name}` must be in the root directory")));
        }
        let root = self.root()?;
        let found = {
            let _lock = root.lock.read();
            self.lookup_locked(&root, name.as_bytes())
        };
        let inode = match found {
            Err(Error::NotFound) => {
                return Err(refused(format!(
                    "there is no quota file `{name}`: mount with `usrquota,grpquota` and make it with quotacheck"
                )));
            }
            found => found?,
        };
        if !inode.is_regular() || self.is_inline(&inode) {
            return Err(refused(format!("quota file `{name}` is no regular file with blocks")));
        }
        let info = self.quota_info(kind, &inode)?;
        if revision.is_some_and(|revision| revision != info.revision) {
            let version = info.revision.version();
            return Err(refused(format!(
                "quota file `{name}` is of format vfsv{version}, not the one of `jqfmt=`"
            )));
        }
        self.hold_quota_file(&inode, true)?;
        Ok(Some(Kind::new(kind, inode, true, &info)))
    }

    /// Sets or clears the flags of a quota file that is kept.
    fn hold_quota_file(&self, inode: &InodeRef, held: bool) -> Result<()> {
        let _lock = inode.lock.write();
        if let Some(data) = inode.data.get() {
            data.pages.sync(&**data, 0..u64::MAX)?;
            data.pages.invalidate(0..u64::MAX);
        }
        let mut handle = self.journal.start(1)?;
        inode.state().raw.flags.set(HELD, held);
        let buf = self.cache.read(inode.table.0)?;
        let done = self.write_inode_uncounted(&mut handle, inode, &buf);
        self.finish(handle, done, inode)
    }

    fn visible_files(&self) -> Vec<InodeRef> {
        let quotas = self.quotas.get();
        let kinds = quotas.into_iter().flat_map(Quotas::each).map(|(_, kind)| kind);
        kinds.filter(|kind| kind.visible).map(|kind| kind.inode.clone()).collect()
    }

    /// Lets go of visible quota files (`held` false), when the mount ends or turns read-only, or takes them again.
    pub(crate) fn hold_quota_files(&self, held: bool) -> Result<()> {
        self.visible_files().iter().try_for_each(|inode| self.hold_quota_file(inode, held))
    }

    /// Lets readers of visible quota files see what was just synced.
    pub(crate) fn refresh_quota_files(&self) {
        for data in self.visible_files().iter().filter_map(|inode| inode.data.get()) {
            data.pages.invalidate(0..u64::MAX);
        }
    }

    /// Whether an inode is a visible quota file that is kept.
    pub(crate) fn is_quota_file(&self, ino: Ino) -> bool {
        let Some(quotas) = self.quotas.get() else { return false };
        quotas.each().any(|(_, kind)| kind.visible && kind.inode.ino == ino)
    }

    /// Nobody may change the flags of a quota file that is kept.
    pub(crate) fn check_not_quota_file(&self, inode: &Inode) -> Result<()> {
        if self.is_quota_file(inode.ino) { Err(Error::NotPermitted) } else { Ok(()) }
    }
}
