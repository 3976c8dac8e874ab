//! The filesystem as a library: mount, inodes, names, read and write.
