//! Attributes and times, theirs and ours.

use extant::{Attr, DeviceNumber, FileType, SetAttr, SetTime, Timestamp};

use crate::wire::{self, FattrFlags, SetattrIn, Statx, StatxMask, StatxTime};

pub(super) fn attr(a: &Attr) -> wire::Attr {
    wire::Attr {
        ino: u64::from(a.ino.0),
        size: a.size,
        blocks: a.blocks,
        atime: a.atime.sec,
        mtime: a.mtime.sec,
        ctime: a.ctime.sec,
        atimensec: a.atime.nsec,
        mtimensec: a.mtime.nsec,
        ctimensec: a.ctime.nsec,
        mode: u32::from(a.mode),
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: device_word(a.rdev),
        blksize: a.block_size,
        flags: 0,
    }
}

pub(super) fn statx(a: &Attr) -> Statx {
    let time = |t: Timestamp| StatxTime { tv_sec: t.sec, tv_nsec: t.nsec, reserved: 0 };
    let mut mask = StatxMask::BASIC_STATS;
    mask.set(StatxMask::BTIME, a.btime.is_some());
    // The lower bits of the inode flags that statx(2) names have the same values there.
    const NAMED: u64 = 0x4 | 0x10 | 0x20 | 0x40 | 0x800 | 0x10_0000;
    Statx {
        mask: mask.bits(),
        blksize: a.block_size,
        attributes: u64::from(a.flags.bits()) & NAMED,
        attributes_mask: NAMED,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        mode: a.mode,
        ino: u64::from(a.ino.0),
        size: a.size,
        blocks: a.blocks,
        atime: time(a.atime),
        btime: a.btime.map(time).unwrap_or_default(),
        ctime: time(a.ctime),
        mtime: time(a.mtime),
        rdev_major: a.rdev.major,
        rdev_minor: a.rdev.minor,
        ..Statx::default()
    }
}

pub(super) fn set_attr(args: &SetattrIn) -> SetAttr {
    let valid = FattrFlags::from_bits_retain(args.valid);
    // A truncation changes the time of modification; the kernel leaves that to the server.
    let truncated = valid.contains(FattrFlags::SIZE).then_some(SetTime::Now);
    let time = |set, now, sec, nsec| match (valid.contains(set), valid.contains(now)) {
        (true, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(Timestamp { sec, nsec })),
        (false, _) => None,
    };
    #[allow(clippy::cast_possible_truncation, reason = "12 bits")]
    let mode = (args.mode & 0o7777) as u16;
    SetAttr {
        mode: valid.contains(FattrFlags::MODE).then_some(mode),
        uid: valid.contains(FattrFlags::UID).then_some(args.uid),
        gid: valid.contains(FattrFlags::GID).then_some(args.gid),
        size: valid.contains(FattrFlags::SIZE).then_some(args.size),
        atime: time(FattrFlags::ATIME, FattrFlags::ATIME_NOW, args.atime, args.atimensec),
        mtime: time(FattrFlags::MTIME, FattrFlags::MTIME_NOW, args.mtime, args.mtimensec).or(truncated),
        // Sent with the writeback cache only, where the kernel counts times itself.
        ctime: valid
            .contains(FattrFlags::CTIME)
            .then_some(Timestamp { sec: args.ctime, nsec: args.ctimensec }),
        kill_suidgid: valid.contains(FattrFlags::KILL_SUIDGID),
        // What the kernel flushes before an fsync, which would fail with it, is no different from what utimensat(2) asks for of that time alone.
        noted_by_cache: valid.contains(FattrFlags::MTIME | FattrFlags::CTIME)
            && !valid.contains(FattrFlags::MTIME_NOW),
    }
}

/// A device number as the kernel's `new_encode_dev` has it: 12 bits of major between the halves of the minor.
fn device_word(d: DeviceNumber) -> u32 {
    d.minor & 0xff | (d.major & 0xfff) << 8 | (d.minor & 0xf_ff00) << 12
}

pub(super) fn device_of(word: u32) -> DeviceNumber {
    DeviceNumber { major: (word & 0xf_ff00) >> 8, minor: word & 0xff | word >> 12 & 0xf_ff00 }
}

/// `DT_*` of readdir(3).
pub(super) fn dirent_type(kind: Option<FileType>) -> u8 {
    kind.map_or(0, |k| (k.mode_bits() >> 12) as u8)
}
