use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::{Pblk, Tid};

fn forms() -> Vec<LogFormat> {
    let mut all = Vec::new();
    for block_size in [1024, 4096, 65536] {
        for form in [TagForm::V1, TagForm::V2, TagForm::V3] {
            for bit64 in [false, true] {
                all.push(LogFormat::new(block_size, form, bit64, false, [7; 16]));
            }
        }
    }
    all
}

#[test]
fn tags_survive_the_round_trip_in_every_form() {
    for format in forms() {
        let mut block = vec![0xAA; format.block_size()];
        let high = if format.is_64bit() { 5 << 32 } else { 0 };
        let count = format.tags_per_descriptor();
        let mut writer = format.descriptor(&mut block, Tid(9));
        for n in 0..count as u64 {
            writer.push(Pblk(high + n), n % 3 == 0, 0x1234);
        }
        writer.finish();
        assert!(format.tail_checksum_ok(&block));
        assert_eq!(
            Header::decode(&block),
            Some(Header { block_type: Some(BlockType::Descriptor), sequence: Tid(9) })
        );
        let tags: Vec<Tag> = format.tags(&block).collect();
        assert_eq!(tags.len(), count);
        for (n, tag) in tags.iter().enumerate() {
            assert_eq!(tag.pblk, Pblk(high + n as u64));
            assert_eq!(tag.flags.contains(TagFlags::ESCAPE), n % 3 == 0);
            assert_eq!(tag.flags.contains(TagFlags::LAST_TAG), n + 1 == count);
            assert_eq!(tag.checksum, if format.has_checksums() { 0x1234 } else { 0 });
        }
        block[100] ^= 1;
        assert_eq!(format.tail_checksum_ok(&block), !format.has_checksums());
    }
}

#[test]
fn revokes_survive_the_round_trip() {
    for format in forms() {
        let mut block = vec![0xAA; format.block_size()];
        let mut writer = format.revoke_block(&mut block, Tid(3));
        let count = format.revokes_per_block() as u64;
        (0..count).for_each(|n| writer.push(Pblk(1000 + n)));
        writer.finish();
        assert!(format.tail_checksum_ok(&block));
        let read: Vec<Pblk> = format.revokes(&block).unwrap().collect();
        assert_eq!(read, (0..count).map(|n| Pblk(1000 + n)).collect::<Vec<_>>());
        block[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(format.revokes(&block).is_none());
        block[12..16].copy_from_slice(&15u32.to_be_bytes());
        assert!(format.revokes(&block).is_none());
    }
}

#[test]
fn a_commit_block_is_covered_by_its_checksum() {
    for format in forms() {
        let mut block = vec![0xAA; format.block_size()];
        format.write_commit(&mut block, Tid(4), (77, 5), 0);
        assert!(format.commit_checksum_ok(&block));
        assert_eq!(CommitRecord::decode(&block).unwrap().time(), (77, 5));
        let end = block.len() - 1;
        block[end] ^= 1;
        assert_eq!(format.commit_checksum_ok(&block), !format.has_checksums());
    }
}

#[test]
fn the_old_checksum_is_crc32_most_significant_bit_first() {
    assert_eq!(LogFormat::transaction_crc(!0, b"123456789"), 0x0376_E6E7);
    let split = LogFormat::transaction_crc(LogFormat::transaction_crc(!0, b"1234"), b"56789");
    assert_eq!(split, 0x0376_E6E7);
}

#[test]
fn only_the_magic_number_is_escaped() {
    let mut block = vec![1u8; 1024];
    assert!(!is_escapable(&block));
    block[..4].copy_from_slice(&MAGIC.to_be_bytes());
    assert_eq!(escape(&block)[..5], [0, 0, 0, 0, 1]);
    block[..4].copy_from_slice(&MAGIC.to_le_bytes());
    assert!(!is_escapable(&block));
}

fn new_journal() -> NewJournal {
    NewJournal { block_size: 4096, blocks: 1024, fast_commit_blocks: 0, external: None, uuid: [3; 16] }
}

#[test]
fn a_new_superblock_decodes() {
    let mut sb = new_journal().superblock();
    let back = Superblock::decode(&sb.to_bytes(), 4096, 1024).unwrap();
    assert_eq!((back.first(), back.start(), back.sequence(), back.log_end()), (1, 0, Tid(1), 1024));
    assert!(sb.set_features(CompatFeatures::empty(), IncompatFeatures::CSUM_V3 | IncompatFeatures::BIT64));
    sb.set_errno(5);
    let mut bytes = sb.to_bytes();
    let back = Superblock::decode(&bytes, 4096, 1024).unwrap();
    assert_eq!(back.errno(), 5);
    assert_eq!(back.log_format().tag_form(), TagForm::V3);
    bytes[0x300] ^= 1;
    assert!(matches!(Superblock::decode(&bytes, 4096, 1024), Err(SuperblockError::Checksum { .. })));
}

#[test]
fn each_damage_of_the_superblock_has_its_error() {
    let good = new_journal().superblock().to_bytes();
    let damaged = |at: usize, value: u32| {
        let mut bytes = good;
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        Superblock::decode(&bytes, 4096, 1024).unwrap_err()
    };
    assert_eq!(Superblock::decode(&good[..1000], 4096, 1024).unwrap_err(), SuperblockError::Truncated);
    assert_eq!(damaged(0, 1), SuperblockError::Magic(1));
    assert_eq!(damaged(4, 2), SuperblockError::BlockType(2));
    assert_eq!(damaged(0xC, 1024), SuperblockError::BlockSize { journal: 1024, filesystem: 4096 });
    assert_eq!(damaged(0x10, 5), SuperblockError::TooShort(5));
    assert_eq!(damaged(0x10, 1025), SuperblockError::TooLong { claimed: 1025, actual: 1024 });
    assert_eq!(damaged(0x14, 0), SuperblockError::First(0));
    assert_eq!(damaged(0x14, 1024), SuperblockError::First(1024));
    assert_eq!(damaged(0x1C, 1024), SuperblockError::Start(1024));
    assert_eq!(damaged(0x28, 0x40), SuperblockError::Unsupported { incompat: 0x40, ro_compat: 0 });
    assert_eq!(damaged(0x28, 0x18), SuperblockError::ConflictingChecksums);
    assert_eq!(damaged(0x28, 0x10), SuperblockError::ChecksumType(0));
    assert_eq!(damaged(0x40, 49), SuperblockError::Users(49));
    let mut bytes = good;
    bytes[0x28..0x2C].copy_from_slice(&0x20u32.to_be_bytes());
    bytes[0x54..0x58].copy_from_slice(&1023u32.to_be_bytes());
    assert_eq!(Superblock::decode(&bytes, 4096, 1024).unwrap_err(), SuperblockError::FastCommitArea(1023));
}
