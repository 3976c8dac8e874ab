//! The index against an ordered map.

use extant_sync::Arc;
use std::collections::{BTreeMap, BTreeSet};

use extant_sys::PagePool;

use super::PageIndex;
use crate::page::Page;

#[test]
fn behaves_like_an_ordered_map() {
    let pool = PagePool::new(4096);
    let mut random = crate::testing::Random::new();
    let mut index = PageIndex::default();
    let mut model: BTreeMap<u32, bool> = BTreeMap::new();
    let span = 300;
    for _ in 0..20_000 {
        // Two far corners, so that leaves come and go.
        let base = [0, u32::MAX - span + 1][random.below(2) as usize];
        let at = base + random.below(u64::from(span)) as u32;
        match random.below(6) {
            0 if !model.contains_key(&at) => {
                index.insert(Arc::new(Page::new_locked(at, pool.take())));
                model.insert(at, false);
            }
            1 => {
                let got = index.remove(at).map(|(page, marked)| (page.index, marked));
                assert_eq!(got, model.remove(&at).map(|marked| (at, marked)));
            }
            2 => {
                let new = model.get_mut(&at).is_some_and(|marked| !std::mem::replace(marked, true));
                assert_eq!(index.mark(at), new);
            }
            3 => {
                let last = at.saturating_add(random.below(100) as u32);
                let most = random.below(10) as usize + 1;
                let got: Vec<u32> = index.take_marked(at, last, most).iter().map(|p| p.index).collect();
                let want: Vec<u32> = model
                    .range(at..=last)
                    .filter(|(_, marked)| **marked)
                    .map(|(i, _)| *i)
                    .take(most)
                    .collect();
                assert_eq!(got, want);
                for i in want {
                    model.insert(i, false);
                }
            }
            4 => {
                let last = at.saturating_add(random.below(200) as u32);
                let mut got = Vec::new();
                index.run(at, last, |page| {
                    got.push(page.index);
                    true
                });
                let want: Vec<u32> = (at..=last).take_while(|i| model.contains_key(i)).collect();
                assert_eq!(got, want);
                let absent = (at..=last).take_while(|i| !model.contains_key(i)).count();
                assert_eq!(index.absent_run(at, last) as usize, absent);
            }
            _ => {
                assert_eq!(index.find(at).map(|p| p.index), model.contains_key(&at).then_some(at));
                assert_eq!(index.next_present(at), model.range(at..).next().map(|(i, _)| *i));
            }
        }
        let marked: BTreeSet<_> = model.iter().filter(|(_, m)| **m).collect();
        assert_eq!((index.len(), index.marked()), (model.len(), marked.len()));
    }
}
