//! Damaged and hostile maps: an error that names the inode, never a panic, a hang or memory without bound.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use extant_alloc::{AllocOptions, Allocator, Privilege};
use extant_device::{BlockDevice, MemoryDevice, OpenOptions, Overlay};
use extant_format::inode::{FileType, InodeFlags, InodeFormat};
use extant_format::{Ino, Lblk, Pblk, Superblock};
use extant_journal::{BlockCache, Journal, JournalOptions};
use extant_map::{Content, ExtentStatus, MapError, MapFs, MapKind, MapMut, MapRef, Run, StatusBudget};
use extant_testkit::{Rng, env, need, oracle};

use crate::rig::Rig;

/// How many runs of one file are looked at: a file may honestly have millions.
const RUNS: usize = 20_000;

/// Every image file of the folder of hostile images.
fn images(dir: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            images(&path, found);
        } else if path.metadata().is_ok_and(|m| m.len() >= 256) {
            found.push(path);
        }
    }
}

/// What became of the inodes of an image.
#[derive(Default)]
struct Tally {
    files: u32,
    errors: u32,
}

/// Maps every inode of an image, then frees everything that can be freed; in memory.
fn walk(device: Arc<dyn BlockDevice>) -> Option<Tally> {
    let mut bytes = [0; 1024];
    device.read_at(1024, &mut bytes).ok()?;
    let sb = Superblock::read(&bytes).ok()?;
    let geo = *sb.geometry();
    if geo.size_bytes() > 1 << 33 {
        return None;
    }
    let device: Arc<dyn BlockDevice> = Arc::new(Overlay::new(device));
    let cache = BlockCache::new(Arc::clone(&device), geo.block_size(), geo.blocks_count(), 4 << 20);
    let options = AllocOptions::from_superblock(&sb);
    let alloc = Allocator::open(Arc::clone(&cache), device, &sb, options).ok()?;
    let map = MapFs::new(Arc::clone(&cache), Arc::clone(&alloc), &sb);
    let quiet = JournalOptions { commit_interval: None, ..JournalOptions::default() };
    let journal = Journal::without_log(Arc::clone(&cache), quiet).ok()?;
    let format = InodeFormat::new(&sb);
    let budget = StatusBudget::new(1 << 14);
    let mut tally = Tally::default();
    let mut blocks_left = 4096;
    for ino in (1..=geo.inodes_count().min(1 << 16)).map(Ino) {
        let Some(at) = geo.inode_location(ino) else { break };
        let Some(desc) = alloc.group_desc(at.group) else { break };
        if at.offset == 0 {
            blocks_left -= 1;
            if blocks_left == 0 {
                break;
            }
        }
        let Ok(buf) = cache.read(Pblk(desc.inode_table.0 + u64::from(at.block))) else { continue };
        let size = usize::from(format.inode_size());
        let Ok(mut inode) = buf.with(|b| format.decode(ino, &b[at.offset as usize..][..size])) else {
            continue;
        };
        let kind = FileType::from_mode(inode.mode);
        if !matches!(kind, Some(FileType::Regular | FileType::Directory | FileType::Symlink))
            || inode.flags.contains(InodeFlags::INLINE_DATA)
            || inode.is_fast_symlink()
        {
            continue;
        }
        let extents = inode.flags.contains(InodeFlags::EXTENTS);
        let kind = if extents { MapKind::Extents } else { MapKind::Indirect };
        let es = ExtentStatus::new(Arc::clone(&budget));
        tally.files += 1;
        let view = MapRef { ino, generation: inode.generation, kind, i_block: &inode.i_block, es: &es };
        if walk_file(&map, &view).is_err() {
            tally.errors += 1;
        }
        let mut handle = journal.start(1000).ok()?;
        let generation = inode.generation;
        let mut change = MapMut { ino, generation, kind, i_block: &mut inode.i_block, es: &es };
        let mut res = alloc.no_reservation(Privilege::Normal);
        let all = Lblk(0)..Lblk(u32::MAX);
        let _ = map.remove(&mut handle, &mut change, all, Content::Data, 0, &mut res);
        let _ = handle.finish();
    }
    Some(tally)
}

fn walk_file(map: &MapFs, view: &MapRef<'_>) -> Result<(), MapError> {
    let mut at = Lblk(0);
    for _ in 0..RUNS {
        let Some((lblk, run)) = map.next_mapped(view, at, u32::MAX)? else { break };
        let Run::Mapped { len, .. } = run else { break };
        at = Lblk(lblk.0.saturating_add(len));
    }
    Ok(())
}

#[test]
fn hostile_images_end_in_errors() {
    need!(env::images(), env::tools(&["xz"]));
    let Ok(dir) = env::images() else { return };
    let mut found = Vec::new();
    images(&dir, &mut found);
    let scratch = env::scratch();
    let (mut opened, mut errors) = (0, 0);
    for path in &found {
        let image = scratch.join("image");
        if path.extension().is_some_and(|e| e == "xz") {
            oracle::unxz(path, &image);
        } else {
            std::fs::copy(path, &image).expect("image");
        }
        let Ok(device) = OpenOptions::new().force_read(true).open(&image) else { continue };
        let device = Overlay::new(Arc::new(device));
        let start = Instant::now();
        if let Some(tally) = walk(Arc::new(device)) {
            opened += 1;
            errors += tally.errors;
        }
        let took = start.elapsed();
        if took > Duration::from_secs(2) {
            println!("{} took {took:?}", path.display());
        }
    }
    println!("{} files, {opened} opened, {errors} damaged maps", found.len());
}

/// Flips bytes of everything that leads to the files' blocks, and walks.
#[test]
fn flipped_bytes_end_in_errors() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let mut rng = Rng::new(env::seed());
    for args in ["-t ext4 -b 1024 -O ^has_journal,^metadata_csum", "-t ext2 -b 1024"] {
        let mut rig = Rig::new(args, 8 << 20, 3);
        let mut meta = Vec::new();
        for n in 0..3 {
            let mut file = rig.file(n);
            for i in 0..400 {
                rig.fill(&mut file, i * 3, 1, false);
            }
            meta.push(file);
        }
        let owned: Vec<u64> = meta.iter().flat_map(|f| f.truth.values().map(|v| v.0)).collect();
        rig.close();
        let bytes = std::fs::read(&rig.image).expect("image");
        for _ in 0..50 {
            let device = MemoryDevice::new(bytes.len() as u64);
            device.write_at(0, &bytes).expect("image");
            for _ in 0..12 {
                // Somewhere in the metadata: not in the files' own blocks.
                let block = rng.below(2000);
                if owned.contains(&block) || block < 3 {
                    continue;
                }
                let at = block * 1024 + rng.below(1024);
                let noise = [[0xff, 0xff, 0, 1][rng.below(4) as usize], rng.next_u64() as u8];
                device.write_at(at, &noise).expect("flip");
            }
            let _ = walk(Arc::new(device));
        }
    }
}

/// A root whose index leads to itself through a block, and two indexes that share a child.
#[test]
fn shared_nodes_are_an_error() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let rig = Rig::new("-t ext4 -b 1024 -O ^has_journal,^metadata_csum", 16 << 20, 1);
    let mut file = rig.file(0);
    for i in 0..300 {
        rig.fill(&mut file, i * 2, 1, false);
    }
    assert!(rig.map.depth(&file.map_ref()).expect("depth") >= 1);
    // The second index gets the first one's child.
    let (first, rest) = file.inode.i_block.split_at_mut(24);
    rest[4..10].copy_from_slice(&first[16..22]);
    file.es.shrink();
    let key = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
    let error = rig.map.lookup(&file.map_ref(), Lblk(key), 1).expect_err("shared child");
    assert!(matches!(error, MapError::Format(_)), "{error}");
    assert!(error.to_string().contains(&format!("inode {}", file.ino.0)), "{error}");
    assert!(walk_file(&rig.map, &file.map_ref()).is_err());
}
