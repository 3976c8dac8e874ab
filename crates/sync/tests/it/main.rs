//! The order check and the primitives, from outside.

#[cfg(feature = "shuttle")]
mod explore;
#[cfg(not(feature = "shuttle"))]
mod order;
