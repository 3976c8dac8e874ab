//! Random options: what is accepted is clean, for e2fsck and for our checker; what is refused is refused before
//! anything is written.

use std::fmt::Display;
use std::path::Path;

use extant_device::OpenOptions;
use extant_mkfs::{MkfsError, Silent};

use crate::support::{Scratch, UUID, assert_clean};

/// Filesystems a run makes or is refused.
const ROUNDS: usize = 220;

/// xorshift, of `SEED=` or else of a fixed seed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = std::env::var("SEED").ok().and_then(|s| s.trim().parse().ok()).unwrap_or(20_231u64);
        eprintln!("seed={seed}");
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.below(2);
        }
        random
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % n as u64) as usize
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }

    fn option<T: Copy + Display>(&mut self, percent: usize, name: &str, of: &[T]) -> Option<String> {
        self.percent(percent).then(|| format!("{name}{}", self.one(of)))
    }
}

/// Features and how often each is named, in percent.
const FEATURES: &[(&str, usize)] = &[
    ("meta_bg", 10),
    ("^flex_bg", 15),
    ("flex_bg", 10),
    ("^resize_inode", 20),
    ("sparse_super2", 15),
    ("^sparse_super", 6),
    ("bigalloc", 20),
    ("^has_journal", 20),
    ("^64bit", 10),
    ("^metadata_csum", 10),
    ("uninit_bg", 5),
    ("quota", 10),
    ("project", 10),
    ("orphan_file", 10),
    ("inline_data", 10),
    ("fast_commit", 10),
    ("mmp", 5),
    ("metadata_csum_seed", 5),
    ("^extent", 5),
    ("extent", 5),
    ("ea_inode", 5),
    ("verity", 5),
    ("^dir_index", 5),
];

/// A command line without the image and its size.
fn line(r: &mut Random) -> String {
    let mut words = vec![format!("-t {}", r.one(&["ext2", "ext3", "ext4", "ext4", "ext4"]))];
    words.extend(r.option(70, "-b ", &[1024, 1024, 2048, 4096, 4096, 8192, 65536]));
    let mut features: Vec<&str> =
        FEATURES.iter().filter(|(_, often)| r.percent(*often)).map(|(name, _)| *name).collect();
    if features.contains(&"meta_bg") && r.percent(90) {
        features.push("^resize_inode");
    }
    if !features.is_empty() {
        words.push(format!("-O {}", features.join(",")));
    }
    if features.contains(&"bigalloc") {
        words.extend(r.option(60, "-C ", &[2048, 4096, 8192, 16384, 65536, 262_144, 1 << 20]));
    }
    let blocks = [256, 256, 264, 320, 512, 768, 1024, 2048, 4096, 8192, 256 + 8 * r.below(992)];
    words.extend(r.option(40, "-g ", &blocks));
    words.extend(r.option(25, "-G ", &[1, 2, 4, 8, 16, 32, 64, 128, 512]));
    if r.percent(20) {
        words.extend(r.option(100, "-i ", &[1024, 2048, 4096, 16384, 65536, 1 << 20, 1 << 26]));
    } else {
        words.extend(r.option(20, "-N ", &[1, 11, 12, 16, 20, 100, 1000, 5000, 20_000, 123_456]));
    }
    words.extend(r.option(25, "-I ", &[128, 256, 512, 1024, 2048, 4096]));
    words.extend(r.option(15, "-J size=", &[1, 2, 4, 8, 16]));
    words.extend(r.option(10, "-m ", &["0", "12.5", "50"]));
    let mut extended = Vec::new();
    extended.extend(r.option(15, "resize=", &[70_000, 200_000, 1_000_000, 4_000_000, 100_000_000]));
    extended.extend(r.option(10, "packed_meta_blocks=", &[1]));
    extended.extend(r.option(10, "num_backup_sb=", &[0, 1, 2]));
    extended.extend(r.option(10, "stride=", &[1, 16, 64]));
    extended.extend(r.option(10, "lazy_itable_init=", &[0]));
    extended.extend(r.option(5, "desc_size=", &[64, 128, 256, 1024]));
    extended.extend(r.option(5, "orphan_file_size=", &[4096, 65536, 262_144]));
    extended.extend(r.option(5, "quotatype=", &["usrquota", "prjquota", "usrquota:grpquota"]));
    if !extended.is_empty() {
        words.push(format!("-E {}", extended.join(",")));
    }
    words.join(" ")
}

/// From 96 KiB to 64 MiB, small ones as often as large ones; sometimes up to 256 MiB.
fn kibibytes(r: &mut Random) -> usize {
    let octave = if r.percent(94) { 6 + r.below(10) } else { 16 + r.below(2) };
    let exact = (1 << octave) + r.below(1 << octave) + 32;
    if r.percent(50) { exact } else { exact.next_multiple_of(64) }
}

/// Some files, directories and links in `root`, and its path.
fn small_tree(root: &Path) -> String {
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    for (name, len) in [("empty", 0), ("inline", 40), ("a/block", 4000), ("a/b/blocks", 50_000)] {
        std::fs::write(root.join(name), vec![0x33; len]).unwrap();
    }
    for n in 0..40 {
        std::fs::write(root.join(format!("a/one of the files, number {n}")), b"x").unwrap();
    }
    std::os::unix::fs::symlink("b".repeat(100), root.join("a/link")).unwrap();
    root.to_str().unwrap().to_owned()
}

#[test]
fn what_is_accepted_is_clean() {
    let mut r = Random::new();
    let scratch = Scratch::new();
    let image = scratch.path("image");
    let tree = small_tree(&scratch.path("tree"));
    let old = vec![0xa5; 8192];
    let (mut made, mut wrong) = (0, Vec::new());
    for round in 0..ROUNDS {
        let (mut line, size) = (line(&mut r), format!("{}k", kibibytes(&mut r)));
        if round % 3 == 0 {
            line += &format!(" -d {tree}");
        }
        let _ = std::fs::remove_file(&image);
        std::fs::write(&image, &old).unwrap();
        let args = format!("-q -F -U {UUID} {line}");
        let args = args.split_whitespace().map(Into::into);
        let command =
            extant_mkfs::cli::parse(args.chain([image.clone().into(), size.clone().into()])).unwrap();
        match extant_mkfs::run(&command, &mut std::io::sink(), &Silent) {
            Ok(()) => {
                made += 1;
                eprintln!("{line} {size}");
                assert_clean(&image);
                let device = OpenOptions::new().open(&image).unwrap();
                let report = extant_fsck::check(&device, &extant_fsck::Options::default());
                let errors: Vec<String> = report.errors().map(ToString::to_string).collect();
                if !errors.is_empty() {
                    wrong.push(format!("{line} {size}: {errors:?}"));
                }
            }
            Err(e) => {
                let ours = matches!(e, MkfsError::Format(_)) || e.to_string().contains("would not be valid");
                if ours || std::fs::read(&image).unwrap() != old {
                    wrong.push(format!("{line} {size} wrote, or was decided too late: {e}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(made > ROUNDS / 4, "only {made} of {ROUNDS} were made");
}
