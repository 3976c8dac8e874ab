//! The journal on a simulated device.

mod basic;
mod common;
mod crash;
mod hostile;
mod oracle;
