//! The pages of an inode by number, with a mark for the dirty ones.

use std::collections::BTreeMap;

use extant_sync::Arc;

use crate::page::{Page, Pages};

/// Pages of one leaf.
const FAN: u32 = 64;

/// Sparse array of pages: leaves of 64, by number of the leaf.
///
/// A page's dirty mark may stand although the page is clean (it is looked at under the page's lock); a dirty page without a
/// mark is only seen under its lock, or by who is writing it back.
#[derive(Default)]
pub(crate) struct PageIndex {
    /// Leaf 0, which is there when it is empty too: most files need no other, and no memory for finding it.
    first: Leaf,
    /// The others; none is empty.
    leaves: BTreeMap<u32, Leaf>,
    count: usize,
    marked: usize,
}

/// Holds only what is there: most files are small, and a leaf of places would be larger than all else that is kept of one.
#[derive(Default)]
struct Leaf {
    present: u64,
    marked: u64,
    /// The pages of the places in `present`, ascending.
    pages: Pages,
}

impl Leaf {
    /// How many pages are before a place: where its own is, or would be.
    fn rank(&self, slot: u32) -> usize {
        (self.present & ((1 << slot) - 1)).count_ones() as usize
    }

    fn get(&self, slot: u32) -> Option<&Arc<Page>> {
        if self.present & 1 << slot == 0 { None } else { self.pages.get(self.rank(slot)) }
    }
}

fn place(index: u32) -> (u32, u32, u64) {
    let slot = index % FAN;
    (index / FAN, slot, 1 << slot)
}

impl PageIndex {
    /// Pages in it.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Dirty marks in it.
    #[cfg(all(test, not(feature = "shuttle")))]
    pub(crate) fn marked(&self) -> usize {
        self.marked
    }

    fn leaf(&self, number: u32) -> Option<&Leaf> {
        if number == 0 { Some(&self.first) } else { self.leaves.get(&number) }
    }

    fn leaf_mut(&mut self, number: u32) -> Option<&mut Leaf> {
        if number == 0 { Some(&mut self.first) } else { self.leaves.get_mut(&number) }
    }

    /// The leaves from `number` on, with their numbers.
    fn leaves_from(&self, number: u32) -> impl Iterator<Item = (u32, &Leaf)> {
        let first = (number == 0).then_some((0, &self.first));
        first.into_iter().chain(self.leaves.range(number..).map(|(number, leaf)| (*number, leaf)))
    }

    pub(crate) fn find(&self, index: u32) -> Option<&Arc<Page>> {
        let (leaf, slot, _) = place(index);
        self.leaf(leaf)?.get(slot)
    }

    /// Pages `first..` in consecutive places, until one is absent, `take` says no, or `last` is passed.
    pub(crate) fn run(&self, first: u32, last: u32, mut take: impl FnMut(&Arc<Page>) -> bool) {
        let mut index = first;
        while let Some(leaf) = self.leaf(index / FAN) {
            loop {
                match leaf.get(index % FAN) {
                    Some(page) if take(page) => {}
                    _ => return,
                }
                if index == last {
                    return;
                }
                index += 1;
                if index.is_multiple_of(FAN) {
                    break;
                }
            }
        }
    }

    /// How many places from `first` on are empty, up to `last` inclusive.
    pub(crate) fn absent_run(&self, first: u32, last: u32) -> u32 {
        match self.next_present(first) {
            Some(next) if next <= last => next - first,
            _ => (last - first).saturating_add(1),
        }
    }

    /// Puts a page in an empty place.
    pub(crate) fn insert(&mut self, page: Arc<Page>) {
        let (leaf, slot, bit) = place(page.index);
        let leaf = if leaf == 0 { &mut self.first } else { self.leaves.entry(leaf).or_default() };
        assert!(leaf.present & bit == 0, "two pages in one place");
        let at = leaf.rank(slot);
        leaf.pages.insert(at, page);
        leaf.present |= bit;
        self.count += 1;
    }

    /// Puts a page in the place of the one with its number, whose mark it gets.
    pub(crate) fn replace(&mut self, page: Arc<Page>) {
        let (leaf, slot, bit) = place(page.index);
        let leaf = self.leaf_mut(leaf).filter(|l| l.present & bit != 0).expect("a page to replace");
        let at = leaf.rank(slot);
        leaf.pages[at] = page;
    }

    /// Takes a page out; its mark goes too, and whether it had one is returned.
    pub(crate) fn remove(&mut self, index: u32) -> Option<(Arc<Page>, bool)> {
        let (number, slot, bit) = place(index);
        let leaf = self.leaf_mut(number).filter(|l| l.present & bit != 0)?;
        let page = leaf.pages.remove(leaf.rank(slot));
        let was_marked = leaf.marked & bit != 0;
        leaf.present &= !bit;
        leaf.marked &= !bit;
        if leaf.present == 0 && number != 0 {
            self.leaves.remove(&number);
        }
        self.count -= 1;
        self.marked -= usize::from(was_marked);
        Some((page, was_marked))
    }

    /// Marks a page that is in it; whether that is new.
    pub(crate) fn mark(&mut self, index: u32) -> bool {
        let (leaf, _, bit) = place(index);
        let Some(leaf) = self.leaf_mut(leaf).filter(|l| l.present & bit != 0) else { return false };
        let new = leaf.marked & bit == 0;
        leaf.marked |= bit;
        self.marked += usize::from(new);
        new
    }

    /// Takes the marks of up to `most` pages from `first` to `last`, in ascending order.
    pub(crate) fn take_marked(&mut self, first: u32, last: u32, most: usize) -> Pages {
        let mut taken = Pages::new();
        let (from, to) = (first / FAN, last / FAN);
        let start = (from == 0).then_some((&0, &mut self.first));
        for (number, leaf) in start.into_iter().chain(self.leaves.range_mut(from..=to)) {
            let base = number * FAN;
            let mut marked = leaf.marked;
            while marked != 0 && taken.len() < most {
                let slot = marked.trailing_zeros();
                marked &= marked - 1;
                if base + slot < first || base + slot > last {
                    continue;
                }
                leaf.marked &= !(1 << slot);
                taken.extend(leaf.get(slot).cloned());
            }
        }
        self.marked -= taken.len();
        taken
    }

    /// Calls `look` for the pages from `from` on until it says no; the place of that page.
    pub(crate) fn each_from(&self, from: u32, mut look: impl FnMut(&Arc<Page>) -> bool) -> Option<u32> {
        for (number, leaf) in self.leaves_from(from / FAN) {
            let skip = if number == from / FAN { from % FAN } else { 0 };
            let mut rest = leaf.present >> skip << skip;
            while rest != 0 {
                let slot = rest.trailing_zeros();
                rest &= rest - 1;
                if !leaf.get(slot).is_none_or(&mut look) {
                    return Some(number * FAN + slot);
                }
            }
        }
        None
    }

    /// The first place from `from` on that has a page.
    pub(crate) fn next_present(&self, from: u32) -> Option<u32> {
        self.leaves_from(from / FAN).find_map(|(number, leaf)| {
            let skip = if number == from / FAN { from % FAN } else { 0 };
            let rest = leaf.present >> skip;
            (rest != 0).then(|| number * FAN + skip + rest.trailing_zeros())
        })
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
