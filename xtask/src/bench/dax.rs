//! `cargo xtask bench dax`: files on a device that is memory.

use super::Rounds;
use super::inproc::check;
use super::measure::{self, Metric, Sample, Series};
use super::place::{self, Scratch};
use super::report::{Bound, Figure, ratio_figure};

/// MiB of the file.
const SHORT: u32 = 256;
const LONG: u32 = 1024;
/// MiB of a file that is only read.
const ON_FILE: u32 = 64;
/// From so many rounds on it is a long one.
const MANY: usize = 5;
/// Seconds that the change of a mapped GiB may keep everybody waiting beyond its writeback and the freeing of cached pages.
const SWITCH: f64 = 0.05;

pub(crate) fn run(rounds: Rounds) -> Result<Vec<Figure>, String> {
    let mib = if rounds.0 >= MANY { LONG } else { SHORT };
    let scratch = Scratch::new()?;
    let image = scratch.join("dax.img");
    let (mut all, mut on_file) = (Series::default(), Series::default());
    for _ in 0..rounds.0 {
        let path = format!("path={}", image.display());
        for (size, device, series) in [(mib, "memory", &mut all), (ON_FILE, "file", &mut on_file)] {
            place::make_image(&image, &format!("{}m", size + size / 4 + 64))?;
            let (size, device) = (format!("mib={size}"), format!("device={device}"));
            series.0.push(measure::workload("dax", "none:", &[&path, &size, &device], None)?);
            check(&image)?;
        }
    }
    let of = |key: &str| part(&all, key);
    let ratio = |name: &str, (a, b): (&str, &str), to: &str, bound: Option<Bound>| {
        ratio_figure(format!("dax: {name}"), ("extant", &of(a)), (to, &of(b)), Metric::Wall, bound)
    };
    let a_gib = 1024.0 / f64::from(mib);
    let detail = format!("{mib} MiB mapped, {} rounds", rounds.0);
    let alone = |name: &str, key: &str| Figure {
        name: format!("dax: {name}, seconds a GiB"),
        figure: of(key).median(Metric::Wall) * a_gib,
        bound: None,
        detail: detail.clone(),
    };
    let beyond = |name: &str, key: &str| Figure {
        name: format!("dax: {name}, lock held beyond writing and freeing, seconds a GiB"),
        figure: rest(&all, key).median(Metric::Wall) * a_gib,
        bound: Some(Bound::AtMost(SWITCH)),
        detail: detail.clone(),
    };
    let most = Some(Bound::AtMost(1.1));
    let plain = "a plain mapping of the device";
    let read = |name: &str, of: &Series, (a, b): (&str, &str), to: &str, bound: Option<Bound>| {
        let (a, b) = (part(of, a), part(of, b));
        ratio_figure(
            format!("dax: read() of 1 MiB{name}, time"),
            ("extant", &a),
            (to, &b),
            Metric::Wall,
            bound,
        )
    };
    let from_device = "memcpy from a plain mapping of the device";
    Ok(vec![
        ratio("loads, faults included", ("first_ours", "first_plain"), plain, None),
        ratio("loads", ("load_ours", "load_plain"), plain, most),
        ratio("stores", ("store_ours", "store_plain"), plain, most),
        read("", &all, ("read", "memcpy"), from_device, Some(Bound::AtMost(1.0 / 0.9))),
        read("", &all, ("read_again", "memcpy_own"), "memcpy from memory of the program's", None),
        // By pread(2): somebody may cut the file short, and a load would be a signal.
        read(" of an image file", &on_file, ("read", "memcpy"), from_device, None),
        beyond("switch to the page cache", "to_cache"),
        beyond("switch from the page cache", "to_dax"),
        alone("switch to the page cache, all of it", "to_cache"),
        alone("switch from the page cache, all of it", "to_dax"),
        alone("of this, looking and writing under the lock", "to_dax_writing"),
        alone("of this, freeing pages under the lock", "to_dax_freeing"),
    ])
}

/// One part of each sample.
fn part(all: &Series, key: &str) -> Series {
    each(all, |s| value(s, key))
}

/// What a switch held the lock for, but for writing and freeing.
fn rest(all: &Series, key: &str) -> Series {
    let of = |s: &Sample, what: &str| value(s, &format!("{key}_{what}"));
    each(all, |s| of(s, "held") - of(s, "writing") - of(s, "freeing"))
}

fn value(s: &Sample, key: &str) -> f64 {
    s.extra.get(&format!("part.{key}")).copied().unwrap_or(f64::NAN)
}

fn each(all: &Series, value: impl Fn(&Sample) -> f64) -> Series {
    let one = |s: &Sample| Sample { wall_s: value(s), cpu_s: value(s), ..Sample::default() };
    Series(all.0.iter().map(one).collect())
}
