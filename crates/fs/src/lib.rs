//! The filesystem as a library: mount, inodes, names, read and write.
//!
//! [`Filesystem`] is a mounted ext2, ext3 or ext4. It has two faces over one set of operations: an interface by inode
//! ([`InodeRef`]: what a FUSE server and the command line use) and one by path. Everything takes `&self`; nothing locks the
//! filesystem as a whole. Who asks is said by [`Credentials`].
//!
//! # Parts
//! | module | what |
//! |---|---|
//! | `error`, `damage` | the one public error; what `errors=` does about damage |
//! | `options`, `cred`, `acl` | mount options; who asks; permission and access control lists |
//! | `bootstrap`, `recovery`, `mount`, `mmp` | from a device to a mounted filesystem and back |
//! | `filesystem` | what all parts share: locks, space, superblock |
//! | `credits` | how many blocks each operation may change, and the largest of them |
//! | `inode`, `icache`, `evict`, `orphan` | in-core inodes: reading, caching, freeing, recovering |
//! | `dir` | names in directories: linear, hash trees, inline |
//! | `calls`, `create`, `remove`, `rename`, `attr` | the operations |
//! | `quota`, `quota_file`, `quota_visible` | usage by user, group and project, and its limits |
//! | `lazy_times`, `lazy_init` | times that change in memory only; inode tables zeroed in the background |
//! | `late_features` | features that come with the first file that needs them |
//! | `xattr`, `inline` | extended attributes; content kept in the inode |
//! | `migrate` | from extents to indirect blocks and back |
//! | `fiemap`, `move_ext` | where content is on the device; moving it to blocks of another file |
//! | `data`, `data_rw`, `inline_data`, `fallocate`, `shift` | file content: its pages and how they reach the disk; reading, writing, sizes; in the inode; ranges |
//! | `open_file`, `mapping` | an open file; a file mapped into memory |
//! | `dax` | files that go past the page cache to a device that is memory |
//! | `state`, `freeze`, `background`, `time` | freezing, remounting, shutting down; threads; clocks |
//!
//! # Locks
//! The order is the workspace's (`docs/locking.md`); what of it is here:
//!
//! - rank 10, 25, 28: [`freeze`](crate) gates, entered at the start of every change;
//! - rank 15: the rename lock, for renames between directories;
//! - rank 20: [`InodeRef`]'s inode lock: a directory's names (shared to look up), sizes, attributes as a whole. Parents come
//!   before children, directories before other files, else the smaller number first;
//! - rank 60: a journal handle. Everything that can fail for want of space or by damage is done before its first change; an
//!   operation that fails later aborts the journal, unless what it did until then is whole by itself (blocks that were
//!   removed from an orphan);
//! - rank 70: extended attributes and inline data; rank 80: the block map; rank 95: orphans; rank 98: shards of the inode
//!   cache, never over I/O;
//! - single attributes are behind a leaf lock, so that `stat` waits for nobody.
//!
//! The last reference to a dead inode never frees it in place: it queues it for the evictor.

mod acl;
mod ancestry;
mod attr;
mod background;
mod bootstrap;
mod calls;
mod create;
mod cred;
mod credits;
mod damage;
mod data;
mod data_rw;
mod dax;
mod dir;
mod direct;
mod error;
mod evict;
mod fallocate;
mod fiemap;
mod filesystem;
mod freeze;
mod heap;
mod icache;
mod inline;
mod inline_data;
mod inode;
mod late_features;
mod lazy_init;
mod lazy_times;
mod mapping;
mod migrate;
mod mmp;
mod mount;
mod move_ext;
mod mutant;
mod open_file;
mod options;
mod orphan;
mod paths;
#[cfg(all(test, not(feature = "shuttle")))]
mod pressed;
mod quota;
mod quota_admin;
mod quota_file;
mod quota_visible;
mod recovery;
mod remove;
mod rename;
mod shift;
mod state;
mod time;
mod xattr;

pub use attr::{Attr, FsxAttr, SetAttr, SetTime, StatFs};
pub use create::NewInode;
pub use cred::{Access, Caps, Credentials};
pub use data_rw::WriteFlags;
pub use dax::DaxSwitchTimes;
pub use dir::{DirEntry, START};
pub use error::{CorruptKind, Corruption, Error, Place, Result, errno};
pub use extant_format::inode::device::DeviceNumber;
pub use extant_format::inode::{FileType, InodeFlags, Timestamp};
pub use extant_format::quota::{Dqblk, QuotaKind};
pub use extant_format::{GroupNr, Ino, Lblk, Pblk};
pub use extant_sys::{Protection, Target, UserPages, descriptor};
pub use extant_vm::{ErrCursor, Leave, PageRefs, ReadAhead, ReadFlags};
#[cfg(feature = "shuttle")]
pub use extant_vm::{Fault, MapAdvice, MapView, SimMmu};
pub use fallocate::{FallocateMode, SeekKind};
pub use fiemap::{FiemapExtent, FiemapFlags, FiemapHow};
pub use filesystem::Filesystem;
pub use icache::InodeRef;
pub use inode::Inode;
pub use mapping::{Advice, MapOptions, Mapping, Pin, SyncMode, overlaps_mapping};
pub use mount::Setup;
pub use move_ext::MoveRange;
#[cfg(feature = "shuttle")]
pub use mutant::Mutant;
pub use open_file::{OpenFile, OpenMode, PassedOn, WritePlace};
pub use options::{
    AtimePolicy, DataMode, DaxMode, DaxSwitch, InitItable, MountOptions, OnError, Presets, QuotaOptions,
    Resolved, WITHOUT_EFFECT,
};
pub use paths::{File, ListedEntry, MAX_LINKS, OpenOptions, Paths, ReadDir};
pub use quota::QuotaLimits;
pub use quota_admin::QuotaGrace;
pub use rename::RenameFlags;
pub use state::ShutdownMode;
pub use time::{Clock, SystemClock, system_time, timestamp};
pub use xattr::XattrSet;
