//! Random scripts over a few names, so that operations meet each other.

use super::{Op, Rename, Special};
use crate::rng::Rng;

/// What a random script is made of.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Operations on names (create, link, rename …) in each 100; the rest are operations on contents.
    pub names: u64,
    /// Syncs in each 100.
    pub syncs: u64,
    /// Largest file offset that a write begins at.
    pub reach: u64,
    /// Largest write.
    pub longest: u64,
    /// Largest xattr value.
    pub xattr: u64,
    /// Whether fallocate, punch and zero are among the operations.
    pub fallocate: bool,
    /// Whether collapse and insert are: of multiples of so many bytes (a filesystem's blocks, or clusters); 0 for none.
    pub shift: u64,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            names: 45,
            syncs: 5,
            reach: 256 << 10,
            longest: 32 << 10,
            xattr: 300,
            fallocate: true,
            shift: 0,
        }
    }
}

const DIRS: &[&str] = &["", "d/", "e/", "d/f/"];
const FILES: &[&str] = &["a", "b", "c", "long-name-that-does-not-fit-beside-others-in-a-small-block"];
const ALL_DIRS: &[&str] = &["d", "e", "d/f", "e/f"];
const MODES: &[u32] = &[0o644, 0o600, 0o755, 0o4755, 0o444];
const DIR_MODES: &[u32] = &[0o755, 0o700, 0o2775, 0o1777];
const XATTRS: &[&str] = &["user.one", "user.two", "trusted.three", "security.four"];

/// A random script of `len` operations. Many fail (the name is not there, or is there already): their errors are part
/// of what is compared.
#[must_use]
pub fn random(rng: &mut Rng, len: usize, mix: &Mix) -> Vec<Op> {
    let mut ops = vec![
        Op::Mkdir { path: "d".into(), mode: 0o755 },
        Op::Mkdir { path: "e".into(), mode: 0o755 },
        Op::Create { path: "a".into(), mode: 0o644 },
    ];
    while ops.len() < len {
        let die = rng.below(100);
        ops.push(if die < mix.syncs {
            sync(rng)
        } else if die < mix.syncs + mix.names {
            name_op(rng)
        } else {
            content_op(rng, mix)
        });
    }
    ops.truncate(len);
    ops
}

fn file(rng: &mut Rng) -> String {
    let dir = *rng.pick(DIRS);
    format!("{dir}{}", rng.pick(FILES))
}

fn sync(rng: &mut Rng) -> Op {
    match rng.below(3) {
        0 => Op::Fsync { path: file(rng) },
        1 => Op::Fdatasync { path: file(rng) },
        _ => Op::Sync,
    }
}

fn name_op(rng: &mut Rng) -> Op {
    let path = file(rng);
    match rng.below(14) {
        0..=3 => Op::Create { path, mode: *rng.pick(MODES) },
        4 => Op::Mkdir { path: (*rng.pick(ALL_DIRS)).into(), mode: *rng.pick(DIR_MODES) },
        5 => Op::Link { old: path, new: file(rng) },
        6 | 7 => Op::Unlink { path },
        8 => Op::Rmdir { path: (*rng.pick(ALL_DIRS)).into() },
        9 | 10 => Op::Rename { old: path, new: file(rng), how: how(rng) },
        11 => {
            Op::Rename { old: (*rng.pick(ALL_DIRS)).into(), new: (*rng.pick(ALL_DIRS)).into(), how: how(rng) }
        }
        12 => Op::Symlink {
            target: "t".repeat(1 + rng.below(120) as usize),
            path: format!("{}s{}", rng.pick(DIRS), rng.below(2)),
        },
        _ => {
            let node = *rng.pick(&[Special::Fifo, Special::Socket, Special::Char(1, 3)]);
            // Names that nothing is written to.
            Op::Mknod { path: format!("{}n{}", rng.pick(DIRS), rng.below(2)), node }
        }
    }
}

fn how(rng: &mut Rng) -> Rename {
    *rng.pick(&[Rename::Plain, Rename::Plain, Rename::Plain, Rename::NoReplace, Rename::Exchange])
}

fn content_op(rng: &mut Rng, mix: &Mix) -> Op {
    let path = file(rng);
    let offset = place(rng, mix.reach);
    let len = 1 + rng.below(mix.longest);
    let seed = rng.below(1000);
    let keep_size = rng.chance(1, 2);
    if mix.shift > 0 && rng.chance(1, 8) {
        let (offset, len) = (offset - offset % mix.shift, (1 + rng.below(8)) * mix.shift);
        return if keep_size { Op::Collapse { path, offset, len } } else { Op::Insert { path, offset, len } };
    }
    match rng.below(14) {
        0..=2 => Op::Write { path, offset, len, seed },
        3 | 4 => Op::Append { path, len: 1 + rng.below(5000), seed },
        5 | 6 => Op::Truncate { path, size: place(rng, mix.reach) },
        7 => Op::Chmod { path, mode: *rng.pick(MODES) },
        8 => Op::Chown { path, uid: rng.below(3) as u32 * 70_000, gid: rng.below(3) as u32 },
        9 => Op::Setxattr {
            path,
            name: (*rng.pick(XATTRS)).into(),
            len: rng.below(mix.xattr + 1) as usize,
            seed,
        },
        10 => Op::Removexattr { path, name: (*rng.pick(XATTRS)).into() },
        11 if mix.fallocate => Op::Fallocate { path, offset, len, keep_size },
        12 if mix.fallocate => Op::Punch { path, offset, len },
        13 if mix.fallocate => Op::Zero { path, offset, len, keep_size },
        _ => Op::Utimes {
            path,
            seconds: rng.below(1 << 33) as i64,
            nanoseconds: rng.below(1_000_000_000) as u32,
        },
    }
}

/// An offset: small, at a block's edge, or anywhere.
fn place(rng: &mut Rng, reach: u64) -> u64 {
    match rng.below(4) {
        0 => rng.below(200),
        1 => (rng.below(reach / 1024 + 1)) * 1024,
        2 => ((rng.below(reach / 4096 + 1)) * 4096 + 4096).saturating_sub(rng.below(3)),
        _ => rng.below(reach),
    }
}
