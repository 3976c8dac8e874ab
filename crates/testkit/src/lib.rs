//! What tests need and the product must not contain: outside oracles, a simulated device, a reference model,
//! scenario scripts.
//!
//! | module | what |
//! |---|---|
//! | [`mod@env`] | what this machine has (tools, root, loop devices), scratch folders in memory, `SEED=` |
//! | [`oracle`] | `mke2fs`, `e2fsck`, `debugfs`, `dumpe2fs` as functions |
//! | [`kernel`] | loop devices and kernel mounts that go away with their guard, panics included |
//! | [`sim`] | a device in memory that records writes and flushes, fails on demand and can be cut off anywhere |
//! | [`tree`] | a directory tree as a value: contents, metadata, xattrs, holes; and what differs between two |
//! | [`model`] | a POSIX filesystem tree in a few hundred lines, the reference |
//! | [`crash`] | the crash lab's script space, and what a crash may leave of a script |
//! | [`script`] | scenario scripts, and the executors that they run on |
//! | [`rng`] | the seeded generator that all of them use |
//!
//! Only ever a dev-dependency (or a dependency of test programs). No unsafe, no sleeping, no retrying.

pub mod crash;
pub mod env;
pub mod kernel;
pub mod model;
pub mod oracle;
pub mod rng;
pub mod script;
pub mod sim;
pub mod tree;

pub use env::{Scratch, scratch, seed};
pub use rng::Rng;
pub use sim::SimDevice;
