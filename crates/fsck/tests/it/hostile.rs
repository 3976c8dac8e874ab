//! Any bytes: no panic, no hang, bounded memory.

use crate::damage::Layout;
use crate::{Rng, base, corpus};
use extant_device::MemoryDevice;
use extant_fsck::{Options, check};
use std::path::Path;

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
