//! Mount options: which are the VFS's, which FUSE's, which ext4's.
//!
//! ext4's are parsed by [`extant::MountOptions`]; here they are only told apart.

use extant::AtimePolicy;
use rustix::mount::MountFlags;

use super::CommandError;
use crate::mount::MountEntry;
use crate::session::Transport;

/// On what an image file is mounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Attach {
    /// As root on a loop device as a token, so that sync(2) and umount(2) reach the server; plainly if that is
    /// refused.
    #[default]
    Auto,
    /// On a loop device, or not at all.
    Loop,
    /// Plainly.
    Plain,
}

/// The options of a mount, sorted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// ext4's, as they were given.
    pub ext4: String,
    /// Flags of mount(2).
    pub flags: MountFlags,
    /// `remount`.
    pub remount: bool,
    /// `allow_other`, `noallow_other`; by default only root allows others.
    pub allow_other: Option<bool>,
    /// `writeback_cache`, `nowriteback_cache`.
    pub writeback_cache: bool,
    /// `attach=auto|loop|plain`.
    pub attach: Attach,
    /// `readers=N`: threads that read requests, 0 for one per processor.
    pub readers: usize,
    /// `pin`: pin them to processors.
    pub pin: bool,
    /// `transport=dev|uring`: which way requests come.
    pub transport: Transport,
    /// `trace`: every request to the log.
    pub trace: bool,
    /// `offset=BYTES`: where the file system begins.
    pub offset: Option<u64>,
    /// `partition=N`: partition of a whole-disk image.
    pub partition: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ext4: String::new(),
            flags: MountFlags::empty(),
            remount: false,
            allow_other: None,
            writeback_cache: false,
            attach: Attach::Auto,
            readers: 0,
            pin: false,
            transport: Transport::default(),
            trace: false,
            offset: None,
            partition: None,
        }
    }
}

/// Options of mount(8), fstab(5) and systemd that concern others. Accepted and dropped.
const DROPPED: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "nofail",
    "_netdev",
    "loop",
    "suid",
    "dev",
    "exec",
    "symfollow",
    "async",
    "silent",
    "loud",
    "mand",
    "nomand",
];

/// The same with a value.
const DROPPED_WITH_VALUE: &[&str] = &["comment", "uhelper", "helper", "loop", "subtype", "fsname", "user"];

/// Why there is no `context=`.
const SELINUX: &str = "`context=`, `fscontext=`, `defcontext=`, `rootcontext=`, `seclabel`: a label for the whole mount is not \
     supported; SELinux's labels are the files' own (security.selinux)";

/// What says when access times change.
const ATIME_FLAGS: MountFlags =
    MountFlags::NOATIME.union(MountFlags::RELATIME).union(MountFlags::STRICTATIME);

/// The words that /proc/self/mountinfo has for these, but that it has none for the last.
const ATIME_WORDS: [(&str, MountFlags); 3] = [
    ("noatime", MountFlags::NOATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
];

/// Those for others, of the mount and of its filesystem.
const FLAG_WORDS: [(&str, MountFlags); 8] = [
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("nosymfollow", MountFlags::NOSYMFOLLOW),
    ("nodiratime", MountFlags::NODIRATIME),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("lazytime", MountFlags::LAZYTIME),
];

/// With which flags something is mounted.
pub(super) fn flags_of(entry: &MountEntry) -> MountFlags {
    let is = |word: &str| entry.options.split(',').chain(entry.super_options.split(',')).any(|w| w == word);
    let mut flags: MountFlags =
        FLAG_WORDS.iter().filter(|(word, _)| is(word)).map(|(_, flag)| *flag).collect();
    // The filesystem's: a mount of it can be read-only by itself.
    flags.set(MountFlags::RDONLY, entry.is_read_only());
    let atime = ATIME_WORDS.iter().find(|(word, _)| is(word));
    flags | atime.map_or(MountFlags::STRICTATIME, |(_, flag)| *flag)
}

/// The kernel's word for what the server does.
fn atime_flag(policy: AtimePolicy) -> MountFlags {
    match policy {
        AtimePolicy::Noatime => MountFlags::NOATIME,
        AtimePolicy::Relatime => MountFlags::RELATIME,
        AtimePolicy::Strictatime => MountFlags::STRICTATIME,
    }
}

impl Options {
    /// Sorts comma-separated options; later words win. Unknown words are taken for ext4's, whose parser refuses them.
    pub fn parse(list: &str) -> Result<Self, CommandError> {
        Self::parse_onto(list, MountFlags::empty())
    }

    /// The same for a remount of what is mounted with the flags `now`: those that no word changes stay.
    pub(super) fn parse_onto(list: &str, now: MountFlags) -> Result<Self, CommandError> {
        let mut options = Self { flags: now, ..Self::default() };
        for word in list.split(',').filter(|w| !w.is_empty()) {
            options.word(word)?;
        }
        // Refuses what nobody knows before anything is touched.
        let parse =
            |list: &str| extant::MountOptions::parse(list).map_err(|e| CommandError::usage(e.to_string()));
        let mut atime = parse(&options.ext4)?.atime;
        if options.names_atime() {
            // What the words leave as it is, the server leaves, and the kernel must say the same.
            if let Some((word, _)) = ATIME_WORDS.iter().find(|(_, flag)| now.contains(*flag)) {
                atime = parse(&format!("{word},{}", options.ext4))?.atime;
            }
            options.flags = (options.flags - ATIME_FLAGS) | atime_flag(atime);
        }
        Ok(options)
    }

    /// Whether a word says if it is read-only.
    pub(super) fn names_read_only(&self) -> bool {
        self.ext4.split(',').any(|word| ["ro", "rw"].contains(&word))
    }

    /// What of `asked` a second mount of what these options have mounted cannot have, in words: of the options of the server, which
    /// both share. ext4's own are not looked at.
    pub(super) fn not_shared(&self, asked: &Self) -> Vec<&'static str> {
        let differs = [
            ("offset=", asked.offset != self.offset),
            ("partition=", asked.partition != self.partition),
            ("allow_other", asked.allow_other.is_some_and(|others| others != self.lets_others())),
            ("writeback_cache", asked.writeback_cache && !self.writeback_cache),
            ("readers=", asked.readers != 0 && asked.readers != self.readers),
            ("pin", asked.pin && !self.pin),
            ("transport=", asked.transport != Transport::default() && asked.transport != self.transport),
            ("trace", asked.trace && !self.trace),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(word, _)| word).collect()
    }

    /// Whether others than who mounts may enter.
    pub(super) fn lets_others(&self) -> bool {
        self.allow_other.unwrap_or_else(|| rustix::process::geteuid().is_root())
    }

    fn names_atime(&self) -> bool {
        const WORDS: [&str; 6] =
            ["noatime", "atime", "relatime", "norelatime", "strictatime", "nostrictatime"];
        self.ext4.split(',').any(|word| WORDS.contains(&word))
    }

    fn word(&mut self, word: &str) -> Result<(), CommandError> {
        if word.starts_with("x-") || word.starts_with("X-") || DROPPED.contains(&word) {
            self.unset(word);
            return Ok(());
        }
        if let Some((name, value)) = word.split_once('=') {
            return self.with_value(name, value, word);
        }
        match word {
            "remount" => self.remount = true,
            "allow_other" => self.allow_other = Some(true),
            "noallow_other" => self.allow_other = Some(false),
            // As it is anyway.
            "default_permissions" => {}
            "nodefault_permissions" => {
                return Err(CommandError::usage(
                    "mount option `nodefault_permissions`: modes and ACLs are checked by the kernel, which does not say who asks; \
                     nobody would check them",
                ));
            }
            "writeback_cache" => self.writeback_cache = true,
            "nowriteback_cache" => self.writeback_cache = false,
            "pin" => self.pin = true,
            "nopin" => self.pin = false,
            "trace" => self.trace = true,
            "nosuid" => self.flags |= MountFlags::NOSUID,
            "nodev" => self.flags |= MountFlags::NODEV,
            "noexec" => self.flags |= MountFlags::NOEXEC,
            "nosymfollow" => self.flags |= MountFlags::NOSYMFOLLOW,
            "seclabel" => return Err(CommandError::usage(SELINUX)),
            _ => self.ext4_word(word),
        }
        Ok(())
    }

    /// Words that both ext4 and the VFS have.
    fn ext4_word(&mut self, word: &str) {
        match word {
            "ro" => self.flags |= MountFlags::RDONLY,
            "rw" => self.flags -= MountFlags::RDONLY,
            "sync" => self.flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => self.flags |= MountFlags::DIRSYNC,
            "nodiratime" => self.flags |= MountFlags::NODIRATIME,
            "diratime" => self.flags -= MountFlags::NODIRATIME,
            _ => {}
        }
        self.push(word);
    }

    fn unset(&mut self, word: &str) {
        match word {
            "suid" => self.flags -= MountFlags::NOSUID,
            "dev" => self.flags -= MountFlags::NODEV,
            "exec" => self.flags -= MountFlags::NOEXEC,
            "symfollow" => self.flags -= MountFlags::NOSYMFOLLOW,
            "async" => {
                self.flags -= MountFlags::SYNCHRONOUS;
                self.push(word);
            }
            _ => {}
        }
    }

    fn with_value(&mut self, name: &str, value: &str, word: &str) -> Result<(), CommandError> {
        let bad = || CommandError::usage(format!("bad value in mount option `{word}`"));
        match name {
            "attach" => {
                self.attach = match value {
                    "auto" => Attach::Auto,
                    "loop" => Attach::Loop,
                    "plain" => Attach::Plain,
                    _ => return Err(bad()),
                };
            }
            "transport" => {
                self.transport = match value {
                    "dev" => Transport::Device,
                    "uring" => Transport::Ring,
                    _ => return Err(bad()),
                };
            }
            "readers" => self.readers = value.parse().ok().filter(|n| *n <= 256).ok_or_else(bad)?,
            "offset" => self.offset = Some(value.parse().map_err(|_| bad())?),
            "partition" => self.partition = Some(value.parse().map_err(|_| bad())?),
            "context" | "fscontext" | "defcontext" | "rootcontext" => {
                return Err(CommandError::usage(SELINUX));
            }
            _ if DROPPED_WITH_VALUE.contains(&name) => {}
            _ => self.push(word),
        }
        Ok(())
    }

    fn push(&mut self, word: &str) {
        if !self.ext4.is_empty() {
            self.ext4.push(',');
        }
        self.ext4.push_str(word);
    }
}

#[cfg(test)]
mod tests;
