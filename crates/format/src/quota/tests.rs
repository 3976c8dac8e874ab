//! The tree against a map; limits; hostile bytes.

use super::{
    BLOCK_LEN, Dqblk, QuotaError, QuotaFile, QuotaInfo, QuotaKind, QuotaStore, Resource, Verdict, block_place,
};
use crate::testing::Rng;
use crate::types::Lblk;
use std::collections::BTreeMap;
use std::vec::Vec;

struct Memory(Vec<u8>);

impl QuotaStore for Memory {
    type Error = QuotaError;

    fn read(&mut self, block: u32, into: &mut [u8; BLOCK_LEN]) -> Result<(), QuotaError> {
        let at = block as usize * BLOCK_LEN;
        let bytes = self.0.get(at..at + BLOCK_LEN).ok_or(QuotaError::Blocks { blocks: block, len: 0 })?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    fn write(&mut self, block: u32, from: &[u8; BLOCK_LEN]) -> Result<(), QuotaError> {
        let at = block as usize * BLOCK_LEN;
        if self.0.len() < at + BLOCK_LEN {
            self.0.resize(at + BLOCK_LEN, 0);
        }
        self.0[at..at + BLOCK_LEN].copy_from_slice(from);
        Ok(())
    }
}

fn fresh() -> QuotaFile<Memory> {
    let (_, bytes) = QuotaInfo::empty_file(QuotaKind::User);
    QuotaFile::open(Memory(bytes.to_vec()), QuotaKind::User, bytes.len() as u64).unwrap()
}

fn reopen(file: QuotaFile<Memory>) -> Result<QuotaFile<Memory>, QuotaError> {
    let store = file.into_store();
    let len = store.0.len() as u64;
    QuotaFile::open(store, QuotaKind::User, len)
}

#[test]
fn the_tree_behaves_like_a_map() {
    let mut rng = Rng::from_env();
    let mut file = fresh();
    let mut model: BTreeMap<u32, Dqblk> = BTreeMap::new();
    for round in 0..6000 {
        let id = [rng.below(40) as u32, rng.next() as u32 & 0x0003_0303, 0][rng.below(3)];
        if rng.chance(3) {
            assert_eq!(file.remove(id).unwrap(), model.remove(&id).is_some());
        } else {
            let dq =
                Dqblk { curspace: rng.below(3) as u64, curinodes: rng.below(2) as u64, ..Dqblk::default() };
            file.set(id, &dq).unwrap();
            // An entry that says nothing is only told apart from a free one by its id.
            model.insert(id, dq);
        }
        if round % 500 == 0 {
            file = reopen(file).unwrap();
            let mut found = BTreeMap::new();
            file.for_each(|id, dq| assert!(found.insert(id, *dq).is_none())).unwrap();
            assert_eq!(found, model);
        }
    }
    for id in model.keys().copied().collect::<Vec<_>>() {
        assert!(file.remove(id).unwrap());
    }
    assert_eq!(file.info().free_entry, 0, "no data block is left");
    let blocks = file.info().blocks;
    file.set(5, &Dqblk::default()).unwrap();
    assert_eq!(file.info().blocks, blocks, "freed blocks are used again");
}

#[test]
fn limits_and_grace() {
    let mut dq = Dqblk { bsoftlimit: 10, bhardlimit: 20, curspace: 9 * 1024, ..Dqblk::default() };
    assert_eq!(dq.admit(Resource::Space, 1024, 100, 50), Verdict::Within);
    assert_eq!(dq.admit(Resource::Space, 12 * 1024, 100, 50), Verdict::Exceeded);
    let verdict = dq.admit(Resource::Space, 2048, 100, 50);
    assert_eq!(verdict, Verdict::Grace(150));
    dq.charge(Resource::Space, 2048, verdict);
    assert_eq!(dq.admit(Resource::Space, 1, 149, 50), Verdict::Grace(150));
    assert_eq!(dq.admit(Resource::Space, 1, 150, 50), Verdict::Exceeded);
    assert!(dq.release(Resource::Space, 1024));
    assert_eq!(dq.btime, 0);
    assert!(!dq.release(Resource::Inodes, 1));
    let unlimited = Dqblk::default();
    assert_eq!(unlimited.admit(Resource::Inodes, u64::MAX, 0, 0), Verdict::Within);
}

#[test]
fn damage_is_told_apart() {
    let (_, bytes) = QuotaInfo::empty_file(QuotaKind::Group);
    let open = |kind, at: usize, byte: u8| {
        let mut copy = bytes.to_vec();
        copy[at] = byte;
        QuotaFile::open(Memory(copy), kind, 2048).map(|_| ()).unwrap_err()
    };
    assert!(matches!(open(QuotaKind::User, 100, 0), QuotaError::Magic { .. }));
    assert!(matches!(open(QuotaKind::Group, 4, 0), QuotaError::Version(0)));
    assert!(matches!(open(QuotaKind::Group, 20, 1), QuotaError::Blocks { blocks: 1, .. }));
    assert!(matches!(open(QuotaKind::Group, 20, 3), QuotaError::Blocks { blocks: 3, len: 2 }));
    let mut copy = bytes.to_vec();
    copy[24] = 9;
    let mut file = QuotaFile::open(Memory(copy), QuotaKind::Group, 2048).unwrap();
    assert!(matches!(file.set(1, &Dqblk::default()), Err(QuotaError::BlockRange { block: 9, .. })));
    assert_eq!(block_place(5, 4096), (Lblk(1), 1024));
    assert_eq!(block_place(5, 1024), (Lblk(5), 0));
}

#[test]
fn hostile_bytes_never_panic_or_loop() {
    let mut rng = Rng::from_env();
    let mut file = fresh();
    for id in 0..200 {
        file.set(id * 77, &Dqblk { curinodes: 1, ..Dqblk::default() }).unwrap();
    }
    let good = file.into_store().0;
    for _ in 0..3000 {
        let mut bytes = good.clone();
        for _ in 0..3 {
            rng.mutate(&mut bytes);
            let at = 8 + rng.below(24);
            rng.mutate(&mut bytes[at..at + 64]);
        }
        bytes[..8].copy_from_slice(&good[..8]);
        let len = bytes.len() as u64;
        let Ok(mut file) = QuotaFile::open(Memory(bytes), QuotaKind::User, len) else {
            continue;
        };
        let _ = file.for_each(|_, _| ());
        for _ in 0..8 {
            let id = rng.below(300) as u32 * 77;
            let _ = file.find(id);
            let _ = file.set(id, &Dqblk::default());
            let _ = file.remove(id + 77);
        }
    }
}
