//! Whether a recovered tree is one that the promises allow.
//!
//! - **Names** (with types, modes, owners, links, attributes) are exactly as after some number of operations, not fewer
//!   than promised: transactions are committed in order and each operation on names is one handle.
//! - **Contents**: each byte of a file is as after some operation since the file was last promised (a byte past the end of
//!   the file at that time counts as zero), and the size lies between the smallest and the largest since then.

use std::collections::BTreeMap;

use extant_testkit::tree::{Kind, Node, Tree};

use super::history::{History, Moment, Promise};

/// A tree read back, with the whole content of its files by path.
#[derive(Clone, Debug)]
pub struct Found {
    /// The tree.
    pub tree: Tree,
    /// Contents of regular files.
    pub contents: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// `Err` says what is not allowed.
pub fn judge(history: &History, promise: &Promise, found: &Found) -> Result<(), String> {
    let mut reasons = Vec::new();
    for moment in history.moments[promise.names..].iter().rev() {
        match names_differ(&moment.tree, &found.tree) {
            None => match contents_differ(history, promise, moment, found) {
                None => return Ok(()),
                Some(reason) => reasons.push(reason),
            },
            Some(reason) => reasons.push(reason),
        }
    }
    reasons.dedup();
    let from = promise.names;
    Err(format!("as after none of operations {from} to {}:\n  {}", history.ops.len(), reasons.join("\n  ")))
}

/// A node without what is judged by contents.
fn bare(node: &Node) -> Node {
    Node { data: Default::default(), mtime: None, layout: None, ..node.clone() }
}

fn names_differ(expected: &Tree, found: &Tree) -> Option<String> {
    let only_names =
        |tree: &Tree| Tree { nodes: tree.nodes.iter().map(|(p, n)| (p.clone(), bare(n))).collect() };
    let lines = only_names(expected).differences(&only_names(found), 3);
    (!lines.is_empty()).then(|| lines.join("; "))
}

fn contents_differ(history: &History, promise: &Promise, moment: &Moment, found: &Found) -> Option<String> {
    for (path, node) in &found.tree.nodes {
        if node.kind != Kind::File {
            continue;
        }
        let (Some(inode), Some(bytes)) = (moment.inodes.get(path), found.contents.get(path)) else {
            return Some(format!("/{}: no content was read", path.escape_ascii()));
        };
        if let Some(reason) = content_differs(history, promise, *inode, bytes) {
            return Some(format!("/{}: {reason}", path.escape_ascii()));
        }
    }
    None
}

fn content_differs(history: &History, promise: &Promise, inode: u64, bytes: &[u8]) -> Option<String> {
    let since = promise.contents.get(&inode).copied().unwrap_or(0);
    // A file that did not exist then was empty when it was made.
    let empty = Vec::new();
    let mut versions: Vec<&Vec<u8>> =
        history.moments[since..].iter().filter_map(|moment| moment.contents.get(&inode)).collect();
    if !history.moments[since].contents.contains_key(&inode) {
        versions.push(&empty);
    }
    let sizes = || versions.iter().map(|v| v.len());
    let (least, most) = (sizes().min().unwrap_or(0), sizes().max().unwrap_or(0));
    if !(least..=most).contains(&bytes.len()) {
        return Some(format!("{} bytes; {least} to {most} are allowed", bytes.len()));
    }
    let allowed = |at: usize, byte: u8| versions.iter().any(|v| v.get(at).copied().unwrap_or(0) == byte);
    let wrong = bytes.iter().enumerate().find(|(at, byte)| !allowed(*at, **byte))?;
    Some(format!(
        "byte {} of {} is {:#04x}, which it never was since operation {since}",
        wrong.0,
        bytes.len(),
        wrong.1
    ))
}
