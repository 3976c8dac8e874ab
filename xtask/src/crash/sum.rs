//! What runs of the lab add up to.

use std::collections::BTreeSet;
use std::fmt;

/// What one test of the lab did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    kind: String,
    scripts: u64,
    refused: u64,
    states: u64,
    images: u64,
    new: u64,
}

impl Part {
    /// Of `crash lab: 22 scripts, 0 refused, 1995 states, 45 distinct recovered images, 40 new: KIND`, wherever in the line that
    /// begins; other lines are none of its business.
    pub(super) fn of_line(line: &str) -> Option<Self> {
        let (counts, kind) = line.split_once("crash lab: ")?.1.split_once(": ")?;
        let mut numbers = counts.split(", ").map(|part| part.split(' ').next()?.parse().ok());
        let mut next = || numbers.next().flatten();
        Some(Self {
            kind: kind.trim().to_owned(),
            scripts: next()?,
            refused: next()?,
            states: next()?,
            images: next()?,
            new: next()?,
        })
    }
}

/// As the lab prints it.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, scripts, refused, states, images, new } = self;
        write!(
            f,
            "crash lab: {scripts} scripts, {refused} refused, {states} states, {images} distinct recovered images, {new} new: {kind}"
        )
    }
}

/// The last part in a record of which the line begins with `run`.
pub(super) fn latest(record: &str, run: &str) -> Option<Part> {
    let of_run = |line: &&str| line.strip_prefix(run).is_some_and(|rest| rest.starts_with(' '));
    record.lines().rev().find(of_run).and_then(Part::of_line)
}

/// Several parts together.
#[derive(Debug, Default)]
pub(super) struct Sum {
    pub(super) passed: bool,
    pub(super) states: u64,
    kinds: BTreeSet<String>,
    scripts: u64,
    refused: u64,
    images: u64,
    new: u64,
}

impl Sum {
    /// Of no parts: all that were run have passed.
    pub(super) fn none() -> Self {
        Self { passed: true, ..Self::default() }
    }

    pub(super) fn add(&mut self, part: &Part) {
        self.kinds.insert(part.kind.clone());
        self.scripts += part.scripts;
        self.refused += part.refused;
        self.states += part.states;
        self.images += part.images;
        self.new += part.new;
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} states of {} scripts on {} kinds of filesystem ({} scripts refused by a feature), each recovered by us and checked; {} distinct \
             recovered images of the parts, each checked by e2fsck and read by the kernel ({} of them now)",
            self.states,
            self.scripts,
            self.kinds.len(),
            self.refused,
            self.images,
            self.new,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Part, Sum, latest};

    const LINE: &str =
        "crash lab: 22 scripts, 4 refused, 1995 states, 45 distinct recovered images, 40 new: data_writeback";

    #[test]
    fn lines_of_the_lab_are_added_up() {
        let mut sum = Sum::none();
        // The test program may have begun the line.
        for line in [LINE, &format!("test crash::x ... {LINE}"), "test crash::y ... ok"] {
            Part::of_line(line).iter().for_each(|part| sum.add(part));
        }
        assert_eq!((sum.kinds.len(), sum.scripts, sum.refused), (1, 44, 8));
        assert_eq!((sum.states, sum.images, sum.new), (3990, 90, 80));
        assert_eq!(Part::of_line(LINE).unwrap().to_string(), LINE);
    }

    #[test]
    fn a_part_that_has_passed_is_found_again() {
        let record = format!("abc 1 ext2 1/8 {LINE}\nabc 1 ext2 11/8 x\nabc 1 ext2 2/8 {LINE}\n");
        assert_eq!(latest(&record, "abc 1 ext2 1/8"), Part::of_line(LINE));
        assert_eq!(latest(&record, "abc 1 ext2 1/80"), None);
        assert_eq!(latest(&record, "abc 2 ext2 1/8"), None);
    }
}
