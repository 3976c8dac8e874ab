//! What of a file is to be moved: stretches that a donor has in fewer extents.

use std::io;
use std::ops::Range;

use extant::{FiemapExtent, FiemapFlags};
use rustix::io::Errno;

use crate::filefrag::fragments;

/// Blocks of the longest written extent.
const LONGEST: u64 = 32_768;
/// Bytes that are moved by one call, so that an interrupt is not kept waiting.
const AT_ONCE: u64 = 64 << 20;
/// Less than this is not tried apart when there is no space for more.
const LEAST: u64 = 4 << 20;

/// A file whose content can be moved.
pub(super) trait Defraggable {
    /// A file without a name that has blocks ready.
    type Donor;

    /// Bytes of a block.
    fn block(&self) -> u64;
    /// Where the content ends. What is preallocated behind that stays where it is: it is nobody's to move (`EXT4_IOC_MOVE_EXT`).
    fn size(&self) -> io::Result<u64>;
    /// Where the content is, all of it written.
    fn extents(&self) -> io::Result<Vec<FiemapExtent>>;
    /// A donor of the file's size with blocks for these bytes.
    fn donor(&self, ranges: &[Range<u64>]) -> io::Result<Self::Donor>;
    /// Where the donor's blocks are.
    fn donor_extents(&self, donor: &Self::Donor) -> io::Result<Vec<FiemapExtent>>;
    /// Moves content to the donor's blocks; how many bytes.
    fn move_to(&self, donor: &Self::Donor, range: Range<u64>) -> io::Result<u64>;
}

/// A file's extents, before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) before: usize,
    /// If nothing was to be done: as few as there can be.
    pub(super) after: usize,
    /// Runs on the device, before and as it is now ([`fragments`]).
    pub(super) fragments: (usize, usize),
    /// Bytes.
    pub(super) moved: u64,
}

/// Brings a file into fewer extents, if that can be; `dry_run`: says how few there could be.
pub(super) fn defragment(file: &impl Defraggable, dry_run: bool) -> io::Result<Change> {
    let extents = file.extents()?;
    let (before, runs) = (extents.len(), fragments(&extents));
    let extents = up_to(extents, file.size()?.next_multiple_of(file.block()));
    let candidates: Vec<Range<u64>> = stretches(&extents)
        .into_iter()
        .filter(|stretch| count(&extents, stretch) > fewest(&extents, stretch, file.block()))
        .collect();
    if candidates.is_empty() || dry_run {
        let saved: usize = candidates
            .iter()
            .map(|stretch| count(&extents, stretch) - fewest(&extents, stretch, file.block()))
            .sum();
        return Ok(Change { before, after: before - saved, fragments: (runs, runs), moved: 0 });
    }
    let moved = improve(file, &extents, &candidates)?;
    let extents = file.extents()?;
    Ok(Change { before, after: extents.len(), fragments: (runs, fragments(&extents)), moved })
}

/// What lies before `end`.
fn up_to(mut extents: Vec<FiemapExtent>, end: u64) -> Vec<FiemapExtent> {
    extents.retain(|extent| extent.logical < end);
    if let Some(last) = extents.last_mut() {
        last.length = last.length.min(end - last.logical);
    }
    extents
}

/// The parts of a file between its holes.
fn stretches(extents: &[FiemapExtent]) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    for extent in
        extents.iter().filter(|e| !e.flags.intersects(FiemapFlags::DATA_INLINE | FiemapFlags::MERGED))
    {
        let end = extent.logical + extent.length;
        match all.last_mut() {
            Some(last) if last.end == extent.logical => last.end = end,
            _ => all.push(extent.logical..end),
        }
    }
    all
}

/// How many extents begin in a range.
fn count(extents: &[FiemapExtent], range: &Range<u64>) -> usize {
    extents.iter().filter(|e| range.contains(&e.logical)).count()
}

/// With how few a stretch could do: one for each run of one state, which a long one needs several for.
fn fewest(extents: &[FiemapExtent], range: &Range<u64>, block: u64) -> usize {
    let mut runs: Vec<(FiemapFlags, u64)> = Vec::new();
    for extent in extents.iter().filter(|e| range.contains(&e.logical)) {
        let state = extent.flags & FiemapFlags::UNWRITTEN;
        match runs.last_mut() {
            Some((last, length)) if *last == state => *length += extent.length,
            _ => runs.push((state, extent.length)),
        }
    }
    let longest = |state: &FiemapFlags| if state.is_empty() { LONGEST } else { LONGEST - 1 };
    runs.iter().map(|(state, length)| (length / block).div_ceil(longest(state)) as usize).sum()
}

/// Finds a donor for the stretches, and moves those that have fewer extents there. If there is no space for all of them at once, a
/// half after the other.
fn improve<F: Defraggable>(file: &F, extents: &[FiemapExtent], stretches: &[Range<u64>]) -> io::Result<u64> {
    let donor = match file.donor(stretches) {
        Err(error) if is_no_space(&error) => {
            let Some((first, second)) = halves(stretches, file.block()) else { return Err(error) };
            return Ok(improve(file, extents, &first)? + improve(file, extents, &second)?);
        }
        donor => donor?,
    };
    let ready = file.donor_extents(&donor)?;
    let mut moved = 0;
    for stretch in stretches {
        if count(&ready, stretch) >= count(extents, stretch) {
            continue;
        }
        let mut at = stretch.start;
        while at < stretch.end {
            let to = stretch.end.min(at + AT_ONCE);
            moved += file.move_to(&donor, at..to)?;
            at = to;
        }
    }
    Ok(moved)
}

fn is_no_space(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno == Some(Errno::NOSPC) || errno == Some(Errno::DQUOT)
}

/// Stretches of bytes of a file.
type Stretches = Vec<Range<u64>>;

/// The two halves of stretches, by bytes; `None` if that is not worth it.
fn halves(stretches: &[Range<u64>], block: u64) -> Option<(Stretches, Stretches)> {
    let total: u64 = stretches.iter().map(|s| s.end - s.start).sum();
    if total < 2 * LEAST {
        return None;
    }
    let mut left = (total / 2).next_multiple_of(block);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for stretch in stretches {
        let cut = stretch.start + left.min(stretch.end - stretch.start);
        left -= cut - stretch.start;
        first.extend((cut > stretch.start).then_some(stretch.start..cut));
        second.extend((cut < stretch.end).then_some(cut..stretch.end));
    }
    Some((first, second))
}

#[cfg(test)]
mod tests;
