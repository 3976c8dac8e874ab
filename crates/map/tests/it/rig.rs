//! A mounted allocator and map over an image that mke2fs made, with files that debugfs made.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use extant_alloc::{AllocOptions, Allocator, ClaimRequest, InodeWindow, Privilege, Reservation};
use extant_device::{BlockDevice, OpenOptions};
use extant_format::inode::{Inode, InodeFlags, InodeFormat};
use extant_format::{Ino, Lblk, Pblk, Superblock};
use extant_journal::{BlockCache, CommitObserver, Handle, Journal, JournalOptions, LogPlace};
use extant_map::{
    Content, Extent, ExtentStatus, LBLK_END, MapFs, MapKind, MapMut, MapRef, Placement, Run, Shift,
    StatusBudget, Written,
};
use extant_testkit::env::Scratch;
use extant_testkit::{env, oracle};

/// An image that is mounted as far as allocation and maps go.
pub(crate) struct Rig {
    _scratch: Scratch,
    pub(crate) image: PathBuf,
    sb: Superblock,
    pub(crate) cache: Arc<BlockCache>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) alloc: Arc<Allocator>,
    pub(crate) map: Arc<MapFs>,
    inodes: InodeFormat,
    budget: Arc<StatusBudget>,
}

/// A file of the image, with the truth about its map.
pub(crate) struct File {
    pub(crate) ino: Ino,
    pub(crate) inode: Inode,
    pub(crate) es: ExtentStatus,
    pub(crate) window: InodeWindow,
    /// Every mapped block: place, and whether it is unwritten.
    pub(crate) truth: BTreeMap<u32, (u64, bool)>,
}

impl File {
    pub(crate) fn kind(&self) -> MapKind {
        if self.inode.flags.contains(InodeFlags::EXTENTS) { MapKind::Extents } else { MapKind::Indirect }
    }

    pub(crate) fn map_ref(&self) -> MapRef<'_> {
        MapRef {
            ino: self.ino,
            generation: self.inode.generation,
            kind: self.kind(),
            i_block: &self.inode.i_block,
            es: &self.es,
        }
    }

    pub(crate) fn map_mut(&mut self) -> MapMut<'_> {
        MapMut {
            ino: self.ino,
            generation: self.inode.generation,
            kind: self.kind(),
            i_block: &mut self.inode.i_block,
            es: &self.es,
        }
    }
}

impl Rig {
    /// An image of `size` bytes made with mke2fs' `args`, holding the empty files `f0` to `f{files - 1}`.
    pub(crate) fn new(args: &str, size: u64, files: usize) -> Self {
        let scratch = env::scratch();
        let image = scratch.join("image");
        oracle::mke2fs(&image, size, args);
        if files > 0 {
            let writes: Vec<String> = (0..files).map(|i| format!("write /dev/null f{i}")).collect();
            oracle::debugfs_write(&image, &writes.iter().map(String::as_str).collect::<Vec<_>>());
        }
        Self::open(scratch, image)
    }

    fn open(scratch: Scratch, image: PathBuf) -> Self {
        let device: Arc<dyn BlockDevice> =
            Arc::new(OpenOptions::new().write(true).open(&image).expect("image"));
        let mut bytes = [0; 1024];
        device.read_at(1024, &mut bytes).expect("superblock");
        let sb = Superblock::read(&bytes).expect("superblock");
        let geo = *sb.geometry();
        let cache = BlockCache::new(Arc::clone(&device), geo.block_size(), geo.blocks_count(), 8 << 20);
        let inodes = InodeFormat::new(&sb);
        let budget = StatusBudget::new(1 << 16);
        let options = AllocOptions::from_superblock(&sb);
        let alloc =
            Allocator::open(Arc::clone(&cache), Arc::clone(&device), &sb, options).expect("allocator");
        let map = MapFs::new(Arc::clone(&cache), Arc::clone(&alloc), &sb);
        let quiet = JournalOptions { commit_interval: None, ..JournalOptions::default() };
        let journal_ino = Ino(sb.raw().s_journal_inum.get());
        let journal = if journal_ino.0 == 0 {
            Journal::without_log(Arc::clone(&cache), quiet).expect("no journal")
        } else {
            let file = read_file(&alloc, &cache, &inodes, journal_ino, &budget);
            let runs = all_runs(&map, &file).into_iter().map(|(_, pblk, len)| (pblk, len));
            let place = LogPlace::internal(Arc::clone(&device), geo.block_size(), geo.blocks_count(), runs)
                .expect("journal's place");
            Journal::open(Arc::clone(&cache), place, quiet).expect("journal")
        };
        let observer: Arc<dyn CommitObserver> = Arc::<Allocator>::clone(&alloc);
        let observer: Weak<dyn CommitObserver> = Arc::downgrade(&observer);
        journal.add_observer(observer);
        Self { _scratch: scratch, image, sb, cache, journal, alloc, map, inodes, budget }
    }

    /// The file `f{n}`: debugfs numbers them from the first free inode on.
    pub(crate) fn file(&self, n: u32) -> File {
        let ino = Ino(12 + n);
        read_file(&self.alloc, &self.cache, &self.inodes, ino, &self.budget)
    }

    pub(crate) fn block_size(&self) -> u32 {
        self.map.geometry().block_size()
    }

    pub(crate) fn no_reservation(&self) -> Reservation {
        self.alloc.no_reservation(Privilege::Reserved)
    }

    /// Runs `work` in a handle with plenty of credits.
    pub(crate) fn handle<R>(&self, work: impl FnOnce(&mut Handle) -> R) -> R {
        let mut handle = self.journal.start(200).expect("handle");
        let result = work(&mut handle);
        handle.finish().expect("finish");
        result
    }

    /// Allocates every hole of a range, as far as there is space. Returns the blocks that could not be had.
    pub(crate) fn fill(&self, file: &mut File, lblk: u32, len: u32, unwritten: bool) -> u32 {
        let end = lblk + len;
        let mut at = lblk;
        while at < end {
            let run = self.map.lookup(&file.map_ref(), Lblk(at), end - at).expect("lookup");
            let Run::Hole { len } = run else {
                at += run.len();
                continue;
            };
            match self.fill_hole(file, at, len, unwritten) {
                Some(done) => at += done,
                None => return end - at,
            }
        }
        0
    }

    /// One claim, one publication. `None` if there is no space.
    fn fill_hole(&self, file: &mut File, at: u32, len: u32, unwritten: bool) -> Option<u32> {
        let depth = self.map.depth(&file.map_ref()).expect("depth");
        let ratio = self.map.geometry().cluster_ratio();
        let (implied, wish) = match self.map.placement(&file.map_ref(), Lblk(at), len).expect("placement") {
            Placement::Implied { pblk, len } => (Some(pblk), len),
            Placement::Claim { len } => (None, len),
        };
        let clusters = u64::from(at % ratio + wish).div_ceil(u64::from(ratio));
        let worst = self.map.tree_blocks_for_run(file.kind(), depth, 1);
        let mut res = self
            .alloc
            .reserve(if implied.is_some() { 0 } else { clusters }, worst, Privilege::Reserved)
            .or_else(|_| self.alloc.reserve(u64::from(implied.is_none()), worst, Privilege::Reserved))
            .ok()?;
        let mut claim = None;
        let (pblk, n) = match implied {
            Some(pblk) => (pblk, wish),
            None => {
                let goal = self.goal(file, at);
                let last = file.truth.last_key_value().map_or(0, |(l, _)| l + 1);
                let size = u64::from(last.max(at + wish));
                let request = ClaimRequest::file(goal, Lblk(at), wish, size, &file.window);
                let made = self.alloc.claim(&request, &mut res).expect("reserved clusters can be claimed");
                let place = (made.pblk(), made.len());
                claim = Some(made);
                place
            }
        };
        let credits = self.map.insert_credits_for(file.kind(), depth, n) + 1;
        let mut handle = self.journal.start(credits).expect("handle");
        if let Some(claim) = &mut claim {
            self.alloc.publish(&mut handle, claim, n).expect("publish");
        }
        let extent = Extent { lblk: Lblk(at), len: n, pblk, unwritten };
        let map = Arc::clone(&self.map);
        let delta = map.insert(&mut handle, &mut file.map_mut(), extent, &mut res).expect("insert");
        for i in 0..n {
            let old = file.truth.insert(at + i, (pblk.0 + u64::from(i), unwritten));
            assert_eq!(old, None);
        }
        self.account(file, delta.total());
        self.write_inode(&mut handle, file);
        handle.finish().expect("finish");
        Some(n)
    }

    fn goal(&self, file: &File, at: u32) -> Pblk {
        let before = file.truth.range(..at).next_back();
        before.map_or_else(
            || self.alloc.goal_for_inode(file.ino, true),
            |(l, (p, _))| Pblk(p + u64::from(at - l)),
        )
    }

    /// Makes a range a hole, with as many handles as it takes; from even blocks on with nothing in the status cache.
    pub(crate) fn punch(&self, file: &mut File, lblk: u32, end: u32) {
        if lblk.is_multiple_of(2) {
            file.es.shrink();
        }
        let depth = self.map.depth(&file.map_ref()).expect("depth");
        let worst = self.map.tree_blocks_worst(file.kind(), depth, 2);
        let mut res = self.alloc.reserve(0, worst, Privilege::Pool).unwrap_or_else(|_| self.no_reservation());
        let mut range_end = end;
        loop {
            let depth = self.map.depth(&file.map_ref()).expect("depth");
            let credits = self.map.remove_credits(file.kind(), depth) + 1;
            let mut handle = self.journal.start(credits).expect("handle");
            let map = Arc::clone(&self.map);
            let range = Lblk(lblk)..Lblk(range_end);
            let removed = map
                .remove(&mut handle, &mut file.map_mut(), range, Content::Data, 0, &mut res)
                .expect("remove");
            self.account(file, removed.delta.total());
            self.write_inode(&mut handle, file);
            handle.finish().expect("finish");
            match removed.left {
                None => break,
                Some(left) => {
                    assert!(left.0 < range_end || range_end == end, "no progress at {left}");
                    range_end = left.0;
                }
            }
        }
        let gone: Vec<u32> = file.truth.range(lblk..end).map(|(l, _)| *l).collect();
        for l in gone {
            file.truth.remove(&l);
        }
    }

    /// Converts the mapped blocks of a range.
    pub(crate) fn convert(&self, file: &mut File, lblk: u32, len: u32, to: Written) {
        let depth = self.map.depth(&file.map_ref()).expect("depth");
        let worst = self.map.tree_blocks_worst(file.kind(), depth, u64::from(len).min(50) * 2);
        let mut res = self.alloc.reserve(0, worst, Privilege::Pool).expect("pool");
        self.handle(|handle| {
            let map = Arc::clone(&self.map);
            let delta =
                map.convert(handle, &mut file.map_mut(), Lblk(lblk), len, to, &mut res).expect("convert");
            assert_eq!(delta.data, 0);
            self.account(file, delta.total());
            self.write_inode(handle, file);
        });
        for (_, (_, unwritten)) in file.truth.range_mut(lblk..lblk + len) {
            *unwritten = to == Written::No;
        }
    }

    pub(crate) fn split(&self, file: &mut File, lblk: u32) {
        let mut res = self.no_reservation();
        self.handle(|handle| {
            let map = Arc::clone(&self.map);
            let delta = map.split_at(handle, &mut file.map_mut(), Lblk(lblk), &mut res).expect("split");
            self.account(file, delta.total());
            self.write_inode(handle, file);
        });
    }

    /// Takes whole clusters out of the file, with at most `most` nodes moved in a handle.
    pub(crate) fn collapse(&self, file: &mut File, lblk: u32, len: u32, most: u32) {
        self.punch(file, lblk, lblk + len);
        self.shift(file, lblk + len, Shift::Down(len), most);
        let moved = file.truth.split_off(&(lblk + len));
        file.truth.extend(moved.into_iter().map(|(l, v)| (l - len, v)));
    }

    /// Makes room for whole clusters in the file.
    pub(crate) fn insert(&self, file: &mut File, lblk: u32, len: u32, most: u32) {
        self.split(file, lblk);
        // What is behind i_size must be unwritten, or e2fsck complains.
        file.inode.size += u64::from(len) * u64::from(self.block_size());
        self.shift(file, lblk, Shift::Up(len), most);
        let moved = file.truth.split_off(&lblk);
        file.truth.extend(moved.into_iter().map(|(l, v)| (l + len, v)));
    }

    /// Moves everything from a block on; after each handle the map is read to its end.
    fn shift(&self, file: &mut File, from: u32, by: Shift, most: u32) {
        let (map, seq) = (Arc::clone(&self.map), file.es.seq());
        let mut todo = Lblk(from)..Lblk(LBLK_END);
        let mapped = file.truth.len();
        loop {
            let depth = u32::from(map.depth(&file.map_ref()).expect("depth"));
            let nodes = map.moved_nodes(&file.map_ref(), todo.clone()).expect("nodes").count();
            let most = most.max(depth + 1);
            let mut handle = self.journal.start(nodes.min(most) + 1).expect("handle");
            let left = map.shift(&mut handle, &mut file.map_mut(), todo.clone(), by, 1).expect("shift");
            assert!(handle.credits_left() >= 1, "the caller's credit is used up");
            self.write_inode(&mut handle, file);
            handle.finish().expect("finish");
            let all: u32 = all_runs(&map, file).iter().map(|r| r.2).sum();
            assert_eq!(all as usize, mapped, "blocks came or went");
            match left {
                None => break,
                Some(left) => {
                    assert!(nodes > most, "not all was done with credits for all");
                    assert_ne!(left, todo, "no progress");
                    todo = left;
                }
            }
        }
        assert!(file.es.seq() > seq, "the map moved and its number did not");
    }

    pub(crate) fn account(&self, file: &mut File, blocks: i64) {
        let sectors = i64::from(self.block_size() / 512) * blocks;
        file.inode.blocks = file.inode.blocks.checked_add_signed(sectors).expect("i_blocks never negative");
    }

    pub(crate) fn write_inode(&self, handle: &mut Handle, file: &mut File) {
        let at = self.map.geometry().inode_location(file.ino).expect("inode");
        let table = self.alloc.group_desc(at.group).expect("group").inode_table;
        let buf = self.cache.read(Pblk(table.0 + u64::from(at.block))).expect("inode table");
        let last = file.truth.last_key_value().map_or(0, |(l, _)| u64::from(*l) + 1);
        file.inode.size = file.inode.size.max(last * u64::from(self.block_size()));
        let (size, offset) = (usize::from(self.inodes.inode_size()), at.offset as usize);
        handle
            .modify(&buf, |bytes: &mut [u8]| {
                self.inodes.encode(file.ino, &file.inode, &mut bytes[offset..offset + size])
            })
            .expect("modify")
            .expect("inode");
    }

    /// The map says what the truth says, through the cache and without it.
    pub(crate) fn check(&self, file: &File) {
        file.es.shrink();
        self.check_cached(file);
        self.check_cached(file);
    }

    pub(crate) fn check_cached(&self, file: &File) {
        let mut truth = file.truth.iter().peekable();
        for (lblk, pblk, len) in all_runs(&self.map, file) {
            let run = self.map.lookup(&file.map_ref(), lblk, len).expect("lookup");
            let Run::Mapped { unwritten, .. } = run else { panic!("{lblk} became a hole") };
            for i in 0..len {
                let want = truth.next().map(|(l, (p, u))| (*l, *p, *u));
                assert_eq!(Some((lblk.0 + i, pblk.0 + u64::from(i), unwritten)), want);
            }
        }
        assert_eq!(truth.next(), None);
    }

    /// Extents of a file as debugfs lists them: logical, physical, length, unwritten.
    pub(crate) fn debugfs_extents(&self, file: &File) -> Vec<(u32, u64, u32, bool)> {
        let text = oracle::debugfs(&self.image, &[&format!("ex -l <{}>", file.ino.0)]);
        text.lines().filter_map(parse_extent).collect()
    }

    /// The same of a rig that goes on.
    pub(crate) fn debugfs_extents_after_commit(&self, file: &File) -> Vec<(u32, u64, u32, bool)> {
        self.journal.commit_all().expect("commit");
        self.journal.checkpoint_all().expect("checkpoint");
        self.debugfs_extents(file)
    }

    /// Unmounts: everything on disk, the superblock's counts too.
    pub(crate) fn close(&mut self) {
        self.journal.commit_all().expect("commit");
        self.journal.close().expect("close");
        let blocks = self.alloc.free_clusters() << self.map.geometry().log_cluster_ratio();
        let inodes = self.alloc.free_inode_count();
        self.sb
            .update(|raw| {
                raw.set_free_blocks_count(blocks);
                raw.s_free_inodes_count.set(inodes as u32);
            })
            .expect("superblock");
        let image = std::fs::OpenOptions::new().write(true).open(&self.image).expect("image");
        image.write_all_at(&self.sb.encode(), 1024).expect("superblock");
    }

    /// Unmounts and asks e2fsck.
    pub(crate) fn close_clean(&mut self) {
        self.close();
        oracle::assert_clean(&self.image);
    }
}

/// A line of `ex -l`: ` 0/ 1   2/  5  100 - 107  2000 - 2007  8 Uninit`.
pub(crate) fn parse_extent(line: &str) -> Option<(u32, u64, u32, bool)> {
    let words: Vec<&str> =
        line.split(|c: char| c.is_whitespace() || c == '/' || c == '-').filter(|w| !w.is_empty()).collect();
    let number = |i: usize| words.get(i)?.parse::<u64>().ok();
    let (_, start, end, pblk) = (number(0)?, number(4)?, number(5)?, number(6)?);
    let len = u32::try_from(end - start + 1).ok()?;
    Some((start as u32, pblk, len, line.contains("Uninit")))
}

fn read_file(
    alloc: &Allocator,
    cache: &BlockCache,
    inodes: &InodeFormat,
    ino: Ino,
    budget: &Arc<StatusBudget>,
) -> File {
    let at = alloc.geometry().inode_location(ino).expect("inode");
    let table = alloc.group_desc(at.group).expect("group").inode_table;
    let buf = cache.read(Pblk(table.0 + u64::from(at.block))).expect("inode table");
    let size = usize::from(inodes.inode_size());
    let inode = buf.with(|bytes| inodes.read(ino, &bytes[at.offset as usize..][..size])).expect("inode");
    let es = ExtentStatus::new(Arc::clone(budget));
    File { ino, inode, es, window: InodeWindow::new(), truth: BTreeMap::new() }
}

/// All mapped runs of a file.
pub(crate) fn all_runs(map: &MapFs, file: &File) -> Vec<(Lblk, Pblk, u32)> {
    let mut runs = Vec::new();
    let mut at = Lblk(0);
    while let Some((lblk, run)) = map.next_mapped(&file.map_ref(), at, u32::MAX).expect("walk") {
        let Run::Mapped { pblk, len, .. } = run else { unreachable!() };
        runs.push((lblk, pblk, len));
        at = Lblk(lblk.0 + len);
    }
    runs
}
