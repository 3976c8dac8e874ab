//! `extant fsck`: arguments, text, exit status.

use crate::{Options, Report, Severity, check_with_journal, json, need_not_be_checked};
use extant_device::{BlockDevice, OpenOptions, Window, partition_window};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// How the command is called.
pub const SYNOPSIS: &str = "extant fsck [-n] [-f] [--json] [-b SUPERBLOCK] [-B BLOCKSIZE] [-j JOURNAL]
           [--offset BYTES | --partition NUMBER] [--force-read] IMAGE";

/// What it does.
pub const HELP: &str = "\
Checks the ext2, ext3 or ext4 filesystem in IMAGE and changes nothing. Without -f, one that says that it is clean is not
checked, as e2fsck does not: its superblock and descriptors are in order, it was unmounted, has no errors on record, no journal to
recover, and no check due for its mounts or its age.

  -f            check even if the filesystem says that it is clean
  -n            answer no to everything (always so: nothing is repaired)
  -y, -p        refused: this command does not repair
  -b BLOCK      use the superblock in this block
  -B BYTES      the block size that goes with -b
  -j JOURNAL    the device or file with the filesystem's external journal; without it such a filesystem cannot be checked.
                (An external journal as IMAGE is checked alone.)
  --offset BYTES, --partition NUMBER
                where in the image the filesystem is (GPT or MBR, counted as Linux does)
  --json        print the report as JSON: image, clean, checked (false: it says that it is clean), exit_status, inodes,
                inodes_count, blocks, blocks_count, directories (null if not checked), left_out (findings beyond the first
                10,000), and findings, each with pass, place, kind, severity, values, text
  --force-read  check although the image is in use

Exit status: 0 clean, 4 errors were found, 8 the check could not be done, 16 wrong arguments.
";

/// What the arguments ask for.
struct Request {
    image: PathBuf,
    journal: Option<PathBuf>,
    json: bool,
    force_read: bool,
    force: bool,
    part: Option<Part>,
    options: Options,
}

/// Where in the image the filesystem is.
#[derive(Clone, Copy)]
enum Part {
    Offset(u64),
    Number(u32),
}

impl Part {
    fn of(self, device: Arc<dyn BlockDevice>) -> Result<Arc<dyn BlockDevice>, String> {
        match self {
            Self::Number(number) => partition_window(device, number)
                .map(|w| Arc::new(w) as Arc<dyn BlockDevice>)
                .map_err(|e| e.to_string()),
            Self::Offset(offset) => {
                let len = device.size().checked_sub(offset).filter(|len| *len > 0);
                let len = len.ok_or_else(|| format!("it has no byte {offset}"))?;
                Window::new(device, offset, len)
                    .map(|w| Arc::new(w) as Arc<dyn BlockDevice>)
                    .map_err(|e| e.to_string())
            }
        }
    }
}

/// Runs the command on its arguments (without the program's and the command's name) and returns the exit status.
pub fn run(args: impl IntoIterator<Item = OsString>, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let request = match parse(args) {
        Ok(Some(request)) => request,
        Ok(None) => {
            let _ = writeln!(out, "usage: {SYNOPSIS}\n\n{}", HELP.trim_end());
            return 0;
        }
        Err(message) => {
            let _ = writeln!(err, "extant fsck: {message}\nusage: {SYNOPSIS}\n\n{}", HELP.trim_end());
            return 16;
        }
    };
    let image = request.image.display().to_string();
    let file = match OpenOptions::new().force_read(request.force_read).open(&request.image) {
        Ok(file) => Arc::new(file),
        Err(e) => {
            let _ = writeln!(err, "extant fsck: {e}");
            return 8;
        }
    };
    let device = match request.part.map_or(Ok(file.clone() as Arc<dyn BlockDevice>), |part| part.of(file)) {
        Ok(device) => device,
        Err(e) => {
            let _ = writeln!(err, "extant fsck: {image}: {e}");
            return 8;
        }
    };
    let journal =
        request.journal.as_ref().map(|path| OpenOptions::new().force_read(request.force_read).open(path));
    let journal = match journal.transpose() {
        Ok(journal) => journal,
        Err(e) => {
            let _ = writeln!(err, "extant fsck: {e}");
            return 8;
        }
    };
    let journal = journal.as_ref().map(|file| file as &dyn BlockDevice);
    let stated =
        if request.force { None } else { need_not_be_checked(&*device, journal, &request.options, now()) };
    let checked = stated.is_none();
    let report = match stated {
        Some(totals) => Report { totals, clean: true, ..Report::default() },
        None => check_with_journal(&*device, journal, &request.options),
    };
    let text = match (request.json, checked) {
        (true, _) => json::report(&report, &image, checked) + "\n",
        (false, true) => human(&report, &image),
        (false, false) => stated_clean(&report, &image),
    };
    match out.write_all(text.as_bytes()) {
        Ok(()) => report.exit_status(),
        Err(_) => 8,
    }
}

/// Seconds since the epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Request>, String> {
    let (mut image, mut json, mut force_read, mut force) = (None, false, false, false);
    let (mut superblock, mut block_size, mut part, mut journal) = (None, None, None, None);
    let mut args = args.into_iter();
    let mut plain = false;
    while let Some(arg) = args.next() {
        let text = arg.to_str().unwrap_or_default().to_owned();
        let mut number = |what: &str| -> Result<u64, String> {
            let value = args.next().ok_or(format!("{what} wants a number"))?;
            value
                .to_str()
                .and_then(|v| v.parse().ok())
                .ok_or(format!("{what}: not a number: {}", value.display()))
        };
        match text.as_str() {
            _ if plain || !text.starts_with('-') || text == "-" => {
                if image.replace(PathBuf::from(arg)).is_some() {
                    return Err("more than one image".into());
                }
            }
            "--" => plain = true,
            "-h" | "--help" => return Ok(None),
            "--json" => json = true,
            "--force-read" => force_read = true,
            "-b" => superblock = Some(number("-b")?),
            "-B" => block_size = Some(number("-B")?),
            "-j" => journal = Some(PathBuf::from(args.next().ok_or("-j wants a device")?)),
            "--offset" => part = Some(Part::Offset(number("--offset")?)),
            "--partition" => {
                let number = number("--partition")?;
                part = Some(Part::Number(u32::try_from(number).map_err(|_| "--partition: not a number")?));
            }
            "-y" | "-p" | "-a" => return Err(format!("{text}: repairing is not supported, only checking")),
            _ if text[1..].chars().all(|c| "nfvtC".contains(c)) => force |= text.contains('f'),
            _ => return Err(format!("unknown option {text}")),
        }
    }
    let image = image.ok_or("no image given")?;
    let mut options = Options::default();
    if let Some(block) = superblock {
        let size = block_size.unwrap_or(if block == 8193 { 1024 } else { 4096 });
        let valid = (1024..=65536).contains(&size) && size.is_power_of_two();
        let size = u32::try_from(size).ok().filter(|_| valid).ok_or("-B: not a block size")?;
        options.superblock = Some((block, size));
    }
    Ok(Some(Request { image, journal, json, force_read, force, part, options }))
}

/// One that was not checked, in e2fsck's words.
fn stated_clean(report: &Report, image: &str) -> String {
    let t = &report.totals;
    format!("{image}: clean, {}/{} files, {}/{} blocks\n", t.inodes, t.inodes_count, t.blocks, t.blocks_count)
}

fn human(report: &Report, image: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    let mut pass = None;
    for finding in &report.findings {
        if pass.replace(finding.pass) != Some(finding.pass) {
            let _ = writeln!(out, "{}:", finding.pass.name());
        }
        let mark = if finding.kind.severity() == Severity::Note { "  (note) " } else { "  " };
        let _ = writeln!(out, "{mark}{finding}");
    }
    if report.left_out > 0 {
        let _ = writeln!(out, "and {} more", report.left_out);
    }
    let t = &report.totals;
    let verdict = match (report.is_fatal(), report.is_clean()) {
        (true, _) => "the check could not be finished",
        (false, true) => "clean",
        (false, false) => "errors found",
    };
    let _ = writeln!(
        out,
        "{image}: {verdict}, {}/{} inodes, {}/{} blocks, {} directories",
        t.inodes, t.inodes_count, t.blocks, t.blocks_count, t.directories
    );
    out
}
