//! Damaged logs: an error or a shorter replay, never a panic, a hang or a write outside.

use std::sync::Arc;

use extant_device::BlockDevice;
use extant_format::jbd2::{BlockType, Header};
use extant_journal::{Error, recover};
use extant_testkit::sim::{Content, SimDevice};
use extant_testkit::{Rng, env};

use crate::common::{BLOCKS, LOG_AT, Setup, fill};

fn used_log(setup: &Setup) -> Content {
    let device = setup.device();
    let journal = setup.open(&device);
    for round in 0..6u64 {
        for n in 0..20 {
            fill(&journal, n + round, (round + n) as u8);
        }
        let mut handle = journal.start(1).unwrap();
        handle.revoke(extant_format::Pblk(round)).unwrap();
        handle.finish().unwrap();
        journal.commit_all().unwrap();
    }
    device.content()
}

fn blocks_of(content: &Content, kind: BlockType) -> Vec<u64> {
    let mut found = Vec::new();
    for n in 1..1024 {
        let mut block = vec![0; 1024];
        content.read((LOG_AT + n) * 1024, &mut block);
        if Header::decode(&block).is_some_and(|h| h.block_type == Some(kind)) {
            found.push(LOG_AT + n);
        }
    }
    found
}

fn recover_damaged(setup: &Setup, content: &Content, at: u64) -> Result<u32, Error> {
    let device = SimDevice::from_content(content.clone());
    device.corrupt(at, |b| b[0] ^= 0x40, 1);
    let before = device.content().digest();
    let dynamic: Arc<dyn BlockDevice> = Arc::clone(&device) as _;
    let outcome = recover(&setup.place(&device), &dynamic, BLOCKS);
    if outcome.is_err() {
        assert_eq!(device.content().digest(), before, "a refused journal was replayed in part");
    }
    outcome.map(|r| r.transactions())
}

#[test]
fn damage_in_the_middle_is_an_error_and_at_the_end_is_the_end() {
    let setup = Setup::default();
    let content = used_log(&setup);
    let commits = blocks_of(&content, BlockType::Commit);
    assert_eq!(commits.len(), 6);
    assert!(matches!(
        recover_damaged(&setup, &content, commits[2] * 1024 + 700),
        Err(Error::Checksum { .. })
    ));
    assert_eq!(recover_damaged(&setup, &content, commits[5] * 1024 + 700).unwrap(), 5);
    let descriptors = blocks_of(&content, BlockType::Descriptor);
    assert!(matches!(
        recover_damaged(&setup, &content, descriptors[5] * 1024 + 700),
        Err(Error::Checksum { .. })
    ));
    let revokes = blocks_of(&content, BlockType::Revoke);
    assert!(matches!(
        recover_damaged(&setup, &content, revokes[1] * 1024 + 700),
        Err(Error::Checksum { .. })
    ));
    let data = commits[5] - 1;
    assert!(matches!(recover_damaged(&setup, &content, data * 1024 + 700), Err(Error::Checksum { .. })));
}

#[test]
fn a_damaged_log_never_panics() {
    let seed = env::seed();
    for checksums in [false, true] {
        let setup =
            Setup { features: extant_journal::WantedFeatures { checksums, bit64: true }, ..Setup::default() };
        let content = used_log(&setup);
        let mut rng = Rng::new(seed);
        for _ in 0..400 {
            let device = SimDevice::from_content(content.clone());
            for _ in 0..1 + rng.below(6) {
                let at =
                    LOG_AT * 1024 + if rng.chance(1, 4) { rng.below(0x60) } else { rng.below(200 * 1024) };
                let value = rng.next_u64() as u8;
                device.corrupt(at, |b| b[0] = value, 1);
            }
            let dynamic: Arc<dyn BlockDevice> = Arc::clone(&device) as _;
            if let Ok(recovery) = recover(&setup.place(&device), &dynamic, BLOCKS) {
                recovery.finish(&dynamic).unwrap();
            }
        }
    }
}
