//! What the model says after each operation, so that a recovered tree can be compared with all of it.

use std::collections::BTreeMap;

use extant_testkit::model::Model;
use extant_testkit::script::{Executor as _, Op};
use extant_testkit::tree::Tree;

/// One moment: the tree, who is behind each name, what each file holds.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The tree.
    pub tree: Tree,
    /// The inode behind each path.
    pub inodes: BTreeMap<Vec<u8>, u64>,
    /// Content of each regular file that has a name.
    pub contents: BTreeMap<u64, Vec<u8>>,
}

/// The moments after 0, 1, … operations, and what each sync among them promises.
#[derive(Clone, Debug)]
pub struct History {
    /// `moments[i]` is after the first `i` operations.
    pub moments: Vec<Moment>,
    /// The operations.
    pub ops: Vec<Op>,
}

/// What has been promised to be durable.
#[derive(Clone, Debug, Default)]
pub struct Promise {
    /// Names, attributes and links are at least as after this many operations.
    pub names: usize,
    /// For an inode: its content is at least as after this many operations.
    pub contents: BTreeMap<u64, usize>,
}

impl History {
    /// The history of `ops` on top of a tree that is durable. Operations that fail change nothing.
    #[must_use]
    pub fn of(before: &[Op], ops: &[Op]) -> Self {
        let mut model = Model::after(before);
        let mut moments = vec![Moment::of(&model)];
        for op in ops {
            // A failing operation is part of the space: it must change nothing.
            let _ = model.apply(op);
            moments.push(Moment::of(&model));
        }
        Self { moments, ops: ops.to_vec() }
    }

    /// What the syncs among the first `done` operations have promised.
    #[must_use]
    pub fn promise(&self, done: usize) -> Promise {
        let mut promise = Promise::default();
        for (i, op) in self.ops[..done].iter().enumerate() {
            match op {
                Op::Sync => {
                    promise.names = i;
                    promise.contents.extend(self.moments[i].contents.keys().map(|inode| (*inode, i)));
                }
                Op::Fsync { path } => self.promise_file(&mut promise, path, i, false),
                Op::Fdatasync { path } => self.promise_file(&mut promise, path, i, true),
                _ => {}
            }
        }
        promise
    }

    fn promise_file(&self, promise: &mut Promise, path: &str, at: usize, data_only: bool) {
        let path = path.trim_matches('/').as_bytes();
        let Some(inode) = self.moments[at].inodes.get(path).copied() else { return };
        if self.moments[at].contents.contains_key(&inode) {
            promise.contents.insert(inode, at);
        }
        // The last operation that changed this inode is durable with it, and so is everything before that: transactions
        // are committed in order.
        let changed = (1..=at).rev().find(|i| self.changed(inode, *i, data_only)).unwrap_or(0);
        promise.names = promise.names.max(changed);
    }

    /// Whether operation `i` (from 1) changed what belongs to an inode: for `data_only` its content, or that it is there
    /// at all.
    fn changed(&self, inode: u64, i: usize, data_only: bool) -> bool {
        let (before, after) = (&self.moments[i - 1], &self.moments[i]);
        let there = |moment: &Moment| moment.inodes.values().any(|n| *n == inode);
        if there(before) != there(after) || before.contents.get(&inode) != after.contents.get(&inode) {
            return true;
        }
        if data_only {
            return false;
        }
        let names = |moment: &Moment| -> Vec<Vec<u8>> {
            moment.inodes.iter().filter(|(_, n)| **n == inode).map(|(path, _)| path.clone()).collect()
        };
        let (old, new) = (names(before), names(after));
        if old != new {
            return true;
        }
        old.iter().any(|path| {
            before.tree.nodes[path] != after.tree.nodes[path]
                || children(before, path) != children(after, path)
        })
    }
}

/// The names directly in a directory, with their inodes.
fn children(moment: &Moment, dir: &[u8]) -> Vec<(Vec<u8>, u64)> {
    let inside = |path: &[u8]| {
        let rest = if dir.is_empty() {
            Some(path)
        } else {
            path.strip_prefix(dir).and_then(|r| r.strip_prefix(b"/"))
        };
        rest.is_some_and(|name| !name.is_empty() && !name.contains(&b'/'))
    };
    moment
        .inodes
        .iter()
        .filter(|(path, _)| inside(path))
        .map(|(path, inode)| (path.clone(), *inode))
        .collect()
}

impl Moment {
    fn of(model: &Model) -> Self {
        let inodes = model.inode_numbers();
        let tree = model.snapshot();
        let contents = inodes
            .iter()
            .filter_map(|(path, inode)| {
                let text = std::str::from_utf8(path).ok()?;
                let file = tree.nodes[path].kind == extant_testkit::tree::Kind::File;
                Some((*inode, if file { model.content(text)? } else { return None }))
            })
            .collect();
        Self { tree, inodes, contents }
    }
}
