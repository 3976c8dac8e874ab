//! The superblock's own mount options (`s_mount_opts`: 63 bytes of text, written by `tune2fs -E mount_opts=`).
//!
//! As the kernel takes them (Linux 6.18): they come before what mount(8) gives, which overrides them one by one. Only ext4's own
//! words count there. A list with any word or value that is not one is left out as a whole, and the mount says so. A pair that
//! excludes each other refuses the mount, wherever each word stood.

use extant_format::{Compat, Superblock};

use super::{MountOptions, QuotaOptions, refused};
use crate::error::Result;

/// Words that are the VFS's, another program's or our own, and so no options of the superblock.
const NOT_STORED: &[&str] = &[
    "ro",
    "rw",
    "sync",
    "async",
    "dirsync",
    "lazytime",
    "nolazytime",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "defaults",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "mand",
    "nomand",
    "silent",
    "loud",
    "iversion",
    "noiversion",
    "load",
    "mbcache",
    "noacl",
    "nouser_xattr",
    "cache_size",
    "journal_path",
];

impl MountOptions {
    /// Parses the superblock's list.
    ///
    /// # Errors
    /// `Incompatible`: a word that may not stand there. The whole list counts for nothing then.
    pub fn parse_stored(list: &[u8]) -> Result<Self> {
        let Ok(list) = std::str::from_utf8(list) else {
            return Err(refused(format!("`{}` is not text", list.escape_ascii())));
        };
        let mut options = Self::default();
        for word in list.split(',') {
            let name = word.split_once('=').map_or(word, |(name, _)| name);
            if NOT_STORED.contains(&name) || name != name.trim() {
                return Err(refused(format!("`{word}` is not an option that a superblock can hold")));
            }
            options.apply(word)?;
        }
        Ok(options)
    }

    /// These options over those of the superblock.
    ///
    /// `noload` counts for a mount that only reads: the kernel would write past the journal.
    #[must_use]
    pub fn over(&self, stored: &Self) -> Self {
        let given = self.clone();
        Self {
            noload: given.noload || (stored.noload && given.read_only),
            errors: given.errors.or(stored.errors),
            commit: given.commit.or(stored.commit),
            data: given.data.or(stored.data),
            barrier: given.barrier.or(stored.barrier),
            acl: given.acl.or(stored.acl),
            user_xattr: given.user_xattr.or(stored.user_xattr),
            resuid: given.resuid.or(stored.resuid),
            resgid: given.resgid.or(stored.resgid),
            grpid: given.grpid.or(stored.grpid),
            discard: given.discard.or(stored.discard),
            delalloc: given.delalloc.or(stored.delalloc),
            auto_da_alloc: given.auto_da_alloc.or(stored.auto_da_alloc),
            minixdf: given.minixdf.or(stored.minixdf),
            init_itable: given.init_itable.or(stored.init_itable),
            stripe: given.stripe.or(stored.stripe),
            quota: given.quota.over(&stored.quota),
            max_dir_size_kb: given.max_dir_size_kb.or(stored.max_dir_size_kb),
            inode_readahead_blks: given.inode_readahead_blks.or(stored.inode_readahead_blks),
            mbcache: given.mbcache.or(stored.mbcache),
            data_err_abort: given.data_err_abort.or(stored.data_err_abort),
            ..given
        }
    }

    /// These options over those that the superblock holds, if it holds any that can be understood; if not, a warning says so.
    pub(crate) fn over_superblock(&self, sb: &Superblock) -> Self {
        match sb.mount_opts() {
            b"" => self.clone(),
            list => match Self::parse_stored(list) {
                Ok(mut stored) => {
                    // It takes a journal, and is no reason to refuse a filesystem that has lost its own.
                    if !sb.features().compat.contains(Compat::HAS_JOURNAL) {
                        stored.data = None;
                    }
                    self.over(&stored)
                }
                Err(e) => {
                    tracing::warn!(
                        "the superblock's mount options `{}` are left out: {e}",
                        list.escape_ascii()
                    );
                    self.clone()
                }
            },
        }
    }
}

impl QuotaOptions {
    fn over(self, stored: &Self) -> Self {
        if self.none {
            return self;
        }
        Self {
            user: self.user || stored.user,
            group: self.group || stored.group,
            project: self.project || stored.project,
            none: stored.none && !(self.user || self.group || self.project),
            user_file: self.user_file.or_else(|| stored.user_file.clone()),
            group_file: self.group_file.or_else(|| stored.group_file.clone()),
            format: self.format.or_else(|| stored.format.clone()),
        }
    }
}
