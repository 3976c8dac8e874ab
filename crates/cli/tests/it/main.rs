//! The program on real images.

#[macro_use]
extern crate extant_testkit;

mod archives;
mod both_ways;
mod edit;
mod exec;
mod extents;
mod external;
mod fallocate_table;
mod fsck;
mod info;
mod killed;
mod look;
mod mount;
mod mounted;
mod quota;
mod run;
mod second_mount;
mod transfer;
mod tree;
mod user;
