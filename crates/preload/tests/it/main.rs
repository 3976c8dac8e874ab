//! Unmodified programs over the preloaded library, beside the same programs on the kernel's ext4.

mod buffers;
mod ending;
mod limit;
mod programs;
mod semantics;
mod support;
