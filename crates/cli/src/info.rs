//! `info`: what the superblock says.

use extant_device::BlockDevice;
use extant_format::superblock::{SbTime, State};
use extant_format::{RawSuperblock, Superblock};
use serde_json::{Value, json};

use crate::fail::{Failure, OnHost as _, Outcome};
use crate::image::ReadArgs;
use crate::out::Out;
use crate::show;

/// Byte of the device where the superblock is.
const SUPERBLOCK_AT: u64 = 1024;

/// Show what a filesystem says about itself: sizes, features, state, recorded errors
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ReadArgs,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// `extant info`
pub(crate) fn run(args: &Args) -> Outcome {
    let (device, live) = args.image.device()?;
    let name = &args.image.at.image;
    let mut bytes = [0; 1024];
    let at = args.image.at.superblock.map_or(Some(SUPERBLOCK_AT), |kib| kib.checked_mul(1024));
    let at = at.filter(|at| at.checked_add(bytes.len() as u64).is_some_and(|end| end <= device.size()));
    let at = at.ok_or_else(|| {
        let place = if args.image.at.superblock.is_some() { " at that place" } else { "" };
        Failure::new(format!("{}: {} bytes hold no ext4 filesystem{place}", name.display(), device.size()))
    })?;
    device.read_at(at, &mut bytes).on(name)?;
    let failed = |err: extant_format::FormatError| {
        let failure = Failure::new(format!("{}: {err}", name.display()));
        match extant_device::partitions(&*device) {
            Ok(parts) if !parts.is_empty() => {
                let numbers: Vec<String> = parts.iter().map(|p| p.number.to_string()).collect();
                failure.hint(format!("it is a disk with partitions {}: try --partition", numbers.join(", ")))
            }
            _ => failure,
        }
    };
    let raw = Superblock::raw_from(&bytes).map_err(failed)?;
    Superblock::check_magic(&raw).map_err(failed)?;
    let problem = Superblock::read(&bytes).err().map(|err| err.to_string());
    let mut out = Out::new();
    let facts = Facts { raw: &raw, device: &*device, live, problem };
    if args.json {
        out.json(&facts.json())?;
    } else {
        for (label, value) in facts.rows() {
            out.line(&format!("{label:<18} {value}"))?;
        }
    }
    out.finish()
}

struct Facts<'a> {
    raw: &'a RawSuperblock,
    device: &'a dyn BlockDevice,
    live: Option<String>,
    /// Why we would not mount it.
    problem: Option<String>,
}

/// A size computed from an exponent that may be anything.
fn power(log: u32) -> u64 {
    1024_u64.checked_shl(log).filter(|_| log <= 6).unwrap_or(0)
}

fn text(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

impl Facts<'_> {
    fn state(&self) -> String {
        let state = State::from_bits_retain(self.raw.s_state.get());
        let mut words = vec![if state.contains(State::VALID) { "clean" } else { "not clean" }];
        if state.contains(State::ERROR) {
            words.push("with errors");
        }
        if state.contains(State::ORPHAN) {
            words.push("orphans being recovered");
        }
        if self.raw.features().incompat.contains(extant_format::Incompat::RECOVER) {
            words.push("journal needs recovery");
        }
        words.join(", ")
    }

    fn time(&self, which: SbTime) -> String {
        match self.raw.time(which) {
            0 => "never".into(),
            seconds => format!("{} UTC", show::time(seconds as i64)),
        }
    }

    fn errors(&self) -> String {
        match self.raw.s_errors.get() {
            1 => "continue",
            3 => "panic",
            _ => "remount read-only",
        }
        .into()
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let raw = self.raw;
        let block = power(raw.s_log_block_size.get());
        let amount = |blocks: u64| format!("{blocks} ({})", show::size(blocks.saturating_mul(block)));
        let label = show::name(text(&raw.s_volume_name));
        let mut rows = vec![
            ("label", if label.is_empty() { "none".into() } else { label }),
            ("uuid", show::uuid(&raw.s_uuid)),
            ("state", self.state()),
            ("features", raw.features().to_string()),
            ("blocks", amount(raw.blocks_count())),
            ("free blocks", amount(raw.free_blocks_count())),
            ("reserved blocks", amount(raw.r_blocks_count())),
            ("block size", block.to_string()),
            ("blocks per group", raw.s_blocks_per_group.get().to_string()),
            ("inodes", raw.s_inodes_count.get().to_string()),
            ("free inodes", raw.s_free_inodes_count.get().to_string()),
            ("inode size", raw.s_inode_size.get().to_string()),
            ("inodes per group", raw.s_inodes_per_group.get().to_string()),
            ("journal", self.journal()),
            ("on errors", self.errors()),
            ("made", self.time(SbTime::Mkfs)),
            ("last mounted", self.last_mounted()),
            ("last written", self.time(SbTime::Write)),
            ("last checked", self.time(SbTime::LastCheck)),
            ("mounts", format!("{} since the last check", raw.s_mnt_count.get())),
            ("written in life", show::size(raw.s_kbytes_written.get().saturating_mul(1024))),
        ];
        if raw.s_log_cluster_size.get() != raw.s_log_block_size.get() {
            rows.push(("cluster size", power(raw.s_log_cluster_size.get()).to_string()));
        }
        if raw.s_error_count.get() > 0 {
            rows.push(("errors", raw.s_error_count.get().to_string()));
            rows.push(("first error", self.error(SbTime::FirstError)));
            rows.push(("last error", self.error(SbTime::LastError)));
        }
        if let Some(live) = &self.live {
            rows.push(("in use", live.clone()));
        }
        if self.device.size() < raw.blocks_count().saturating_mul(block) {
            rows.push(("truncated", format!("the image has {} bytes only", self.device.size())));
        }
        if let Some(problem) = &self.problem {
            rows.push(("problem", problem.clone()));
        }
        rows
    }

    fn last_mounted(&self) -> String {
        let time = self.time(SbTime::Mount);
        match text(&self.raw.s_last_mounted) {
            b"" => time,
            place => format!("{time} on {}", show::name(place)),
        }
    }

    fn journal(&self) -> String {
        let compat = self.raw.features().compat;
        if !compat.contains(extant_format::Compat::HAS_JOURNAL) {
            return "none".into();
        }
        match self.raw.s_journal_inum.get() {
            0 => format!("external, uuid {}", show::uuid(&self.raw.s_journal_uuid)),
            inode => format!("inode {inode}"),
        }
    }

    /// Inode, block, function and line of a recorded error.
    fn error_place(&self, which: SbTime) -> (u32, u64, [u8; 32], u32) {
        let raw = self.raw;
        match which {
            SbTime::FirstError => (
                raw.s_first_error_ino.get(),
                raw.s_first_error_block.get(),
                raw.s_first_error_func,
                raw.s_first_error_line.get(),
            ),
            _ => (
                raw.s_last_error_ino.get(),
                raw.s_last_error_block.get(),
                raw.s_last_error_func,
                raw.s_last_error_line.get(),
            ),
        }
    }

    /// A recorded error as an object; null while there is none.
    fn error_object(&self, which: SbTime) -> Value {
        if self.raw.s_error_count.get() == 0 {
            return Value::Null;
        }
        let (ino, block, func, line) = self.error_place(which);
        let mut object = json!({ "time": self.raw.time(which), "inode": ino, "block": block, "line": line });
        show::json_name(&mut object, "function", text(&func));
        object
    }

    fn error(&self, which: SbTime) -> String {
        let (ino, block, func, line) = self.error_place(which);
        format!("{}, inode {ino}, block {block}, in {}:{line}", self.time(which), show::name(text(&func)))
    }

    fn json(&self) -> Value {
        let raw = self.raw;
        let mut value = json!({
            "uuid": show::uuid(&raw.s_uuid),
            "state": self.state(),
            "clean": raw.s_state.get() & State::VALID.bits() != 0,
            "needs_recovery": raw.features().incompat.contains(extant_format::Incompat::RECOVER),
            "features": raw.features().to_string().split_whitespace().collect::<Vec<_>>(),
            "block_size": power(raw.s_log_block_size.get()),
            "cluster_size": power(raw.s_log_cluster_size.get()),
            "blocks": raw.blocks_count(),
            "free_blocks": raw.free_blocks_count(),
            "reserved_blocks": raw.r_blocks_count(),
            "blocks_per_group": raw.s_blocks_per_group.get(),
            "inodes": raw.s_inodes_count.get(),
            "free_inodes": raw.s_free_inodes_count.get(),
            "inode_size": raw.s_inode_size.get(),
            "inodes_per_group": raw.s_inodes_per_group.get(),
            "journal": self.journal(),
            "on_errors": self.errors(),
            "made": raw.time(SbTime::Mkfs),
            "last_mounted": raw.time(SbTime::Mount),
            "last_written": raw.time(SbTime::Write),
            "last_checked": raw.time(SbTime::LastCheck),
            "mounts_since_check": raw.s_mnt_count.get(),
            "kib_written": raw.s_kbytes_written.get(),
            "errors": raw.s_error_count.get(),
            "first_error": self.error_object(SbTime::FirstError),
            "last_error": self.error_object(SbTime::LastError),
            "device_bytes": self.device.size(),
            "in_use": self.live,
            "problem": self.problem,
        });
        show::json_name(&mut value, "label", text(&raw.s_volume_name));
        show::json_name(&mut value, "last_mounted_on", text(&raw.s_last_mounted));
        value
    }
}
