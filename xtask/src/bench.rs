//! `cargo xtask bench`: the same work on us, the kernel and the others, side by side.

use crate::proc::Verdict;

/// `cargo xtask bench`.
pub(crate) fn run(args: &[String]) -> Verdict {
    Err(format!("{args:?}: no benchmark has landed yet"))
}
