//! An image through the library, in this process, as a [`Target`].

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use extant::{
    Advice, FallocateMode, Filesystem, MapOptions, Mapping, OpenOptions, Paths, Protection, Setup, SyncMode,
};
use extant_device::{BlockDevice, Counting, ReadOnly};

use crate::Args;
use crate::mapped::time_each;
use crate::target::{Kind, Result, Target, TargetFile, TargetMap};

pub(crate) struct Image {
    paths: Paths,
    device: Arc<Counting>,
}

/// What reached the device.
pub(crate) struct Counts(Arc<Counting>);

impl Counts {
    pub(crate) fn json(&self) -> serde_json::Value {
        let c = self.0.counts();
        serde_json::json!({
            "reads": c.reads, "writes": c.writes, "flushes": c.flushes,
            "bytes_read": c.bytes_read, "bytes_written": c.bytes_written,
        })
    }
}

impl Image {
    /// Opens with a user's defaults; `ro=1` for reading only, `o=…` for mount options, `map_dir=…` for where the memory of mapped files
    /// is.
    pub(crate) fn open(path: &str, args: &Args) -> Result<Self> {
        let read_only = args.number("ro", 0)? != 0;
        let file = extant_device::OpenOptions::new().write(!read_only).open(path)?;
        let file: Arc<dyn BlockDevice> =
            if read_only { Arc::new(ReadOnly::new(Arc::new(file))) } else { Arc::new(file) };
        let device = Arc::new(Counting::new(file));
        let options = args.text("o", "");
        let mut setup = if read_only { Setup::read_only() } else { Setup::with_options(options)? };
        let map_dir = args.text("map_dir", "");
        setup.map_dir = (!map_dir.is_empty()).then(|| map_dir.into());
        let fs = Filesystem::open(Arc::clone(&device) as Arc<dyn BlockDevice>, setup)?;
        Ok(Self { paths: fs.paths(), device })
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts(Arc::clone(&self.device))
    }
}

impl Target for Image {
    fn mkdir(&self, path: &str) -> Result<()> {
        Ok(self.paths.create_dir(path)?)
    }

    fn create(&self, path: &str, data: &[u8]) -> Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).open(&self.paths, path)?;
        Ok(file.write_all_at(data, 0)?)
    }

    fn read(&self, path: &str, buf: &mut [u8]) -> Result<u64> {
        let file = self.paths.open(path)?;
        let mut total = 0;
        loop {
            match file.read_at(buf, total)? {
                0 => return Ok(total),
                n => total += n as u64,
            }
        }
    }

    fn list(&self, path: &str) -> Result<Vec<(String, Kind)>> {
        let mut out = Vec::new();
        for entry in self.paths.read_dir(if path.is_empty() { "/" } else { path })? {
            let entry = entry?;
            let kind = match entry.kind {
                Some(extant::FileType::Directory) => Kind::Dir,
                Some(extant::FileType::Regular) => Kind::File,
                _ => Kind::Other,
            };
            out.push((String::from_utf8_lossy(&entry.name).into_owned(), kind));
        }
        Ok(out)
    }

    fn stat(&self, path: &str) -> Result<u64> {
        Ok(self.paths.symlink_metadata(path)?.size)
    }

    fn remove_file(&self, path: &str) -> Result<()> {
        Ok(self.paths.remove_file(path)?)
    }

    fn remove_dir(&self, path: &str) -> Result<()> {
        Ok(self.paths.remove_dir(path)?)
    }

    fn open(&self, path: &str, create: bool) -> Result<Box<dyn TargetFile + '_>> {
        Ok(Box::new(ImageFile(
            OpenOptions::new().read(true).write(true).create(create).open(&self.paths, path)?,
        )))
    }

    fn sync(&self) -> Result<()> {
        Ok(self.paths.filesystem().sync()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.paths.filesystem().unmount()?)
    }
}

struct ImageFile(extant::File);

impl TargetFile for ImageFile {
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
        let (mode, keep_size) = FallocateMode::from_flags(mode)?;
        Ok(self.0.open_file().fallocate(mode, pos, len, keep_size)?)
    }

    fn map(&self) -> Result<Box<dyn TargetMap>> {
        let len = usize::try_from(self.0.metadata().size)?;
        let options = MapOptions { protection: Protection::READ_WRITE, ..MapOptions::default() };
        Ok(Box::new(OurMap(self.0.open_file().map(0, len, &options)?)))
    }
}

struct OurMap(Mapping);

impl TargetMap for OurMap {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        self.0.atomic_u64(at)
    }

    fn time_each(&self, into: &mut Vec<u64>) -> Result<()> {
        let all = 0..self.0.len();
        self.0.advise(all.clone(), Advice::Random)?;
        self.0.advise(all, Advice::DontNeed)?;
        time_each(self.0.len(), |at| self.0.atomic_u64(at).load(Relaxed), into);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(self.0.sync(0..self.0.len(), SyncMode::Sync)?)
    }
}
