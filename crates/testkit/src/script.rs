//! Scenario scripts: a small language of filesystem operations, one a line, and what runs them.
//!
//! ```text
//! mkdir PATH MODE            create PATH MODE          symlink TARGET PATH      link OLD NEW
//! mknod PATH fifo|sock|MAJOR:MINOR                     unlink PATH              rmdir PATH
//! rename OLD NEW [noreplace|exchange]                  chmod PATH MODE          chown PATH UID GID
//! write PATH OFFSET LEN SEED append PATH LEN SEED      truncate PATH SIZE       utimes PATH SECONDS NANOSECONDS
//! fallocate PATH OFFSET LEN [keep]                     punch PATH OFFSET LEN    zero PATH OFFSET LEN [keep]
//! collapse PATH OFFSET LEN   insert PATH OFFSET LEN   move PATH
//! setxattr PATH NAME LEN SEED                          removexattr PATH NAME
//! open PATH HANDLE           close HANDLE
//! fsync PATH                 fdatasync PATH            sync
//! store PATH OFFSET LEN SEED msync PATH               persist PATH OFFSET LEN SEED
//! ```
//! A handle is a word that begins with `@`. It keeps a file open, and stands for it in operations on its content, attributes and
//! for syncs, also when the file has no name any more. `move` brings a file's content to other blocks. `store` stores through a
//! mapping, inside of the file; the mapping stays until the script ends, and `msync` syncs it. `persist` stores through one with MAP_SYNC,
//! and writes what it stored back from the processor's caches, with no call to the filesystem. Paths are relative to the root and hold
//! no blanks; modes are octal; contents are patterns of a seed ([`crate::rng::pattern`]).

mod dir;
mod parse;
mod random;

#[cfg(test)]
mod tests;

use rustix::io::Errno;

pub use dir::DirExecutor;
pub use parse::ParseError;
pub use random::{Mix, random};

use crate::tree::Tree;

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the fields are the words of the script language above")]
pub enum Op {
    Mkdir { path: String, mode: u32 },
    Create { path: String, mode: u32 },
    Symlink { target: String, path: String },
    Link { old: String, new: String },
    Mknod { path: String, node: Special },
    Unlink { path: String },
    Rmdir { path: String },
    Rename { old: String, new: String, how: Rename },
    Chmod { path: String, mode: u32 },
    Chown { path: String, uid: u32, gid: u32 },
    Write { path: String, offset: u64, len: u64, seed: u64 },
    Append { path: String, len: u64, seed: u64 },
    Store { path: String, offset: u64, len: u64, seed: u64 },
    Persist { path: String, offset: u64, len: u64, seed: u64 },
    Truncate { path: String, size: u64 },
    Utimes { path: String, seconds: i64, nanoseconds: u32 },
    Fallocate { path: String, offset: u64, len: u64, keep_size: bool },
    Punch { path: String, offset: u64, len: u64 },
    Zero { path: String, offset: u64, len: u64, keep_size: bool },
    Collapse { path: String, offset: u64, len: u64 },
    Insert { path: String, offset: u64, len: u64 },
    Setxattr { path: String, name: String, len: usize, seed: u64 },
    Removexattr { path: String, name: String },
    Move { path: String },
    Open { path: String, handle: String },
    Close { handle: String },
    Fsync { path: String },
    Fdatasync { path: String },
    Msync { path: String },
    Sync,
}

/// A special file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    /// FIFO.
    Fifo,
    /// Socket.
    Socket,
    /// Character device with major and minor number.
    Char(u32, u32),
}

/// What a rename does about an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rename {
    /// Replaces it.
    Plain,
    /// Fails with EEXIST.
    NoReplace,
    /// Exchanges both.
    Exchange,
}

/// What can run a script.
pub trait Executor {
    /// A name for messages.
    fn name(&self) -> &str;

    /// Does one operation.
    fn apply(&mut self, op: &Op) -> Result<(), Errno>;

    /// The tree as it is now.
    fn tree(&mut self) -> Tree;
}

/// Parses a script: an operation a line; blank lines and lines that begin with `#` are skipped.
pub fn parse(text: &str) -> Result<Vec<Op>, ParseError> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::parse)
        .collect()
}

/// The script's text.
#[must_use]
pub fn text(ops: &[Op]) -> String {
    ops.iter().map(|op| format!("{op}\n")).collect()
}

/// Runs a script on several executors in step and compares the outcome of every operation with the first one's, and
/// all trees at the end. Fails the test with the script so far when two differ.
#[track_caller]
pub fn run_all(ops: &[Op], executors: &mut [&mut dyn Executor]) {
    for (i, op) in ops.iter().enumerate() {
        let outcomes: Vec<Result<(), Errno>> = executors.iter_mut().map(|e| e.apply(op)).collect();
        for (executor, outcome) in executors.iter().zip(&outcomes).skip(1) {
            assert!(
                *outcome == outcomes[0],
                "operation {i}, `{op}`: {} says {:?}, {} says {outcome:?}; script:\n{}",
                executors[0].name(),
                outcomes[0],
                executor.name(),
                brief(&ops[..=i])
            );
        }
    }
    let trees: Vec<Tree> = executors.iter_mut().map(|e| e.tree()).collect();
    for (executor, tree) in executors.iter().zip(&trees).skip(1) {
        let what = format!("{} / {} after\n{}", executors[0].name(), executor.name(), brief(ops));
        trees[0].assert_equal(tree, &what);
    }
}

/// The end of a script's text; the seed gives the rest.
fn brief(ops: &[Op]) -> String {
    const SHOWN: usize = 60;
    let skipped = ops.len().saturating_sub(SHOWN);
    let lead = if skipped > 0 { format!("# {skipped} operations before\n") } else { String::new() };
    lead + &text(&ops[skipped..])
}
