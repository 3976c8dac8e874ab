//! Removing ranges from extent trees, from the end backwards, so that what is left is always a whole map.

use extant_alloc::{Reservation, ToFree};
use extant_format::extent::{Extent, Node};
use extant_format::{Ino, Lblk};
use extant_journal::Handle;

use crate::edit::{Pieces, part};
use crate::error::{MapError, Result};
use crate::fs::{Content, Delta, MapFs, MapMut, Removed};
use crate::tree::Path;

/// Blocks of journalled content that one step frees: each takes a revoke record.
pub(crate) const MOST_REVOKED: u32 = 2048;
/// Whole extents that one step takes out of a leaf.
const BATCH: usize = 64;

/// What is to be removed, and how.
#[derive(Clone, Copy)]
pub(crate) struct Removal {
    /// The first block of the range.
    pub(crate) start: u32,
    /// One past its last block.
    pub(crate) end: u32,
    pub(crate) content: Content,
    /// Credits that stay in the handle.
    pub(crate) keep: u32,
}

impl Removal {
    /// Credits that a step may use.
    pub(crate) fn budget(&self, handle: &Handle) -> u32 {
        handle.credits_left().saturating_sub(self.keep)
    }
}

impl MapFs {
    pub(crate) fn remove_extents(
        &self,
        handle: &mut Handle,
        map: &mut MapMut<'_>,
        removal: Removal,
        res: &mut Reservation,
    ) -> Result<Removed> {
        let mut delta = Delta::default();
        let mut todo = removal;
        loop {
            let before = handle.changes();
            match self.remove_step(handle, map, todo, res) {
                Ok(Stepped::Done(step)) => {
                    delta.add(step);
                    return Ok(Removed { delta, left: None });
                }
                Ok(Stepped::On(step, from)) => {
                    delta.add(step);
                    todo.end = from;
                }
                Ok(Stepped::Short) => return Ok(Removed { delta, left: Some(Lblk(todo.end)) }),
                // What was done before is whole, and counts. The next call will meet the error, with nothing done.
                Err(_) if todo.end < removal.end && handle.changes() == before => {
                    return Ok(Removed { delta, left: Some(Lblk(todo.end)) });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes what is at the end of the range: extents of one leaf, or a part of one, as much as the credits are enough for.
    fn remove_step(
        &self,
        handle: &mut Handle,
        map: &mut MapMut<'_>,
        todo: Removal,
        res: &mut Reservation,
    ) -> Result<Stepped> {
        let tree = self.tree(map);
        let path = tree.descend(Lblk(todo.end - 1))?;
        let Some((at, last)) = path.at().zip(tree.neighbours(&path)?.0).filter(|(_, e)| e.end() > todo.start)
        else {
            return Ok(Stepped::Done(Delta::default()));
        };
        let budget = todo.budget(handle).saturating_sub(Self::take_credits(path.depth()));
        // Blocks that stay allocated cost nothing but their entry.
        let most = match todo.content {
            Content::Kept if budget > 0 => u32::MAX,
            content => self.freeable(handle.journal(), budget, content),
        };
        if most == 0 {
            return Ok(Stepped::Short);
        }
        let end = last.end().min(todo.end);
        let start = todo.start.max(end.saturating_sub(most));
        let inside = start <= last.lblk.0 && last.end() <= todo.end;
        let (gone, mut delta, from) = if inside {
            self.remove_whole(handle, map, &path, at, Removal { start, ..todo }, budget)?
        } else {
            self.remove_part(handle, map, &path, at, &last, (start, todo.end), todo.content, res)?
        };
        delta.data -= self.free_runs(handle, map, &gone, todo.content)?;
        Ok(if from <= todo.start { Stepped::Done(delta) } else { Stepped::On(delta, from) })
    }

    /// Takes out a run of whole extents that ends at entry `at`, as many as `budget` is enough for; the first of them always.
    fn remove_whole(
        &self,
        handle: &mut Handle,
        map: &mut MapMut<'_>,
        path: &Path,
        at: u16,
        todo: Removal,
        mut budget: u32,
    ) -> Result<Step> {
        let tree = self.tree(map);
        let journal = std::sync::Arc::clone(handle.journal());
        let gone: Vec<Extent> = tree.with_leaf(path, |leaf: &Node<'_>| {
            let mut gone = Vec::new();
            for i in (0..=at).rev() {
                let Some(extent) = leaf.extent(i).filter(|e| e.lblk.0 >= todo.start) else { break };
                let cost = match todo.content {
                    Content::Kept => 0,
                    Content::Data => self.alloc.free_credits(extent.len.into()),
                    Content::Journalled => {
                        self.alloc.free_credits(extent.len.into()) + journal.revoke_credits(extent.len)
                    }
                };
                if gone.len() == BATCH || !gone.is_empty() && budget < cost {
                    break;
                }
                budget = budget.saturating_sub(cost);
                gone.push(extent);
            }
            gone
        })?;
        let _held = self.prepare_free(map.ino, &gone, todo.content)?;
        let _nodes = self.prepare_nodes(path)?;
        let first = gone.last().map_or(todo.start, |e| e.lblk.0);
        let count = gone.len() as u16;
        let freed = self.tree(map).take_out(handle, path, at + 1 - count, count)?;
        Ok((gone, Delta { data: 0, tree: -i64::from(freed) }, first))
    }

    /// The same for the nodes on a way, each of which may be emptied.
    fn prepare_nodes(&self, path: &Path) -> Result<Vec<ToFree>> {
        path.steps.iter().map(|step| Ok(self.alloc.prepare_free(step.buf.pblk(), 1)?)).collect()
    }

    /// Reads what freeing these runs will read, so that it cannot fail once they have left the map.
    pub(crate) fn prepare_free(&self, ino: Ino, runs: &[Extent], content: Content) -> Result<Vec<ToFree>> {
        if content == Content::Kept {
            return Ok(Vec::new());
        }
        let held = runs.iter().map(|run| {
            self.check_data(ino, run.lblk, run.pblk, run.len)?;
            Ok(self.alloc.prepare_free(run.pblk, run.len.into())?)
        });
        held.collect()
    }

    /// Cuts the end, the start or the middle out of one extent.
    #[allow(clippy::too_many_arguments, reason = "one step of a loop, not an interface")]
    fn remove_part(
        &self,
        handle: &mut Handle,
        map: &mut MapMut<'_>,
        path: &Path,
        at: u16,
        last: &Extent,
        (start, end): (u32, u32),
        content: Content,
        res: &mut Reservation,
    ) -> Result<Step> {
        let (from, to) = (start.max(last.lblk.0), end.min(last.end()));
        let head = (from > last.lblk.0).then(|| part(last, last.lblk.0, from));
        let tail = (to < last.end()).then(|| part(last, to, last.end()));
        let gone = part(last, from, to);
        let _held = self.prepare_free(map.ino, &[gone], content)?;
        let mut tree = self.tree(map);
        let mut delta = Delta::default();
        match (head, tail) {
            (Some(_), Some(_)) => {
                // The two halves need two entries: split first, which may need room, then cut the lower one.
                delta.tree += i64::from(tree.split_at(handle, Lblk(to), res)?);
                let path = tree.descend(Lblk(from))?;
                let at = path.at().ok_or(MapError::Overlap { ino: tree.ino, lblk: Lblk(from) })?;
                tree.replace(handle, &path, at, 1, &Pieces::one(head))?;
            }
            (rest, None) | (None, rest) => {
                tree.replace(handle, path, at, 1, &Pieces::one(rest))?;
            }
        }
        Ok((vec![gone], delta, from))
    }

    /// Frees the blocks of runs that left the map, the last first; with bigalloc a cluster goes with its last mapped block.
    /// Returns the blocks freed, clusters whole.
    pub(crate) fn free_runs(
        &self,
        handle: &mut Handle,
        map: &mut MapMut<'_>,
        gone: &[Extent],
        content: Content,
    ) -> Result<i64> {
        let ratio = self.geo.cluster_ratio();
        if ratio > 1 {
            // What is looked up below must not find any of them.
            for run in gone {
                map.es.changed(run.lblk, run.len, crate::status::Status::Hole);
            }
        }
        let mut freed = 0;
        for (at, run) in gone.iter().enumerate() {
            self.check_data(map.ino, run.lblk, run.pblk, run.len)?;
            if content == Content::Journalled {
                for i in 0..u64::from(run.len) {
                    handle.revoke(extant_format::Pblk(run.pblk.0 + i))?;
                }
            }
            if ratio == 1 {
                if content != Content::Kept {
                    self.alloc.free(handle, run.pblk, u64::from(run.len))?;
                }
                freed += i64::from(run.len);
                continue;
            }
            let below = gone.get(at + 1).map_or(0, Extent::end);
            let (from, to) = self.own_clusters(map, run, below)?;
            if from < to {
                let run = part(run, from, to);
                if content != Content::Kept {
                    self.alloc.free(handle, run.pblk, u64::from(run.len))?;
                }
                freed += i64::from((to - 1) / ratio - from / ratio + 1) * i64::from(ratio);
            }
        }
        Ok(freed)
    }

    /// The part of a run, with bigalloc, whose clusters have no other block: none that is mapped, and none of the run below, which
    /// ends at `below` and is freed next.
    fn own_clusters(&self, map: &MapMut<'_>, run: &Extent, below: u32) -> Result<(u32, u32)> {
        let ratio = self.geo.cluster_ratio();
        let (mut from, mut to) = (run.lblk.0, run.end());
        let start = from / ratio * ratio;
        if from > start && (below > start || self.implied(&map.as_ref(), Lblk(from))?.is_some()) {
            from = from.next_multiple_of(ratio).min(to);
        }
        if from < to && !to.is_multiple_of(ratio) && self.implied(&map.as_ref(), Lblk(to - 1))?.is_some() {
            to = (to / ratio * ratio).max(from);
        }
        Ok((from, to))
    }
}

/// Extents that left the tree, what happened to the tree's own blocks, and the first block of them.
type Step = (Vec<Extent>, Delta, u32);

/// How far a step came.
enum Stepped {
    /// Nothing is left of the range.
    Done(Delta),
    /// The range is empty from this block on.
    On(Delta, u32),
    /// The credits are not enough for anything.
    Short,
}
