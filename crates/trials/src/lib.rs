//! Trials of the whole filesystem: what no single room can test alone.
//!
//! | module | what |
//! |---|---|
//! | [`crash`] | the space of crash scripts, cutting, recovering, judging |
//!
//! Short forms run in `cargo test`, long ones through `cargo xtask`.

pub mod crash;
