//! Trials of the whole filesystem that no single room can run alone.
//!
//! [`hostile`]: images that nobody should trust, read. [`assault`]: the same written to, and devices that fail. A short form
//! runs in `cargo test`, the long one is `cargo xtask fuzz --long`.

pub mod assault;
pub mod hostile;
pub mod warden;
