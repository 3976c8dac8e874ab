//! The allocator on real images, judged by e2fsck, dumpe2fs and the kernel; and its races, explored.

#[cfg(not(feature = "shuttle"))]
mod blocks;
#[cfg(not(feature = "shuttle"))]
mod corrupt;
#[cfg(feature = "shuttle")]
mod explore;
#[cfg(not(feature = "shuttle"))]
mod inodes;
#[cfg(not(feature = "shuttle"))]
mod rig;
#[cfg(not(feature = "shuttle"))]
mod space;
#[cfg(not(feature = "shuttle"))]
mod threads;
