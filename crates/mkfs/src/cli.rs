//! mke2fs's command line: options in any place, letters alone or together, values attached or apart.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use uuid::Uuid;

use crate::error::{Result, usage};
use crate::options::{Options, Source};
use crate::size::{parse_bytes, parse_size};

mod extended;

#[cfg(test)]
mod tests;

/// How the options are used.
pub const USAGE: &str = "\
usage: extant mkfs [-t ext2|ext3|ext4] [-b block-size] [-C cluster-size] [-i bytes-per-inode] [-I inode-size]
    [-N inodes] [-g blocks-per-group] [-G groups-per-flex-group] [-m reserved-percentage] [-O feature[,...]]
    [-E extended-option[,...]] [-J journal-option[,...]] [-T usage-type[,...]] [-L label] [-U UUID|clear|random]
    [-M last-mounted-directory] [-e continue|remount-ro|panic] [-r revision] [-o creator-os] [-d directory|tar|-]
    [--owner UID:GID] [--root-owner UID:GID] [-F] [-j] [-K] [-n] [-q] [-S] [-v] IMAGE [SIZE]";

/// What each option does; after [`USAGE`] in `--help`.
pub const HELP: &str = "\
Makes an ext2, ext3 or ext4 filesystem in IMAGE, empty or with contents. SIZE is a number of blocks, or has a suffix k, m, g or t;
without one the image's own size counts, or what the contents need.

  -t TYPE       ext2, ext3 or ext4 (default)
  -T TYPE,...   how it is used, with defaults from mke2fs.conf: floppy, small, big, huge, news, largefile, largefile4, ...
  -d SOURCE     contents: a directory, a tar archive (plain, gzip, zstd, xz), or - for one on standard input
  --owner UID:GID, --root-owner UID:GID
                owner of everything, of the root directory
  -b BYTES      block size, 1024 to 65536
  -C BYTES      cluster size (with -O bigalloc)
  -g BLOCKS     blocks in a group, clusters with bigalloc
  -G GROUPS     groups in a flexible group
  -i BYTES      an inode for so many bytes
  -I BYTES      inode size
  -N COUNT      inodes
  -m PERCENT    blocks reserved for root
  -O FEATURES   features to have, or with ^ not to have, separated by commas
  -j, -J LIST   a journal: size=MIB, fast_commit_size=KIB, location=BLOCK, device=JOURNAL
  -E LIST       stride, stripe_width, resize, offset, hash_seed, lazy_itable_init, lazy_journal_init,
                assume_storage_prezeroed, packed_meta_blocks, no_copy_xattrs, num_backup_sb, root_owner, root_perms, quotatype,
                orphan_file_size, mmp_update_interval, desc_size, discard, nodiscard, test_fs, revision
  -L LABEL, -U UUID|clear|random, -M DIRECTORY, -e ERRORS, -o OS, -r REVISION
                fields of the superblock
  -F            even over another filesystem
  -K            do not discard first (as -E nodiscard)
  -S            superblocks and descriptors only
  -n            only say what would be made
  -q, -v        say less, more

With SOURCE_DATE_EPOCH and -U the same contents give the same image to the byte. Options of mke2fs that are not here (-c, -l, -z, -D,
-E encoding) are refused by name.
";

/// A parsed command line.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "these are switches on a command line")]
pub struct Command {
    /// What the filesystem shall be like.
    pub options: Options,
    /// Where it shall be.
    pub image: PathBuf,
    /// `-q`: say nothing but errors and warnings.
    pub quiet: bool,
    /// `-v`: say more.
    pub verbose: bool,
    /// `-n`: only say what would be made.
    pub dry_run: bool,
    /// `-F`: even over another filesystem.
    pub force: bool,
    /// `-V`: only say the version.
    pub version: bool,
}

/// Letters that take a value.
const WITH_VALUE: &[u8] = b"tbCIiNLUmMgGrJOETdeofRlz";

/// Parses arguments (without the program's name).
///
/// # Errors
/// [`crate::MkfsError::Usage`] naming the argument and what is expected.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command> {
    let mut parser = Parser { operands: Vec::new(), command: empty() };
    let mut args = args.into_iter();
    let mut only_operands = false;
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        match bytes {
            b"--" if !only_operands => only_operands = true,
            [b'-', b'-', long @ ..] if !only_operands => parser.long(long, &mut args)?,
            [b'-', letters @ ..] if !only_operands && !letters.is_empty() => {
                parser.letters(letters, &mut args)?;
            }
            _ => parser.operands.push(arg),
        }
    }
    parser.finish()
}

fn empty() -> Command {
    Command {
        options: Options::default(),
        image: PathBuf::new(),
        quiet: false,
        verbose: false,
        dry_run: false,
        force: false,
        version: false,
    }
}

struct Parser {
    operands: Vec<OsString>,
    command: Command,
}

impl Parser {
    fn letters(&mut self, letters: &[u8], args: &mut impl Iterator<Item = OsString>) -> Result<()> {
        for (at, &letter) in letters.iter().enumerate() {
            if !WITH_VALUE.contains(&letter) {
                self.switch(letter)?;
                continue;
            }
            let rest = &letters[at + 1..];
            let value = if rest.is_empty() { args.next() } else { Some(OsString::from_vec(rest.to_vec())) };
            let Some(value) = value else {
                return usage(format!("-{}: a value is missing\n{USAGE}", char::from(letter)));
            };
            return self.value(letter, value);
        }
        Ok(())
    }

    fn switch(&mut self, letter: u8) -> Result<()> {
        let c = &mut self.command;
        match letter {
            b'q' => c.quiet = true,
            b'v' => c.verbose = true,
            b'n' => c.dry_run = true,
            b'F' => c.force = true,
            b'j' => c.options.journal = true,
            b'S' => c.options.super_only = true,
            b'K' => c.options.extended.discard = Some(false),
            b'V' => c.version = true,
            b'D' => return usage("-D: direct I/O is not supported; leave it out"),
            b'c' => return usage("-c: bad blocks are not searched for; run badblocks(8) by itself"),
            b'h' => return usage(USAGE),
            other => return usage(format!("-{}: unknown option\n{USAGE}", char::from(other))),
        }
        Ok(())
    }

    fn value(&mut self, letter: u8, value: OsString) -> Result<()> {
        if letter == b'd' {
            self.command.options.source = Some(source(value));
            return Ok(());
        }
        let Some(text) = value.to_str().map(str::to_owned) else {
            return usage(format!("-{}: the value is not UTF-8", char::from(letter)));
        };
        let text = text.as_str();
        let o = &mut self.command.options;
        match letter {
            b't' => o.fs_type = Some(text.to_owned()),
            b'T' => o.usage = Some(text.to_owned()),
            b'b' => o.block_size = Some(block_size(text)?),
            b'C' => o.cluster_size = Some(parse_bytes(text)?),
            b'I' => o.inode_size = Some(parse_bytes(text)?),
            b'i' => o.inode_ratio = Some(parse_bytes(text)?),
            b'N' => o.inodes = Some(number("-N", text)?),
            b'g' => o.blocks_per_group = Some(number("-g", text)?),
            b'G' => o.groups_per_flex = Some(number("-G", text)?),
            b'L' => o.label = Some(text.to_owned()),
            b'M' => o.last_mounted = Some(text.to_owned()),
            b'U' => self.uuid(text)?,
            b'm' => o.reserved_percent = Some(number("-m", text)?),
            b'r' => o.revision = Some(number("-r", text)?),
            b'O' => o.features.push(text.to_owned()),
            b'e' => o.errors = Some(errors(text)?),
            b'o' => o.creator_os = Some(creator_os(text)?),
            b'E' | b'R' => extended::extended(o, text)?,
            b'J' => extended::journal(o, text)?,
            b'l' => return usage("-l: lists of bad blocks are not supported; leave it out"),
            b'z' => return usage("-z: undo files are not supported; leave it out"),
            b'f' => return usage("-f: fragments do not exist; leave it out"),
            _ => return usage(format!("-{}: unknown option\n{USAGE}", char::from(letter))),
        }
        Ok(())
    }

    fn uuid(&mut self, text: &str) -> Result<()> {
        let o = &mut self.command.options;
        match text {
            "clear" => o.uuid_clear = true,
            "random" | "time" => o.uuid = None,
            _ => o.uuid = Some(uuid("-U", text)?),
        }
        Ok(())
    }

    fn long(&mut self, name: &[u8], args: &mut impl Iterator<Item = OsString>) -> Result<()> {
        let (name, attached) = match name.iter().position(|&b| b == b'=') {
            Some(at) => (&name[..at], Some(OsString::from_vec(name[at + 1..].to_vec()))),
            None => (name, None),
        };
        let name = String::from_utf8_lossy(name).into_owned();
        let mut value = || match attached.clone().or_else(|| args.next()) {
            Some(v) => v.into_string().or_else(|_| usage(format!("--{name}: the value is not UTF-8"))),
            None => usage(format!("--{name}: a value is missing")),
        };
        match name.as_str() {
            "owner" => self.command.options.owner = Some(owner("--owner", &value()?)?),
            "root-owner" => {
                self.command.options.extended.root_owner = Some(owner("--root-owner", &value()?)?);
            }
            "help" => return usage(USAGE),
            other => return usage(format!("--{other}: unknown option\n{USAGE}")),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Command> {
        if self.command.version {
            return Ok(self.command);
        }
        let mut operands = self.operands.into_iter();
        let Some(image) = operands.next() else {
            return usage(format!("the image is missing\n{USAGE}"));
        };
        self.command.image = image.into();
        if let Some(size) = operands.next() {
            self.command.options.size = Some(parse_size(&size.to_string_lossy())?);
        }
        match operands.next() {
            Some(more) => usage(format!("'{}' is one argument too many\n{USAGE}", more.to_string_lossy())),
            None => Ok(self.command),
        }
    }
}

fn source(value: OsString) -> Source {
    if value == "-" { Source::Stdin } else { Source::Path(value.into()) }
}

fn number<T: std::str::FromStr>(what: &str, text: &str) -> Result<T> {
    text.parse().or_else(|_| usage(format!("{what} {text}: not a number that fits")))
}

fn block_size(text: &str) -> Result<i64> {
    match text.strip_prefix('-') {
        Some(rest) => Ok(-(parse_bytes(rest)? as i64)),
        None => Ok(parse_bytes(text)? as i64),
    }
}

fn uuid(what: &str, text: &str) -> Result<[u8; 16]> {
    match Uuid::parse_str(text) {
        Ok(uuid) => Ok(*uuid.as_bytes()),
        Err(_) => usage(format!("{what} {text}: not a UUID like 2f7c0a3e-0d5b-4f57-9d0e-6a1c2b3d4e5f")),
    }
}

fn errors(text: &str) -> Result<u16> {
    match text {
        "continue" => Ok(1),
        "remount-ro" => Ok(2),
        "panic" => Ok(3),
        _ => usage(format!("-e {text}: continue, remount-ro or panic")),
    }
}

fn creator_os(text: &str) -> Result<u32> {
    match text.to_ascii_lowercase().as_str() {
        "linux" | "0" => Ok(0),
        "hurd" | "gnu" | "1" => Ok(1),
        "masix" | "2" => Ok(2),
        "freebsd" | "3" => Ok(3),
        "lites" | "4" => Ok(4),
        number => number
            .parse()
            .or_else(|_| usage(format!("-o {text}: linux, hurd, masix, freebsd, lites, or a number"))),
    }
}

/// `UID:GID`, or `UID` for both.
fn owner(what: &str, text: &str) -> Result<(u32, u32)> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    match (uid.parse(), gid.parse()) {
        (Ok(uid), Ok(gid)) => Ok((uid, gid)),
        _ => usage(format!("{what} {text}: give numbers, UID:GID")),
    }
}
