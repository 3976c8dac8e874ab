//! Reading around a block: wide while the neighbours are wanted, narrow while the cache evicts them unused.

use extant_device::BlockDevice;
use extant_format::Pblk;
use extant_journal::BlockCache;
use extant_testkit::SimDevice;
use std::sync::Arc;

const BLOCKS: u64 = 40_000;
const MOST: u32 = 32;

/// A cache of about 1,000 blocks.
fn cache() -> Arc<BlockCache> {
    let device: Arc<dyn BlockDevice> = SimDevice::new(BLOCKS * 1024);
    BlockCache::new(device, 1024, BLOCKS, 1 << 20)
}

/// Blocks read from the device by `work`.
fn reads(cache: &BlockCache, work: impl FnOnce()) -> u64 {
    let before = cache.stats().reads;
    work();
    cache.stats().reads - before
}

/// Wants blocks that no window has two of before they are evicted: 7919 and the number of blocks have no common factor.
fn scattered(cache: &BlockCache, n: u64) {
    for i in 0..n {
        cache.read_around(Pblk(i * 7919 % BLOCKS), MOST).unwrap();
    }
}

#[test]
fn a_walk_in_order_reads_each_block_once_and_wide() {
    let cache = cache();
    let in_order = || {
        for n in 0..BLOCKS {
            assert_eq!(cache.read_around(Pblk(n), MOST).unwrap().pblk(), Pblk(n));
        }
    };
    assert_eq!(reads(&cache, in_order), BLOCKS);
}

#[test]
fn scattered_wants_soon_read_two_blocks_each() {
    let cache = cache();
    scattered(&cache, 2000);
    let n = 1000;
    let more = reads(&cache, || {
        for i in 2000..2000 + n {
            cache.read_around(Pblk(i * 7919 % BLOCKS), MOST).unwrap();
        }
    });
    assert!(more <= 2 * n, "{more} blocks for {n} that were wanted");
}

#[test]
fn after_scattered_wants_a_walk_in_order_reads_wide_again() {
    let cache = cache();
    scattered(&cache, 2000);
    for n in 0..20_000 {
        cache.read_around(Pblk(n), MOST).unwrap();
    }
    let missed = (20_000..BLOCKS).filter(|n| {
        let missing = cache.cached(Pblk(*n)).is_none();
        cache.read_around(Pblk(*n), MOST).unwrap();
        missing
    });
    assert_eq!(missed.count() as u64, 20_000 / u64::from(MOST));
}

#[test]
fn without_a_window_nothing_is_read_ahead() {
    let cache = cache();
    for most in [0, 1] {
        let n = 100;
        let one = reads(&cache, || {
            for i in 0..n {
                cache.read_around(Pblk(u64::from(most) * 1000 + i * 5), most).unwrap();
            }
        });
        assert_eq!(one, n);
    }
}

#[test]
fn a_window_ends_with_the_filesystem() {
    let cache = cache();
    cache.set_blocks(BLOCKS - 5);
    assert_eq!(reads(&cache, || drop(cache.read_around(Pblk(BLOCKS - 10), MOST).unwrap())), 27);
    assert!(cache.read_around(Pblk(BLOCKS - 5), MOST).is_err());
}
