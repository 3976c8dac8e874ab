//! Programs over the preloaded library: the data path and the faults of the library itself, in the program's own process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Built;
use crate::rig::{built_library, built_library_with, quiet, tool};

/// Where the programs see the image.
pub(super) const ROOT: &str = "/extant-suites";
/// Block sizes, and features of mke2fs.
pub(super) const KINDS: [(&str, &str); 8] = [
    ("1024", "extents"),
    ("2048", "extents"),
    ("4096", "extents"),
    ("1024", "inline_data"),
    ("2048", "inline_data"),
    ("4096", "inline_data"),
    ("1024", "bigalloc"),
    ("4096", "bigalloc,inline_data"),
];

/// fsx collapses and inserts whole blocks, which bigalloc refuses (as the kernel's): there it does neither.
fn switches(kind: (&str, &str)) -> &'static [&'static str] {
    if kind.1.contains("bigalloc") { &["-C", "-I"] } else { &[] }
}

/// A fresh image, and programs that see it.
pub(super) struct Preloaded<'a> {
    library: PathBuf,
    dir: &'a Path,
    pub(super) image: PathBuf,
    options: &'static str,
    /// A path whose DAX flag flips all the time.
    flips: &'static str,
}

impl<'a> Preloaded<'a> {
    pub(super) fn new(
        library: &Path,
        dir: &'a Path,
        (block, features): (&str, &str),
    ) -> Result<Self, String> {
        let image = dir.join("preload.img");
        let _ = fs::remove_file(&image);
        quiet(Command::new("truncate").args(["-s", "256M"]).arg(&image))?;
        let mut mkfs = Command::new(tool("mke2fs")?);
        quiet(mkfs.args(["-q", "-F", "-t", "ext4", "-b", block, "-O", features]).arg(&image))?;
        Ok(Self { library: library.to_owned(), dir, image, options: "", flips: "" })
    }

    /// Runs a program to its end; it must succeed.
    pub(super) fn run(&self, program: &Path, args: &[&str]) -> Result<String, String> {
        self.run_with(program, args, &[])
    }

    /// The same with more of an environment.
    fn run_with(&self, program: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<String, String> {
        let mut command = Command::new(program);
        command.envs(env.iter().copied());
        command.env("LD_PRELOAD", &self.library).env("EXTANT_IMAGE", &self.image).env("EXTANT_ROOT", ROOT);
        command.env("EXTANT_OPTIONS", self.options);
        if !self.flips.is_empty() {
            command.env("EXTANT_TEST_FLIP_DAX", self.flips);
        }
        // What programs put beside their file goes to the rig's folder.
        quiet(command.args(args).current_dir(self.dir).stdin(Stdio::null()))
    }

    /// The image is clean for e2fsck.
    pub(super) fn check(&self) -> Result<(), String> {
        quiet(Command::new(tool("e2fsck")?).arg("-fn").arg(&self.image)).map(drop)
    }
}

/// ltp/fsx with mapped reads and writes on, and in its other forms.
pub(super) fn fsx(built: &Built<'_>, long: bool) -> Result<String, String> {
    let program = built.suites.join("xfstests/ltp/fsx");
    let file = format!("{ROOT}/file");
    let library = built_library("extant-preload", "libextant_preload.so")?;
    let (once, five) = if long { ("1000000", "100000") } else { ("20000", "2000") };
    // Direct I/O excludes mapped I/O and buffered of fsx's own (its manual).
    const DIRECT: &[&str] = &["-Z", "-R", "-W", "-r", "512", "-w", "512"];
    // Each of -A, -e 1 and -Z, and all of them together that go.
    let mut forms: Vec<Vec<&str>> = Vec::new();
    for n in 1..8 {
        let parts: [&[&str]; 3] = [&["-A"], &["-e", "1"], DIRECT];
        let taken = parts.into_iter().enumerate().filter(|(bit, _)| n & (1 << bit) != 0);
        forms.push(taken.flat_map(|(_, part)| part).copied().collect());
    }
    forms.push(vec!["-X", "-f"]);
    let mut runs = 0;
    for kind in KINDS {
        let image = Preloaded::new(&library, &built.rig.dir, kind)?;
        let describe = |err: String| format!("{} {}: {err}", kind.0, kind.1);
        let off = switches(kind);
        let first = [&["-q", "-N", once, "-S", "1"], off, &[&file]].concat();
        image.run(&program, &first).map_err(describe)?;
        for form in &forms {
            for seed in ["1", "2", "3", "4", "5"] {
                let mut args = vec!["-q", "-N", five, "-S", seed];
                args.extend(form);
                args.extend(off);
                args.push(&file);
                image.run(&program, &args).map_err(describe)?;
                runs += 1;
            }
        }
        image.check().map_err(describe)?;
    }
    let dax = on_memory(&library, built, long)?;
    let small = inline(&library, built, long)?;
    Ok(format!(
        "{} kinds of image: {once} operations once each, {five} in each of {runs} runs; {small} small inline files; {dax}",
        KINDS.len()
    ))
}

/// The same on a device that is memory: all files on it, and while a thread flips the file's flag as fast as it can.
fn on_memory(library: &Path, built: &Built<'_>, long: bool) -> Result<String, String> {
    let program = built.suites.join("xfstests/ltp/fsx");
    let file = format!("{ROOT}/file");
    let (once, five) = if long { ("1000000", "100000") } else { ("20000", "2000") };
    // The thread that flips is there in this build only.
    let flipping = built_library_with("extant-preload", "libextant_preload.so", "test-flips")?;
    for (library, options, flips) in [(library, "dax=always", ""), (&*flipping, "dax=inode", "/file")] {
        let image =
            Preloaded { options, flips, ..Preloaded::new(library, &built.rig.dir, ("4096", "extents"))? };
        let describe = |err: String| format!("{options} {flips}: {err}");
        image.run(&program, &["-q", "-N", once, "-S", "1", &file]).map_err(describe)?;
        for seed in ["1", "2", "3", "4", "5"] {
            image.run(&program, &["-q", "-N", five, "-S", seed, &file]).map_err(describe)?;
        }
        image.check().map_err(describe)?;
    }
    Ok(format!("dax=always and flips: {once} operations once each, {five} with 5 seeds"))
}

/// The bugs of the feature `sharpness` (`crates/vm/src/sharpness.rs`).
const BUGS: [&str; 5] = ["PunchEnd", "ZeroStart", "OldTail", "LostStores", "TornWrite"];
/// Operations of a run in which a bug must be noticed, and the runs, each with a seed of its own, that it gets.
const TO_NOTICE: &str = "20000";
const SEEDS: u32 = 3;

/// ltp/fsx over a library with one bug of one line at a time: it notices each of them, and nothing without.
pub(super) fn sharpness(built: &Built<'_>) -> Result<String, String> {
    let program = built.suites.join("xfstests/ltp/fsx");
    let library = built_library_with("extant-preload", "libextant_preload.so", "sharpness")?;
    let file = format!("{ROOT}/file");
    let run = |bug: &str, seed: u32| {
        let image = Preloaded::new(&library, &built.rig.dir, ("4096", "extents"))?;
        let seed = seed.to_string();
        let args = ["-q", "-N", TO_NOTICE, "-S", &seed, &file];
        Ok::<_, String>(image.run_with(&program, &args, &[("EXTANT_BUG", bug)]))
    };
    for seed in 1..=SEEDS {
        run("", seed)?.map_err(|err| format!("without a bug: {err}"))?;
    }
    let mut noticed = Vec::new();
    for bug in BUGS {
        let mut after = 0;
        let said = (1..=SEEDS).find_map(|seed| match run(bug, seed) {
            Ok(Ok(_)) => {
                after += TO_NOTICE.parse::<u64>().unwrap_or(0);
                None
            }
            Ok(Err(said)) => Some(Ok(said)),
            Err(err) => Some(Err(err)),
        });
        let said = said.ok_or_else(|| format!("{bug} was not noticed in {SEEDS} runs of {TO_NOTICE}"))??;
        let at = stopped_at(&said).ok_or_else(|| format!("{bug}: not fsx's verdict: {said}"))?;
        noticed.push(format!("{bug} after {}", after + at));
    }
    Ok(format!("operations until noticed: {}; without a bug none in {SEEDS} runs", noticed.join(", ")))
}

/// The number of the operation after which fsx found a wrong byte, size, or answer: the last one in the log that it prints then.
fn stopped_at(said: &str) -> Option<u64> {
    said.lines().rev().find_map(|line| line.split_once('(')?.0.trim().parse().ok())
}

/// Many fresh files that are small enough to begin in their inode: one that has left it does not go back.
fn inline(library: &Path, built: &Built<'_>, long: bool) -> Result<usize, String> {
    let program = built.suites.join("xfstests/ltp/fsx");
    let files = if long { 2000 } else { 50 };
    for (block, size, most) in [("1024", "256", "150"), ("4096", "4096", "3500")] {
        let features = "inline_data";
        let image = Preloaded::new(library, &built.rig.dir, (block, features))?;
        let mut mkfs = Command::new(tool("mke2fs")?);
        quiet(
            mkfs.args(["-q", "-F", "-t", "ext4", "-b", block, "-I", size, "-N", "16384", "-O", features])
                .arg(&image.image),
        )?;
        for number in 0..files {
            let (file, seed) = (format!("{ROOT}/file-{number}"), (number + 1).to_string());
            image
                .run(&program, &["-q", "-N", "300", "-l", most, "-S", &seed, &file])
                .map_err(|err| format!("inodes of {size} bytes, seed {seed}: {err}"))?;
        }
        image.check()?;
    }
    Ok(2 * files)
}

/// The program that ends with an error when a direct read into a mapping finds blocks that are gone.
const COLLISION: &str = "t_mmap_collision";

/// xfstests' own programs about mappings. holetest not with `-F`: a mapping is not inherited.
pub(super) fn mappings(built: &Built<'_>, _long: bool) -> Result<String, String> {
    let library = built_library("extant-preload", "libextant_preload.so")?;
    let at = |name: &str| format!("{ROOT}/{name}");
    let (hole, file, other) = (at("hole"), at("file"), at("other"));
    let programs: [(&str, Vec<&str>); 11] = [
        ("holetest", vec!["-f", &hole, "16"]),
        ("holetest", vec!["-f", "-w", &hole, "16"]),
        ("holetest", vec!["-f", "-r", &hole, "16"]),
        ("holetest", vec!["-f", "-p", &hole, "16"]),
        ("pwrite_mmap_blocked", vec![&file]),
        ("mmap-rw-fault", vec![&file]),
        ("mmap-rw-fault", vec!["-2", &file]),
        ("writev_on_pagefault", vec!["-i", "64", &file]),
        ("t_mmap_writev_overlap", vec!["-b", "4096", "-c", "32", "-l", "32", &file]),
        ("mmap-write-concurrent", vec!["4", "65536", &file, &other]),
        // Takes blocks from under a mapping that another file is read into by O_DIRECT.
        (COLLISION, vec![&file, &other]),
    ];
    let on_memory = (("4096", "extents"), "dax=always");
    let kinds = KINDS.map(|kind| (kind, "")).into_iter().chain([on_memory]);
    for (kind, options) in kinds {
        let image = Preloaded { options, ..Preloaded::new(&library, &built.rig.dir, kind)? };
        for (name, args) in &programs {
            // It collapses a page, which bigalloc refuses.
            if *name == COLLISION && kind.1.contains("bigalloc") {
                continue;
            }
            if name.starts_with("t_mmap_writev") || name.starts_with("mmap-write") {
                for target in [&file, &other] {
                    let of = format!("of={target}");
                    image.run(&tool("dd")?, &["if=/dev/zero", &of, "bs=64k", "count=16", "status=none"])?;
                }
            }
            image
                .run(&built.suites.join("xfstests/src").join(name), args)
                .map_err(|err| format!("{} {} {options}: {err}", kind.0, kind.1))?;
        }
        image.check()?;
    }
    beside_each_other(&library, built)?;
    Ok(format!(
        "{} runs on each of {} kinds of image, and with dax=always; {COLLISION} with a file in DAX mode and one that is not",
        programs.len(),
        KINDS.len()
    ))
}

/// A mapping that shows the device, into which a file of the page cache is read by O_DIRECT; and the other way round.
fn beside_each_other(library: &Path, built: &Built<'_>) -> Result<(), String> {
    let (dax, cached) = (format!("{ROOT}/dax"), format!("{ROOT}/cached"));
    let image =
        Preloaded { options: "dax=inode", ..Preloaded::new(library, &built.rig.dir, ("4096", "extents"))? };
    image.run(&tool("touch")?, &[&dax])?;
    image.run(&tool("chattr")?, &["+x", &dax])?;
    let said = image.run(&tool("lsattr")?, &[&dax])?;
    if !said.split_whitespace().next().is_some_and(|flags| flags.contains('x')) {
        return Err(format!("the file has no flag for DAX: {said}"));
    }
    for files in [[&dax, &cached], [&cached, &dax]] {
        image.run(&built.suites.join("xfstests/src").join(COLLISION), &files.map(String::as_str))?;
    }
    image.check()
}
