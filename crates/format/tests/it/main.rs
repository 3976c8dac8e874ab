//! The format against images that mke2fs makes.
mod mke2fs;
