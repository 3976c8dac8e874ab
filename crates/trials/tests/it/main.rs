//! Short forms of the trials.

use extant_testkit::{Rng, env, need};
use extant_trials::assault;
use extant_trials::hostile::{Bases, Limits, read_everything, trial};
use extant_trials::warden;

/// Damaged images of each run.
const IMAGES: u64 = 400;

#[test]
fn damaged_images_give_errors_only() {
    need!(env::tools(&["mke2fs"]));
    let seed = env::seed();
    let bases = Bases::make();
    let mut mounted = 0;
    for i in 0..IMAGES {
        let seed = Rng::new(seed).fork(i).next_u64();
        println!("SEED={seed}");
        mounted += u64::from(trial(&bases, seed));
    }
    assert!(mounted > IMAGES / 10, "only {mounted} of {IMAGES} could be looked at: the damage is too coarse");
    Limits::default().check().unwrap();
}

#[test]
fn writing_to_damaged_images_and_failing_devices() {
    need!(env::tools(&["mke2fs"]));
    let seed = env::seed();
    warden::install();
    let bases = Bases::make();
    let (mut mounted, mut wrong) = (0, Vec::new());
    for i in 0..IMAGES {
        let seed = Rng::new(seed).fork(i).next_u64();
        println!("SEED={seed}");
        warden::trying(seed);
        if i % 2 == 0 {
            mounted += u64::from(assault::damaged(&bases, seed).mounted);
        } else if let Err(what) = assault::failing(&bases, seed) {
            wrong.push(format!("SEED={seed}: {what}"));
        }
    }
    assert_eq!(warden::panics(), 0, "a thread panicked");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        mounted > IMAGES / 10,
        "only {mounted} of {IMAGES} could be written to: the damage is too coarse"
    );
    Limits::default().check().unwrap();
}

#[test]
fn published_images_give_errors_only() {
    need!(env::images(), env::tools(&["xz"]));
    let dir = extant_testkit::scratch();
    let mut todo = vec![env::images().unwrap()];
    let (mut looked_at, mut mounted) = (0, 0);
    while let Some(folder) = todo.pop() {
        let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "xz") {
                println!("{}", path.display());
                let image = dir.join("image");
                extant_testkit::oracle::unxz(&path, &image);
                let device = extant_device::OpenOptions::new().open(&image).unwrap();
                mounted += u64::from(read_everything(std::sync::Arc::new(device)).is_ok());
                looked_at += 1;
            }
        }
    }
    println!("{looked_at} images, {mounted} mounted");
    assert!(looked_at > 0);
    Limits::default().check().unwrap();
}
