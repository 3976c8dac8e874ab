//! Files that can be moved: in an image that is open here, on a mount whose server does it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use extant::{Credentials, FallocateMode, FiemapExtent, FiemapHow, Filesystem, InodeRef, MoveRange, SetAttr};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::plan::Defraggable;
use crate::volume::Volume;

/// A range in blocks.
fn in_blocks(range: Range<u64>, block: u64) -> MoveRange {
    let start = range.start / block;
    MoveRange { orig_start: start, donor_start: start, len: range.end.div_ceil(block) - start }
}

/// A file in an image.
pub(super) struct InImage<'a> {
    fs: &'a Arc<Filesystem>,
    cred: &'a Credentials,
    inode: &'a InodeRef,
}

impl<'a> InImage<'a> {
    pub(super) fn new(volume: &'a Volume, inode: &'a InodeRef) -> Self {
        Self { fs: &volume.fs, cred: &volume.cred, inode }
    }
}

impl Defraggable for InImage<'_> {
    type Donor = InodeRef;

    fn block(&self) -> u64 {
        self.fs.geometry().block_size().into()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.inode.size())
    }

    fn extents(&self) -> io::Result<Vec<FiemapExtent>> {
        Ok(self.fs.fiemap(self.inode, 0, u64::MAX, FiemapHow::SYNC, usize::MAX)?)
    }

    fn donor(&self, ranges: &[Range<u64>]) -> io::Result<InodeRef> {
        let donor = self.fs.tmpfile(&self.fs.root()?, 0o600, self.cred)?;
        let size = SetAttr { size: Some(self.inode.size()), ..SetAttr::default() };
        self.fs.set_attr(&donor, &size, self.cred)?;
        for Range { start, end } in ranges.iter().cloned() {
            self.fs.fallocate(&donor, FallocateMode::Allocate, start, end - start, true, self.cred)?;
        }
        Ok(donor)
    }

    fn donor_extents(&self, donor: &InodeRef) -> io::Result<Vec<FiemapExtent>> {
        Ok(self.fs.fiemap(donor, 0, u64::MAX, FiemapHow::empty(), usize::MAX)?)
    }

    fn move_to(&self, donor: &InodeRef, range: Range<u64>) -> io::Result<u64> {
        let range = in_blocks(range, self.block());
        Ok(self.fs.move_extents(self.inode, donor, range, self.cred)? * self.block())
    }
}

/// A file on a mount of ours.
pub(super) struct OnMount {
    path: PathBuf,
    file: File,
    block: u64,
}

impl OnMount {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        let block = rustix::fs::fstatvfs(&file)?.f_bsize;
        Ok(Self { path: path.to_owned(), file, block })
    }
}

impl Defraggable for OnMount {
    type Donor = File;

    fn block(&self) -> u64 {
        self.block
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn extents(&self) -> io::Result<Vec<FiemapExtent>> {
        extant_fuse::private::fiemap(&self.file, 0, u64::MAX, FiemapHow::SYNC)
    }

    /// With O_DIRECT, so that the kernel caches nothing of it that would have to be dropped.
    fn donor(&self, ranges: &[Range<u64>]) -> io::Result<File> {
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::DIRECT;
        let donor = File::from(rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?);
        if donor.metadata()?.dev() != self.file.metadata()?.dev() {
            return Err(Errno::XDEV.into());
        }
        donor.set_len(self.file.metadata()?.len())?;
        for Range { start, end } in ranges.iter().cloned() {
            rustix::fs::fallocate(&donor, FallocateFlags::KEEP_SIZE, start, end - start)?;
        }
        Ok(donor)
    }

    fn donor_extents(&self, donor: &File) -> io::Result<Vec<FiemapExtent>> {
        extant_fuse::private::fiemap(donor, 0, u64::MAX, FiemapHow::empty())
    }

    fn move_to(&self, donor: &File, range: Range<u64>) -> io::Result<u64> {
        let moved = extant_fuse::private::move_ext(&self.file, donor, in_blocks(range, self.block))?;
        Ok(moved * self.block)
    }
}
