//! Contents: from a directory or a tar archive into an image, in one pass and without a journal.
//!
//! | part | does |
//! |---|---|
//! | `tree` | what goes in: a tree of nodes with owners, times, attributes and where their bytes are |
//! | `scan`, `tarball` | reading it from a directory, from an archive ([`crate::archive`]) |
//! | `fit` | how large the filesystem must be |
//! | `fill` | numbers, blocks, inodes; everything is placed before data moves |
//! | `dirs`, `attrs` | directory blocks and hash trees; extended attributes |
//! | `copy` | file contents into place: large sequential writes by several threads |

mod attrs;
mod copy;
mod dirs;
mod fill;
mod fit;
mod scan;
mod tarball;
mod tree;

pub(crate) use fill::fill;
pub(crate) use fit::fit;
pub use tree::Tree;
