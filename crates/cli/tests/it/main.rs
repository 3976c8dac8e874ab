//! The program on real images.

mod edit;
mod info;
mod look;
mod run;
mod tree;
