//! What is made against mke2fs, e2fsck and the kernel.
mod command;
mod matrix;
mod population;
mod support;
mod sweep;
