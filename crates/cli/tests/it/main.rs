//! The program on real images.

mod both_ways;
mod edit;
mod info;
mod look;
mod mounted;
mod run;
mod transfer;
mod tree;
