//! Where the descriptors of this library are.
//!
//! A library inside somebody else's program must not take the low numbers, which programs believe to be theirs (`exec 3<file` of a
//! shell replaces whatever is there), and such a program must be able to tell which are the library's.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

/// What [`lift`] does.
struct Place {
    floor: i32,
    note: fn(i32),
}

static PLACE: OnceLock<Place> = OnceLock::new();

/// From now on descriptors that live as long as a filesystem have numbers of `floor` and above, as far as there are any, and `note` is
/// told each. The first call counts.
pub fn place(floor: i32, note: fn(i32)) {
    // A second caller finds the first one's choice.
    let _ = PLACE.set(Place { floor, note });
}

/// The same open file under a number where it belongs; `fd` itself where nobody has chosen, or where no number is left.
#[must_use]
pub fn lift(fd: OwnedFd) -> OwnedFd {
    let Some(place) = PLACE.get() else { return fd };
    let fd = rustix::io::fcntl_dupfd_cloexec(&fd, place.floor).unwrap_or(fd);
    (place.note)(fd.as_raw_fd());
    fd
}
