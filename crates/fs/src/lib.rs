//! The filesystem as a library: mount, inodes, names, read and write.
//!
//! # Parts
//! | module | what |
//! |---|---|
//! | `error` | the one public error, and its error numbers |
//! | `options` | mount options over the superblock's defaults |
//! | `cred` | who asks: ids, capabilities, permission by mode bits |

mod cred;
mod error;
mod options;

pub use cred::{Access, Caps, Credentials};
pub use error::{CorruptKind, Corruption, Error, Place, Result, errno};
pub use options::{
    AtimePolicy, DataMode, MountOptions, OnError, Presets, QuotaOptions, Resolved, WITHOUT_EFFECT,
};
