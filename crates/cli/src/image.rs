//! Which image, and how it is opened.

use std::path::PathBuf;
use std::sync::Arc;

use extant::{DaxMode, MountOptions, Setup};
use extant_device::{BlockDevice, FileDevice, OpenOptions, Window, partition_window};

use crate::fail::{Failure, Outcome};

/// The image that a command works on.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct ImageArgs {
    /// Image file or block device
    pub(crate) image: PathBuf,
    /// The filesystem begins at this byte of the image
    #[arg(long, value_name = "BYTES", conflicts_with = "partition")]
    offset: Option<u64>,
    /// The filesystem is in this partition (GPT or MBR, counted as Linux does)
    #[arg(long, value_name = "NUMBER")]
    partition: Option<u32>,
    /// The device or file with the filesystem's external journal
    #[arg(long, value_name = "PATH")]
    journal: Option<PathBuf>,
    /// Use the copy of the superblock at this place, in units of 1 KiB as the mount option `sb=`
    #[arg(long, value_name = "KIB")]
    pub(crate) superblock: Option<u64>,
}

/// The image that a command reads.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct ReadArgs {
    #[command(flatten)]
    pub(crate) at: ImageArgs,
    /// Read although the image is mounted or otherwise in use; what is shown may contradict itself
    #[arg(long)]
    force_read: bool,
    /// Read it as it is, without what its journal holds; an external journal is not needed then
    #[arg(long)]
    pub(crate) noload: bool,
}

impl ReadArgs {
    /// How it is opened for reading only.
    pub(crate) fn setup(&self) -> Outcome<Setup> {
        let options = MountOptions { read_only: true, noload: self.noload, ..self.at.options() };
        Ok(Setup { options, journal_device: self.at.journal(self.how())?, ..Setup::default() })
    }

    fn how(&self) -> OpenOptions {
        OpenOptions::new().force_read(self.force_read)
    }

    /// The device as it is, for reading only.
    pub(crate) fn device(&self) -> Outcome<(Arc<dyn BlockDevice>, Option<String>)> {
        let file = self.how().open(&self.at.image).map_err(|err| Failure::open(&err))?;
        let live = file.live().map(ToString::to_string);
        if let Some(live) = &live {
            eprintln!("extant: {}: {live}; what follows may contradict itself", self.at.image.display());
        }
        Ok((self.at.part_of(file)?, live))
    }
}

impl ImageArgs {
    /// The device for writing.
    pub(crate) fn writable(&self) -> Outcome<Arc<dyn BlockDevice>> {
        let file = OpenOptions::new().write(true).open(&self.image).map_err(|err| Failure::open(&err))?;
        self.part_of(file)
    }

    /// How it is opened for changing it.
    pub(crate) fn setup(&self) -> Outcome<Setup> {
        let journal_device = self.journal(OpenOptions::new().write(true))?;
        Ok(Setup { options: self.options(), journal_device, ..Setup::default() })
    }

    /// No command maps files, and `defrag` moves none that are in DAX mode.
    fn options(&self) -> MountOptions {
        MountOptions { sb: self.superblock, dax: Some(DaxMode::Never), ..MountOptions::default() }
    }

    /// The external journal, if one is named.
    fn journal(&self, how: OpenOptions) -> Outcome<Option<Arc<dyn BlockDevice>>> {
        let Some(path) = &self.journal else { return Ok(None) };
        let file = how.open(path).map_err(|err| Failure::open(&err))?;
        Ok(Some(Arc::new(file)))
    }

    fn part_of(&self, file: FileDevice) -> Outcome<Arc<dyn BlockDevice>> {
        let name = self.image.display();
        let device: Arc<dyn BlockDevice> = Arc::new(file);
        if let Some(number) = self.partition {
            let window =
                partition_window(device, number).map_err(|err| Failure::new(format!("{name}: {err}")))?;
            return Ok(Arc::new(window));
        }
        let Some(offset) = self.offset else { return Ok(device) };
        let len = device.size().checked_sub(offset).filter(|len| *len > 0);
        let len = len.ok_or_else(|| Failure::new(format!("{name}: it has no byte {offset}")))?;
        let window =
            Window::new(device, offset, len).map_err(|err| Failure::new(format!("{name}: {err}")))?;
        Ok(Arc::new(window))
    }
}
