//! Real mounts: the transport with the null server and with servers that misbehave.

#[macro_use]
extern crate extant_testkit;

mod direct;
mod ext4;
mod failing;
mod null;
mod odd;
mod placement;
mod rights;
mod served;
mod stale;
mod waits;
