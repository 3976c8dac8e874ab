//! A directory of a mounted filesystem as a [`Target`].

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use extant_sys::FileMap;

use crate::mapped::PAGE;
use crate::target::{Kind, Result, Target, TargetFile, TargetMap};

pub(crate) struct Dir {
    root: PathBuf,
}

impl Dir {
    pub(crate) fn new(root: &str) -> Self {
        Self { root: root.into() }
    }
}

impl Target for Dir {
    fn mkdir(&self, path: &str) -> Result<()> {
        Ok(fs::create_dir(self.root.join(path))?)
    }

    fn create(&self, path: &str, data: &[u8]) -> Result<()> {
        Ok(OpenOptions::new().write(true).create_new(true).open(self.root.join(path))?.write_all(data)?)
    }

    fn read(&self, path: &str, buf: &mut [u8]) -> Result<u64> {
        let mut file = File::open(self.root.join(path))?;
        let mut total = 0;
        loop {
            match file.read(buf)? {
                0 => return Ok(total),
                n => total += n as u64,
            }
        }
    }

    fn list(&self, path: &str) -> Result<Vec<(String, Kind)>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(self.root.join(path))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let kind = if kind.is_dir() {
                Kind::Dir
            } else if kind.is_file() {
                Kind::File
            } else {
                Kind::Other
            };
            out.push((entry.file_name().to_string_lossy().into_owned(), kind));
        }
        Ok(out)
    }

    fn stat(&self, path: &str) -> Result<u64> {
        // lstat(2): what the standard library asks for, the time of birth, is not in the reply to a LOOKUP.
        let size = rustix::fs::lstat(self.root.join(path))?.st_size;
        Ok(u64::try_from(size)?)
    }

    fn remove_file(&self, path: &str) -> Result<()> {
        Ok(fs::remove_file(self.root.join(path))?)
    }

    fn remove_dir(&self, path: &str) -> Result<()> {
        Ok(fs::remove_dir(self.root.join(path))?)
    }

    fn open(&self, path: &str, create: bool) -> Result<Box<dyn TargetFile + '_>> {
        let file = OpenOptions::new().read(true).write(true).create(create).open(self.root.join(path))?;
        Ok(Box::new(DirFile(file)))
    }

    fn sync(&self) -> Result<()> {
        // syncfs says nothing to a server behind plain `fuse`, so the root is fsynced too: a commit on ext4.
        let root = File::open(&self.root)?;
        root.sync_all()?;
        Ok(rustix::fs::syncfs(&root)?)
    }

    fn mounted_at(&self) -> Option<&Path> {
        Some(&self.root)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct DirFile(File);

impl TargetFile for DirFile {
    fn read_at(&self, pos: u64, buf: &mut [u8]) -> Result<usize> {
        Ok(self.0.read_at(buf, pos)?)
    }

    fn write_at(&self, pos: u64, data: &[u8]) -> Result<()> {
        Ok(self.0.write_all_at(data, pos)?)
    }

    fn fsync(&self) -> Result<()> {
        Ok(self.0.sync_all()?)
    }

    fn fallocate(&self, mode: u32, pos: u64, len: u64) -> Result<()> {
        Ok(rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::from_bits_retain(mode), pos, len)?)
    }

    fn map(&self) -> Result<Box<dyn TargetMap>> {
        let len = usize::try_from(self.0.metadata()?.len())?;
        Ok(Box::new(KernelMap(FileMap::new(&self.0, len)?)))
    }
}

struct KernelMap(FileMap);

impl TargetMap for KernelMap {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        self.0.atomic_u64(at)
    }

    fn time_each(&self, _: &mut Vec<u64>) -> Result<()> {
        Err(format!("single faults of {PAGE} bytes are timed on an image").into())
    }

    fn sync(&self) -> Result<()> {
        Ok(self.0.sync()?)
    }
}
