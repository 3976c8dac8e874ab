//! Any bytes: no panic, no hang, bounded memory.

use crate::damage::Layout;
use crate::{Rng, base, corpus};
use extant_device::{BlockDevice, MemoryDevice};
use extant_format::{GroupDesc, Superblock};
use extant_fsck::{Options, check};
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// A device that counts what is read, and gives nothing more after so much that a check without a bound would not end.
#[derive(Debug)]
struct Counted {
    device: MemoryDevice,
    reads: AtomicU64,
}

const TOO_MANY: u64 = 200_000;

impl BlockDevice for Counted {
    fn size(&self) -> u64 {
        self.device.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.reads.fetch_add(1, Ordering::Relaxed) >= TOO_MANY {
            return Err(io::Error::other("too many reads"));
        }
        self.device.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.device.write_at(offset, buf)
    }

    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.device.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.device.write_zeroes(offset, len)
    }
}

/// Reads that a check of the image takes; it finds damage.
fn reads(image: &[u8]) -> u64 {
    let device = Counted { device: MemoryDevice::from_bytes(image), reads: AtomicU64::new(0) };
    assert!(!check(&device, &Options { threads: 1, ..Options::default() }).is_clean());
    device.reads.load(Ordering::Relaxed)
}

fn debugfs(image: &Path, request: &str) -> String {
    let out = Command::new("debugfs").args(["-w", "-R", request]).arg(image).output().unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Checks with one thread and with several, and in text and JSON.
fn judge(image: &[u8]) {
    let device = MemoryDevice::from_bytes(image);
    let report = check(&device, &Options { threads: 1, max_findings: 200, ..Options::default() });
    assert!(report.findings.len() <= 200);
    assert_eq!(report.is_clean(), report.exit_status() == 0);
    for finding in &report.findings {
        assert!(!finding.to_string().is_empty() && !finding.kind.name().is_empty());
    }
}

fn mutate(rng: &mut Rng, image: &mut [u8], layout: &Layout) {
    for _ in 0..=rng.below(12) {
        if rng.below(3) == 0 {
            let at = rng.below(image.len());
            image[at] = rng.next() as u8;
        } else {
            layout.damage(rng, image);
        }
    }
}

#[test]
fn mutated_images_never_panic_or_hang() {
    let mut rng = Rng::from_env(None);
    let rounds = std::env::var("ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1500_usize);
    let folder = tempfile::tempdir().unwrap();
    let images: Vec<_> = base::KINDS.iter().filter_map(|k| base::make(folder.path(), k)).collect();
    if images.is_empty() {
        eprintln!("skipped: mke2fs or debugfs is not installed");
        return;
    }
    let layouts: Vec<_> = images.iter().map(|i| Layout::new(i)).collect();
    let mut image = Vec::new();
    for n in 0..rounds {
        let which = n % images.len();
        image.clear();
        image.extend_from_slice(&images[which]);
        mutate(&mut rng, &mut image, &layouts[which]);
        if rng.below(20) == 0 {
            let len = rng.below(image.len());
            image.truncate(len);
        }
        judge(&image);
    }
}

#[test]
fn collected_images_mutated_never_panic_or_hang() {
    let Some(folder) = std::env::var_os("EXTANT_IMAGES") else {
        eprintln!("skipped: EXTANT_IMAGES names no folder of images");
        return;
    };
    let mut rng = Rng::from_env(None);
    for path in corpus::images(Path::new(&folder)) {
        let Some(good) = corpus::load(&path).filter(|b| b.len() > 4096) else {
            continue;
        };
        for _ in 0..3 {
            let mut image = good.clone();
            for _ in 0..=rng.below(40) {
                // Metadata is at the start, mostly.
                let part = 1 + rng.below(64);
                let at = 1024 + rng.below((image.len() - 1024) / part);
                image[at] = rng.next() as u8;
            }
            judge(&image);
        }
    }
}

#[test]
fn noise_is_no_filesystem() {
    let mut rng = Rng::from_env(None);
    for _ in 0..200 {
        let len = rng.below(100_000);
        let image: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
        let report = check(&MemoryDevice::from_bytes(&image), &Options::default());
        assert_eq!(report.exit_status(), 8);
    }
}

/// A symbolic link with its target in its first block, as it should be, and beside it a tree of 256^3 ways back to its own top.
#[test]
fn a_link_whose_map_leads_to_itself_is_walked_once() {
    let folder = tempfile::tempdir().unwrap();
    let kind = base::KINDS.iter().find(|k| k.0 == "ext2-1k").unwrap();
    let Some(mut image) = base::make(folder.path(), kind) else {
        eprintln!("skipped: mke2fs or debugfs is not installed");
        return;
    };
    let path = folder.path().join(kind.0);
    let free = debugfs(&path, "ffb");
    let block: u32 = free.rsplit(' ').find_map(|word| word.trim().parse().ok()).unwrap();
    debugfs(&path, &format!("sif /long-link block[TIND] {block}"));
    image.copy_from_slice(&std::fs::read(&path).unwrap());
    for word in image[block as usize * 1024..][..1024].chunks_exact_mut(4) {
        word.copy_from_slice(&block.to_le_bytes());
    }
    let reads = reads(&image);
    assert!(reads < 10_000, "{reads} reads of an image of 4,096 blocks");
}

/// Every directory says that half of the filesystem is its content.
#[test]
fn blocks_that_many_directories_claim_are_read_once_with_clusters_too() {
    let folder = tempfile::tempdir().unwrap();
    let kind = base::KINDS.iter().find(|k| k.0 == "bigalloc").unwrap();
    let Some(mut image) = base::make(folder.path(), kind) else {
        eprintln!("skipped: mke2fs or debugfs is not installed");
        return;
    };
    let path = folder.path().join(kind.0);
    for n in 0..100 {
        debugfs(&path, &format!("mkdir more-{n}"));
    }
    image.copy_from_slice(&std::fs::read(&path).unwrap());
    let sb = Superblock::read(&image[1024..2048]).unwrap();
    let geo = *sb.geometry();
    let mut dirs = 0;
    for group in geo.group_numbers() {
        let (block, offset) = geo.desc_location(group).unwrap();
        let at = block.0 as usize * 1024 + offset as usize;
        let table = GroupDesc::decode(group, &image[at..], geo.desc_size()).unwrap().inode_table;
        for index in 0..geo.inodes_per_group() as usize {
            let at = table.0 as usize * 1024 + index * usize::from(geo.inode_size());
            let inode = &mut image[at..][..128];
            if inode[1] & 0xf0 != 0x40 {
                continue;
            }
            dirs += 1;
            let (len, start) = (4000_u32, 2000_u32);
            inode[4..8].copy_from_slice(&(len * 1024).to_le_bytes());
            // The head of a tree of one extent, and the extent.
            for (n, word) in [0x1_f30a, 4, 0, 0, len, start].into_iter().enumerate() {
                inode[40 + 4 * n..][..4].copy_from_slice(&u32::to_le_bytes(word));
            }
        }
    }
    assert!(dirs > 100, "{dirs} directories");
    let reads = reads(&image);
    assert!(reads < 20_000, "{reads} reads of an image of 8,192 blocks");
}
