//! Random operations against an array, with block sizes from 1 KiB to 64 KiB.

use extant_device::MemSlice;
use extant_vm::{CacheConfig, Host, Leave, PageRefs, ReadAhead, ReadFlags};

use crate::sim::{Random, STALE, SimFile, SimFs};

fn check_content(file: &SimFile, model: &[u8], ahead: &mut ReadAhead, what: &str) {
    let mut got = vec![1; model.len() + 10];
    let n = file.pages.read(file, 0, &mut got, ahead).expect("read");
    assert_eq!(n, model.len(), "size after {what}");
    if got[..n] != *model {
        let at = (0..n).find(|i| got[*i] != model[*i]).expect("they differ");
        panic!("byte {at} is {:02x}, not {:02x}, after {what}", got[at], model[at]);
    }
}

/// The same content through references to pages.
fn read_by_reference(file: &SimFile, at: u64, got: &mut [u8], ahead: &mut ReadAhead) -> usize {
    let (mut buf, mut refs) = (vec![0xDD; got.len()], PageRefs::default());
    let n = file.pages.read_refs(file, at, &mut buf, &mut refs, ahead).expect("read");
    let mut memory = Vec::new();
    refs.memory(MemSlice::from_mut(&mut buf), &mut memory);
    assert_eq!((n, memory.len()), (refs.len(), refs.pieces()));
    let mut done = 0;
    for piece in memory {
        piece.copy_to(0, &mut got[done..done + piece.len()]);
        done += piece.len();
    }
    assert_eq!(done, n);
    n
}

/// What a crash would leave now shows no other file's bytes, and no block past its end.
fn check_crash(file: &SimFile, what: &str) {
    let disk = file.after_crash();
    if disk.contains(&STALE) {
        let at = disk.iter().position(|b| *b == STALE).expect("it is there");
        panic!("stale byte at {at} of {} after {what}", file.disk_size());
    }
    assert_eq!(file.mapped_past_end(), 0, "blocks past i_disksize after {what}");
}

fn run(block_size: u32, blocks: u64, config: CacheConfig, failures: bool, steps: u32, random: &mut Random) {
    let fs = SimFs::new(block_size, 2 * blocks, config);
    let file = fs.file(12);
    let mut model: Vec<u8> = Vec::new();
    let mut ahead = ReadAhead::default();
    let most = blocks * u64::from(block_size);
    for step in 0..steps {
        let at = random.below(most);
        let longest = [300, 3 * u64::from(block_size), most / 3][random.below(3) as usize];
        let len = random.below(longest) + 1;
        let end = (at + len).min(most);
        let what = match random.below(20) {
            0..=4 => {
                // Half of the writes append.
                let at = if random.below(2) == 0 { at } else { (model.len() as u64).min(most - 1) };
                let end = (at + len).min(most);
                let data = random.bytes((end - at) as usize);
                let outcome = file.pages.write(&*file, at, &data);
                assert!(outcome.error.is_none(), "{outcome:?}");
                assert_eq!(outcome.written, data.len());
                model.resize(model.len().max(end as usize), 0);
                model[at as usize..end as usize].copy_from_slice(&data);
                format!("step {step}: write {at}..{end}")
            }
            5 | 6 => {
                let mut got = vec![0; len as usize];
                let leave = [Leave::Pages, Leave::Streams][random.below(2) as usize];
                ahead = ahead.with(ReadFlags { leave, ..ReadFlags::default() });
                let n = if random.below(2) == 0 {
                    file.pages.read(&*file, at, &mut got, &mut ahead).expect("read")
                } else {
                    read_by_reference(&file, at, &mut got, &mut ahead)
                };
                let want = model.get(at as usize..).unwrap_or_default();
                assert_eq!(got[..n], want[..want.len().min(len as usize)], "step {step}: read {at} {len}");
                continue;
            }
            7 | 8 => {
                let size = if random.below(3) == 0 { at } else { random.below(model.len() as u64 + 1) };
                if file.truncate(size).is_ok() {
                    model.resize(size as usize, 0);
                } else {
                    // Growing needs the old end on the device.
                    assert!(failures && file.size() == model.len() as u64);
                }
                format!("step {step}: truncate {size}")
            }
            9 | 10 => {
                if file.punch(at..end).is_ok() {
                    let len = model.len();
                    model[len.min(at as usize)..len.min(end as usize)].fill(0);
                } else {
                    // It needs the old end on the device, and nothing is done without it.
                    assert!(failures);
                }
                format!("step {step}: punch {at}..{end}")
            }
            11 => {
                let end = end.min(model.len() as u64);
                if at < end && file.allocate(at..end).is_err() {
                    assert!(failures);
                }
                format!("step {step}: allocate {at}..{end}")
            }
            12 => {
                if file.pages.sync(&*file, at..end).is_err() {
                    assert!(failures);
                }
                format!("step {step}: sync {at}..{end}")
            }
            13 => {
                if fs.cache.sync_all().is_err() {
                    assert!(failures);
                } else {
                    let disk = file.after_crash();
                    let same = disk.iter().zip(&model).take_while(|(a, b)| a == b).count();
                    let lengths = (disk.len(), model.len());
                    assert!(disk == model, "step {step}: all is on disk after sync ({same} of {lengths:?})");
                }
                format!("step {step}: sync")
            }
            16..=18 => {
                let block = u64::from(block_size);
                let (at, end) = (at / block * block, end.next_multiple_of(block).min(most));
                let data = random.bytes((end - at) as usize);
                match file.write_direct(at, &data) {
                    Ok(n) => {
                        assert!(failures || n == data.len());
                        model.resize(model.len().max(at as usize + n), 0);
                        model[at as usize..at as usize + n].copy_from_slice(&data[..n]);
                    }
                    // What an overwrite left of old and new is known to nobody.
                    Err(_) => {
                        assert!(failures);
                        fs.device.break_writes(&[]);
                        fs.cache.sync_all().expect("the device is whole again");
                        model = file.after_crash();
                        model.resize(file.size() as usize, 0);
                    }
                }
                format!("step {step}: direct write {at}..{end}")
            }
            19 => {
                let mut got = vec![0; len as usize];
                match file.pages.read_past_cache(&*file, at, &mut got) {
                    Ok(n) => {
                        let want = model.get(at as usize..).unwrap_or_default();
                        assert_eq!(
                            got[..n],
                            want[..want.len().min(len as usize)],
                            "step {step}: direct read"
                        );
                    }
                    Err(_) => assert!(failures),
                }
                continue;
            }
            14 => format!("step {step}: reclaim {}", fs.cache.reclaim(random.below(40) as usize)),
            _ if failures => {
                let bad: Vec<_> = (0..random.below(4))
                    .map(|_| random.below(2 * blocks) * u64::from(block_size))
                    .map(|b| b..b + 1)
                    .collect();
                fs.device.break_writes(&bad);
                format!("step {step}: broken blocks {bad:?}")
            }
            _ => {
                let _ = file.pages.invalidate(at..end);
                format!("step {step}: invalidate {at}..{end}")
            }
        };
        check_crash(&file, &what);
        if random.below(4) == 0 {
            check_content(&file, &model, &mut ahead, &what);
        }
    }
    fs.device.break_writes(&[]);
    fs.cache.sync_all().expect("the device is whole again");
    assert!(file.after_crash() == model, "all is on disk at the end");
    assert_eq!((file.reserved_blocks(), fs.space.lock().reserved), (0, 0), "reservations at the end");
    let stats = fs.cache.stats();
    assert_eq!((stats.dirty, stats.dirty_inodes), (0, 0), "{stats:?}");
    drop(file);
    assert_eq!(fs.cache.stats().pages, 0);
}

fn all(config: CacheConfig, failures: bool) {
    let mut random = Random::seeded();
    for block_size in [1024, 2048, 4096, 16384, 65536] {
        let (blocks, steps) = if block_size > 4096 { (12, 150) } else { (80, 800) };
        for _ in 0..3 {
            run(block_size, blocks, config, failures, steps, &mut random);
        }
    }
}

#[test]
fn cached_reads() {
    all(CacheConfig { direct_read: usize::MAX, ..CacheConfig::default() }, false);
}

#[test]
fn reads_that_leave_the_cache_alone() {
    all(CacheConfig { direct_read: 1, ..CacheConfig::default() }, false);
}

#[test]
fn reads_of_a_caller_who_keeps_them() {
    all(CacheConfig { direct_read: 1 << 30, ..CacheConfig::default() }, false);
}

#[test]
fn failing_writes() {
    all(CacheConfig { direct_read: usize::MAX, ..CacheConfig::default() }, true);
}

#[test]
fn referenced_pages_outlive_the_cache() {
    let fs = SimFs::new(4096, 100, CacheConfig { direct_read: usize::MAX, ..CacheConfig::default() });
    let file = fs.file(12);
    file.pages.write(&*file, 0, &[7; 5 * 4096]);
    let (mut buf, mut refs, mut ahead) = (vec![0; 3 * 4096], PageRefs::default(), ReadAhead::default());
    assert_eq!(file.pages.read_refs(&*file, 100, &mut buf, &mut refs, &mut ahead).expect("read"), 3 * 4096);
    file.truncate(0).expect("truncate");
    // Would get the memory, were it free.
    let other = fs.file(13);
    other.pages.write(&*other, 0, &[9; 50 * 4096]);
    let mut memory = Vec::new();
    refs.memory(MemSlice::from_mut(&mut buf), &mut memory);
    for piece in memory {
        let mut bytes = vec![0; piece.len()];
        piece.copy_to(0, &mut bytes);
        assert!(bytes.iter().all(|b| *b == 7), "content of another file");
    }
    refs.clear();
    assert_eq!((refs.len(), refs.pieces()), (0, 0));
}
