//! Files mapped into memory: the library in process beside the kernel's ext4 on a loop mount and its tmpfs.

use std::process::Command;

use super::Rounds;
use super::inproc::check;
use super::measure::{self, Metric, Sample, Series};
use super::place::{self, How, Mounted, Scratch, Server};
use super::report::{Bound, Figure, ratio_figure};
use crate::proc;

/// MiB of the mapped file.
const SHORT: u32 = 256;
const LONG: u32 = 1024;
/// From so many rounds on the file is a long one.
const MANY: usize = 5;
/// Nothing is written while stores are measured: the kernel's threads would write for it too, but their time is not seen. What is
/// dirty may be a part of this.
const ROOM: &str = "o=cache_size=64g";
/// The processor of single faults, for both sides.
const PLACE: &str = "cpu=0";
/// Re-protecting a GiB, in seconds of processor time.
const PROTECT: f64 = 0.05;

/// `cargo xtask bench mmap`.
pub(crate) fn run(rounds: Rounds, only: Option<&str>) -> Result<Vec<Figure>, String> {
    let mib = if rounds.0 >= MANY { LONG } else { SHORT };
    let scratch = Scratch::new()?;
    let sides = Sides::make(&scratch, mib)?;
    if only == Some("huge") {
        // Needs root, so it is not one of those that run without being asked for.
        let out = sides.huge(rounds, &scratch, mib)?;
        check(&sides.image)?;
        return Ok(out);
    }
    let mut out = Vec::new();
    if only.is_none_or(|o| o == "cold") {
        out.extend(sides.cold(rounds)?);
    }
    if only.is_none_or(|o| o == "work") {
        out.extend(sides.work(rounds)?);
    }
    if only.is_none_or(|o| o == "latency") {
        out.push(sides.latency(rounds)?);
    }
    if only.is_none_or(|o| o == "protect") {
        out.push(protect(rounds, mib)?);
    }
    check(&sides.image)?;
    Ok(out)
}

/// The same file on all sides.
struct Sides {
    image: std::path::PathBuf,
    tmpfs: String,
}

impl Sides {
    fn make(scratch: &Scratch, mib: u32) -> Result<Self, String> {
        let image = scratch.join("mmap.img");
        place::make_image(&image, &format!("{}m", mib + mib / 4 + 64))?;
        let size = format!("mib={mib}");
        let mounted = Mounted::new(Server::Kernel, &image, How::default())?;
        measure::workload("seq-write", &format!("dir:{}", mounted.dir.display()), &[&size], None)?;
        mounted.unmount()?;
        // The scratch folder is in a tmpfs.
        let dir = scratch.join("tmpfs");
        std::fs::create_dir_all(&dir).map_err(|err| format!("{}: {err}", dir.display()))?;
        let tmpfs = format!("dir:{}", dir.display());
        measure::workload("seq-write", &tmpfs, &[&size], None)?;
        Ok(Self { image, tmpfs })
    }

    fn on_kernel(&self, workload: &str) -> Result<Sample, String> {
        let mounted = Mounted::new(Server::Kernel, &self.image, How::default())?;
        let sample = measure::workload(workload, &format!("dir:{}", mounted.dir.display()), &[], None)?;
        mounted.unmount()?;
        Ok(sample)
    }

    fn on_us(&self, workload: &str, more: &[&str]) -> Result<Sample, String> {
        let args: Vec<&str> = [ROOM].iter().chain(more).copied().collect();
        measure::workload(workload, &format!("image:{}", self.image.display()), &args, None)
    }

    /// Loads from a file of which neither side has anything in memory; the image is in memory.
    fn cold(&self, rounds: Rounds) -> Result<Vec<Figure>, String> {
        let (mut ours, mut kernel) = (Series::default(), Series::default());
        for _ in 0..rounds.0 {
            kernel.0.push(self.on_kernel("map-cold")?);
            ours.0.push(self.on_us("map-cold", &[])?);
        }
        same(&ours, &kernel, "entries")?;
        let (ours, kernel) = (("extant", &ours), ("kernel", &kernel));
        Ok(vec![
            ratio_figure("mmap: cold read".into(), ours, kernel, Metric::Wall, Some(Bound::AtMost(3.0))),
            ratio_figure("mmap: cold read (cpu)".into(), ours, kernel, Metric::Cpu, None),
        ])
    }

    fn work(&self, rounds: Rounds) -> Result<Vec<Figure>, String> {
        let (mut ours, mut kernel, mut tmpfs) = (Series::default(), Series::default(), Series::default());
        for _ in 0..rounds.0 {
            kernel.0.push(self.on_kernel("map-work")?);
            tmpfs.0.push(measure::workload("map-work", &self.tmpfs, &[], None)?);
            ours.0.push(self.on_us("map-work", &[])?);
        }
        let of = |name: &str, key: &str, to: (&str, &Series), bound: Option<f64>| {
            let (a, b) = (part(&ours, key), part(to.1, key));
            let bound = bound.map(Bound::AtMost);
            ratio_figure(format!("mmap: {name}"), ("extant", &a), (to.0, &b), Metric::Cpu, bound)
        };
        Ok(vec![
            of("warm read, beside tmpfs", "warm", ("tmpfs", &tmpfs), Some(1.3)),
            of("warm read, beside ext4", "warm", ("kernel", &kernel), None),
            of("first store to clean pages", "store", ("kernel", &kernel), Some(0.3)),
            of("store again after writeback", "again", ("kernel", &kernel), Some(0.3)),
            of("msync", "sync", ("kernel", &kernel), None),
            of("msync of clean pages, first", "clean", ("kernel", &kernel), None),
            of("msync of clean pages, again", "clean_again", ("kernel", &kernel), None),
        ])
    }

    /// With the memory of mapped files in a tmpfs of huge pages, mounted for this.
    fn huge(&self, rounds: Rounds, scratch: &Scratch, mib: u32) -> Result<Vec<Figure>, String> {
        let dir = HugeDir::mount(&scratch.join("huge"), mib)?;
        let place = format!("map_dir={}", dir.0.display());
        let (mut ours, mut kernel) = (Series::default(), Series::default());
        let (mut our_work, mut kernel_work) = (Series::default(), Series::default());
        for _ in 0..rounds.0 {
            kernel.0.push(self.on_kernel("map-cold")?);
            ours.0.push(self.on_us("map-cold", &[&place])?);
            kernel_work.0.push(self.on_kernel("map-work")?);
            our_work.0.push(self.on_us("map-work", &[&place])?);
        }
        same(&ours, &kernel, "entries")?;
        let (a, b) = (part(&our_work, "warm"), part(&kernel_work, "warm"));
        let sides = (("extant", &ours), ("kernel", &kernel));
        Ok(vec![
            ratio_figure(
                "mmap: cold read, huge pages".into(),
                sides.0,
                sides.1,
                Metric::Wall,
                Some(Bound::AtMost(1.5)),
            ),
            ratio_figure(
                "mmap: warm read beside ext4, huge pages".into(),
                ("extant", &a),
                ("kernel", &b),
                Metric::Cpu,
                Some(Bound::AtMost(2.5)),
            ),
        ])
    }

    fn latency(&self, rounds: Rounds) -> Result<Figure, String> {
        let mut ours = Series::default();
        for _ in 0..rounds.0 {
            ours.0.push(self.on_us("map-latency", &[PLACE])?);
        }
        let (a, b) = (part(&ours, "ours"), part(&ours, "bare"));
        let bound = Some(Bound::AtMost(1.3));
        let mut figure = ratio_figure(
            "mmap: one fault, in our cache".into(),
            ("extant", &a),
            ("CONTINUE", &b),
            Metric::Wall,
            bound,
        );
        figure.detail = format!(
            "extant {:.2} us / CONTINUE alone {:.2} us (p50, one processor, {} rounds)",
            a.median(Metric::Wall) * 1e6,
            b.median(Metric::Wall) * 1e6,
            rounds.0
        );
        Ok(figure)
    }
}

/// A private tmpfs with huge pages; unmounted when dropped.
struct HugeDir(std::path::PathBuf);

impl HugeDir {
    fn mount(dir: &std::path::Path, mib: u32) -> Result<Self, String> {
        std::fs::create_dir_all(dir).map_err(|err| format!("{}: {err}", dir.display()))?;
        let options = format!("huge=always,mode=0700,size={}m", mib + 64);
        proc::output(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "extant-huge"]).arg(dir))?;
        Ok(Self(dir.to_owned()))
    }
}

impl Drop for HugeDir {
    fn drop(&mut self) {
        if let Err(err) = proc::output(Command::new("umount").arg(&self.0)) {
            eprintln!("{err}");
        }
    }
}

/// Taking the right to store away, as writeback does; the bound is for a GiB.
fn protect(rounds: Rounds, mib: u32) -> Result<Figure, String> {
    let mut all = Series::default();
    for _ in 0..rounds.0 {
        all.0.push(measure::workload("map-protect", "none:", &[&format!("mib={mib}")], None)?);
    }
    Ok(Figure {
        name: "mmap: re-protecting 1 GiB, seconds of cpu".into(),
        figure: part(&all, "protect").median(Metric::Cpu) * 1024.0 / f64::from(mib),
        bound: Some(Bound::AtMost(PROTECT)),
        detail: format!("{mib} MiB in calls of 2 MiB, {} rounds", rounds.0),
    })
}

/// One part of each sample.
fn part(all: &Series, key: &str) -> Series {
    let value = |s: &Sample| s.extra.get(&format!("part.{key}")).copied().unwrap_or(f64::NAN);
    let one = |s: &Sample| Sample { wall_s: value(s), cpu_s: value(s), ..Sample::default() };
    Series(all.0.iter().map(one).collect())
}

fn same(a: &Series, b: &Series, key: &str) -> Result<(), String> {
    let (x, y) = (a.median_extra(key), b.median_extra(key));
    if x == y { Ok(()) } else { Err(format!("not the same work: {key} {x:?} against {y:?}")) }
}
