//! Punch, collapse and insert at random places of a file of 100,000 extents: the library in process beside the kernel on a loop mount.

use std::path::Path;
use std::process::Command;

use super::Rounds;
use super::inproc::check;
use super::measure::{self, Metric, Sample, Series};
use super::place::{self, How, Mounted, Scratch, Server};
use super::report::{Bound, Figure, ratio_figure};

/// `cargo xtask bench ranges`: 10,000 operations of each mode on the same file; processor time with the sync at the end.
pub(crate) fn run(rounds: Rounds, only: Option<&str>) -> Result<Vec<Figure>, String> {
    let scratch = Scratch::new()?;
    let (base, image) = (scratch.join("base.img"), scratch.join("ranges.img"));
    place::make_image(&base, "2g")?;
    on_kernel(&base, "fragments", &[])?;
    let mut out = Vec::new();
    for mode in ["punch", "collapse", "insert"] {
        if only.is_some_and(|o| o != mode) {
            continue;
        }
        let argument = format!("mode={mode}");
        let (mut ours, mut kernel) = (Series::default(), Series::default());
        for _ in 0..rounds.0 {
            copy(&base, &image)?;
            kernel.0.push(on_kernel(&image, "ranges", &[&argument])?);
            copy(&base, &image)?;
            ours.0.push(measure::workload(
                "ranges",
                &format!("image:{}", image.display()),
                &[&argument],
                None,
            )?);
            check(&image)?;
        }
        let sides = (("extant", &ours), ("kernel", &kernel));
        let bound = Some(Bound::AtMost(1.0));
        out.push(ratio_figure(format!("ranges: {mode}"), sides.0, sides.1, Metric::Cpu, bound));
        out.push(ratio_figure(format!("ranges: {mode} (wall)"), sides.0, sides.1, Metric::Wall, None));
    }
    Ok(out)
}

/// The blocks of the file are not written, so a copy is the map and little else.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    crate::proc::output(Command::new("cp").arg("--sparse=always").arg(from).arg(to)).map(drop)
}

fn on_kernel(image: &Path, workload: &str, args: &[&str]) -> Result<Sample, String> {
    let mounted = Mounted::new(Server::Kernel, image, How::default())?;
    let sample = measure::workload(workload, &format!("dir:{}", mounted.dir.display()), args, None)?;
    mounted.unmount()?;
    Ok(sample)
}
