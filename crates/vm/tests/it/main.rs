//! The page cache on a simulated file and device.

#[cfg(feature = "shuttle")]
mod dax;
#[cfg(feature = "shuttle")]
mod explore;
#[cfg(not(feature = "shuttle"))]
mod failures;
#[cfg(feature = "shuttle")]
mod faults;
#[cfg(feature = "shuttle")]
mod holds;
#[cfg(not(feature = "shuttle"))]
mod limits;
#[cfg(feature = "shuttle")]
mod map_sync;
#[cfg(not(feature = "shuttle"))]
mod model;
#[cfg(feature = "shuttle")]
mod once;
#[cfg(feature = "shuttle")]
mod ranges;
#[cfg_attr(feature = "shuttle", expect(dead_code, reason = "the explored scenarios use a part of it"))]
mod sim;
#[cfg(not(feature = "shuttle"))]
mod speed;
#[cfg(feature = "shuttle")]
mod transfers;
