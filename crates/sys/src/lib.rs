//! The only crate with unsafe code: memory maps, aligned buffers, ioctls.
