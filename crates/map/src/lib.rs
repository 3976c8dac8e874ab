//! Logical to physical: extent trees, indirect maps, extent-status cache.
