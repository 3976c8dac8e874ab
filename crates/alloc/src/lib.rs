//! Block and inode allocation: groups, bitmaps, buddy allocator, claims, reservations.
