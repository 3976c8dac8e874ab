//! Trials of the whole filesystem that no single room can run alone.
//!
//! [`hostile`]: images that nobody should trust. A short form runs in `cargo test`, the long one is
//! `cargo xtask fuzz --long`.

pub mod hostile;
