//! Multiple-mount protection: it is let go after the last write, whatever the end, and on every way out of a mount that fails.

use std::sync::Arc;
use std::thread;

use extant::{
    Credentials, Error, Filesystem, InodeRef, MountOptions, NewInode, Setup, ShutdownMode, WriteFlags,
};
use extant_device::BlockDevice as _;
use extant_format::mmp::{Mmp, MmpSeq};
use extant_format::{Csum, Incompat, Pblk, RoCompat, Superblock};
use extant_testkit::env::{scratch, tools};
use extant_testkit::oracle::{assert_clean, mke2fs};
use extant_testkit::sim::{Content, Event, Failpoint, Kind, SimDevice};

const PROTECTED: &str = "-t ext4 -b 1024 -O mmp,orphan_file -E mmp_update_interval=1";

fn made(args: &str) -> Content {
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, args);
    Content::from_file(&image).unwrap()
}

fn open(device: &Arc<SimDevice>, options: &str) -> extant::Result<Arc<Filesystem>> {
    Filesystem::open(Arc::clone(device) as _, Setup::with_options(options).unwrap())
}

fn remount(fs: &Filesystem, options: &str) -> extant::Result<()> {
    fs.remount(&MountOptions::parse(options).unwrap())
}

fn superblock(device: &SimDevice) -> Superblock {
    let mut bytes = [0; 1024];
    device.read_at(1024, &mut bytes).unwrap();
    Superblock::read(&bytes).unwrap()
}

/// Where the block of the protection is.
#[derive(Clone, Copy)]
struct Place {
    block: Pblk,
    at: u64,
    csum: Csum,
}

impl Place {
    fn of(device: &SimDevice) -> Self {
        let sb = superblock(device);
        let (block, _) = sb.mmp().unwrap();
        Self { block, at: block.0 * u64::from(sb.geometry().block_size()), csum: *sb.csum() }
    }

    fn record(&self, device: &SimDevice) -> Mmp {
        let mut bytes = [0; 1024];
        device.read_at(self.at, &mut bytes).unwrap();
        Mmp::read(self.block, &bytes, &self.csum).unwrap()
    }

    fn is_free(&self, device: &SimDevice) -> bool {
        self.record(device).seq == MmpSeq::Clean
    }

    /// Another host writes its number.
    fn take(&self, device: &SimDevice) -> MmpSeq {
        let mut record = self.record(device);
        let MmpSeq::InUse(number) = record.seq else { panic!("{:?}", record.seq) };
        record.seq = MmpSeq::InUse(number / 2 + 7);
        let encode = |bytes: &mut [u8]| record.encode(self.block, bytes, &self.csum).unwrap();
        device.corrupt(self.at, encode, 1024);
        record.seq
    }
}

/// Nothing is written after the block was marked clean, and what was written before is flushed before.
#[track_caller]
fn assert_let_go_last(device: &SimDevice, what: &str) {
    let place = Place::of(device);
    assert!(place.is_free(device), "{what}: it is still claimed");
    let log = device.log();
    let is_ours = |event: &Event| matches!(event, Event::Write { offset, .. } if *offset == place.at);
    let changes = |event: &Event| matches!(event, Event::Write { .. } | Event::Zero { .. });
    let clean = log.iter().rposition(is_ours).expect("the block was written");
    let last =
        log.iter().enumerate().rposition(|(n, event)| n != clean && changes(event)).expect("all was written");
    assert!(last < clean, "{what}: written after it was let go");
    let flushed = log[last..clean].iter().any(|event| matches!(event, Event::Flush));
    assert!(flushed, "{what}: let go before the last write was flushed");
}

fn file(fs: &Filesystem, name: &[u8]) -> InodeRef {
    let cred = Credentials::root();
    let inode = fs.mknod(&fs.root().unwrap(), name, &NewInode::file(0o644), &cred).unwrap();
    fs.write_at(&inode, 0, &[3; 9000], WriteFlags::default(), &cred).unwrap();
    inode
}

/// An image whose machine stopped: its journal wants a replay, and a file without a name is in the orphan file. Nobody holds it.
fn crashed() -> Content {
    let device = SimDevice::from_content(made(PROTECTED));
    let fs = open(&device, "").unwrap();
    file(&fs, b"kept");
    let nameless = file(&fs, b"nameless");
    fs.fsync(&nameless, false).unwrap();
    fs.unlink(&fs.root().unwrap(), b"nameless", &Credentials::root()).unwrap();
    fs.fsync(&fs.root().unwrap(), false).unwrap();
    fs.shutdown(ShutdownMode::NoFlush, &Credentials::root()).unwrap();
    drop(nameless);
    assert!(matches!(fs.unmount(), Err(Error::Shutdown)));
    drop(fs);
    assert!(Place::of(&device).is_free(&device));
    device.content()
}

/// The ends of a mount, and what they begin with. Each is some seconds of waiting for other hosts: all at once.
#[test]
fn it_is_let_go_after_the_last_write() {
    need!(tools(&["mke2fs", "e2fsck"]));
    type End = fn(&Arc<SimDevice>, Arc<Filesystem>);
    let ends: [(&str, End); 6] = [
        ("unmount", |_, fs| fs.unmount().unwrap()),
        ("dropped", |_, fs| drop(fs)),
        ("remount", |device, fs| {
            remount(&fs, "ro").unwrap();
            assert_let_go_last(device, "while it is read-only");
            fs.unmount().unwrap();
        }),
        ("the superblock cannot be written", |device, fs| {
            device.fail(Failpoint::all_from(Kind::Write, 0).within(1024..2048));
            assert!(fs.unmount().is_err());
            device.heal();
        }),
        ("an aborted journal", |device, fs| {
            device.fail(Failpoint::all_from(Kind::Write, 0));
            assert!(fs.sync().is_err());
            device.heal();
            assert!(fs.unmount().is_err());
        }),
        ("shutdown", |_, fs| {
            fs.shutdown(ShutdownMode::Sync, &Credentials::root()).unwrap();
            assert!(fs.unmount().is_err());
        }),
    ];
    let (base, unclean) = (made(PROTECTED), crashed());
    thread::scope(|scope| {
        for (what, end) in ends {
            let base = base.clone();
            scope.spawn(move || {
                let device = SimDevice::from_content(base);
                let fs = open(&device, "errors=remount-ro").unwrap();
                assert!(!Place::of(&device).is_free(&device));
                drop(file(&fs, b"file"));
                end(&device, fs);
                assert_let_go_last(&device, what);
            });
        }
        scope.spawn(|| {
            let device = SimDevice::from_content(unclean);
            let setup = Setup { recover_on_device: true, ..Setup::read_only() };
            let fs = Filesystem::open(Arc::clone(&device) as _, setup).unwrap();
            assert_let_go_last(&device, "recovered, and read-only");
            fs.unmount().unwrap();
        });
    });
}

/// Single operations of the device fail while it is mounted: each of them.
#[test]
fn a_mount_that_fails_lets_it_go() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let base = crashed();
    let device = SimDevice::from_content(base.clone());
    let fs = open(&device, "errors=continue").unwrap();
    let counts = device.counts();
    fs.unmount().unwrap();
    drop(fs);
    let points = [(Kind::Read, counts.reads), (Kind::Write, counts.writes), (Kind::Flush, counts.flushes)];
    let points = points.into_iter().flat_map(|(kind, count)| (0..count).map(move |n| (kind, n)));
    let refused = thread::scope(|scope| {
        let trials: Vec<_> = points
            .map(|(kind, n)| {
                let base = base.clone();
                scope.spawn(move || fails_once(base, kind, n))
            })
            .collect();
        trials.into_iter().map(|trial| u32::from(trial.join().unwrap())).sum::<u32>()
    });
    println!("{counts:?}: refused {refused} times");
    assert!(refused > 10, "hardly anything failed");
}

/// Whether the mount was refused.
fn fails_once(base: Content, kind: Kind, n: u64) -> bool {
    let what = format!("{kind:?} {n}");
    let device = SimDevice::from_content(base);
    device.set_recording(false);
    device.fail(Failpoint::nth(kind, n));
    let opened = open(&device, "errors=continue");
    let refused = opened.is_err();
    if let Ok(fs) = &opened {
        // The failure may come as late as here.
        let _ = fs.unmount();
    }
    drop(opened);
    device.heal();
    assert!(Place::of(&device).is_free(&device), "{what}: still claimed");
    let fs = open(&device, "").unwrap_or_else(|e| panic!("{what}: refused after that: {e}"));
    fs.lookup(&fs.root().unwrap(), b"kept", &Credentials::root()).unwrap();
    fs.unmount().unwrap_or_else(|e| panic!("{what}: {e}"));
    let report = extant_fsck::check(&*device, &extant_fsck::Options::default());
    assert!(report.is_clean(), "{what}: {:?}", report.errors().collect::<Vec<_>>());
    refused
}

/// A mount that fails between the replay and the orphans: they are still there for others.
#[test]
fn a_mount_that_fails_half_way_keeps_the_orphans() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let device = SimDevice::from_content(crashed());
    let orphans =
        |device: &SimDevice| superblock(device).features().ro_compat.contains(RoCompat::ORPHAN_PRESENT);
    assert!(orphans(&device));
    let failed = open(&device, "usrjquota=missing,jqfmt=vfsv1").unwrap_err();
    assert!(failed.to_string().contains("missing"), "{failed}");
    assert!(Place::of(&device).is_free(&device), "nobody has it");
    assert!(orphans(&device), "nobody will look for them");
    open(&device, "").unwrap().unmount().unwrap();
    assert!(!orphans(&device));
    let dir = scratch();
    let image = dir.join("image");
    device.content().to_file(&image).unwrap();
    assert_clean(&image);
}

/// While it is read-only another host may have it; what that has changed is not written over.
#[test]
fn another_host_takes_it_while_it_is_read_only() {
    need!(tools(&["mke2fs", "e2fsck"]));
    let device = SimDevice::from_content(made("-t ext4 -O mmp -E mmp_update_interval=2"));
    device.set_recording(false);
    let ours = open(&device, "").unwrap();
    let refused = open(&device, "").unwrap_err();
    assert!(refused.to_string().contains("multiple-mount protection"), "{refused}");
    remount(&ours, "ro").unwrap();
    remount(&ours, "rw").unwrap();
    remount(&ours, "ro").unwrap();
    let other = open(&device, "").expect("nobody has it");
    let refused = remount(&ours, "rw").unwrap_err();
    assert!(refused.to_string().contains("multiple-mount protection"), "{refused}");
    assert!(ours.is_read_only());
    drop(file(&other, b"file"));
    other.unmount().unwrap();
    let refused = remount(&ours, "rw").unwrap_err();
    assert!(refused.to_string().contains("mount it anew"), "{refused}");
    assert!(ours.is_read_only() && Place::of(&device).is_free(&device));
    ours.unmount().unwrap();
    open(&device, "").unwrap().unmount().unwrap();
    let report = extant_fsck::check(&*device, &extant_fsck::Options::default());
    assert!(report.is_clean(), "{:?}", report.errors().collect::<Vec<_>>());
}

/// Somebody's number in the block ends all writing, and stays there.
#[test]
fn somebody_elses_number_stops_the_mount() {
    need!(tools(&["mke2fs"]));
    let device = SimDevice::from_content(made(PROTECTED));
    device.set_recording(false);
    let fs = open(&device, "").unwrap();
    drop(file(&fs, b"file"));
    let place = Place::of(&device);
    let theirs = place.take(&device);
    while !fs.is_read_only() {
        thread::yield_now();
    }
    assert!(matches!(
        fs.mknod(&fs.root().unwrap(), b"b", &NewInode::file(0o600), &Credentials::root()),
        Err(Error::Shutdown)
    ));
    let before = superblock(&device);
    assert!(fs.unmount().is_err());
    drop(fs);
    assert_eq!(place.record(&device).seq, theirs, "the other host's number is gone");
    assert_eq!(superblock(&device).encode(), before.encode());
    assert!(before.features().incompat.contains(Incompat::RECOVER), "it is not said to be clean");
}
