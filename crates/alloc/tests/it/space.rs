//! Counting: ENOSPC exact to the block, reserved blocks, statfs as the kernel's, trim.

use extant_alloc::{AllocError, ClaimRequest, InodeWindow, Privilege, overhead_clusters};
use extant_format::{Lblk, Pblk};
use extant_testkit::kernel::KernelMount;
use extant_testkit::rng::Rng;
use extant_testkit::{env, need, oracle};

use crate::rig::Rig;

fn needs() -> Result<(), String> {
    env::tools(&["mke2fs", "e2fsck", "debugfs"])
}

#[test]
fn every_free_block_can_be_claimed_and_not_one_more() {
    need!(needs());
    for args in [
        "-t ext4 -b 1024 -O ^has_journal",
        "-t ext2 -b 1024",
        "-t ext4 -b 1024 -C 4096 -O bigalloc,^has_journal",
    ] {
        let mut rig = Rig::new(args, 20 << 20);
        let ratio = rig.sb.geometry().cluster_ratio();
        let free = rig.alloc.usable_clusters();
        let mut res = rig.alloc.reserve(0, free, Privilege::Pool).expect("all of it");
        let none = rig.alloc.reserve(0, 1, Privilege::Pool);
        assert!(matches!(none, Err(AllocError::NoSpace { pending: None })), "{none:?}");
        let mut runs = Vec::new();
        while res.meta() > 0 {
            let len = res.meta().min(3000) as u32 * ratio;
            let request = ClaimRequest { meta: true, ..ClaimRequest::plain(Pblk(0), Lblk(0), len) };
            let mut claim = rig.alloc.claim(&request, &mut res).expect("what is reserved can be claimed");
            let n = claim.len();
            rig.handle(|h| rig.alloc.publish(h, &mut claim, n)).expect("publish");
            runs.push((claim.pblk().0, u64::from(n)));
        }
        assert_eq!((rig.alloc.free_clusters(), rig.alloc.usable_clusters()), (0, 0));
        assert!(rig.claim(5000, 1).is_none());
        for (pblk, len) in runs {
            rig.free(pblk, len);
        }
        let waiting = rig.alloc.reserve(0, 1, Privilege::Pool);
        assert!(matches!(waiting, Err(AllocError::NoSpace { pending: Some(_) })), "{waiting:?}");
        rig.commit();
        assert_eq!(rig.alloc.usable_clusters(), free);
        rig.close();
        oracle::assert_clean(&rig.image);
    }
}

#[test]
fn reserved_blocks_and_the_pool_are_held_back() {
    need!(needs());
    let rig = Rig::new("-t ext4 -b 1024 -m 10 -O ^has_journal", 64 << 20);
    let free = rig.alloc.usable_clusters();
    let (r, pool) = (65536 / 10, (65536 - 1) / 50);
    let normal = free - r - pool;
    drop(rig.alloc.reserve(normal, 0, Privilege::Normal).expect("to the last block"));
    assert!(rig.alloc.reserve(normal + 1, 0, Privilege::Normal).is_err());
    drop(rig.alloc.reserve(normal + r, 0, Privilege::Reserved).expect("to the last block"));
    assert!(rig.alloc.reserve(normal + r + 1, 0, Privilege::Reserved).is_err());
    let all = rig.alloc.reserve(normal, r + pool, Privilege::Normal).expect("tree blocks may use the pool");
    assert!(rig.alloc.reserve(0, 1, Privilege::Pool).is_err());
    drop(all);
    assert_eq!(rig.alloc.usable_clusters(), free);
}

#[test]
fn windows_give_way_before_the_disk_is_full() {
    need!(needs());
    let rig = Rig::new("-t ext4 -b 1024 -m 0 -O ^has_journal", 20 << 20);
    let windows: Vec<InodeWindow> = (0..4).map(|_| InodeWindow::new()).collect();
    for (i, window) in windows.iter().enumerate() {
        let mut res = rig.alloc.reserve(200, 0, Privilege::Normal).expect("space");
        let request = ClaimRequest::file(Pblk(1000 * i as u64), Lblk(0), 200, 1000, window);
        let mut claim = rig.alloc.claim(&request, &mut res).expect("space");
        let n = claim.len();
        rig.handle(|h| rig.alloc.publish(h, &mut claim, n)).expect("publish");
    }
    let free = rig.alloc.usable_clusters();
    let mut res = rig.alloc.reserve(0, free, Privilege::Pool).expect("windows are nobody's");
    let mut claims = Vec::new();
    while res.meta() > 0 {
        let request = ClaimRequest { meta: true, ..ClaimRequest::plain(Pblk(0), Lblk(0), 500) };
        claims.push(rig.alloc.claim(&request, &mut res).expect("windows give way"));
    }
    assert_eq!(claims.iter().map(|c| u64::from(c.len())).sum::<u64>(), free);
}

#[test]
fn statfs_is_the_kernels() {
    need!(needs(), env::kernel_mounts());
    let images = [
        "-t ext4 -b 1024",
        "-t ext4 -b 4096 -m 7",
        "-t ext4 -b 4096 -O ^has_journal",
        "-t ext2 -b 1024",
        "-t ext3 -b 2048",
        "-t ext4 -b 1024 -O ^flex_bg,^resize_inode,^64bit",
        "-t ext4 -b 4096 -C 16384 -O bigalloc",
        "-t ext4 -b 1024 -O meta_bg,^resize_inode",
    ];
    for args in images {
        let scratch = env::scratch();
        let image = scratch.join("image");
        oracle::mke2fs(&image, 90 << 20, args);
        let rig = Rig::open(scratch, image, |_| {});
        let journal = oracle::dumpe2fs_header(&rig.image);
        let journal = journal
            .iter()
            .find(|(k, _)| k == "Total journal blocks")
            .map_or(0, |(_, v)| v.trim().parse::<u64>().expect("journal blocks"));
        let overhead = overhead_clusters(&rig.sb, journal);
        let (bsd, minix) = (rig.alloc.statfs(overhead), rig.alloc.statfs(0));
        for (options, ours) in [("bsddf", bsd), ("minixdf", minix)] {
            let mount = KernelMount::with(&rig.image, &format!("ro,noload,{options}"));
            let mount = mount.unwrap_or_else(|_| KernelMount::with(&rig.image, "ro").expect("mount"));
            let kernel = rustix::fs::statvfs(mount.path()).expect("statfs");
            let theirs = (kernel.f_blocks, kernel.f_bfree, kernel.f_bavail, kernel.f_files, kernel.f_ffree);
            let ours = (ours.blocks, ours.bfree, ours.bavail, ours.files, ours.ffree);
            assert_eq!(ours, theirs, "{args} {options}");
        }
    }
}

#[test]
fn trim_discards_what_is_free_once() {
    need!(needs());
    let mut rig = Rig::new("-t ext4 -b 4096 -O ^has_journal", 256 << 20);
    let (pblk, len) = rig.take(40_000, 1000).expect("space");
    rig.commit();
    let end = Pblk(u64::MAX);
    let never = || false;
    let free = rig.alloc.free_clusters();
    assert_eq!(rig.alloc.trim(Pblk(0), end, 1, &never).expect("trim"), free);
    assert_eq!(rig.alloc.trim(Pblk(0), end, 1, &never).expect("trim"), 0, "nothing new");
    rig.free(pblk, u64::from(len));
    rig.commit();
    let part = rig.alloc.trim(Pblk(pblk), Pblk(pblk + 100), 1, &never).expect("trim");
    assert_eq!(part, 100);
    assert!(rig.alloc.trim(Pblk(0), end, 500, &never).expect("trim") >= 1000);
    assert_eq!(rig.alloc.usable_clusters(), rig.alloc.free_clusters());
    rig.close();
    oracle::assert_clean(&rig.image);
}

#[test]
fn what_credits_are_enough_to_free_takes_no_more_of_them() {
    need!(needs());
    for args in [
        "-t ext4 -b 1024 -O ^has_journal",
        "-t ext4 -b 1024 -g 256 -O ^has_journal",
        "-t ext2 -b 1024 -g 256",
    ] {
        let rig = Rig::new(args, 32 << 20);
        for credits in 0..200 {
            let most = rig.alloc.freeable(credits);
            assert!(most == u32::MAX || rig.alloc.free_credits(most.into()) <= credits || most == 0);
        }
        assert!(rig.alloc.freeable(rig.alloc.free_credits(1)) > 0, "{args}");
    }
}

/// An allocator whose files without extents cannot have the second half of the blocks.
fn halved() -> (Rig, u64) {
    let rig = Rig::new("-t ext4 -b 1024 -O ^has_journal -g 2048", 32 << 20);
    // Where a group begins.
    let end = 1 + 8 * 2048;
    (rig.reopen_with(|options| options.low_end = end), end)
}

#[test]
fn what_is_promised_below_a_bound_is_there_whoever_else_takes_blocks() {
    need!(needs());
    let (mut rig, end) = halved();
    let none = |low: u64| {
        matches!(rig.alloc.reserve_below(low, 0, Privilege::Pool, end), Err(AllocError::NoSpace { .. }))
    };
    let mut bounded = rig.alloc.reserve_below(9000, 100, Privilege::Pool, end).expect("half of it");
    assert!(none(9000), "not twice");
    // Everybody else takes what there is, as near to the start as he can, in all the ways that there are.
    let free = rig.alloc.usable_clusters();
    let mut rest = rig.alloc.reserve(free, 0, Privilege::Pool).expect("the rest");
    let (mut taken, mut low) = (Vec::new(), 0);
    let window = InodeWindow::new();
    let mut at = 0;
    while rest.data() > 0 {
        let size = [10, 100_000, 0][at as usize % 3];
        let plain = ClaimRequest::plain(Pblk(1), Lblk(at), 700);
        let request =
            if size == 0 { plain } else { ClaimRequest::file(Pblk(1), Lblk(at), 700, size, &window) };
        let mut claim = rig.alloc.claim(&request, &mut rest).expect("what is reserved can be claimed");
        let n = claim.len();
        at += n;
        rig.handle(|h| rig.alloc.publish(h, &mut claim, n)).expect("publish");
        low += if claim.pblk().0 < end { u64::from(n) } else { 0 };
        taken.push((claim.pblk().0, u64::from(n)));
    }
    println!("{low} blocks below the bound were nobody's");
    assert!(low > 0 && none(1));
    let mut bounded_runs = Vec::new();
    while bounded.data() + bounded.meta() > 0 {
        let plain = ClaimRequest::plain(Pblk(20_000), Lblk(0), 300).below(end);
        let request = ClaimRequest { meta: bounded.data() == 0, ..plain };
        let mut claim = rig.alloc.claim(&request, &mut bounded).expect("what is reserved can be claimed");
        let n = claim.len();
        assert!(claim.pblk().0 + u64::from(n) <= end);
        if bounded_runs.len() % 3 == 0 {
            // Given back, and claimed again.
            claim.give_back(&mut bounded);
            bounded_runs.push((0, 0));
            continue;
        }
        rig.handle(|h| rig.alloc.publish(h, &mut claim, n)).expect("publish");
        bounded_runs.push((claim.pblk().0, u64::from(n)));
    }
    assert_eq!((rig.alloc.free_clusters(), rig.alloc.usable_clusters()), (0, 0));
    // Freed, all of it can be promised so again: what is below the bound, and no more.
    drop(bounded);
    let freed: u64 = bounded_runs.iter().map(|(_, len)| len).sum::<u64>() + low;
    for (pblk, len) in taken.into_iter().chain(bounded_runs).filter(|(_, len)| *len > 0) {
        rig.free(pblk, len);
    }
    rig.commit();
    drop(rig.alloc.reserve_below(freed, 0, Privilege::Pool, end).expect("all of them"));
    assert!(none(freed + 1));
    rig.close();
    oracle::assert_clean(&rig.image);
}

#[test]
fn threads_with_and_without_the_bound_find_what_they_are_promised() {
    need!(needs());
    let seed = env::seed();
    println!("seed={seed}");
    let (mut rig, end) = halved();
    let (free, low) = (rig.alloc.usable_clusters(), most_below(&rig, end));
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let alloc = &rig.alloc;
            scope.spawn(move || {
                let mut rng = Rng::new(seed).fork(thread);
                let window = InodeWindow::new();
                let below = if thread % 2 == 0 { end } else { u64::MAX };
                for n in 0..100 {
                    let want = 1 + rng.below(3000);
                    let Ok(mut res) = alloc.reserve_below(want, 0, Privilege::Pool, below) else { continue };
                    let mut claims = Vec::new();
                    while res.data() > 0 {
                        let len = res.data().min(500) as u32;
                        let request = ClaimRequest::file(Pblk(1), Lblk(n), len, rng.below(3000), &window);
                        let claim = alloc.claim(&request.below(below), &mut res);
                        claims.push(claim.expect("what is reserved can be claimed"));
                    }
                    if rng.chance(1, 2) {
                        claims.into_iter().for_each(|claim| claim.give_back(&mut res));
                    }
                }
            });
        }
    });
    assert_eq!((rig.alloc.usable_clusters(), most_below(&rig, end)), (free, low));
    rig.close();
    oracle::assert_clean(&rig.image);
}

/// The most that can be promised below a bound.
fn most_below(rig: &Rig, end: u64) -> u64 {
    let fits = |n: &u64| rig.alloc.reserve_below(*n, 0, Privilege::Pool, end).is_ok();
    let (mut no, mut yes) = (end + 1, 0);
    while no - yes > 1 {
        let middle = u64::midpoint(no, yes);
        if fits(&middle) { yes = middle } else { no = middle }
    }
    yes
}
