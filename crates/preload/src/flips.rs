//! For tests: a thread that flips the DAX flag of a file as fast as it can (`EXTANT_TEST_FLIP_DAX`, a path from the root of the image).
//! Only with the feature `test-flips`.

use std::sync::{Arc, Weak};

use extant::{Credentials, Filesystem, InodeFlags, InodeRef};

use crate::user::complain;

/// Begins to flip, if the environment says so; ends with the filesystem.
pub(crate) fn start(fs: &Arc<Filesystem>) {
    let Some(path) = crate::config::variable(c"EXTANT_TEST_FLIP_DAX") else { return };
    let fs = Arc::downgrade(fs);
    std::thread::spawn(move || run(&fs, &path));
}

fn run(fs: &Weak<Filesystem>, path: &[u8]) {
    let cred = Credentials::root();
    let mut flips = 0_u64;
    while let Some(fs) = fs.upgrade() {
        match find(&fs, path, &cred) {
            Ok(inode) => match fs.set_flags(&inode, inode.attr().flags ^ InodeFlags::DAX, &cred) {
                Ok(()) => flips += 1,
                Err(extant::Error::Shutdown | extant::Error::ReadOnly) => break,
                // The disk may be full of what is dirty, and the like.
                Err(error) => complain(&format!("a flip: {error}")),
            },
            Err(extant::Error::Shutdown) => break,
            // Not made yet, or removed.
            Err(_) => std::thread::yield_now(),
        }
    }
    if std::env::var_os("EXTANT_TEST_FLIP_DAX_COUNT").is_some() {
        complain(&format!("{flips} flips"));
    }
}

fn find(fs: &Arc<Filesystem>, path: &[u8], cred: &Credentials) -> extant::Result<InodeRef> {
    crate::config::names(path).try_fold(fs.root()?, |dir, name| fs.lookup(&dir, name, cred))
}
