//! What is made against mke2fs, e2fsck and the kernel.
mod matrix;
mod support;
