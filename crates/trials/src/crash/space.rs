//! The space of crash scripts.
//!
//! A script works on a tree that is there and synced before it starts:
//!
//! | name | what |
//! |---|---|
//! | `a` | a file of 6,000 bytes |
//! | `d` | a directory |
//! | `d/a` | a file of 20,000 bytes, with an attribute `user.x` of 40 bytes |
//! | `s` | a sparse file of 40,000 bytes with data in its first 4,096 and its last 4,096 bytes |
//!
//! An operation is one of [`operations`]; after each comes one of the four [`Sync`]s (nothing, or fsync or fdatasync of
//! what the operation changed, or sync). Scripts of one and of two operations are enumerated whole; longer ones are
//! drawn with a seed.

use extant_testkit::Rng;
use extant_testkit::script::Op;

/// The script that makes the tree that every crash script starts from.
pub const PREPARE: &str = "\
create a 644
write a 0 6000 1
mkdir d 755
create d/a 600
write d/a 0 20000 2
setxattr d/a user.x 40 3
create s 644
write s 0 4096 4
write s 35904 4096 5
sync
";

/// One operation of the space a line; names, offsets and sizes are chosen to meet: at both sides of a block's edge, inside
/// and past the end, over names that are there and that are not.
const OPERATIONS: &str = "\
create b 644
create d/b 600
write a 0 100 10
write a 4090 20 11
write a 5990 3000 12
write a 12288 5000 13
write d/a 8192 4096 14
write d/a 0 30000 15
write s 4096 8192 16
append a 100 17
append a 9000 18
append d/a 1 19
link a b
link d/a b
unlink a
unlink d/a
unlink s
rename a b
rename a d/a
rename d/a a
rename d e
rename d/a b
rename a s exchange
mkdir e 755
mkdir d/e 700
truncate a 0
truncate a 100
truncate a 4096
truncate a 20000
truncate d/a 10000
truncate s 8192
fallocate a 0 16384
fallocate a 8192 16384 keep
fallocate s 4096 8192
punch a 0 4096
punch d/a 1000 9000
punch d/a 4096 8192
zero d/a 4000 9000
zero a 4096 8192 keep
setxattr a user.x 20 20
setxattr d/a user.x 40 21
setxattr a user.y 600 22
setxattr d user.x 100 23
removexattr d/a user.x
chmod a 600
chown d/a 1000 1000
symlink target-of-a-link l
symlink a-target-that-is-too-long-for-the-inode-itself-and-so-has-a-block-of-its-own l
mknod p fifo
";

/// What is made durable after an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Nothing.
    None,
    /// fsync of what the operation changed.
    Fsync,
    /// fdatasync of it.
    Fdatasync,
    /// All.
    All,
}

/// All syncs.
pub const SYNCS: [Sync; 4] = [Sync::None, Sync::Fsync, Sync::Fdatasync, Sync::All];

/// All operations.
///
/// # Panics
/// Never: the table is tested.
#[must_use]
pub fn operations() -> Vec<Op> {
    extant_testkit::script::parse(OPERATIONS).expect("the table is tested")
}

/// The prepared tree's script.
///
/// # Panics
/// Never: the table is tested.
#[must_use]
pub fn prepare() -> Vec<Op> {
    extant_testkit::script::parse(PREPARE).expect("the table is tested")
}

/// An operation with its sync behind it.
#[must_use]
pub fn step(op: &Op, sync: Sync) -> Vec<Op> {
    let mut ops = vec![op.clone()];
    match sync {
        Sync::None => {}
        Sync::Fsync => ops.push(Op::Fsync { path: changed(op) }),
        Sync::Fdatasync => ops.push(Op::Fdatasync { path: changed(op) }),
        Sync::All => ops.push(Op::Sync),
    }
    ops
}

/// What to fsync after an operation: the file that it changed, or the directory in which a name came or went.
fn changed(op: &Op) -> String {
    let dir = |path: &str| path.rsplit_once('/').map_or("/".to_owned(), |(dir, _)| dir.to_owned());
    match op {
        Op::Unlink { path } | Op::Rmdir { path } | Op::Symlink { path, .. } | Op::Mknod { path, .. } => {
            dir(path)
        }
        Op::Rename { new, .. } => dir(new),
        Op::Link { new, .. } => new.clone(),
        Op::Mkdir { path, .. }
        | Op::Create { path, .. }
        | Op::Chmod { path, .. }
        | Op::Chown { path, .. }
        | Op::Write { path, .. }
        | Op::Append { path, .. }
        | Op::Truncate { path, .. }
        | Op::Utimes { path, .. }
        | Op::Fallocate { path, .. }
        | Op::Punch { path, .. }
        | Op::Zero { path, .. }
        | Op::Setxattr { path, .. }
        | Op::Removexattr { path, .. }
        | Op::Fsync { path }
        | Op::Fdatasync { path } => path.clone(),
        Op::Sync => "/".to_owned(),
    }
}

/// All scripts of one operation.
pub fn ones() -> impl Iterator<Item = Vec<Op>> {
    operations().into_iter().flat_map(|op| SYNCS.map(|sync| step(&op, sync)))
}

/// All scripts of two operations. Between the two comes each sync; after the second, fsync and nothing (a sync at the very
/// end says the same as for one operation).
pub fn twos() -> impl Iterator<Item = Vec<Op>> {
    let all = operations();
    let again = all.clone();
    all.into_iter().flat_map(move |first| {
        let seconds = again.clone();
        SYNCS.into_iter().flat_map(move |sync| {
            let first = step(&first, sync);
            seconds.clone().into_iter().flat_map(move |second| {
                let first = first.clone();
                [Sync::None, Sync::Fsync].map(|last| [first.clone(), step(&second, last)].concat())
            })
        })
    })
}

/// A script of `n` operations drawn with a seed.
pub fn drawn(rng: &mut Rng, n: usize) -> Vec<Op> {
    let all = operations();
    (0..n).flat_map(|_| step(rng.pick(&all), *rng.pick(&SYNCS))).collect()
}
