//! Partitions of a whole-disk image: MBR with logical partitions, and GPT.
//!
//! Layout: the master boot record has four entries of 16 bytes at 446 and the signature 55 AA at 510; an extended partition
//! (types 05, 0F, 85) starts a chain of such records. GPT: UEFI specification, section 5.3.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use crate::{BlockDevice, Window};

/// A partition of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number as Linux counts: GPT and primary from 1, logical from 5.
    pub number: u32,
    /// Offset in bytes.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What the table says about it.
    pub kind: PartitionKind,
}

/// What a table says about a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartitionKind {
    /// Type byte of an MBR entry (0x83: Linux).
    Mbr(u8),
    /// GPT entry.
    Gpt {
        /// Type GUID, as it is on disk (mixed-endian).
        type_guid: [u8; 16],
        /// The partition's own GUID.
        guid: [u8; 16],
        /// Its name.
        name: String,
    },
}

/// Why a partition table could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionError {
    /// The device failed.
    #[error("reading the partition table: {0}")]
    Io(#[from] io::Error),
    /// There is no table.
    #[error("no partition table")]
    NoTable,
    /// The table contradicts itself.
    #[error("corrupt partition table: {0}")]
    Corrupt(&'static str),
    /// There is no such partition.
    #[error("no partition {0}")]
    NoSuch(u32),
}

impl PartitionError {
    /// The errno that fits.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io(e) => e.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
            Self::NoTable | Self::Corrupt(_) => Errno::INVAL.raw_os_error(),
            Self::NoSuch(_) => Errno::NXIO.raw_os_error(),
        }
    }
}

impl fmt::Display for PartitionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mbr(kind) => write!(f, "type {kind:02x}"),
            Self::Gpt { name, .. } => write!(f, "{name:?}"),
        }
    }
}

const LINUX_MAX: u32 = 256;
const GPT_HEADER: usize = 92;

/// The partitions of `disk` in the order of their numbers.
///
/// # Errors
/// [`PartitionError::NoTable`] when there is neither kind of table.
pub fn partitions(disk: &dyn BlockDevice) -> Result<Vec<Partition>, PartitionError> {
    let mut record = [0; 512];
    if disk.size() < 512 {
        return Err(PartitionError::NoTable);
    }
    disk.read_at(0, &mut record)?;
    if record[510..] != [0x55, 0xAA] {
        return Err(PartitionError::NoTable);
    }
    let protective = (0..4).any(|i| Entry::read(&record, i).kind == 0xEE);
    if protective { gpt(disk) } else { mbr(disk, &record) }
}

/// A window of partition `number`.
///
/// # Errors
/// As [`partitions`]; [`PartitionError::NoSuch`].
pub fn partition_window(disk: Arc<dyn BlockDevice>, number: u32) -> Result<Window, PartitionError> {
    let found = partitions(&*disk)?.into_iter().find(|p| p.number == number);
    let partition = found.ok_or(PartitionError::NoSuch(number))?;
    Ok(Window::new(disk, partition.start, partition.len)?)
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// An entry of a boot record; start and length in sectors.
struct Entry {
    kind: u8,
    start: u64,
    len: u64,
}

impl Entry {
    fn read(record: &[u8; 512], index: usize) -> Self {
        let at = 446 + 16 * index;
        Self { kind: record[at + 4], start: le32(record, at + 8).into(), len: le32(record, at + 12).into() }
    }

    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0F | 0x85)
    }

    fn is_used(&self) -> bool {
        self.kind != 0 && self.len != 0
    }
}

/// Places a partition given in sectors; the product and sum cannot overflow from 32-bit entries.
fn place(
    disk: &dyn BlockDevice,
    number: u32,
    start: u64,
    len: u64,
    kind: u8,
) -> Result<Partition, PartitionError> {
    let sector = u64::from(disk.logical_sector_size());
    let (start, len) = (start * sector, len * sector);
    if start + len > disk.size() {
        return Err(PartitionError::Corrupt("a partition reaches past the end of the disk"));
    }
    Ok(Partition { number, start, len, kind: PartitionKind::Mbr(kind) })
}

fn mbr(disk: &dyn BlockDevice, record: &[u8; 512]) -> Result<Vec<Partition>, PartitionError> {
    let mut found = Vec::new();
    let mut extended = None;
    for (index, number) in (0..4).zip(1..) {
        let entry = Entry::read(record, index);
        if !entry.is_used() {
            continue;
        }
        if entry.is_extended() {
            extended = extended.or(Some(entry));
        } else {
            found.push(place(disk, number, entry.start, entry.len, entry.kind)?);
        }
    }
    if let Some(extended) = extended {
        logical(disk, extended.start, &mut found)?;
    }
    if found.is_empty() {
        // A boot sector of a filesystem ends with the same signature.
        return Err(PartitionError::NoTable);
    }
    Ok(found)
}

/// Follows the chain of an extended partition: in each record the first entry is a partition relative to the record, the
/// second the next record relative to the extended partition's start.
fn logical(disk: &dyn BlockDevice, first: u64, found: &mut Vec<Partition>) -> Result<(), PartitionError> {
    let sector = u64::from(disk.logical_sector_size());
    let mut at = first;
    for number in 5..LINUX_MAX {
        let mut record = [0; 512];
        disk.read_at(at * sector, &mut record)?;
        if record[510..] != [0x55, 0xAA] {
            return Err(PartitionError::Corrupt("a logical partition has no boot record"));
        }
        let here = Entry::read(&record, 0);
        if here.is_used() {
            found.push(place(disk, number, at + here.start, here.len, here.kind)?);
        }
        let next = Entry::read(&record, 1);
        if !next.is_used() || !next.is_extended() {
            return Ok(());
        }
        at = first + next.start;
    }
    Err(PartitionError::Corrupt("too many logical partitions, or a loop of them"))
}

fn gpt(disk: &dyn BlockDevice) -> Result<Vec<Partition>, PartitionError> {
    let sector = u64::from(disk.logical_sector_size());
    let backup = (disk.size() / sector).saturating_sub(1);
    // An image of a disk with 4096-byte sectors looks the same as one with 512.
    let mut places = vec![(sector, 1), (sector, backup)];
    if sector == 512 {
        places.push((4096, 1));
    }
    let mut problem = PartitionError::Corrupt("no GPT header");
    for (sector, lba) in places {
        match gpt_at(disk, sector, lba) {
            Ok(found) => return Ok(found),
            Err(PartitionError::Io(e)) => return Err(e.into()),
            Err(e) => problem = e,
        }
    }
    Err(problem)
}

fn gpt_at(disk: &dyn BlockDevice, sector: u64, lba: u64) -> Result<Vec<Partition>, PartitionError> {
    /// The specification asks for at least 16 KiB; this is far more than any tool makes.
    const MOST: u64 = 4 << 20;
    const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
    let corrupt = PartitionError::Corrupt;

    let at = lba.checked_mul(sector).filter(|at| disk.size().saturating_sub(*at) >= 512);
    let at = at.ok_or(corrupt("the GPT header is past the end of the disk"))?;
    let mut header = [0; 512];
    disk.read_at(at, &mut header)?;
    if header[..8] != *b"EFI PART" {
        return Err(corrupt("no GPT header"));
    }
    let header_len = le32(&header, 12) as usize;
    if !(GPT_HEADER..=512).contains(&header_len) {
        return Err(corrupt("length of the GPT header"));
    }
    let want = le32(&header, 16);
    header[16..20].fill(0);
    if CRC.checksum(&header[..header_len]) != want {
        return Err(corrupt("checksum of the GPT header"));
    }
    if le64(&header, 24) != lba {
        return Err(corrupt("the GPT header's own place"));
    }
    let (count, entry_len) = (u64::from(le32(&header, 80)), u64::from(le32(&header, 84)));
    let table_len = count * entry_len;
    if entry_len < 128 || !entry_len.is_power_of_two() || table_len > MOST {
        return Err(corrupt("size of the GPT's table"));
    }
    let table_at = le64(&header, 72).checked_mul(sector).filter(|at| *at <= disk.size());
    let table_at = table_at.ok_or(corrupt("place of the GPT's table"))?;
    if table_len > disk.size() - table_at {
        return Err(corrupt("place of the GPT's table"));
    }
    let mut table = vec![0; usize::try_from(table_len).expect("at most 4 MiB")];
    disk.read_at(table_at, &mut table)?;
    if CRC.checksum(&table) != le32(&header, 88) {
        return Err(corrupt("checksum of the GPT's table"));
    }
    let entries = table.chunks_exact(entry_len as usize).zip(1..);
    entries.filter(|(e, _)| e[..16] != [0; 16]).map(|(e, n)| gpt_entry(disk, sector, e, n)).collect()
}

fn gpt_entry(
    disk: &dyn BlockDevice,
    sector: u64,
    entry: &[u8],
    number: u32,
) -> Result<Partition, PartitionError> {
    let corrupt = PartitionError::Corrupt("a partition reaches past the end of the disk");
    let (first, last) = (le64(entry, 32), le64(entry, 40));
    let sectors = last.checked_sub(first).and_then(|n| n.checked_add(1));
    let (Some(start), Some(len)) = (first.checked_mul(sector), sectors.and_then(|n| n.checked_mul(sector)))
    else {
        return Err(corrupt);
    };
    if start.checked_add(len).is_none_or(|end| end > disk.size()) {
        return Err(corrupt);
    }
    let units: Vec<u16> = entry[56..128].chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let name = String::from_utf16_lossy(units.split(|u| *u == 0).next().unwrap_or_default());
    let guid = |at: usize| entry[at..at + 16].try_into().expect("sixteen bytes");
    Ok(Partition {
        number,
        start,
        len,
        kind: PartitionKind::Gpt { type_guid: guid(0), guid: guid(16), name },
    })
}
