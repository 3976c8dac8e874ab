//! The mount: FUSE requests to library calls.
