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

/// An image of a tree of 20,000 files: us, mkext4, mke2fs -d; and the same bytes twice.
pub(crate) fn mkfs(rounds: Rounds) -> Result<Vec<Figure>, String> {
    let program = build()?;
    let scratch = Scratch::new()?;
    let source = scratch.join("source");
    std::fs::create_dir(&source).map_err(|err| err.to_string())?;
    measure::workload("fill", &format!("dir:{}", source.display()), &["files=20000", "mib=380"], None)?;
    let source = source.to_str().ok_or("scratch folder is not UTF-8")?;
    let image = scratch.join("out.img");
    let out = image.to_str().ok_or("scratch folder is not UTF-8")?;
    let (mut ours, mut mkext4, mut mke2fs) = (Series::default(), Series::default(), Series::default());
    let extant = place::extant()?;
    let fresh = || drop(std::fs::remove_file(&image));
    let here = Path::new("/");
    for round in 0..rounds.0 {
        fresh();
        mkext4.0.push(peer(&program, &["mkfs", source, out, "1073741824"])?);
        fresh();
        let mut command = Command::new(&extant);
        ours.0.push(measure::program(command.args(["mkfs", "-q", "-d", source, out, "1g"]), here)?);
        super::inproc::check(&image)?;
        // The slow one tells its figure once.
        if round == 0 {
            fresh();
            let mut command = Command::new(proc::find("mke2fs").ok_or("mke2fs is not installed")?);
            mke2fs.0.push(measure::program(
                command.args(["-q", "-F", "-t", "ext4", "-d", source, out, "1g"]),
                here,
            )?);
        }
    }
    let us = ("extant", &ours);
    Ok(vec![
        ratio_figure(
            "mkfs -d: to mkext4".into(),
            us,
            ("mkext4", &mkext4),
            Metric::Wall,
            Some(Bound::AtMost(1.0)),
        ),
        ratio_figure(
            "mkfs -d: mke2fs to us".into(),
            ("mke2fs", &mke2fs),
            us,
            Metric::Wall,
            Some(Bound::AtLeast(20.0)),
        ),
        reproducible(&extant, source, &scratch)?,
    ])
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
