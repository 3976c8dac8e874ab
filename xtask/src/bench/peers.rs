//! Other people's crates on the same work: `bench-peers/`, a workspace of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Rounds;
use super::measure::{self, Metric, Sample, Series};
use super::place::{self, How, Mounted, Scratch, Server};
use super::report::{Bound, Figure, ratio_figure};
use crate::proc;

/// Builds the peers' program; it needs the registry once.
fn build() -> Result<PathBuf, String> {
    let mut cargo = proc::cargo();
    proc::output(cargo.args(["build", "--quiet", "--release", "--manifest-path", "bench-peers/Cargo.toml"]))?;
    Path::new("bench-peers/target/release/bench-peers")
        .canonicalize()
        .map_err(|err| format!("bench-peers: {err}"))
}

fn peer(program: &Path, args: &[&str]) -> Result<Sample, String> {
    measure::json_line(Command::new(program).args(args))
}

/// Reading a tree: us, the kernel, and the fastest other crate.
pub(crate) fn reading(rounds: Rounds) -> Result<Vec<Figure>, String> {
    let program = build()?;
    let scratch = Scratch::new()?;
    let image = scratch.join("tree.img");
    place::make_image(&image, "1g")?;
    let mounted = Mounted::new(Server::Kernel, &image, How::default())?;
    measure::workload("fill", &format!("dir:{}", mounted.dir.display()), &["files=20000", "mib=380"], None)?;
    mounted.unmount()?;
    let path = image.to_str().ok_or("scratch folder is not UTF-8")?;
    let (mut ours, mut theirs) = (Series::default(), Series::default());
    for _ in 0..rounds.0 {
        theirs.0.push(peer(&program, &["read-tree", path])?);
        ours.0.push(measure::workload("read-tree", &format!("image:{path}"), &["ro=1"], None)?);
    }
    let name = "read-tree: to rust-fs-ext4".to_owned();
    Ok(vec![ratio_figure(name, ("extant", &ours), ("rust-fs-ext4", &theirs), Metric::Wall, None)])
}

/// Images of trees of 20,000 files, 380 MB: us, mkext4, mke2fs -d; and the same bytes twice. mke2fs needs a time that grows
/// with the square of the names in a directory, so its figure depends on the tree's shape: both are measured.
pub(crate) fn mkfs(rounds: Rounds) -> Result<Vec<Figure>, String> {
    let program = build()?;
    let scratch = Scratch::new()?;
    let (many, one) = (scratch.join("many"), scratch.join("one"));
    for dir in [&many, &one] {
        std::fs::create_dir(dir).map_err(|err| err.to_string())?;
    }
    measure::workload("fill", &format!("dir:{}", many.display()), &["files=20000", "mib=380"], None)?;
    let mut out = shape(&scratch, &program, &many, "400 directories", rounds)?;
    let same =
        reproducible(&place::extant()?, many.to_str().ok_or("scratch folder is not UTF-8")?, &scratch)?;
    std::fs::remove_dir_all(&many).map_err(|err| err.to_string())?;
    let content = vec![0x5a; 19_000];
    for n in 0..20_000 {
        std::fs::write(one.join(format!("file-{n:06}")), &content).map_err(|err| err.to_string())?;
    }
    out.extend(shape(&scratch, &program, &one, "one directory", rounds)?);
    out.push(same);
    Ok(out)
}

/// Seconds of processor time that mke2fs may take before it is stopped: its figure is then a lower bound.
const MKE2FS_SECONDS: &str = "40";

fn shape(
    scratch: &Scratch,
    program: &Path,
    source: &Path,
    name: &str,
    rounds: Rounds,
) -> Result<Vec<Figure>, String> {
    let source = source.to_str().ok_or("scratch folder is not UTF-8")?;
    let image = scratch.join("out.img");
    let out = image.to_str().ok_or("scratch folder is not UTF-8")?;
    let (mut ours, mut mkext4, mut mke2fs) = (Series::default(), Series::default(), Series::default());
    let extant = place::extant()?;
    let fresh = || drop(std::fs::remove_file(&image));
    for round in 0..rounds.0 {
        fresh();
        mkext4.0.push(peer(program, &["mkfs", source, out, "1073741824"])?);
        fresh();
        ours.0.push(timed(Command::new(&extant).args(["mkfs", "-q", "-d", source, out, "1g"]))?);
        super::inproc::check(&image)?;
        // The slow one tells its figure once.
        if round == 0 {
            fresh();
            let mke2fs_path = proc::find("mke2fs").ok_or("mke2fs is not installed")?;
            let mut command = Command::new("prlimit");
            command.arg(format!("--cpu={MKE2FS_SECONDS}")).arg(mke2fs_path);
            mke2fs.0.push(timed(command.args(["-q", "-F", "-t", "ext4", "-d", source, out, "1g"]))?);
        }
    }
    fresh();
    let us = ("extant", &ours);
    let title = |what: &str| format!("mkfs -d, {name}: {what}");
    let to_mkext4 = |metric: Metric, bound| {
        let title = title(&format!("to mkext4, {}", metric.name()));
        ratio_figure(title, us, ("mkext4", &mkext4), metric, bound)
    };
    let to_mke2fs = |metric: Metric, bound| {
        let title = title(&format!("mke2fs to us, {}", metric.name()));
        ratio_figure(title, ("mke2fs", &mke2fs), us, metric, bound)
    };
    // A copy of 380 MB takes a third of what mke2fs takes where no directory is large: no factor of 20 is there to be had.
    let twenty = (name == "one directory").then_some(Bound::AtLeast(20.0));
    Ok(vec![
        to_mkext4(Metric::Wall, Some(Bound::AtMost(1.0))),
        to_mkext4(Metric::Cpu, None),
        to_mke2fs(Metric::Wall, None),
        to_mke2fs(Metric::Cpu, twenty),
    ])
}

/// Wall and processor time of a program; one that was stopped at its limit counts as well.
fn timed(command: &mut Command) -> Result<Sample, String> {
    let children = || {
        let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // Children that were waited for, user and system time, in ticks of 10 ms.
        let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(13) + ticks(14)) / 100.0
    };
    measure::settle();
    let (before, begin) = (children(), std::time::Instant::now());
    let output =
        command.stdin(std::process::Stdio::null()).output().map_err(|err| format!("{command:?}: {err}"))?;
    let wall_s = begin.elapsed().as_secs_f64();
    if !output.status.success() && output.status.code().is_some() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(Sample { wall_s, cpu_s: children() - before, ..Sample::default() })
}

/// Two runs with the same UUID and epoch, compared byte by byte.
fn reproducible(extant: &Path, source: &str, scratch: &Scratch) -> Result<Figure, String> {
    let images = [scratch.join("one.img"), scratch.join("two.img")];
    for image in &images {
        let mut command = Command::new(extant);
        command.env("SOURCE_DATE_EPOCH", "1700000000").args(["mkfs", "-q"]);
        command.args(["-U", "6f0c1b52-9f42-4b6e-8d0c-3f2f7f3a9a10", "-d", source]);
        proc::output(command.arg(image).arg("1g"))?;
    }
    let same = proc::succeeds(Command::new("cmp").args(&images))?;
    let figure = if same { 1.0 } else { 0.0 };
    let bound = Some(Bound::AtLeast(1.0));
    Ok(Figure { name: "mkfs -d: two runs identical".into(), figure, bound, detail: "1 is yes".into() })
}
