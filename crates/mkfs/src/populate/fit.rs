//! How large a filesystem must be for its contents.

use extant_format::extent::blocks_for_extents;
use extant_format::indirect;
use extant_format::{Compat, Incompat, RoCompat};

use super::attrs;
use super::tree::{Kind, Tree};
use crate::conf::Conf;
use crate::error::{MkfsError, Result};
use crate::layout::Layout;
use crate::options::Options;
use crate::params::Params;
use crate::size::Size;
use crate::special::{MAX_JOURNAL_BLOCKS, default_journal_blocks};

/// Attempts before a size that keeps failing is given up; each adds what was missing.
const ATTEMPTS: usize = 200;
/// Attempts in which the layout itself has no room; each is larger by an eighth.
const TOO_SMALL: usize = 64;

/// The parameters of a filesystem for `tree`: of the size asked for, of the device's, or as small as the contents
/// allow. Inodes are raised where the caller did not fix their number.
///
/// # Errors
/// As [`Params::resolve`]; [`MkfsError::NoSpace`].
pub(crate) fn fit(options: &Options, conf: &Conf, device_bytes: Option<u64>, tree: &Tree) -> Result<Params> {
    if options.size.is_some() || device_bytes.is_some() {
        let mut params = Params::resolve(options, conf, device_bytes)?;
        raise_inodes(&mut params, tree);
        let (missing, needed) = missing(&params, tree)?;
        if missing > 0 {
            let free = needed - missing;
            let what = "the source".to_owned();
            return Err(MkfsError::NoSpace {
                what,
                needed,
                free,
                unit: "blocks",
                hint: " or none at all, to fit it",
            });
        }
        return Ok(params);
    }
    // The usage type, hence the block size, follows from the size: start from the contents and the inodes asked for.
    let inodes = options.inodes.unwrap_or(0).max(tree.nodes.len() as u64);
    let tables = inodes.saturating_mul(options.inode_size.unwrap_or(256).max(256));
    let guess = (tree.data_bytes() + (1 << 20)).saturating_add(tables);
    // Of clusters there are some at least.
    let guess = guess.max(options.cluster_size.unwrap_or(0).saturating_mul(16));
    let sized = |size| Options { size: Some(size), ..options.clone() };
    let mut params = Params::resolve(&sized(Size::Bytes(guess)), conf, None)?;
    let block = u64::from(params.block_size);
    // Resolve again with blocks fixed, so that growth does not change the block size under the count.
    let fixed = Options { block_size: Some(block as i64), ..options.clone() };
    let mut blocks = guess / block + 64;
    if params.features.ro_compat.contains(RoCompat::BIGALLOC) {
        // Groups are not made smaller for their inode bitmaps: there are as many as the inodes ask for.
        let full = inodes / (8 * block);
        blocks = blocks.max(full.saturating_mul(blocks_per_group(&params)));
    }
    let (mut last, mut too_small) = ("no size fits the source; give a SIZE".to_owned(), 0);
    for attempt in 0..ATTEMPTS {
        let asked = Options { size: Some(Size::Blocks(blocks)), ..fixed.clone() };
        params = Params::resolve(&asked, conf, None)?;
        params.blocks = params.blocks.max(1);
        if !params.inodes_fixed {
            // Where one inode is as large as what it stands for, no size has room for anything else.
            let half = params.blocks.saturating_mul(block) / 2 / u64::from(params.inode_size);
            params.inodes = params.inodes.min(half).max(1);
        }
        raise_inodes(&mut params, tree);
        let ratio = u64::from(params.cluster_ratio);
        match Layout::new(&params) {
            Ok(layout) => {
                let contents = needed(&params, &layout, tree).saturating_sub(layout.free_blocks());
                let journal = least_blocks(&params).saturating_sub(layout.geometry().blocks_count());
                let short = contents.max(journal);
                if short == 0 {
                    return Ok(params);
                }
                // What is added can be a last group that is too small to stay.
                let least = if attempt < ATTEMPTS / 4 { ratio } else { ratio.max(blocks / 64) };
                blocks += short.max(least);
            }
            // The layout does not say how much is missing.
            Err(MkfsError::TooSmall(what)) => {
                (last, too_small) = (what, too_small + 1);
                if too_small == TOO_SMALL {
                    break;
                }
                blocks += (blocks / 8).max(256 * ratio);
            }
            Err(e) => return Err(e),
        }
    }
    Err(MkfsError::TooSmall(last))
}

/// A journal whose size is given takes at most half of the filesystem, whose size is then no less than this.
fn least_blocks(params: &Params) -> u64 {
    let compat = params.features.compat;
    if !compat.contains(Compat::HAS_JOURNAL) || params.journal_device.is_some() {
        return 0;
    }
    let fast = params.fast_commit_blocks.filter(|_| compat.contains(Compat::FAST_COMMIT));
    let log = params.journal_blocks.or_else(|| {
        fast?;
        default_journal_blocks(params.blocks).map(u64::from)
    });
    // More is refused for what it is.
    log.unwrap_or(0).saturating_add(fast.unwrap_or(0)).min(MAX_JOURNAL_BLOCKS) * 2
}

/// Reserved inodes, lost+found, quota and orphan files come on top of the source's.
fn raise_inodes(params: &mut Params, tree: &Tree) {
    let held = tree
        .nodes
        .iter()
        .flat_map(|n| &n.xattrs)
        .filter(|(_, v)| v.len() > params.block_size as usize / 2)
        .count();
    // Rounding to multiples of 8 takes up to 7 from every group.
    let groups = params.blocks / blocks_per_group(params) + 1;
    let needed = tree.nodes.len() as u64 + held as u64 + 16 + 8 * groups;
    if !params.inodes_fixed && params.inodes < needed {
        params.inodes = needed;
    }
}

/// Blocks of a group that is not made smaller for its inodes.
fn blocks_per_group(params: &Params) -> u64 {
    let full = (params.block_size * 8).min(65528) * params.cluster_ratio;
    u64::from(params.blocks_per_group.unwrap_or(full))
}

/// Blocks that are missing, and that are needed.
fn missing(params: &Params, tree: &Tree) -> Result<(u64, u64)> {
    let layout = Layout::new(params)?;
    let free = layout.free_blocks();
    let needed = needed(params, &layout, tree);
    Ok((needed.saturating_sub(free), needed))
}

/// Blocks for everything in the tree and for what every filesystem has, never too few.
fn needed(params: &Params, layout: &Layout, tree: &Tree) -> u64 {
    let ratio = u64::from(params.cluster_ratio);
    let size = u64::from(params.block_size);
    let extents = params.features.incompat.contains(Incompat::EXTENTS);
    let names_usable = size - size / 8 - 12;
    let mut sum = special_blocks(params, layout);
    let whole = |blocks: u64| blocks.next_multiple_of(ratio);
    for node in &tree.nodes {
        sum += attrs::blocks_at_most(&node.xattrs, size) * ratio;
        let blocks = match &node.kind {
            Kind::Directory(entries) => {
                let bytes: u64 = entries.iter().map(|(name, _)| name.len() as u64 + 11).sum::<u64>() + 48;
                // Leaves lose up to one name each; the index is small.
                let leaves = bytes.div_ceil(names_usable.saturating_sub(267).max(size / 2));
                if bytes + 12 <= size { 1 } else { leaves + leaves.div_ceil(64) + 2 }
            }
            Kind::Symlink(target) => u64::from(target.len() >= 60),
            Kind::Regular(content) => match &content.data {
                None => content.size.div_ceil(size),
                Some(data) => data.iter().map(|d| d.len.div_ceil(size) + 1).sum(),
            },
            Kind::Device(..) | Kind::Other(_) => 0,
        };
        let pieces = match &node.kind {
            Kind::Regular(content) => content.data.as_ref().map_or(1, Vec::len) as u64,
            _ => 1,
        };
        let tree_blocks = if extents {
            // Every group may cut a run.
            blocks_for_extents(pieces + blocks / 8192, params.block_size)
        } else {
            // Each piece of a sparse file may need its own way down.
            indirect::blocks_for(blocks, params.block_size) + if pieces > 1 { 3 * pieces } else { 0 }
        };
        sum += whole(blocks) + tree_blocks * ratio + if pieces > 1 { pieces * ratio } else { 0 };
    }
    sum
}

/// lost+found, resize inode, MMP, quota, orphan file, journal.
fn special_blocks(params: &Params, layout: &Layout) -> u64 {
    let ratio = u64::from(params.cluster_ratio);
    let blocks = layout.geometry().blocks_count();
    let mut sum = (12 + 1 + 1 + 8 * 3 + 512 + 1) * ratio;
    if params.features.compat.contains(Compat::ORPHAN_FILE) {
        // More is refused for what it is, when it is placed.
        sum += (params.orphan_file_size.unwrap_or(0) / u64::from(params.block_size)).min(512);
    } else {
        sum -= 512 * ratio;
    }
    if params.features.compat.contains(Compat::HAS_JOURNAL) && params.journal_device.is_none() {
        let log =
            params.journal_blocks.or_else(|| default_journal_blocks(blocks).map(u64::from)).unwrap_or(0);
        // More is refused for what it is, when it is placed.
        let log = log.min(MAX_JOURNAL_BLOCKS);
        let given =
            params.fast_commit_blocks.filter(|_| params.features.compat.contains(Compat::FAST_COMMIT));
        let fast = given.unwrap_or(log / 64).min(MAX_JOURNAL_BLOCKS);
        sum +=
            (log + fast).next_multiple_of(ratio) + indirect::blocks_for(log, params.block_size) + 2 * ratio;
    }
    sum
}
