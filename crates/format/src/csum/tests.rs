//! Checksums that leave their own fields out, against crc32c of a copy in which these are zero.

use std::vec::Vec;

use super::{Csum, CsumKind, crc32c};
use crate::types::{GroupNr, Ino};

const CSUM: Csum = Csum { kind: CsumKind::Metadata, seed: 0x1234_5678, uuid: [0; 16] };

/// No two neighbours alike, none zero.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 % 251) as u8 + 1).collect()
}

fn of_copy(first: &[&[u8]], mut bytes: Vec<u8>, fields: &[usize]) -> u32 {
    for at in fields {
        bytes[*at..*at + 2].fill(0);
    }
    crc32c(CSUM.seed, &[&first.concat()[..], &bytes].concat())
}

#[test]
fn an_inode_without_its_checksum() {
    for len in [128, 160, 256, 1024, 4096] {
        for extra_isize in [0_u16, 2, 4, 32] {
            let mut inode = bytes(len);
            if len > 128 {
                inode[0x80..0x82].copy_from_slice(&extra_isize.to_le_bytes());
            }
            let (ino, generation) = (Ino(0x0102_0304), 0x0506_0708_u32);
            let place = [&ino.0.to_le_bytes()[..], &generation.to_le_bytes()];
            let want = if len > 128 && extra_isize >= 4 {
                of_copy(&place, inode.clone(), &[0x7c, 0x82])
            } else {
                of_copy(&place, inode.clone(), &[0x7c]) & 0xffff
            };
            assert_eq!(CSUM.inode(ino, generation, &inode), want, "{len} bytes, i_extra_isize {extra_isize}");
        }
    }
}

#[test]
fn a_descriptor_without_its_checksum() {
    for len in [32, 64, 128] {
        let group = GroupNr(0x0102_0304);
        let want = of_copy(&[&group.0.to_le_bytes()], bytes(len), &[0x1e]) as u16;
        assert_eq!(CSUM.group_desc(group, &bytes(len)), want, "{len} bytes");
    }
}
