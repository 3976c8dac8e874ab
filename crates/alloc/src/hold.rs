//! Blocks that something outside may still write: they are freed like others, and come back to use when they are let go of.
//!
//! A device that was told to write to memory that shows a block (a pin of a DAX mapping) does so whenever it likes, also when the file
//! has lost the block and the transaction that freed it has committed. Until then the block is nobody's.

use std::collections::BTreeMap;

use extant_format::Pblk;
use extant_sync::Arc;

use crate::allocator::Allocator;
use crate::window::Taken;

/// Who is not to be used again, and what came back meanwhile.
#[derive(Default)]
pub(crate) struct Holds {
    /// By group and cluster, how many hold it.
    held: BTreeMap<(u32, u32), u32>,
    /// Freed and committed, by group and cluster: single ones.
    back: BTreeMap<(u32, u32), Taken>,
}

impl Holds {
    /// Keeps what is held of a freed run; the rest.
    fn keep(&mut self, freed: Taken) -> Vec<Taken> {
        let end = freed.start + freed.len;
        let held: Vec<u32> =
            self.held.range((freed.group, freed.start)..(freed.group, end)).map(|((_, at), _)| *at).collect();
        let mut free = Vec::new();
        let mut rest = freed;
        for at in held {
            let before = rest.cut(at - rest.start);
            free.extend((before.len > 0).then_some(before));
            self.back.insert((freed.group, at), rest.cut(1));
        }
        free.extend((rest.len > 0).then_some(rest));
        free
    }

    /// One holder less of a cluster; what may be used again now.
    fn let_go(&mut self, cluster: (u32, u32)) -> Option<Taken> {
        let count = self.held.get_mut(&cluster)?;
        *count -= 1;
        if *count > 0 {
            return None;
        }
        self.held.remove(&cluster);
        self.back.remove(&cluster)
    }
}

/// Blocks that are not used again while this is there.
pub struct Hold {
    alloc: Arc<Allocator>,
    clusters: Vec<(u32, u32)>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        for cluster in std::mem::take(&mut self.clusters) {
            let back = self.alloc.holds.lock().let_go(cluster);
            if let Some(back) = back {
                self.alloc.make_usable(back);
            }
        }
    }
}

impl Allocator {
    /// Keeps blocks in use, or freed from now on, from being used again until the result is dropped. Takes a leaf; dropping it takes 90.
    #[must_use]
    pub fn hold(self: &Arc<Self>, pblk: Pblk, len: u32) -> Hold {
        let mut clusters: Vec<(u32, u32)> = (pblk.0..pblk.0 + u64::from(len))
            .filter_map(|at| self.geo.bit_of_block(Pblk(at)))
            .map(|(group, bit)| (group.0, bit))
            .collect();
        clusters.dedup();
        let mut holds = self.holds.lock();
        for cluster in &clusters {
            *holds.held.entry(*cluster).or_insert(0) += 1;
        }
        drop(holds);
        Hold { alloc: Arc::clone(self), clusters }
    }

    /// Gives a freed run whose transaction has committed back to use, but for what is held.
    pub(crate) fn make_usable_unless_held(&self, freed: Taken) {
        let free = {
            let mut holds = self.holds.lock();
            if holds.held.is_empty() { vec![freed] } else { holds.keep(freed) }
        };
        free.into_iter().for_each(|run| self.make_usable(run));
    }
}

#[cfg(test)]
mod tests {
    use super::{Holds, Taken};

    const fn taken(start: u32, len: u32) -> Taken {
        Taken { group: 3, start, len }
    }

    #[test]
    fn what_is_held_comes_back_when_the_last_one_lets_go() {
        let mut holds = Holds::default();
        holds.held.extend([((3, 12), 2), ((3, 14), 1), ((2, 13), 1), ((4, 13), 1)]);
        assert_eq!(holds.keep(taken(0, 12)), [taken(0, 12)]);
        assert_eq!(holds.keep(taken(12, 4)), [taken(13, 1), taken(15, 1)]);
        assert_eq!(holds.let_go((3, 12)), None);
        assert_eq!(holds.let_go((3, 12)), Some(taken(12, 1)));
        assert_eq!(holds.let_go((3, 14)), Some(taken(14, 1)));
        // Let go of before it was freed.
        assert_eq!(holds.let_go((2, 13)), None);
        assert_eq!(holds.keep(taken(12, 4)), [taken(12, 4)]);
        assert!(holds.back.is_empty());
    }
}
