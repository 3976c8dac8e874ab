//! Making and populating ext2, ext3 and ext4 images.
//!
//! [`Options`] say what is wanted, [`make`] applies the defaults of mke2fs.conf ([`Params`]), lays the filesystem out
//! ([`Layout`]) and writes it through a [`BlockDevice`]. With a [`Source`] the contents of a directory or tar archive
//! go in too: their layout is planned whole, so that everything is written once, in large pieces, without a journal
//! and without a page cache.
//!
//! The layout is mke2fs 1.47's, field for field in dumpe2fs; only what e2fsprogs takes from the clock, the host and
//! its own number of writes differs. With a UUID ([`Options::uuid`]) and a time ([`Options::time`]) an image is the same
//! to the byte every time.

pub mod archive;
mod builder;
pub mod cli;
mod conf;
mod error;
mod journal_dev;
mod layout;
mod maps;
mod options;
mod params;
mod populate;
mod progress;
mod quota;
mod run;
mod size;
mod space;
mod special;
mod writer;

use std::sync::Arc;

use extant_device::BlockDevice;
use extant_format::Superblock;

use builder::Builder;
use writer::{Nowhere, Writer};

pub use conf::Conf;
pub use error::{MkfsError, Result};
pub use layout::{Layout, Tables};
pub use options::{Extended, Options, Source};
pub use params::{Params, now};
pub use populate::Tree;
pub use progress::{Progress, Silent};
pub use run::run;
pub use size::{Size, parse_bytes, parse_size};

/// What was made.
#[derive(Debug)]
pub struct Made {
    /// The superblock as written.
    pub superblock: Superblock,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// Makes an empty filesystem on `device`, which reads as zeros if `zeroed`.
///
/// # Errors
/// [`MkfsError`].
pub fn make(params: &Params, device: Arc<dyn BlockDevice>, zeroed: bool) -> Result<Made> {
    make_with(params, device, zeroed, None, false, &Silent)
}

/// Makes a filesystem on `device`, which reads as zeros if `zeroed`, and puts `tree` into it. With `super_only`, only
/// superblocks and descriptors are written.
///
/// # Errors
/// [`MkfsError`].
pub fn make_with(
    params: &Params,
    device: Arc<dyn BlockDevice>,
    zeroed: bool,
    tree: Option<&Tree>,
    super_only: bool,
    progress: &dyn Progress,
) -> Result<Made> {
    let writer = Writer::new(device, zeroed);
    let mut b = builder(params, writer, zeroed)?;
    if super_only {
        return Ok(Made { superblock: b.finish_super_only()?, warnings: b.params.warnings });
    }
    fill(&mut b, tree, progress)?;
    let warnings = std::mem::take(&mut b.params.warnings);
    Ok(Made { superblock: b.finish()?, warnings })
}

/// Does the same without a device: what cannot be made is refused here, before anything is overwritten.
pub(crate) fn rehearse(params: &Params, tree: Option<&Tree>) -> Result<()> {
    let bytes = params.blocks * u64::from(params.block_size);
    let mut b = builder(params, Writer::new(Arc::new(Nowhere { bytes }), true), true)?;
    b.rehearsal = true;
    fill(&mut b, tree, &Silent)
}

fn builder(params: &Params, writer: Writer, zeroed: bool) -> Result<Builder> {
    let layout = Layout::new(params)?;
    let lazy = params.lazy_itable_init && params.features.has_group_desc_csum();
    Ok(Builder::new(params.clone(), layout, writer, zeroed || !lazy))
}

/// Everything that is in the filesystem, in mke2fs's order.
fn fill(b: &mut Builder, tree: Option<&Tree>, progress: &dyn Progress) -> Result<()> {
    match tree {
        None => b.make_root()?,
        Some(_) => b.take_lost_found()?,
    }
    b.make_bad_blocks()?;
    b.make_resize_inode()?;
    b.make_journal()?;
    b.make_mmp()?;
    let quota = b.quota_inos()?;
    if tree.is_none() {
        b.make_quota_files(quota)?;
    }
    b.make_orphan_file()?;
    if let Some(tree) = tree {
        populate::fill(b, tree, progress)?;
        b.make_quota_files(quota)?;
    }
    Ok(())
}
