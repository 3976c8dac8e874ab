//! External journals: making the device (`-O journal_dev`), and entering a filesystem into one (`-J device=`).

use std::io::Write;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use extant_device::{BlockDevice, FileDevice, OpenOptions};
use extant_format::jbd2::{
    CompatFeatures, IncompatFeatures, MAX_USERS, NewJournal, Superblock as JournalSuperblock,
};
use extant_format::superblock::EXT4_SUPER_MAGIC;
use extant_format::{Incompat, RawSuperblock, Superblock};
use zerocopy::IntoBytes as _;

use crate::cli::Command;
use crate::error::{Result, invalid};
use crate::layout::{set_hash_seed, set_times};
use crate::params::Params;
use crate::run::{open, say};
use crate::writer::device_error;

/// The block of the journal's own superblock: behind the one with the filesystem superblock.
const fn journal_block(block_size: u32) -> u64 {
    if block_size == 1024 { 2 } else { 1 }
}

/// Makes an external journal.
pub(crate) fn run(command: &Command, params: &Params, out: &mut dyn Write) -> Result<()> {
    if params.blocks < 1024 + journal_block(params.block_size) {
        return invalid(format!("a journal of {} blocks is too small; 1024 are needed", params.blocks));
    }
    let Ok(blocks) = u32::try_from(params.blocks) else {
        return invalid("an external journal has at most 4294967295 blocks");
    };
    if !command.quiet {
        say(
            out,
            &format!("Creating an external journal of {blocks} blocks of {} bytes\n", params.block_size),
        )?;
    }
    if command.dry_run {
        return Ok(());
    }
    let existing = std::fs::metadata(&command.image).ok();
    let (device, _) = open(command, params, existing.as_ref())?;
    let new = NewJournal {
        block_size: params.block_size,
        blocks,
        fast_commit_blocks: 0,
        external: Some(journal_block(params.block_size) as u32),
        uuid: params.uuid,
    };
    let mut block = vec![0; params.block_size as usize];
    block[..1024].copy_from_slice(&new.superblock().to_bytes());
    let write =
        |at: u64, bytes: &[u8]| device.write_at(at, bytes).map_err(device_error("writing the journal"));
    write(journal_block(params.block_size) * u64::from(params.block_size), &block)?;
    write(1024, superblock(params).as_bytes())?;
    device.flush().map_err(device_error("flushing the journal"))
}

/// The filesystem superblock of a journal device: size, UUID, label, the one feature.
fn superblock(p: &Params) -> RawSuperblock {
    let mut sb = RawSuperblock::zeroed();
    let log = p.block_size.trailing_zeros() - 10;
    sb.s_magic.set(EXT4_SUPER_MAGIC);
    sb.s_state.set(1);
    sb.s_errors.set(p.errors);
    sb.s_rev_level.set(1);
    sb.set_blocks_count(p.blocks);
    sb.s_first_data_block.set(u32::from(p.block_size == 1024));
    sb.s_log_block_size.set(log);
    sb.s_log_cluster_size.set(log);
    sb.s_blocks_per_group.set((p.block_size * 8).min(65528));
    sb.s_clusters_per_group.set((p.block_size * 8).min(65528));
    sb.s_first_ino.set(11);
    sb.s_inode_size.set(p.inode_size);
    if p.inode_size > 128 {
        sb.s_min_extra_isize.set(32);
        sb.s_want_extra_isize.set(32);
    }
    set_hash_seed(&mut sb, p);
    sb.s_default_mount_opts.set(p.default_mount_opts);
    sb.s_max_mnt_count.set(u16::MAX);
    sb.s_feature_incompat.set(Incompat::JOURNAL_DEV.bits());
    sb.s_uuid = p.uuid;
    sb.s_volume_name[..p.label.len()].copy_from_slice(&p.label);
    set_times(&mut sb, p.time);
    sb
}

/// A journal at hand.
pub(crate) struct Found {
    device: FileDevice,
    /// Byte of its superblock, and the superblock.
    at: u64,
    log: JournalSuperblock,
    /// Its UUID.
    pub(crate) uuid: [u8; 16],
    /// Its device number as `s_journal_dev` has it, 0 for a file.
    pub(crate) number: u32,
}

impl Found {
    /// Whether it lists another filesystem than `user`.
    fn has_others(&self, user: [u8; 16]) -> bool {
        self.log.users().iter().any(|u| *u != user)
    }

    fn is_empty(&self) -> bool {
        self.log.start() == 0
    }

    /// Enters the filesystem `user`, if it is not there yet. What the log holds, or says of an error, is of a filesystem that was there
    /// before, with the same UUID perhaps: nothing of it must reach the new one. Where others use the journal too its log is
    /// empty ([`look`]), and stays as it is.
    pub(crate) fn join(mut self, user: [u8; 16]) -> Result<()> {
        let empties = !self.has_others(user) && (!self.is_empty() || self.log.errno() != 0);
        let enters = !self.log.users().contains(&user);
        if empties {
            empty(&mut self.log);
        }
        if enters && !self.log.add_user(user) {
            return invalid("no further filesystem can use the journal");
        }
        if !empties && !enters {
            return Ok(());
        }
        let fail = device_error("writing the journal device");
        self.device.write_at(self.at, &self.log.to_bytes()).map_err(&fail)?;
        self.device.flush().map_err(&fail)
    }
}

/// A journal's superblock with nothing left of who used it: an empty log, no error, and the features of a new one (a mount adds
/// others).
fn empty(log: &mut JournalSuperblock) {
    log.pass_over_log();
    log.set_errno(0);
    log.clear_head();
    log.set_features(CompatFeatures::empty(), IncompatFeatures::empty());
}

/// Refuses a journal of another filesystem than `user`, and one with changes that it would lose.
pub(crate) fn refuse_use(path: &Path, block_size: u32, user: [u8; 16]) -> Result<()> {
    let found = look(path, block_size, user)?;
    if found.has_others(user) {
        return refuse(
            path,
            "another filesystem uses it, and e2fsck cannot check filesystems that share a journal; \
             use another one, or -F to share it",
        );
    }
    if !found.is_empty() {
        return refuse(
            path,
            "its log holds changes that its filesystem does not have yet; \
             mount that one or check it with e2fsck -j first, or use -F to drop them",
        );
    }
    Ok(())
}

/// Looks whether the file or device at `path` is a journal that the filesystem `user` can use; not while its log holds changes of
/// another one.
pub(crate) fn look(path: &Path, block_size: u32, user: [u8; 16]) -> Result<Found> {
    let device = OpenOptions::new().write(true).open(path)?;
    let fail = device_error("reading the journal device");
    let mut bytes = [0; 1024];
    device.read_at(1024, &mut bytes).map_err(&fail)?;
    let raw = Superblock::raw_from(&bytes)?;
    let journal = Incompat::from_bits_retain(raw.s_feature_incompat.get()).contains(Incompat::JOURNAL_DEV);
    if raw.s_magic.get() != EXT4_SUPER_MAGIC || !journal {
        return refuse(path, "not an external journal; make one with -O journal_dev");
    }
    if raw.s_log_block_size.get() != block_size.trailing_zeros() - 10 {
        return refuse(path, &format!("its block size is not {block_size}; give both the same -b"));
    }
    let at = journal_block(block_size) * u64::from(block_size);
    let mut log = [0; 1024];
    device.read_at(at, &mut log).map_err(&fail)?;
    let Ok(log) = JournalSuperblock::decode(&log, block_size, raw.blocks_count()) else {
        return refuse(path, "its superblock is damaged; make it anew with -O journal_dev");
    };
    let meta = std::fs::metadata(path).map_err(&fail)?;
    let number = if meta.file_type().is_block_device() { meta.rdev() as u32 } else { 0 };
    let found = Found { device, at, log, uuid: raw.s_uuid, number };
    let users = found.log.users();
    if users.len() == MAX_USERS as usize && !users.contains(&user) {
        return refuse(path, "no further filesystem can use it");
    }
    if !found.is_empty() && found.has_others(user) {
        return refuse(
            path,
            "its log holds changes of another filesystem; mount that one or check it with e2fsck -j first",
        );
    }
    Ok(found)
}

fn refuse<T>(path: &Path, what: &str) -> Result<T> {
    invalid(format!("-J device={}: {what}", path.display()))
}
