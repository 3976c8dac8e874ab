//! The journal on a simulated device.

mod basic;
mod common;
