//! The crash lab's script space, and what a crash may leave of a script.
//!
//! A script is a few changes with syncs between them, on a tree that [`setup`] makes. Its [`History`] knows the tree after
//! every operation and judges a tree that was found after a crash and its recovery:
//!
//! - **Names and metadata** are those after some operation `j`, as a whole: operations are journalled in order. `j` is not before
//!   what was promised: everything for `sync`; for `fsync` of a path the last change of its inode; for `fdatasync` the last
//!   change of its size or, of a directory, its names.
//! - **Contents** are those of the last sync that covered the file, or newer: each byte is the byte of one of the versions
//!   since then, the size lies between theirs. A file not changed since then is exact. No byte ever comes from elsewhere. (Beside a collapse
//!   or an insert: [`History::with_blocks`].) A byte that was persisted is of that version, or newer.
//!
//! The space: [`changes`] names every change; [`scripts`] gives all scripts of one change or two, with every sync after each,
//! and a seeded sample of those with three. Another one ([`Space::Stores`]) is about stores through mappings, with msync among the
//! syncs, and stores that need none (MAP_SYNC).

use std::collections::BTreeMap;
use std::ops::Range;

use crate::model::Model;
use crate::rng::Rng;
use crate::script::{Executor as _, Op, parse};
use crate::tree::{Kind, Node, Tree};

/// What every script starts from.
///
/// # Panics
/// Never: the text is fixed.
#[must_use]
pub fn setup() -> Vec<Op> {
    let text = "
        create a 644
        write a 0 9000 1
        mkdir d 755
        create d/c 600
        write d/c 0 700 2
        setxattr d/c user.old 40 3
        mkdir e 755
    ";
    parse(text).expect("the setup's text")
}

/// Every change of the script space: names in two directories, offsets and sizes within, at and across blocks of 1 and 4 KiB. A change
/// is one operation, or an open and what takes the name of the open file.
///
/// # Panics
/// Never: the text is fixed.
#[must_use]
pub fn changes() -> Vec<Vec<Op>> {
    let text = "
        create n 644
        create d/n 644
        mkdir m 755
        symlink target n
        link a n
        link d/c e/n
        unlink a
        unlink d/c
        rmdir e
        rename a n
        rename a d/c
        rename d/c a
        rename d/c e/n
        rename a d/c exchange
        rename e d/e
        write a 0 100 11
        write a 4000 5000 12
        write d/c 100 200 13
        write n 0 3000 14
        append a 3000 15
        append d/c 1 16
        append n 6000 17
        truncate a 0
        truncate a 5000
        truncate a 30000
        truncate d/c 100
        fallocate a 8192 16384
        fallocate n 0 8192
        fallocate a 12288 8192 keep
        punch a 1024 4096
        punch a 0 9000
        zero a 2000 5000
        zero a 4096 16384
        zero a 1024 7168 keep
        collapse a 0 4096
        collapse a 4096 4096
        insert a 4096 4096
        insert a 0 8192
        move a
        move d/c
        chmod a 600
        setxattr a user.x 100 18
        setxattr d/c user.old 700 19
        removexattr d/c user.old
        open a @a; unlink a
        open d/c @c; unlink d/c
        open d/c @c; rename a d/c
        write @a 0 100 20
        append @a 3000 21
        truncate @a 0
        truncate @a 30000
        fallocate @a 8192 16384
        punch @a 1024 4096
        zero @a 1024 20000
        collapse @a 0 4096
        insert @a 4096 4096
        move @a
        setxattr @a user.x 700 22
        close @a
        write @c 100 5000 23
        truncate @c 0
        close @c
    ";
    lines(text)
}

/// What is done beside stores through mappings: to blocks that are written, preallocated, holes and past the end of a file, before
/// and after them.
///
/// # Panics
/// Never: the text is fixed.
fn changes_with_stores() -> Vec<Vec<Op>> {
    let text = "
        store a 0 100 31
        store a 4000 300 32
        store a 8500 500 33
        store a 20000 200 34
        store a 12200 200 35
        store d/c 100 200 36
        store n 4000 150 37
        persist a 4000 300 41
        persist a 12200 200 42
        persist a 20000 200 43
        persist n 4000 150 44
        fallocate a 8192 16384
        fallocate a 9000 23000 keep
        truncate a 30000
        truncate a 5000
        truncate a 0
        create n 644; truncate n 9000
        create n 644; fallocate n 0 8192
        write a 4000 300 11
        append a 3000 15
        write n 0 5000 14
        punch a 1024 4096
        punch a 0 9000
        zero a 2000 5000
        zero a 4096 16384
        collapse a 0 4096
        insert a 4096 4096
        rename a n
        rename a d/c
        rename d/c a
        rename a d/c exchange
        unlink a
        open a @a; unlink a
        store @a 4000 300 38
        persist @a 4000 300 45
        truncate @a 0
        append @a 3000 21
        punch @a 0 9000
        close @a
    ";
    lines(text)
}

fn lines(text: &str) -> Vec<Vec<Op>> {
    let change = |line: &str| parse(&line.replace(';', "\n")).expect("the changes' text");
    text.lines().map(change).filter(|change| !change.is_empty()).collect()
}

/// What scripts are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// [`changes`], each followed by fsync, fdatasync, sync, or none of them.
    Calls,
    /// Stores through mappings and what is done beside them, with msync in the place of fdatasync: scripts with a store.
    Stores,
}

impl Space {
    fn changes(self) -> Vec<Vec<Op>> {
        match self {
            Self::Calls => changes(),
            Self::Stores => changes_with_stores(),
        }
    }

    /// The syncs that may follow a change of `path`; without one first where `none` is asked for.
    fn syncs(self, path: &str, none: bool) -> Vec<Option<Op>> {
        let path = path.to_owned();
        let data = match self {
            Self::Stores if path != "/" && path != "d" => Op::Msync { path: path.clone() },
            _ => Op::Fdatasync { path: path.clone() },
        };
        let mut all = vec![Some(Op::Fsync { path }), Some(data), Some(Op::Sync)];
        if none {
            all.insert(0, None);
        }
        all
    }

    fn has(self, script: &[Op]) -> bool {
        self == Self::Calls || script.iter().any(|op| matches!(op, Op::Store { .. } | Op::Persist { .. }))
    }
}

/// The path that a sync after the change names: what was changed, under its new name or its handle; the directory of what is gone.
fn changed_path(change: &[Op]) -> &str {
    match change {
        [Op::Open { handle, .. }, ..] => handle,
        [op, ..] => changed_by(op),
        [] => "/",
    }
}

fn changed_by(op: &Op) -> &str {
    match op {
        Op::Rename { new, .. } | Op::Link { new, .. } => new,
        Op::Unlink { path } | Op::Rmdir { path } | Op::Symlink { path, .. } => parent(path),
        Op::Mkdir { path, .. }
        | Op::Create { path, .. }
        | Op::Mknod { path, .. }
        | Op::Chmod { path, .. }
        | Op::Chown { path, .. }
        | Op::Write { path, .. }
        | Op::Append { path, .. }
        | Op::Store { path, .. }
        | Op::Persist { path, .. }
        | Op::Truncate { path, .. }
        | Op::Utimes { path, .. }
        | Op::Fallocate { path, .. }
        | Op::Punch { path, .. }
        | Op::Zero { path, .. }
        | Op::Collapse { path, .. }
        | Op::Insert { path, .. }
        | Op::Setxattr { path, .. }
        | Op::Removexattr { path, .. }
        | Op::Move { path }
        | Op::Open { path, .. }
        | Op::Fsync { path }
        | Op::Fdatasync { path }
        | Op::Msync { path } => path,
        Op::Sync | Op::Close { .. } => "/",
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("/", |(dir, _)| dir)
}

/// All scripts of `len` changes (each change followed by each sync or none, the last one by each sync) that the model can run.
/// For `len` above 2 a sample of `most` of them, chosen by `seed`.
#[must_use]
pub fn scripts(space: Space, len: usize, seed: u64, most: usize) -> Vec<Vec<Op>> {
    if len <= 2 {
        let mut all = vec![Vec::new()];
        for step in 1..=len {
            all = all.iter().flat_map(|script| extended(space, script, step < len)).collect();
        }
        all.retain(|script| space.has(script));
        return all;
    }
    let mut rng = Rng::new(seed);
    let changes = space.changes();
    let mut sample = Vec::new();
    while sample.len() < most {
        let mut script = Vec::new();
        for step in 1..=len {
            let change = rng.pick(&changes).clone();
            let sync = rng.pick(&space.syncs(changed_path(&change), step < len)).clone();
            script.extend(change);
            script.extend(sync);
        }
        if space.has(&script) && runs(&mut Model::after(&setup()), &script) {
            sample.push(script);
        }
    }
    sample
}

fn extended(space: Space, script: &[Op], none: bool) -> Vec<Vec<Op>> {
    let mut longer = Vec::new();
    let mut before = Model::after(&setup());
    assert!(runs(&mut before, script), "made from a script that runs");
    for change in space.changes() {
        for sync in space.syncs(changed_path(&change), none) {
            let next: Vec<Op> = change.iter().cloned().chain(sync).collect();
            if runs(&mut before.clone(), &next) {
                longer.push([script, &next].concat());
            }
        }
    }
    longer
}

fn runs(model: &mut Model, script: &[Op]) -> bool {
    script.iter().all(|op| model.apply(op).is_ok())
}

/// One inode of a state.
#[derive(Clone, Debug, PartialEq)]
struct View {
    node: Node,
    /// Of a directory: its names.
    entries: BTreeMap<Vec<u8>, u64>,
    /// Every path of it.
    paths: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct State {
    tree: Tree,
    numbers: BTreeMap<Vec<u8>, u64>,
    /// Files that are open and have no name are among them.
    views: BTreeMap<u64, View>,
    /// Open files by their handles.
    open: BTreeMap<String, u64>,
}

impl State {
    fn of(model: &Model) -> Self {
        let (tree, numbers) = (model.snapshot(), model.inode_numbers());
        let mut views: BTreeMap<u64, View> = BTreeMap::new();
        for (path, number) in &numbers {
            let node = Node { link_of: None, ..tree.nodes[path].clone() };
            let view = views.entry(*number).or_insert_with(|| View {
                node,
                entries: BTreeMap::new(),
                paths: Vec::new(),
            });
            view.paths.push(path.clone());
        }
        for (_, number, node) in model.nameless() {
            views.insert(number, View { node, entries: BTreeMap::new(), paths: Vec::new() });
        }
        for (path, number) in numbers.iter().filter(|(path, _)| !path.is_empty()) {
            let at = path.iter().rposition(|b| *b == b'/');
            let dir = at.map_or(Vec::new(), |at| path[..at].to_vec());
            let name = at.map_or(path.clone(), |at| path[at + 1..].to_vec());
            if let Some(view) = numbers.get(&dir).and_then(|dir| views.get_mut(dir)) {
                view.entries.insert(name, *number);
            }
        }
        Self { tree, numbers, views, open: model.open_files().clone() }
    }

    fn number(&self, path: &str) -> Option<u64> {
        if let Some(number) = self.open.get(path) {
            return Some(*number);
        }
        self.numbers.get(path.trim_matches('/').as_bytes()).copied()
    }
}

/// The states that a script goes through, and what its syncs promise.
#[derive(Debug)]
pub struct History {
    ops: Vec<Op>,
    /// `states[i]` is before operation `i`; one more at the end.
    states: Vec<State>,
    /// Bytes of a block, where blocks may be at places that the crash has undone.
    block: Option<usize>,
}

impl History {
    /// The history of a script on the setup's tree.
    ///
    /// # Panics
    /// If the model cannot run it.
    #[must_use]
    pub fn new(script: &[Op]) -> Self {
        let mut model = Model::after(&setup());
        let mut states = vec![State::of(&model)];
        for op in script {
            model.apply(op).unwrap_or_else(|err| panic!("`{op}`: {err}"));
            states.push(State::of(&model));
        }
        Self { ops: script.to_vec(), states, block: None }
    }

    /// The same on a filesystem with blocks of so many bytes, which do not wait for a collapse or an insert to be durable: what was
    /// written to a block in its place after one that the crash has undone is then where the block was before. So beside such an
    /// operation a byte may be at any whole block's distance from its place, as on the kernel's ext4.
    #[must_use]
    pub fn with_blocks(self, bytes: usize) -> Self {
        Self { block: Some(bytes), ..self }
    }

    /// Judges the tree found after a crash at a time when the first `done` operations had returned.
    ///
    /// # Errors
    /// What is missing or must not be there.
    pub fn judge(&self, found: &Tree, done: usize) -> Result<(), String> {
        let first = (0..done).map(|i| self.promised_names(i)).max().unwrap_or(0);
        let last = (done + 1).min(self.ops.len());
        let mut closest: Option<Vec<String>> = None;
        for state in (first..=last).rev() {
            let problems = self.compare(&self.states[state], found, done, last);
            if problems.is_empty() {
                return Ok(());
            }
            if closest.as_ref().is_none_or(|c| problems.len() < c.len()) {
                closest = Some(problems);
            }
        }
        let problems = closest.unwrap_or_default().join("; ");
        Err(format!("not the tree after any of {first}..={last} operations: {problems}"))
    }

    /// The state that operation `i`, if it is a sync, promises the names and metadata of.
    fn promised_names(&self, i: usize) -> usize {
        let (path, data_only) = match &self.ops[i] {
            Op::Sync => return i,
            Op::Fsync { path } => (path, false),
            Op::Fdatasync { path } | Op::Msync { path } => (path, true),
            _ => return 0,
        };
        let Some(number) = self.states[i].number(path) else { return 0 };
        let changed = |c: &usize| {
            let (before, after) =
                (self.states[*c].views.get(&number), self.states[*c + 1].views.get(&number));
            match (before, after) {
                // Bytes overwritten in place are in no transaction; their presence is the contents' affair.
                (Some(a), Some(b)) if data_only => {
                    a.node.data.size != b.node.data.size || a.entries != b.entries
                }
                (a, b) => a != b,
            }
        };
        (0..i).rev().find(changed).map_or(0, |c| c + 1)
    }

    fn compare(&self, state: &State, found: &Tree, done: usize, last: usize) -> Vec<String> {
        let without_content = |tree: &Tree| {
            let mut tree = tree.clone();
            for node in tree.nodes.values_mut() {
                node.data = crate::tree::Data::default();
                (node.mtime, node.layout) = (None, None);
            }
            tree
        };
        let mut problems = without_content(&state.tree).differences(&without_content(found), 4);
        for (path, node) in found.nodes.iter().filter(|(_, node)| node.kind == Kind::File) {
            let Some(number) = state.numbers.get(path) else { continue };
            if let Err(problem) = self.check_content(*number, node, done, last) {
                problems.push(format!("/{}: {problem}", String::from_utf8_lossy(path)));
            }
        }
        problems
    }

    /// Checks a file's content against its versions since the last sync that covered it.
    fn check_content(&self, number: u64, found: &Node, done: usize, last: usize) -> Result<(), String> {
        let covers = |i: &usize| match &self.ops[*i] {
            Op::Sync => true,
            Op::Fsync { path } | Op::Fdatasync { path } | Op::Msync { path } => {
                self.states[*i].number(path) == Some(number)
            }
            _ => false,
        };
        let base = (0..done).rev().find(covers).unwrap_or(0);
        let bytes_in = |state: usize| self.states[state].views.get(&number)?.node.data.bytes.as_deref();
        let versions: Vec<(usize, &[u8])> = (base..=last).filter_map(|s| Some((s, bytes_in(s)?))).collect();
        let since = |first: usize| versions.iter().filter(move |(s, _)| *s >= first).map(|(_, v)| *v);
        let bytes = found.data.bytes.as_deref().ok_or("too large")?;
        // What is the file's after a crash is not past its end.
        let persisted: Vec<(usize, Range<usize>)> =
            (base..done).filter_map(|i| self.persisted(i, number)).collect();
        let kept = |(first, range): &(usize, Range<usize>)| {
            since(*first).map(<[u8]>::len).min().map_or(0, |least| least.min(range.end))
        };
        let smallest = since(base).map(<[u8]>::len).min().unwrap_or(0);
        let smallest = persisted.iter().map(kept).fold(smallest, usize::max);
        let largest = since(base).map(<[u8]>::len).max().unwrap_or(0);
        if !(smallest..=largest).contains(&bytes.len()) {
            return Err(format!("{} bytes, must be {smallest} to {largest}", bytes.len()));
        }
        let is_move = |op: &Op| matches!(op, Op::Collapse { .. } | Op::Insert { .. });
        let moved = self.block.filter(|_| self.ops[base..last].iter().any(is_move));
        let allowed = |at: usize| {
            let has = |v: &[u8], at: usize| v.get(at).copied().unwrap_or(0) == bytes[at];
            let elsewhere =
                |v: &[u8], block: usize| v.iter().skip(at % block).step_by(block).any(|b| *b == bytes[at]);
            let first =
                persisted.iter().filter(|(_, range)| range.contains(&at)).map(|(first, _)| *first).max();
            since(first.unwrap_or(base)).any(|v| has(v, at) || moved.is_some_and(|block| elsewhere(v, block)))
        };
        match (0..bytes.len()).find(|at| !allowed(*at)) {
            Some(at) => {
                Err(format!("byte {at} is {:#04x}, which no version since operation {base} has", bytes[at]))
            }
            None => Ok(()),
        }
    }

    /// What operation `i` has made durable of a file by itself, and the first state that has it.
    fn persisted(&self, i: usize, number: u64) -> Option<(usize, Range<usize>)> {
        let Op::Persist { path, offset, len, .. } = &self.ops[i] else { return None };
        let range = *offset as usize..(offset + len) as usize;
        (self.states[i].number(path) == Some(number)).then_some((i + 1, range))
    }
}

#[cfg(test)]
mod tests;
