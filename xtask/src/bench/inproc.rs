//! The library in process beside the kernel on a loop mount: the same program, the same work.

use std::path::Path;

use super::Rounds;
use super::measure::{self, Metric, Sample, Series};
use super::place::{self, How, Mounted, Scratch, Server};
use super::report::{Bound, Figure, ratio_figure};

/// A workload that writes to a fresh image.
struct Writing {
    name: &'static str,
    workload: &'static str,
    args: &'static [&'static str],
    metric: Metric,
    bound: f64,
}

const WRITING: &[Writing] = &[
    Writing {
        name: "create-100-dirs",
        workload: "create",
        args: &["dirs=100", "files=10000"],
        metric: Metric::Cpu,
        bound: 1.0,
    },
    Writing {
        name: "create-1-dir-10k",
        workload: "create",
        args: &["dirs=1", "files=10000"],
        metric: Metric::Cpu,
        bound: 1.0,
    },
    Writing {
        name: "create-1-dir-40k",
        workload: "create",
        args: &["dirs=1", "files=40000"],
        metric: Metric::Cpu,
        bound: 1.0,
    },
    Writing {
        name: "seq-write-256m",
        workload: "seq-write",
        args: &["mib=256"],
        // Throughput.
        metric: Metric::Wall,
        bound: 1.0,
    },
    // Work of another shape: the figures above must not be special to their sizes.
    Writing {
        name: "create-other-shape",
        workload: "create",
        args: &["dirs=37", "files=6000", "size=5000"],
        metric: Metric::Cpu,
        bound: 1.0,
    },
];

/// Writing workloads against the kernel.
pub(crate) fn writing(rounds: Rounds, only: Option<&str>) -> Result<Vec<Figure>, String> {
    let scratch = Scratch::new()?;
    let mut out = Vec::new();
    for case in WRITING.iter().filter(|c| only.is_none_or(|o| o == c.name)) {
        let (mut ours, mut kernel, mut alone) = (Series::default(), Series::default(), Series::default());
        for _ in 0..rounds.0 {
            let sample = on_kernel(&scratch.join("k.img"), case.workload, case.args)?;
            kernel.0.push(with_kernel_threads(&sample));
            alone.0.push(sample);
            ours.0.push(on_image(&scratch.join("e.img"), case.workload, case.args)?);
        }
        let bound = Some(Bound::AtMost(case.bound));
        out.push(ratio_figure(case.name.into(), ("extant", &ours), ("kernel", &kernel), case.metric, bound));
        let other = if case.metric == Metric::Cpu { Metric::Wall } else { Metric::Cpu };
        let name = format!("{} ({})", case.name, other.name());
        out.push(ratio_figure(name, ("extant", &ours), ("kernel", &kernel), other, None));
        let name = format!("{} (without the kernel's threads)", case.name);
        out.push(ratio_figure(name, ("extant", &ours), ("kernel", &alone), Metric::Cpu, None));
        if case.name == "create-100-dirs" {
            out.extend(device_counts(&ours));
        }
    }
    Ok(out)
}

/// The kernel's time for the same work: writeback, journal and device run in threads of its own there, and in the process here.
fn with_kernel_threads(sample: &Sample) -> Sample {
    let threads = sample.extra.get("kernel_threads_cpu_s").copied().unwrap_or(0.0);
    Sample { cpu_s: sample.cpu_s + threads, ..sample.clone() }
}

/// Flushes and bytes that reached the device up to the sync.
fn device_counts(ours: &Series) -> Vec<Figure> {
    let figure = |name: &str, key: &str, scale: f64, bound: f64| Figure {
        name: name.into(),
        figure: ours.median_extra(key).map_or(f64::NAN, |v| v / scale),
        bound: Some(Bound::AtMost(bound)),
        detail: "up to the end of sync".into(),
    };
    vec![
        figure("create-100-dirs: flushes", "device.flushes", 1.0, 10.0),
        figure("create-100-dirs: MB written", "device.bytes_written", 1e6, 60.0),
    ]
}

fn on_kernel(image: &Path, workload: &str, args: &[&str]) -> Result<Sample, String> {
    place::make_image(image, "2g")?;
    let mounted = Mounted::new(Server::Kernel, image, How::default())?;
    let sample = measure::workload(workload, &format!("dir:{}", mounted.dir.display()), args, None)?;
    mounted.unmount()?;
    Ok(sample)
}

fn on_image(image: &Path, workload: &str, args: &[&str]) -> Result<Sample, String> {
    fresh(image, |target| measure::workload(workload, target, args, None))
}

fn fresh(image: &Path, run: impl Fn(&str) -> Result<Sample, String>) -> Result<Sample, String> {
    place::make_image(image, "2g")?;
    let sample = run(&format!("image:{}", image.display()))?;
    check(image)?;
    Ok(sample)
}

/// A figure counts only if e2fsck finds nothing in what was written.
pub(crate) fn check(image: &Path) -> Result<(), String> {
    let mut e2fsck =
        std::process::Command::new(crate::proc::find("e2fsck").ok_or("e2fsck is not installed")?);
    crate::proc::output(e2fsck.arg("-fn").arg(image)).map(drop)
}

/// Walking and reading 20,000 files, 380 MB, by the wall clock; both sides start with cold caches of their own and the
/// image in memory.
///
/// Cold is a fresh mount: the kernel's caches of a filesystem go with it, those of the loop device with the device. The image
/// itself stays in memory for both. On a busy machine the kernel waits longer than we do, since its loop device needs a second
/// thread; processor time, which leaves that thread out, is the stricter of the two ratios then.
pub(crate) fn reading(rounds: Rounds, only: Option<&str>) -> Result<Vec<Figure>, String> {
    let mut out = Vec::new();
    // The second one is work of another shape: the first figure must not be special to its sizes.
    for (name, fill) in
        [("read-tree", ["files=20000", "mib=380"]), ("read-tree-other-shape", ["files=3000", "mib=200"])]
    {
        if only.is_none_or(|o| o == name) {
            out.extend(reading_one(rounds, name, &fill)?);
        }
    }
    Ok(out)
}

fn reading_one(rounds: Rounds, name: &str, fill: &[&str]) -> Result<Vec<Figure>, String> {
    let scratch = Scratch::new()?;
    let image = scratch.join("tree.img");
    place::make_image(&image, "1g")?;
    let mounted = Mounted::new(Server::Kernel, &image, How::default())?;
    measure::workload("fill", &format!("dir:{}", mounted.dir.display()), fill, None)?;
    mounted.unmount()?;
    let (mut ours, mut kernel) = (Series::default(), Series::default());
    for _ in 0..rounds.0 {
        let mounted = Mounted::new(Server::Kernel, &image, How::default())?;
        kernel.0.push(measure::workload("read-tree", &format!("dir:{}", mounted.dir.display()), &[], None)?);
        mounted.unmount()?;
        ours.0.push(measure::workload("read-tree", &format!("image:{}", image.display()), &["ro=1"], None)?);
    }
    same_work(&ours, &kernel)?;
    let bound = Some(Bound::AtMost(0.35));
    Ok(vec![
        ratio_figure(name.into(), ("extant", &ours), ("kernel", &kernel), Metric::Wall, bound),
        ratio_figure(format!("{name} (cpu)"), ("extant", &ours), ("kernel", &kernel), Metric::Cpu, None),
    ])
}

/// Both sides must have seen the same entries and bytes.
fn same_work(a: &Series, b: &Series) -> Result<(), String> {
    for key in ["entries", "bytes"] {
        let (x, y) = (a.median_extra(key), b.median_extra(key));
        if x != y {
            return Err(format!("not the same work: {key} {x:?} against {y:?}"));
        }
    }
    Ok(())
}

/// Four threads against one, and how a busy loop scales here, measured in the same rounds.
pub(crate) fn scaling(rounds: Rounds, only: Option<&str>) -> Result<Vec<Figure>, String> {
    let scratch = Scratch::new()?;
    let image = scratch.join("scale.img");
    let rounds = Rounds(rounds.0.max(5));
    let mut out = Vec::new();
    if only.is_none_or(|o| o == "create") {
        let create = |args: &[&str]| on_image(&image, "create", args);
        out.extend(scaling_of(
            "create",
            rounds,
            || create(&["threads=1", "dirs=64", "files=20000"]),
            || create(&["threads=4", "dirs=16", "files=20000"]),
            || {
                let args = ["threads=1", "dirs=64", "files=20000"];
                fresh(&image, |target| measure::confined_workload("create", target, &args))
            },
        )?);
    }
    if only.is_none_or(|o| o == "read") {
        place::make_image(&image, "1g")?;
        let target = format!("image:{}", image.display());
        measure::workload("fill", &target, &["files=20000", "mib=380"], None)?;
        let read = |args: &[&str]| measure::workload("read-tree", &target, args, None);
        out.extend(scaling_of(
            "read",
            rounds,
            || read(&["ro=1", "threads=1"]),
            || read(&["ro=1", "threads=4"]),
            || measure::confined_workload("read-tree", &target, &["ro=1", "threads=1"]),
        )?);
    }
    Ok(out)
}

/// The figures of one kind of work. The processor time that four threads take beside what one takes says what is lost by sharing,
/// whatever else the machine does. One thread that writes has a second processor to itself, where the background threads run: the
/// same on one processor says what the processors add.
fn scaling_of(
    name: &str,
    rounds: Rounds,
    alone: impl Fn() -> Result<Sample, String>,
    together: impl Fn() -> Result<Sample, String>,
    confined: impl Fn() -> Result<Sample, String>,
) -> Result<Vec<Figure>, String> {
    let (mut one, mut four, mut on_one) = (Series::default(), Series::default(), Series::default());
    let mut busy = Vec::new();
    for _ in 0..rounds.0 {
        one.0.push(alone()?);
        four.0.push(together()?);
        on_one.0.push(confined()?);
        busy.push(busy_loop());
    }
    same_work(&one, &four)?;
    let (one, four, on_one) =
        (("1 thread", &one), ("4 threads", &four), ("1 thread on 1 processor", &on_one));
    let processors = format!("scale: {name}, from one processor");
    Ok(vec![
        ratio_figure(format!("scale: {name}"), one, four, Metric::Wall, Some(Bound::AtLeast(1.6))),
        ratio_figure(format!("scale: {name} (cpu)"), one, four, Metric::Cpu, None),
        ratio_figure(processors, on_one, four, Metric::Wall, None),
        Figure {
            name: format!("scale: {name}: a busy loop beside it"),
            figure: measure::median(busy),
            bound: None,
            detail: "the machine itself".into(),
        },
    ])
}

/// The same arithmetic on one thread four times over, and on four threads at once: what this machine can give.
fn busy_loop() -> f64 {
    fn spin() -> u64 {
        (0..50_000_000u64).fold(1, |a, i| std::hint::black_box(a.wrapping_mul(31).wrapping_add(i)))
    }
    let begin = std::time::Instant::now();
    for _ in 0..4 {
        std::hint::black_box(spin());
    }
    let alone = begin.elapsed().as_secs_f64();
    let begin = std::time::Instant::now();
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| std::hint::black_box(spin()));
        }
    });
    let together = begin.elapsed().as_secs_f64();
    alone / together
}
