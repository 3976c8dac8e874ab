//! Maps on real images: random operations against a plain reference, judged by e2fsck and debugfs.

mod fragments;
mod hostile;
mod random;
mod rig;
mod shift;
mod speed;
