//! Direct writes of parts of one block, beside each other and beside the path through the cache that they take (S3), under the exploring
//! runtime.
//!
//! Two direct writes of a sector each share a block with a buffered write, a store, a truncate or a punch. What is in the file is what
//! one order of the three gives, as a whole: no sector is lost, none is another's. A direct write is on the device when it returns.

use std::sync::Arc;

use extant::{FallocateMode, Mutant};
use extant_device::{MemoryDevice, MemoryImage};
use extant_testkit::env::tools;

use crate::explore::{close, find, image, open, together};
use crate::explore_map::{Before, File, cut, errno, explore, mapped, put};

/// Four sectors of a block, two blocks of a page.
pub(crate) const HALF_PAGES: &str = "-t ext4 -b 2048 -I 256 -N 64 -J size=2 -O ^resize_inode,^orphan_file";

const SECTOR: usize = 512;

/// What comes beside the direct writes, and what it does to bytes.
#[derive(Clone, Copy)]
struct Beside {
    name: &'static str,
    run: fn(&File),
    model: fn(&mut Vec<u8>),
    /// It leaves alone what the direct writes write.
    apart: bool,
}

const WRITE: Beside = Beside {
    name: "a buffered write",
    run: |f| assert_eq!(errno(f.buffered.write_at(600, &[4; 30])).expect("a write").0, 30),
    model: |m| put(m, 600, 30, 4),
    apart: true,
};
const STORE: Beside = Beside {
    name: "a store",
    run: |f| assert_eq!(f.fs.access_simulated(&f.inode, &f.mmu, &f.view, 600, Some(4)), Ok(4)),
    model: |m| put(m, 600, 1, 4),
    apart: true,
};
const TRUNCATE: Beside = Beside {
    name: "a truncate",
    run: |f| errno(f.buffered.set_len(700)).expect("a truncate"),
    model: |m| m.resize(700, 0),
    apart: false,
};
const PUNCH: Beside = Beside {
    name: "a punch of the block",
    run: |f| errno(f.buffered.fallocate(FallocateMode::PunchHole, 0, 2048, true)).expect("a punch"),
    model: |m| cut(m, 0, 2048),
    apart: false,
};
const PUNCH_INSIDE: Beside = Beside {
    name: "a punch inside of the block",
    run: |f| errno(f.buffered.fallocate(FallocateMode::PunchHole, 600, 400, true)).expect("a punch"),
    model: |m| cut(m, 600, 1000),
    apart: true,
};

fn contents(fs: &extant::Filesystem) -> Vec<u8> {
    let file = find(fs, "m");
    let mut got = vec![0; file.size() as usize];
    assert_eq!(fs.read_at(&file, 0, &mut got).expect("read"), got.len());
    got
}

fn direct_writes(image: &MemoryImage, mutant: Mutant, beside: Beside) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, mutant);
    let file = Arc::new(mapped(&fs, Before::Written));
    let start = vec![1; file.inode.size() as usize];
    let direct = |at: usize, byte: u8| -> Box<dyn FnOnce() + Send> {
        let file = Arc::clone(&file);
        Box::new(move || {
            let done = errno(file.direct.write_at(at as u64, &[byte; SECTOR])).expect("a direct write");
            assert_eq!(done.0, SECTOR);
        })
    };
    let other = Arc::clone(&file);
    together(vec![direct(0, 6), direct(2 * SECTOR, 5), Box::new(move || (beside.run)(&other))]);
    if beside.apart {
        let crashed = open(&Arc::new(MemoryDevice::from_image(&device.image())), Mutant::None);
        let got = contents(&crashed);
        let byte = |at: usize, byte: u8| got[at..at + SECTOR].iter().all(|b| *b == byte);
        assert!(byte(0, 6) && byte(2 * SECTOR, 5), "a direct write is not on the device");
        crashed.unmount().expect("unmount");
    }
    let model = |n: usize, bytes: &mut Vec<u8>| match n {
        0 => put(bytes, 0, SECTOR, 6),
        1 => put(bytes, 2 * SECTOR, SECTOR, 5),
        _ => (beside.model)(bytes),
    };
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let wanted = orders.map(|order| {
        let mut bytes = start.clone();
        order.into_iter().for_each(|n| model(n, &mut bytes));
        bytes
    });
    let mut got = vec![0; start.len()];
    let n = file.buffered.read_at(0, &mut got).expect("read");
    got.truncate(n);
    let sectors = || got.chunks(SECTOR).take(4).map(|sector| sector[100]).collect::<Vec<_>>();
    assert!(wanted.contains(&got), "{}: no order gives {} bytes of {:?}", beside.name, got.len(), sectors());
    for at in [30, 600, 1100, 1700].into_iter().filter(|at| *at < got.len()) {
        let seen = fs.access_simulated(&file.inode, &file.mmu, &file.view, at as u64, None);
        assert_eq!(seen, Ok(got[at]), "{}: the mapping at {at}", beside.name);
    }
    drop(file);
    close(fs, &*device, beside.name);
    let fs = open(&device, Mutant::None);
    assert!(contents(&fs) == got, "{}: the disk has something else", beside.name);
    fs.unmount().expect("unmount");
}

fn explored(mutant: Mutant, beside: Beside) {
    need!(tools(&["mke2fs"]));
    let image = image(HALF_PAGES);
    let name = format!("direct writes to parts of a block beside {}", beside.name);
    explore(&name, mutant, move || direct_writes(&image, mutant, beside));
}

#[test]
fn parts_of_a_block_beside_a_buffered_write() {
    explored(Mutant::None, WRITE);
}

#[test]
fn parts_of_a_block_beside_a_store() {
    explored(Mutant::None, STORE);
}

#[test]
fn parts_of_a_block_beside_a_truncate() {
    explored(Mutant::None, TRUNCATE);
}

#[test]
fn parts_of_a_block_beside_punches() {
    explored(Mutant::None, PUNCH);
    explored(Mutant::None, PUNCH_INSIDE);
}

#[test]
fn mutant_parts_of_a_block_past_the_cache() {
    // A punch of the block leaves nothing of what was lost.
    for beside in [WRITE, STORE, TRUNCATE, PUNCH_INSIDE] {
        explored(Mutant::UnalignedCached, beside);
    }
}

#[test]
fn mutant_a_direct_write_that_stays_in_the_cache() {
    for beside in [WRITE, STORE, PUNCH_INSIDE] {
        explored(Mutant::FallbackWritten, beside);
    }
}
