//! In debug builds: threads that touch memory of a mapping while they hold a ranked lock, which what answers may want.
//!
//! A message may be old by the time it is looked at: the thread that it names was let go since (another fault of the same page was
//! answered, a signal came), and holds what it holds by rights. So who is found holding something is a suspect first. It is woken
//! without an answer: if it waits, it faults again. That message is read by a read that began after the look, so the fault is one
//! after the look too; and who is found holding the very same things then has held them over that fault.

use extant_sync::HeldBy;
use rustc_hash::FxHashMap;

/// Who was found holding something.
#[derive(Default)]
pub(super) struct Suspects {
    reads: u64,
    /// By thread: what it held, and the read whose message was looked at.
    seen: FxHashMap<u32, (u64, Vec<u64>)>,
}

/// What is to be done with a fault.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is served.
    Innocent,
    /// Who waits there is to fault again.
    LookAgain,
    /// The thread held this while it faulted.
    Guilty(String),
}

impl Suspects {
    /// Messages are about to be read.
    pub(super) fn begin_read(&mut self) {
        self.reads += 1;
    }

    /// Judges the sender of a message of the last read by what it holds now.
    pub(super) fn judge(&mut self, thread: u32, held: &[HeldBy]) -> Verdict {
        let before = self.seen.remove(&thread).filter(|(read, _)| *read < self.reads);
        if held.is_empty() {
            return Verdict::Innocent;
        }
        if let Some((_, ids)) = before {
            let since: Vec<&str> =
                held.iter().filter(|h| ids.contains(&h.id)).map(|h| h.what.as_str()).collect();
            if !since.is_empty() {
                return Verdict::Guilty(since.join(", "));
            }
        }
        self.seen.insert(thread, (self.reads, held.iter().map(|h| h.id).collect()));
        Verdict::LookAgain
    }
}
