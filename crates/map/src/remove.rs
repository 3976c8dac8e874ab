//! Removing ranges from extent trees, from the end backwards, so that what is left is always a whole map.

use extant_alloc::Reservation;
use extant_format::Lblk;
use extant_format::extent::{Extent, Node};
use extant_journal::Handle;

use crate::edit::{Pieces, part};
use crate::error::{MapError, Result};
use crate::fs::{Content, Delta, MapFs, MapMut, Removed};
use crate::tree::Path;

/// Blocks of journalled content that one call frees: each takes a revoke record, and those take room in the log beside the
/// handle's credits.
pub(crate) const MOST_REVOKED: u32 = 2048;
/// Whole extents that one step takes out of a leaf.
const BATCH: usize = 64;

impl MapFs {
    pub(crate) fn remove_extents(
        &self,
        handle: &mut Handle,
        map: &mut MapMut<'_>,
        (start, end): (u32, u32),
        content: Content,
        res: &mut Reservation,
    ) -> Result<Removed> {
        let mut delta = Delta::default();
        let (lowest, mut end) = (start, end);
        let mut limit = None;
        loop {
            let tree = self.tree(map);
            let path = tree.descend(Lblk(end - 1))?;
            let Some((at, last)) = path.at().zip(tree.neighbours(&path)?.0).filter(|(_, e)| e.end() > start)
            else {
                return Ok(Removed { delta, left: None });
            };
            let cost = self.remove_cost(path.depth(), &last);
            if handle.credits_left() < cost {
                return Ok(Removed { delta, left: Some(Lblk(end)) });
            }
            let start = match content {
                Content::Data | Content::Kept => start,
                Content::Journalled => {
                    let most = last.end().min(end).saturating_sub(MOST_REVOKED);
                    start.max(*limit.get_or_insert(most))
                }
            };
            if last.end() <= start {
                return Ok(Removed { delta, left: Some(Lblk(start)) });
            }
            let inside = start <= last.lblk.0 && last.end() <= end;
            let (step, from) = if inside {
                self.remove_whole(handle, map, &path, at, start)?
            } else {
                self.remove_part(handle, map, &path, at, &last, (start, end), res)?
            };
            delta.add(step.1);
            delta.data -= self.free_runs(handle, map, &step.0, content)?;
            if from <= start {
                return Ok(Removed { delta, left: (start > lowest).then_some(Lblk(start)) });
            }
            end = from;
        }
    }

    /// Takes out a run of whole extents that ends at entry `at`, as many as the handle has credits for.
    fn remove_whole(
        &self,
        handle: &mut Handle,
        map: &mut MapMut<'_>,
        path: &Path,
        at: u16,
        start: u32,
    ) -> Result<(Step, u32)> {
        let mut tree = self.tree(map);
        let mut budget = handle.credits_left();
        let depth = path.depth();
        let gone: Vec<Extent> = tree.with_leaf(path, |leaf: &Node<'_>| {
            let mut gone = Vec::new();
            for i in (0..=at).rev() {
                let Some(extent) = leaf.extent(i).filter(|e| e.lblk.0 >= start) else { break };
                let cost = self.remove_cost(depth, &extent);
                if gone.len() == BATCH || !gone.is_empty() && budget < cost {
                    break;
                }
                budget = budget.saturating_sub(self.alloc.free_credits(u64::from(extent.len)));
                gone.push(extent);
            }
            gone
        })?;
        let first = gone.last().map_or(start, |e| e.lblk.0);
        let count = gone.len() as u16;
        let freed = tree.take_out(handle, path, at + 1 - count, count)?;
        Ok(((gone, Delta { data: 0, tree: -i64::from(freed) }), first))
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
        res: &mut Reservation,
    ) -> Result<(Step, u32)> {
        let mut tree = self.tree(map);
        let (from, to) = (start.max(last.lblk.0), end.min(last.end()));
        let head = (from > last.lblk.0).then(|| part(last, last.lblk.0, from));
        let tail = (to < last.end()).then(|| part(last, to, last.end()));
        let gone = part(last, from, to);
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
        Ok(((vec![gone], delta), from))
    }

    /// Credits that taking out one extent may need: the leaf and its parents, tree blocks that go or come, the
    /// bitmaps of its blocks.
    fn remove_cost(&self, depth: usize, extent: &Extent) -> u32 {
        self.alloc.free_credits(u64::from(extent.len)) + 5 * (depth as u32 + 1)
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

/// Extents that left the tree, and what happened to the tree's own blocks.
type Step = (Vec<Extent>, Delta);
