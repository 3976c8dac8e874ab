//! A whole command: open the image, make, say what was made.

use std::fs::Metadata;
use std::io::Write;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;

use extant_device::{BlockDevice, FileDevice, OpenOptions, Window};
use extant_format::superblock::EXT4_SUPER_MAGIC;

use crate::cli::Command;
use crate::conf::Conf;
use crate::error::{Result, invalid};
use crate::layout::Layout;
use crate::params::Params;
use crate::populate::{self, Tree};
use crate::progress::Progress;
use crate::writer::device_error;
use crate::{Made, journal_dev, make_with, rehearse};

/// Where mke2fs.conf is, unless `MKE2FS_CONFIG` says otherwise.
const CONF: &str = "/etc/mke2fs.conf";

/// Does what a parsed command line asks for and writes what a person should know to `out`; `progress` hears how far
/// it is.
///
/// # Errors
/// [`crate::MkfsError`]; the image may then be half made.
pub fn run(command: &Command, out: &mut dyn Write, progress: &dyn Progress) -> Result<()> {
    if command.version {
        return say(out, &format!("extant mkfs {}, layout of mke2fs 1.47\n", env!("CARGO_PKG_VERSION")));
    }
    let options = &command.options;
    let conf = load_conf(options.conf.as_deref());
    let existing = std::fs::metadata(&command.image).ok();
    refuse_overwriting(command, existing.as_ref())?;
    let tree = match &options.source {
        Some(source) => Some(Tree::read(source, options, progress)?),
        None => None,
    };
    let device_bytes = match (&existing, options.size) {
        (Some(meta), None) => Some(space_of(&command.image, meta)?),
        (Some(meta), Some(_)) if meta.file_type().is_block_device() => Some(space_of(&command.image, meta)?),
        _ => None,
    };
    let params = match &tree {
        Some(tree) => populate::fit(options, &conf, device_bytes.filter(|&b| b != 0), tree)?,
        None => Params::resolve(options, &conf, device_bytes)?,
    };
    if params.is_journal_device() {
        return journal_dev::run(command, &params, out);
    }
    if let Some(journal) = &params.journal_device
        && !command.force
    {
        journal_dev::refuse_use(journal, params.block_size, params.uuid)?;
    }
    let layout = Layout::new(&params)?;
    if !command.quiet {
        describe(out, &layout)?;
    }
    if !options.super_only {
        // What is there stays as it is where this cannot be made, and what is not there does not come.
        rehearse(&params, tree.as_ref())?;
    }
    if command.dry_run {
        return Ok(());
    }
    let (device, zeroed) = open(command, &params, existing.as_ref())?;
    let made = make_with(&params, device, zeroed, tree.as_ref(), options.super_only, progress)?;
    warn(&made)
}

/// The configuration at `path`, else where `MKE2FS_CONFIG` or e2fsprogs has it.
fn load_conf(path: Option<&Path>) -> Conf {
    let from_env = std::env::var_os("MKE2FS_CONFIG");
    match (path, from_env) {
        (Some(path), _) => Conf::load(path),
        (None, Some(path)) => Conf::load(Path::new(&path)),
        (None, None) => Conf::load(Path::new(CONF)),
    }
}

fn warn(made: &Made) -> Result<()> {
    for warning in &made.warnings {
        say(&mut std::io::stderr(), &format!("extant mkfs: note: {warning}\n"))?;
    }
    Ok(())
}

pub(crate) fn say(out: &mut dyn Write, text: &str) -> Result<()> {
    out.write_all(text.as_bytes()).map_err(device_error("writing to the terminal"))
}

fn refuse_overwriting(command: &Command, existing: Option<&Metadata>) -> Result<()> {
    if command.force
        || command.dry_run
        || command.options.super_only
        || existing.is_none_or(|m| m.len() < 2048 && m.is_file())
    {
        return Ok(());
    }
    let offset = command.options.extended.offset.unwrap_or(0);
    let device = OpenOptions::new().force_read(true).open(&command.image)?;
    let mut magic = [0; 2];
    if device.size() < offset.saturating_add(2048) {
        return Ok(());
    }
    device.read_at(offset + 1024 + 0x38, &mut magic).map_err(device_error("looking at the image"))?;
    if u16::from_le_bytes(magic) == EXT4_SUPER_MAGIC {
        let path = command.image.display();
        return invalid(format!(
            "{path} already holds an ext2, ext3 or ext4 filesystem; use -F to make a new one over it"
        ));
    }
    Ok(())
}

/// Bytes of an image file or block device.
fn space_of(path: &Path, meta: &Metadata) -> Result<u64> {
    if meta.is_file() {
        return Ok(meta.len());
    }
    Ok(OpenOptions::new().force_read(true).open(path)?.size())
}

/// Opens the image for writing, as large as needed, and says whether it reads as zeros.
pub(crate) fn open(
    command: &Command,
    params: &Params,
    existing: Option<&Metadata>,
) -> Result<(Arc<dyn BlockDevice>, bool)> {
    let e = &command.options.extended;
    let offset = e.offset.unwrap_or(0);
    let bytes = params.blocks * u64::from(params.block_size);
    let end = offset + bytes;
    let whole_file = existing.is_none_or(|m| m.is_file() && m.len() <= end) && offset == 0;
    if whole_file && !command.options.super_only {
        return Ok((Arc::new(FileDevice::create(&command.image, end)?), true));
    }
    if let Some(meta) = existing
        && meta.is_file()
        && meta.len() < end
    {
        let file = std::fs::OpenOptions::new().write(true).open(&command.image);
        file.and_then(|f| f.set_len(end)).map_err(device_error("growing the image file"))?;
    } else if existing.is_none() {
        FileDevice::create(&command.image, end)?;
    }
    let file = OpenOptions::new().write(true).open(&command.image)?;
    let block_device = file.is_block_device();
    let device: Arc<dyn BlockDevice> =
        Arc::new(Window::new(Arc::new(file), offset, bytes).map_err(device_error("using the offset"))?);
    if command.options.super_only {
        return Ok((device, false));
    }
    let discard = e.discard.unwrap_or(true);
    let zeroed = match (block_device, discard) {
        // Old contents of an image file must not show through: a hole costs nothing.
        (false, true) => device.write_zeroes(0, bytes).is_ok(),
        (true, true) => {
            // A hint: a device without discard is written over where it matters.
            let _ = device.discard(0, bytes);
            false
        }
        (_, false) => false,
    };
    Ok((device, zeroed || e.prezeroed.unwrap_or(false)))
}

fn describe(out: &mut dyn Write, layout: &Layout) -> Result<()> {
    let geo = layout.geometry();
    let uuid = uuid::Uuid::from_bytes(layout.sb.uuid());
    let size = if geo.block_size() >= 1024 { format!("{}k", geo.block_size() / 1024) } else { String::new() };
    let mut text = format!(
        "Creating filesystem with {} {size} blocks and {} inodes\nFilesystem UUID: {uuid}\n",
        geo.blocks_count(),
        geo.inodes_count()
    );
    let backups: Vec<String> =
        geo.super_groups().skip(1).filter_map(|g| geo.super_block(g)).map(|b| b.to_string()).collect();
    if !backups.is_empty() {
        text += &format!("Superblock backups stored on blocks:\n\t{}\n", backups.join(", "));
    }
    say(out, &text)
}
