//! Crash trials: scripts with syncs between their operations, run on a simulated device that is then cut off in every
//! way that its fault model allows. Each state is recovered, read, checked, and compared with what was promised.
//!
//! | module | what |
//! |---|---|
//! | [`space`] | which scripts there are |
//! | [`history`] | what the model says after each operation, by inode |
//! | [`judge`] | whether a recovered tree is one that the promises allow |

pub mod history;
pub mod judge;
pub mod space;

#[cfg(test)]
mod tests;
