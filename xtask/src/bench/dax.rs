//! `cargo xtask bench dax`: files on a device that is memory.

use super::Rounds;
use super::inproc::check;
use super::measure::{self, Metric, Sample, Series};
use super::place::{self, Scratch};
use super::report::{Bound, Figure, ratio_figure};

/// MiB of the file.
const SHORT: u32 = 256;
const LONG: u32 = 1024;
/// From so many rounds on it is a long one.
const MANY: usize = 5;
/// Seconds that the change of a mapped GiB may take beyond its writeback and the freeing of cached pages.
const SWITCH: f64 = 0.05;

pub(crate) fn run(rounds: Rounds) -> Result<Vec<Figure>, String> {
    let mib = if rounds.0 >= MANY { LONG } else { SHORT };
    let scratch = Scratch::new()?;
    let image = scratch.join("dax.img");
    let mut all = Series::default();
    for _ in 0..rounds.0 {
        place::make_image(&image, &format!("{}m", mib + mib / 4 + 64))?;
        let path = format!("path={}", image.display());
        let plain = format!("plain={}", scratch.join("plain").display());
        let size = format!("mib={mib}");
        all.0.push(measure::workload("dax", "none:", &[&path, &plain, &size], None)?);
    }
    check(&image)?;
    let of = |key: &str| part(&all, key);
    let ratio = |name: &str, (a, b): (&str, &str), to: &str, bound: Option<Bound>| {
        ratio_figure(format!("dax: {name}"), ("extant", &of(a)), (to, &of(b)), Metric::Wall, bound)
    };
    let alone = |name: &str, key: &str, bound: Option<Bound>| Figure {
        name: format!("dax: {name}, seconds a GiB"),
        figure: of(key).median(Metric::Wall) * 1024.0 / f64::from(mib),
        bound,
        detail: format!("{mib} MiB mapped, {} rounds", rounds.0),
    };
    let most = Some(Bound::AtMost(1.1));
    Ok(vec![
        ratio("loads, faults included", ("first_ours", "first_plain"), "a plain mapping", None),
        ratio("loads", ("load_ours", "load_plain"), "a plain mapping", most),
        ratio("stores", ("store_ours", "store_plain"), "a plain mapping", most),
        ratio("read() of 1 MiB, time", ("read", "memcpy"), "memcpy", Some(Bound::AtMost(1.0 / 0.9))),
        alone("switch to the page cache", "to_cache", Some(Bound::AtMost(SWITCH))),
        alone("switch from the page cache, with the freeing of its pages", "to_dax", None),
    ])
}

/// One part of each sample.
fn part(all: &Series, key: &str) -> Series {
    let value = |s: &Sample| s.extra.get(&format!("part.{key}")).copied().unwrap_or(f64::NAN);
    let one = |s: &Sample| Sample { wall_s: value(s), cpu_s: value(s), ..Sample::default() };
    Series(all.0.iter().map(one).collect())
}
