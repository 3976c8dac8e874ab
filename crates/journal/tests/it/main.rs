//! The journal on a simulated device.

#[cfg(not(feature = "shuttle"))]
mod ahead;
#[cfg(not(feature = "shuttle"))]
mod basic;
mod common;
#[cfg(not(feature = "shuttle"))]
mod crash;
#[cfg(not(feature = "shuttle"))]
mod hostile;
#[cfg(not(feature = "shuttle"))]
mod oracle;
#[cfg(feature = "shuttle")]
mod schedule;
#[cfg(not(feature = "shuttle"))]
mod threads;
