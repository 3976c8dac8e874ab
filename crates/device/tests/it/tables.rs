//! Partition tables.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use extant_device::{
    BlockDevice, FileDevice, MemoryDevice, OpenOptions, PartitionError, PartitionKind, partition_window,
    partitions,
};

use crate::common::Random;

const DISK: u64 = 64 << 20;

fn put32(record: &mut [u8], at: usize, value: u32) {
    record[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// A boot record with entries (type, first sector, sectors).
fn boot_record(entries: &[(u8, u32, u32)]) -> [u8; 512] {
    let mut record = [0; 512];
    record[510..].copy_from_slice(&[0x55, 0xAA]);
    for (i, (kind, start, len)) in entries.iter().enumerate() {
        let at = 446 + 16 * i;
        record[at + 4] = *kind;
        put32(&mut record, at + 8, *start);
        put32(&mut record, at + 12, *len);
    }
    record
}

#[test]
fn mbr_with_logical_partitions() {
    let disk = MemoryDevice::new(DISK);
    let write = |sector: u64, record: [u8; 512]| disk.write_at(sector * 512, &record).expect("write");
    write(0, boot_record(&[(0x83, 2048, 4096), (0, 0, 0), (0x05, 10_000, 20_000)]));
    write(10_000, boot_record(&[(0x83, 100, 1000), (0x05, 5000, 2000)]));
    write(15_000, boot_record(&[(0x82, 100, 500)]));
    let found = partitions(&disk).expect("a table");
    let got: Vec<_> = found.iter().map(|p| (p.number, p.start / 512, p.len / 512, p.kind.clone())).collect();
    let kind = PartitionKind::Mbr;
    assert_eq!(
        got,
        [(1, 2048, 4096, kind(0x83)), (5, 10_100, 1000, kind(0x83)), (6, 15_100, 500, kind(0x82)),]
    );
}

#[test]
fn a_loop_of_logical_partitions_ends() {
    let disk = MemoryDevice::new(DISK);
    disk.write_at(0, &boot_record(&[(0x0F, 100, 1000)])).expect("write");
    disk.write_at(100 * 512, &boot_record(&[(0x83, 1, 1), (0x05, 0, 10)])).expect("write");
    assert!(matches!(partitions(&disk), Err(PartitionError::Corrupt(_))));
}

#[test]
fn a_partition_past_the_end_is_refused() {
    let disk = MemoryDevice::new(DISK);
    disk.write_at(0, &boot_record(&[(0x83, u32::MAX, u32::MAX)])).expect("write");
    assert!(matches!(partitions(&disk), Err(PartitionError::Corrupt(_))));
}

#[test]
fn no_table() {
    assert!(matches!(partitions(&MemoryDevice::new(DISK)), Err(PartitionError::NoTable)));
    assert!(matches!(partitions(&MemoryDevice::new(100)), Err(PartitionError::NoTable)));
}

/// Runs `sfdisk` with a script; `None` when it is not installed.
fn sfdisk(path: &std::path::Path, script: &str) -> Option<()> {
    let mut child = Command::new("sfdisk")
        .arg("-q")
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .ok()?;
    child.stdin.take().expect("piped").write_all(script.as_bytes()).expect("write the script");
    assert!(child.wait().expect("sfdisk ends").success());
    Some(())
}

fn gpt_disk(dir: &std::path::Path) -> Option<MemoryDevice> {
    let path = dir.join("disk");
    drop(FileDevice::create(&path, DISK).expect("create"));
    let script = "label: gpt\nstart=2048, size=8192, type=linux, name=\"wurzel ä\"\nsize=4096, type=swap\n";
    if sfdisk(&path, script).is_none() {
        println!("skipped: needs sfdisk");
        return None;
    }
    let file = OpenOptions::new().open(&path).expect("open");
    let mut bytes = vec![0; DISK as usize];
    file.read_at(0, &mut bytes).expect("read");
    Some(MemoryDevice::from_bytes(&bytes))
}

#[test]
fn gpt_as_sfdisk_makes_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let Some(disk) = gpt_disk(dir.path()) else { return };
    let check = |disk: &MemoryDevice| {
        let found = partitions(disk).expect("a table");
        let places: Vec<_> = found.iter().map(|p| (p.number, p.start / 512, p.len / 512)).collect();
        assert_eq!(places, [(1, 2048, 8192), (2, 10_240, 4096)]);
        assert!(matches!(&found[0].kind, PartitionKind::Gpt { name, .. } if name == "wurzel ä"));
    };
    check(&disk);
    // The backup header serves when the first is damaged.
    disk.write_at(512 + 40, &[0xFF]).expect("damage");
    check(&disk);
    disk.write_at(2048 * 512, b"inside").expect("write");
    let window = partition_window(Arc::new(disk), 1).expect("partition 1");
    let mut got = [0; 6];
    window.read_at(0, &mut got).expect("read");
    assert_eq!((&got, window.size()), (b"inside", 8192 * 512));
}

#[test]
fn damaged_gpts_never_panic() {
    let dir = tempfile::tempdir().expect("a folder");
    let Some(disk) = gpt_disk(dir.path()) else { return };
    let mut random = Random::new();
    let mut head = vec![0; 64 << 10];
    disk.read_at(0, &mut head).expect("read");
    for _ in 0..500 {
        let damaged = MemoryDevice::new(DISK);
        damaged.write_at(0, &head).expect("write");
        for _ in 0..3 {
            let byte = [random.below(256) as u8];
            damaged.write_at(446 + random.below(700), &byte).expect("damage");
        }
        for partition in partitions(&damaged).unwrap_or_default() {
            assert!(partition.start + partition.len <= DISK);
        }
    }
}
