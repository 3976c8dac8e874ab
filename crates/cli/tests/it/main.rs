//! The program on real images.

mod info;
mod run;
