use std::vec::Vec;

use super::*;

fn path(lblk: u32, block_size: u32) -> Vec<u32> {
    Path::new(Lblk(lblk), block_size).unwrap().offsets().to_vec()
}

#[test]
fn paths() {
    assert_eq!(path(0, 1024), [0]);
    assert_eq!(path(11, 1024), [11]);
    assert_eq!(path(12, 1024), [12, 0]);
    assert_eq!(path(12 + 255, 1024), [12, 255]);
    assert_eq!(path(12 + 256, 1024), [13, 0, 0]);
    assert_eq!(path(12 + 256 + 65536, 1024), [14, 0, 0, 0]);
    assert_eq!(path(12 + 256 + 65536 + 256 * 256 * 256 - 1, 1024), [14, 255, 255, 255]);
    assert_eq!(Path::new(Lblk(12 + 256 + 65536 + 256 * 256 * 256), 1024), None);
    assert!(Path::new(Lblk(u32::MAX), 65536).is_some());
    assert_eq!(Path::new(Lblk(3), 1024).unwrap().rest_of_block(1024), 8);
    assert_eq!(Path::new(Lblk(12), 1024).unwrap().rest_of_block(1024), 255);
}

#[test]
fn slots_and_spans() {
    for block_size in [1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        let per = u64::from(block_size / 4);
        for (slot, levels) in [(IND_BLOCK, 1), (DIND_BLOCK, 2), (TIND_BLOCK, 3)] {
            let first = first_of_slot(slot, block_size);
            let path = Path::new(Lblk(first as u32), block_size).unwrap();
            assert_eq!((path.offsets()[0] as usize, path.levels()), (slot, levels));
            assert_eq!(span(levels, block_size), per.pow(u32::from(levels) - 1));
        }
    }
}

#[test]
fn tree_sizes_by_counting() {
    for blocks in [0, 12, 13, 12 + 256, 12 + 257, 12 + 256 + 512, 70_000, 200_000] {
        let mut nodes = std::collections::HashSet::new();
        for lblk in 0..blocks {
            let p = path(lblk, 1024);
            for depth in 1..p.len() {
                nodes.insert(p[..depth].to_vec());
            }
        }
        assert_eq!(blocks_for(u64::from(blocks), 1024), nodes.len() as u64, "{blocks}");
    }
}

/// Found with ftruncate(2) on loop mounts by Linux 6.18.
#[test]
fn limits_are_the_kernels() {
    use MapKind::{Extents, Indirect};
    let measured = [
        (1024, Indirect, true, 17_247_252_480),
        (1024, Indirect, false, 17_247_252_480),
        (1024, Extents, true, 4_398_046_510_080),
        (1024, Extents, false, 2_199_023_254_528),
        (2048, Indirect, true, 275_415_851_008),
        (2048, Indirect, false, 275_415_851_008),
        (2048, Extents, true, 8_796_093_020_160),
        (2048, Extents, false, 2_199_023_253_504),
        (4096, Indirect, true, 4_402_345_721_856),
        (4096, Indirect, false, 2_196_873_666_560),
        (4096, Extents, true, 17_592_186_040_320),
        (4096, Extents, false, 2_199_023_251_456),
    ];
    for (block_size, kind, huge_file, bytes) in measured {
        assert_eq!(max_file_size(kind, block_size, huge_file), bytes, "{block_size} {kind:?} {huge_file}");
    }
    assert_eq!(max_file_size(Extents, 65536, true), (1 << 48) - 65536);
}
