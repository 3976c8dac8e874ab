//! Writing to images that nobody should trust, and to devices that fail: a filesystem mounted for writing on such an
//! image may refuse, fail or turn read-only, but it never panics, hangs, or takes memory without bound, and it unmounts.

use std::ops::ControlFlow;
use std::sync::Arc;

use extant::{
    Credentials, Error, FallocateMode, FiemapHow, FileType, Filesystem, Ino, InodeFlags, InodeRef, MoveRange,
    NewInode, RenameFlags, SeekKind, SetAttr, SetTime, Setup, ShutdownMode, Timestamp, WriteFlags, XattrSet,
};
use extant_device::BlockDevice;
use extant_fsck::Kind as Found;
use extant_testkit::sim::{Content, Failpoint, Kind};
use extant_testkit::{Rng, SimDevice};

use crate::hostile::{Bases, damage};

/// Names that are tried beside those that the image has.
const NAMES: &[&str] = &["a", "b", "c", "a-name-of-some-length-7", "small", "dir", "lost+found", "many"];
/// Inodes to work on at most.
const POOL: usize = 48;
/// Bytes of a write at most.
const WRITE_LIMIT: u64 = 200_000;
/// `EXT4_ERROR_FS` of `s_state`.
const ERRORS_SEEN: u16 = 2;

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it could be mounted for writing.
    pub mounted: bool,
    /// Operations that went well.
    pub done: u64,
    /// Operations that failed.
    pub failed: u64,
    /// Whether unmounting reported an error.
    pub unclean: bool,
}

/// Mounts for writing, runs `operations` random operations, and unmounts.
pub fn assault(device: Arc<dyn BlockDevice>, options: &str, operations: u64, rng: &mut Rng) -> Outcome {
    let setup = Setup::with_options(options).unwrap_or_else(|err| panic!("{options}: {err}"));
    let Ok(fs) = Filesystem::open(device, setup) else { return Outcome::default() };
    let outcome = Outcome { mounted: true, ..Outcome::default() };
    let mut attack = Attack { fs: &fs, cred: Credentials::root(), rng, known: Vec::new(), outcome };
    attack.look_around();
    for _ in 0..operations {
        attack.step();
    }
    let early = attack.rng.chance(1, 2);
    let Attack { mut known, mut outcome, .. } = attack;
    if early {
        known.clear();
    }
    outcome.unclean = fs.unmount().is_err();
    drop(known);
    outcome
}

/// What is on the device after some operations, without an unmount: an image whose journal is to be replayed.
///
/// # Panics
/// When the image does not mount.
#[must_use]
pub fn interrupted(content: Content, rng: &mut Rng) -> Content {
    let device = SimDevice::from_content(content);
    device.set_recording(false);
    let fs =
        Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap_or_else(|err| panic!("{err}"));
    let mut attack =
        Attack { fs: &fs, cred: Credentials::root(), rng, known: Vec::new(), outcome: Outcome::default() };
    attack.look_around();
    for _ in 0..80 {
        attack.step();
    }
    // Some of the changes are committed, whatever became of the rest.
    let _ = fs.sync();
    let content = device.content();
    drop(attack);
    let _ = fs.shutdown(ShutdownMode::NoFlush, &Credentials::root());
    let _ = fs.unmount();
    content
}

/// Damages one of the images by the seed and writes to it. What comes out of it is looked at by the checker, which has
/// no opinion here: it must only come to an end.
#[must_use]
pub fn damaged(bases: &Bases, seed: u64) -> Outcome {
    let mut rng = Rng::new(seed);
    let mut content = bases.pick(&mut rng);
    damage(&mut content, &mut rng);
    let options =
        *rng.pick(&["errors=continue", "errors=continue", "errors=remount-ro", "errors=continue,nodelalloc"]);
    let device = SimDevice::from_content(content);
    device.set_recording(false);
    let operations = 1 + rng.below(120);
    let outcome = assault(Arc::clone(&device) as _, options, operations, &mut rng);
    let _ = extant_fsck::check(&*device, &extant_fsck::Options::default());
    outcome
}

/// Writes to one of the healthy images, chosen by the seed, while the device fails here and there. Once the device is
/// well again the image must recover to a consistent filesystem; `Err` says what is wrong with it. `KEEP=FILE` keeps the image as it
/// was before the recovery.
///
/// # Errors
/// The findings of the checker, or why it does not mount any more.
pub fn failing(bases: &Bases, seed: u64) -> Result<Outcome, String> {
    let mut rng = Rng::new(seed);
    let (name, content) = bases.pick_journalled(&mut rng);
    let device = SimDevice::from_content(content);
    device.set_recording(false);
    sabotage(&device, &mut rng);
    let options = *rng.pick(&["errors=continue", "errors=remount-ro"]);
    let operations = 1 + rng.below(150);
    let outcome = assault(Arc::clone(&device) as _, options, operations, &mut rng);
    device.heal();
    if let Ok(path) = std::env::var("KEEP") {
        device.content().to_file(path.as_ref()).map_err(|err| format!("{path}: {err}"))?;
    }
    let recovered = SimDevice::from_content(device.content());
    recovered.set_recording(false);
    let fs = Filesystem::open(Arc::clone(&recovered) as _, Setup::default())
        .map_err(|err| format!("{name}: does not mount after the failure: {err}"))?;
    // That errors were seen is written in the superblock. It asks for a check; what only that check gives back (nobody could write
    // down that it is free) may be left over then.
    let noted = fs.superblock().state().bits() & ERRORS_SEEN != 0;
    fs.unmount().map_err(|err| format!("{name}: unmount after recovery: {err}"))?;
    drop(fs);
    let report = extant_fsck::check(&*recovered, &extant_fsck::Options::default());
    let excused = |kind: &Found| match kind {
        Found::ZeroDtime { .. } | Found::BlockMarkedUsed { .. } | Found::InodeMarkedUsed { .. } => noted,
        _ => false,
    };
    let wrong: Vec<String> =
        report.errors().filter(|finding| !excused(&finding.kind)).map(ToString::to_string).collect();
    if wrong.is_empty() {
        Ok(outcome)
    } else {
        Err(format!("{name}, {outcome:?}, errors recorded: {noted}\n{}", wrong.join("\n")))
    }
}

/// Makes single operations of the device fail, now or later, once or for good.
fn sabotage(device: &SimDevice, rng: &mut Rng) {
    for _ in 0..1 + rng.below(3) {
        let kind = *rng.pick(&[Kind::Read, Kind::Write, Kind::Write, Kind::Flush]);
        let from = match kind {
            Kind::Read => rng.below(400),
            Kind::Write => rng.below(300),
            Kind::Flush => rng.below(20),
        };
        let point =
            if rng.chance(1, 3) { Failpoint::all_from(kind, from) } else { Failpoint::nth(kind, from) };
        device.fail(if rng.chance(1, 4) { point.with_errno(28) } else { point });
    }
}

struct Attack<'a> {
    fs: &'a Arc<Filesystem>,
    cred: Credentials,
    rng: &'a mut Rng,
    /// Inodes, with the names in them.
    known: Vec<(InodeRef, Vec<Vec<u8>>)>,
    outcome: Outcome,
}

impl Attack<'_> {
    /// Collects inodes by name and by number.
    fn look_around(&mut self) {
        let by_number = (1..=40).filter_map(|n| self.fs.inode(Ino(n)).ok());
        let mut todo: Vec<InodeRef> = self.fs.root().into_iter().chain(by_number).collect();
        while let Some(inode) = todo.pop() {
            if self.known.len() >= POOL {
                return;
            }
            let names = self.names(&inode);
            for name in names.iter().take(8) {
                todo.extend(self.fs.lookup(&inode, name, &self.cred));
            }
            self.known.push((inode, names));
        }
    }

    fn names(&self, dir: &InodeRef) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        if dir.is_dir() {
            // What was found before an error is enough.
            let _ = self.fs.read_dir(dir, 0, &self.cred, &mut |entry| {
                names.push(entry.name.to_vec());
                if names.len() < 300 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
        }
        names
    }

    fn inode(&mut self) -> Option<InodeRef> {
        if self.known.is_empty() { None } else { Some(self.rng.pick(&self.known).0.clone()) }
    }

    /// A directory, most often, and a name: one that it has, or another.
    fn place(&mut self) -> Option<(InodeRef, Vec<u8>)> {
        let dirs: Vec<usize> = (0..self.known.len()).filter(|i| self.known[*i].0.is_dir()).collect();
        if dirs.is_empty() || self.rng.chance(1, 40) {
            return Some((self.inode()?, b"x".to_vec()));
        }
        let (dir, names) = &self.known[*self.rng.pick(&dirs)];
        let name = match self.rng.below(8) {
            0..4 if !names.is_empty() => self.rng.pick(names).clone(),
            4 => vec![b'n'; 1 + self.rng.below(255) as usize],
            _ => self.rng.pick(NAMES).as_bytes().to_vec(),
        };
        Some((dir.clone(), name))
    }

    fn offset(&mut self, size: u64) -> u64 {
        match self.rng.below(8) {
            0 => 0,
            1 => size,
            2 => size.saturating_sub(1 + self.rng.below(5000)),
            3 => size.saturating_add(self.rng.below(100_000)),
            4 => 1 << self.rng.below(44),
            5 => u64::MAX - self.rng.below(10_000),
            _ => self.rng.below(400_000),
        }
    }

    fn keep(&mut self, inode: InodeRef) {
        if self.known.len() < POOL {
            self.known.push((inode, Vec::new()));
        } else {
            let at = self.rng.below(POOL as u64) as usize;
            self.known[at] = (inode, Vec::new());
        }
    }

    fn step(&mut self) {
        match self.try_step() {
            Ok(()) => self.outcome.done += 1,
            Err(_) => self.outcome.failed += 1,
        }
    }

    fn try_step(&mut self) -> Result<(), Error> {
        match self.rng.below(22) {
            0..5 => self.add_name(),
            5 | 6 => self.remove_name(),
            7 | 8 => self.rename(),
            9..14 => self.write(),
            14 | 15 => self.range(),
            16 => self.attributes(),
            17 | 18 => self.xattrs(),
            19 => self.look(),
            20 => self.make_durable(),
            _ => self.rare(),
        }
    }

    fn add_name(&mut self) -> Result<(), Error> {
        let Some((dir, name)) = self.place() else { return Ok(()) };
        let inode = match self.rng.below(6) {
            0 => self.fs.mkdir(&dir, &name, 0o755, &self.cred)?,
            1 => {
                let target = vec![b't'; 1 + self.rng.below(300) as usize];
                self.fs.symlink(&dir, &name, &target, &self.cred)?
            }
            2 => self.fs.tmpfile(&dir, 0o600, &self.cred)?,
            3 => {
                let Some(other) = self.inode() else { return Ok(()) };
                return self.fs.link(&other, &dir, &name, &self.cred);
            }
            4 => {
                let mode = FileType::Fifo.mode_bits() | 0o600;
                self.fs.mknod(&dir, &name, &NewInode { mode, ..NewInode::file(0) }, &self.cred)?
            }
            _ => self.fs.mknod(&dir, &name, &NewInode::file(0o644), &self.cred)?,
        };
        self.keep(inode);
        Ok(())
    }

    fn remove_name(&mut self) -> Result<(), Error> {
        let Some((dir, name)) = self.place() else { return Ok(()) };
        if self.rng.chance(1, 3) {
            self.fs.rmdir(&dir, &name, &self.cred)?;
        } else {
            self.fs.unlink(&dir, &name, &self.cred)?;
        }
        Ok(())
    }

    fn rename(&mut self) -> Result<(), Error> {
        let (Some((from, old)), Some((to, new))) = (self.place(), self.place()) else { return Ok(()) };
        let flags = RenameFlags::from_bits(*self.rng.pick(&[0, 0, 0, 1, 2, 4]))?;
        self.fs.rename(&from, &old, &to, &new, flags, &self.cred)?;
        Ok(())
    }

    fn write(&mut self) -> Result<(), Error> {
        let Some(inode) = self.inode() else { return Ok(()) };
        let at = self.offset(inode.size());
        let limit = if self.rng.chance(1, 4) { WRITE_LIMIT } else { 5000 };
        let bytes = vec![self.rng.next_u64() as u8; 1 + self.rng.below(limit) as usize];
        self.fs.write_at(&inode, at, &bytes, WriteFlags::default(), &self.cred)?;
        Ok(())
    }

    fn range(&mut self) -> Result<(), Error> {
        let Some(inode) = self.inode() else { return Ok(()) };
        let at = self.offset(inode.size());
        let len = if self.rng.chance(1, 8) { self.rng.next_u64() >> 20 } else { 1 + self.rng.below(300_000) };
        if self.rng.chance(1, 4) {
            return self.exchange(&inode, at, len);
        }
        if self.rng.chance(1, 3) {
            let change = SetAttr { size: Some(at), ..SetAttr::default() };
            return self.fs.set_attr(&inode, &change, &self.cred).map(drop);
        }
        let modes = [
            FallocateMode::Allocate,
            FallocateMode::PunchHole,
            FallocateMode::ZeroRange,
            FallocateMode::WriteZeroes,
            FallocateMode::CollapseRange,
            FallocateMode::InsertRange,
        ];
        let mode = *self.rng.pick(&modes);
        let (at, len) = match mode {
            // Mostly what is not refused at once.
            FallocateMode::CollapseRange | FallocateMode::InsertRange => {
                (at & !0xFFFF, (len & 0x7_0000) | 0x1_0000)
            }
            _ => (at, len),
        };
        // Modes that go without it refuse it.
        let keep_size = self.rng.chance(1, if at.is_multiple_of(0x1_0000) { 8 } else { 2 });
        self.fs.fallocate(&inode, mode, at, len, keep_size, &self.cred)
    }

    /// Blocks move between this file and another one, or one without a name.
    fn exchange(&mut self, orig: &InodeRef, at: u64, len: u64) -> Result<(), Error> {
        let block = u64::from(self.fs.geometry().block_size());
        let start = at / block;
        let donor = match self.inode() {
            Some(other) if self.rng.chance(1, 2) => other,
            _ => {
                let donor = self.fs.tmpfile(&self.fs.root()?, 0o600, &self.cred)?;
                let (at, len) = (start * block, len.min(WRITE_LIMIT));
                self.fs.fallocate(&donor, FallocateMode::Allocate, at, len, false, &self.cred)?;
                donor
            }
        };
        let donor_start = if self.rng.chance(1, 4) { self.rng.below(200) } else { start };
        let range = MoveRange { orig_start: start, donor_start, len: len.div_ceil(block) };
        self.fs.move_extents(orig, &donor, range, &self.cred).map(drop)
    }

    fn attributes(&mut self) -> Result<(), Error> {
        let Some(inode) = self.inode() else { return Ok(()) };
        match self.rng.below(4) {
            0 => {
                let mut fsx = self.fs.fsx_attr(&inode);
                fsx.project = self.rng.below(3) as u32;
                self.fs.set_fsx_attr(&inode, fsx, &self.cred)
            }
            1 => {
                let flags = InodeFlags::from_bits_retain(1 << self.rng.below(32));
                self.fs.set_flags(&inode, flags, &self.cred)
            }
            _ => {
                let time = Timestamp { sec: self.rng.next_u64() as i64 >> 20, nsec: 7 };
                let change = SetAttr {
                    mode: Some(self.rng.below(0o10000) as u16),
                    uid: Some(self.rng.below(4) as u32),
                    mtime: Some(SetTime::At(time)),
                    ..SetAttr::default()
                };
                self.fs.set_attr(&inode, &change, &self.cred).map(drop)
            }
        }
    }

    fn xattrs(&mut self) -> Result<(), Error> {
        let Some(inode) = self.inode() else { return Ok(()) };
        let name = format!("user.{}", self.rng.below(5));
        if self.rng.chance(1, 4) {
            return self.fs.remove_xattr(&inode, name.as_bytes(), &self.cred);
        }
        let most = *self.rng.pick(&[20, 200, 900, 3500, 9000]);
        let value = vec![b'v'; self.rng.below(most) as usize];
        self.fs.set_xattr(&inode, name.as_bytes(), &value, XattrSet::Any, &self.cred)
    }

    fn look(&mut self) -> Result<(), Error> {
        let Some(inode) = self.inode() else { return Ok(()) };
        let at = self.offset(inode.size());
        let how = FiemapHow::from_bits_truncate(self.rng.below(8) as u32);
        if self.rng.chance(1, 4) {
            self.fs.fiemap(&inode, at, self.rng.next_u64(), how, 1000)?;
            self.fs.fiemap_count(&inode, at, 1 << 24, how)?;
        }
        if inode.is_dir() {
            self.names(&inode);
            return Ok(());
        }
        let mut buf = vec![0; 70_000];
        self.fs.read_at(&inode, at, &mut buf)?;
        self.fs.seek(&inode, at, *self.rng.pick(&[SeekKind::Data, SeekKind::Hole]))?;
        Ok(())
    }

    fn make_durable(&mut self) -> Result<(), Error> {
        if self.rng.chance(1, 3) {
            return self.fs.sync();
        }
        let Some(inode) = self.inode() else { return Ok(()) };
        self.fs.fsync(&inode, self.rng.chance(1, 2))
    }

    /// What happens now and then; letting inodes go, so that they are evicted, among it.
    fn rare(&mut self) -> Result<(), Error> {
        match self.rng.below(12) {
            0 => {
                self.fs.freeze(&self.cred)?;
                self.fs.thaw(&self.cred)
            }
            1 => self.fs.trim(0, u64::MAX, 0, &self.cred).map(drop),
            2 => {
                self.fs.statfs();
                Ok(())
            }
            3 if self.rng.chance(1, 10) => {
                let how = [ShutdownMode::Sync, ShutdownMode::FlushLog, ShutdownMode::NoFlush];
                self.fs.shutdown(*self.rng.pick(&how), &self.cred)
            }
            _ => {
                if !self.known.is_empty() {
                    let at = self.rng.below(self.known.len() as u64) as usize;
                    self.known.swap_remove(at);
                }
                Ok(())
            }
        }
    }
}
