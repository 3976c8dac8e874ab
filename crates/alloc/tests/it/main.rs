//! The allocator on real images, judged by e2fsck, dumpe2fs and the kernel.

mod blocks;
mod corrupt;
mod inodes;
mod rig;
mod space;
mod threads;
