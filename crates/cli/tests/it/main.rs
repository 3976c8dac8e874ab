//! The program on real images.

mod edit;
mod fsck;
mod info;
mod look;
mod run;
mod tree;
