//! One measurement, and several of them in interleaved rounds.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::place;

/// What one run cost.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) wall_s: f64,
    pub(crate) cpu_s: f64,
    /// Whatever else the program said: device counts, memory.
    pub(crate) extra: BTreeMap<String, f64>,
}

/// Which figure of a sample is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Metric {
    Wall,
    /// User plus system time of the whole process.
    Cpu,
}

impl Metric {
    pub(crate) fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::Wall => sample.wall_s,
            Self::Cpu => sample.cpu_s,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Wall => "wall",
            Self::Cpu => "cpu",
        }
    }
}

/// Runs `extant-bench WORKLOAD PLACE ARGS` and reads its line.
pub(crate) fn workload(
    name: &str,
    target: &str,
    args: &[&str],
    pin: Option<usize>,
) -> Result<Sample, String> {
    let mut command = place::pinned(pin, &crate::proc::release("extant-bench")?);
    json_line(command.arg(name).arg(target).args(args))
}

/// The same on one processor, as one program among others.
pub(crate) fn confined_workload(name: &str, target: &str, args: &[&str]) -> Result<Sample, String> {
    let mut command = Command::new("taskset");
    json_line(
        command.args(["-c", "0"]).arg(crate::proc::release("extant-bench")?).arg(name).arg(target).args(args),
    )
}

/// Takes memory from the system, touches it and gives it back, before each sample.
///
/// A virtual machine with free page reporting gives what has been free for two seconds back to its host, and the next touch of
/// each such page waits for the host: 1 to 4 us where it is 0.2. Which side of a comparison meets that is luck; 10,000 creates in
/// process took 0.15 to 0.27 s of processor time after this, 0.63 to 0.75 s without it, in one hour. What was just freed is used
/// first, so both sides find memory that is there.
pub(crate) fn settle() {
    let bytes = available_bytes().map_or(1 << 30, |b| b / 6).min(3 << 30) / 2;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| drop(std::hint::black_box(vec![1_u8; bytes])));
        }
    });
}

/// What programs can still have, by `/proc/meminfo`.
fn available_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<usize>().ok().map(|kib| kib << 10)
}

/// Runs a program that prints its own measurements as one line of JSON.
pub(crate) fn json_line(command: &mut Command) -> Result<Sample, String> {
    settle();
    let text = crate::proc::output(command)?;
    let line: serde_json::Value = serde_json::from_str(&text).map_err(|err| format!("{text}: {err}"))?;
    let number = |key: &str| line[key].as_f64().ok_or_else(|| format!("{text}: no {key}"));
    let mut extra = BTreeMap::new();
    for key in ["open_s", "close_cpu_s", "entries", "bytes", "peak_rss_kib"] {
        extra.insert(key.to_owned(), number(key)?);
    }
    if let Some(seconds) = line["kernel_threads_cpu_s"].as_f64() {
        extra.insert("kernel_threads_cpu_s".into(), seconds);
    }
    if let Some(device) = line["device"].as_object() {
        for (key, value) in device {
            extra.insert(format!("device.{key}"), value.as_f64().unwrap_or(0.0));
        }
    }
    if let Some(parts) = line["parts"].as_object() {
        for (key, value) in parts {
            extra.insert(format!("part.{key}"), value.as_f64().unwrap_or(f64::NAN));
        }
    }
    Ok(Sample { wall_s: number("wall_s")?, cpu_s: number("cpu_s")?, extra })
}

/// Times any other program by the wall clock.
pub(crate) fn program(command: &mut Command, dir: &Path) -> Result<Sample, String> {
    settle();
    let begin = Instant::now();
    let status = command
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(|err| format!("{command:?}: {err}"))?;
    let wall_s = begin.elapsed().as_secs_f64();
    if !status.success() {
        return Err(format!("{command:?}: {status}"));
    }
    Ok(Sample { wall_s, ..Sample::default() })
}

/// The samples of one subject, in the order of the rounds.
#[derive(Default)]
pub(crate) struct Series(pub(crate) Vec<Sample>);

impl Series {
    pub(crate) fn median(&self, metric: Metric) -> f64 {
        median(self.0.iter().map(|s| metric.of(s)).collect())
    }

    pub(crate) fn median_extra(&self, key: &str) -> Option<f64> {
        let all: Vec<f64> = self.0.iter().filter_map(|s| s.extra.get(key).copied()).collect();
        if all.is_empty() { None } else { Some(median(all)) }
    }
}

/// The median of pairwise ratios: round by round, so that slow minutes of the machine fall on both sides.
pub(crate) fn ratio(of: &Series, to: &Series, metric: Metric) -> f64 {
    median(of.0.iter().zip(&to.0).map(|(a, b)| metric.of(a) / metric.of(b).max(1e-9)).collect())
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    let mid = values.len() / 2;
    if values.len() % 2 == 1 { values[mid] } else { f64::midpoint(values[mid - 1], values[mid]) }
}
