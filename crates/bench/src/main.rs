//! Runs one named workload and prints one line of JSON: wall time, processor time of the whole process, device counts.
//!
//! `extant-bench WORKLOAD dir:PATH|image:FILE [name=value …]`. `cargo xtask bench` drives it in interleaved pairs; it
//! recognises nothing but its arguments, so every target does the same work.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::target::{Result, Target};
use crate::work::Visit;

mod dax;
mod dir;
mod image;
mod mapped;
mod rate;
mod target;
mod work;

/// `name=value` arguments, with defaults given where they are read.
struct Args(Vec<(String, String)>);

impl Args {
    fn number(&self, name: &str, default: u64) -> Result<u64> {
        match self.0.iter().find(|(n, _)| n == name) {
            Some((_, v)) => Ok(v.parse()?),
            None => Ok(default),
        }
    }

    fn size(&self, name: &str, default: usize) -> Result<usize> {
        Ok(usize::try_from(self.number(name, default as u64)?)?)
    }

    fn text<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.0.iter().find(|(n, _)| n == name).map_or(default, |(_, v)| v)
    }
}

/// What a workload has to say besides times.
#[derive(Default)]
struct Outcome {
    entries: u64,
    bytes: u64,
    syncs: bool,
    /// What took so long, where it is not the whole workload.
    timed: Option<Duration>,
    /// How long the sync at the end took, where there is one.
    sync: Duration,
    /// Parts of it by name, seconds each.
    parts: Vec<(&'static str, f64)>,
}

fn run(name: &str, t: &dyn Target, args: &Args) -> Result<Outcome> {
    let base = args.text("base", "");
    let (dirs, files) = (args.size("dirs", 100)?, args.size("files", 10_000)?);
    let threads = args.size("threads", 1)?;
    let path = args.text("path", "file");
    let mut out = Outcome::default();
    match name {
        "nothing" => {}
        "create" if threads == 1 => {
            work::create(t, base, dirs, files, args.size("size", 1024)?)?;
            out.syncs = true;
        }
        "create" => {
            let size = args.size("size", 1024)?;
            work::on_threads(threads, |i| work::create(t, &format!("t{i}"), dirs, files / threads, size))?;
            out.syncs = true;
        }
        "stat" => work::stat(t, base, dirs, files)?,
        "remove" => {
            work::remove(t, base, dirs, files)?;
            out.syncs = true;
        }
        "fill" => {
            work::fill(t, args.size("files", 20_000)?, args.number("mib", 380)? << 20)?;
            out.syncs = true;
        }
        "walk" => (out.entries, out.bytes) = work::walk(t, base, Visit::Stat)?,
        "visit" => (out.entries, out.bytes) = work::walk(t, base, Visit::StatAndRead)?,
        "read-tree" if threads == 1 => (out.entries, out.bytes) = work::walk(t, base, Visit::Read)?,
        "read-tree" => (out.entries, out.bytes) = work::walk_together(t, base, Visit::Read, threads)?,
        "seq-write" => {
            let fsync = args.number("fsync", 1)? != 0;
            work::seq_write(t, path, args.number("mib", 256)?, fsync)?;
            out.syncs = !fsync;
        }
        "seq-read" => out.bytes = work::seq_read(t, path)?,
        "random-read" => work::random_read(t, path, args.number("n", 30_000)?)?,
        "random-write" => work::random_write(t, path, args.number("n", 30_000)?)?,
        "append-fsync" => work::append_fsync(t, path, args.number("n", 1_000)?)?,
        "fragments" => {
            work::fragments(t, path, args.number("extents", 100_000)?)?;
            out.syncs = true;
        }
        "ranges" => {
            work::ranges(t, path, args.text("mode", ""), args.number("n", 10_000)?)?;
            out.syncs = true;
        }
        "map-cold" => mapped::cold(t, path, &mut out)?,
        "map-work" => mapped::work(t, path, &mut out)?,
        "map-latency" => mapped::latency(t, path, args.size("rounds", 20)?, &mut out)?,
        "map-protect" => mapped::protect(args.size("mib", 1024)?, &mut out)?,
        "dax" => dax::run(args, &mut out)?,
        "forget" => rate::forget(t.mounted_at().ok_or("not a mounted filesystem")?)?,
        _ if name.starts_with("rate-") => {
            let dir = t.mounted_at().ok_or("rates are of mounted filesystems")?;
            let files = rate::Files { base: base.to_owned(), dirs, files };
            out.timed = Some(rate::run(name, dir, args.number("n", 10_000)?, &files)?);
        }
        _ => return Err(format!("no workload named {name}").into()),
    }
    if out.syncs {
        let begin = Instant::now();
        t.sync()?;
        out.sync = begin.elapsed();
    }
    Ok(out)
}

pub(crate) fn processor_seconds() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// Run time so far of the kernel's own threads that do a filesystem's work, in seconds, each by its id: workers (writeback, loop
/// devices, completions) and journal threads. From `/proc/PID/schedstat`.
///
/// A mount of the kernel's has its writeback and its device done there; in process both are ours, and in our own time.
fn kernel_threads() -> HashMap<String, f64> {
    let of = |pid: String| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        if !["kworker/", "jbd2/", "loop"].iter().any(|known| comm.starts_with(known)) {
            return None;
        }
        let stat = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
        let nanoseconds: u64 = stat.split_whitespace().next()?.parse().ok()?;
        Some((pid, nanoseconds as f64 * 1e-9))
    };
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashMap::new() };
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    names.filter(|n| n.bytes().all(|b| b.is_ascii_digit())).filter_map(of).collect()
}

/// What they ran since `before`.
fn kernel_threads_since(before: &HashMap<String, f64>) -> f64 {
    kernel_threads().iter().map(|(pid, now)| now - before.get(pid).copied().unwrap_or(0.0)).sum()
}

/// Peak resident memory of this process in KiB, from `/proc/self/status`.
fn peak_rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0)
}

fn real_main() -> Result<()> {
    let mut argv = std::env::args().skip(1);
    let usage = "usage: extant-bench WORKLOAD dir:PATH|image:FILE|none: [name=value ...]";
    let (name, place) = (argv.next().ok_or(usage)?, argv.next().ok_or(usage)?);
    let pairs: Option<Vec<_>> =
        argv.map(|a| a.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned()))).collect();
    let args = Args(pairs.ok_or(usage)?);

    let cpu = args.number("cpu", u64::MAX)?;
    if cpu != u64::MAX {
        // Before there is any other thread: they get the same.
        let mut set = rustix::thread::CpuSet::new();
        set.set(usize::try_from(cpu)?);
        rustix::thread::sched_setaffinity(None, &set)?;
    }
    let looked = processor_seconds();
    let kernel_before = kernel_threads();
    let looked = processor_seconds() - looked;
    let begin = Instant::now();
    let mut counts = None;
    let target: Box<dyn Target> = match place.split_once(':') {
        Some(("dir", path)) => Box::new(dir::Dir::new(path)),
        Some(("none", "")) => Box::new(dir::Dir::new("")),
        Some(("image", path)) => {
            let image = image::Image::open(path, &args)?;
            counts = Some(image.counts());
            Box::new(image)
        }
        _ => return Err(usage.into()),
    };
    let opened = begin.elapsed();
    let start = Instant::now();
    let outcome = run(&name, &*target, &args)?;
    let (wall, cpu) = (outcome.timed.unwrap_or_else(|| start.elapsed()), processor_seconds() - looked);
    let kernel_cpu = kernel_threads_since(&kernel_before);
    let looked = processor_seconds();
    let device = counts.as_ref().map(image::Counts::json);
    target.close()?;
    let parts: serde_json::Map<String, serde_json::Value> =
        outcome.parts.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    let line = serde_json::json!({
        "workload": name, "target": place, "wall_s": wall.as_secs_f64(), "cpu_s": cpu,
        "sync_s": outcome.sync.as_secs_f64(), "open_s": opened.as_secs_f64(), "close_cpu_s": processor_seconds() - looked,
        "kernel_threads_cpu_s": kernel_cpu,
        "entries": outcome.entries, "bytes": outcome.bytes, "peak_rss_kib": peak_rss_kib(), "device": device,
        "parts": parts,
    });
    println!("{line}");
    Ok(())
}

fn main() -> ExitCode {
    match real_main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("extant-bench: {e}");
            ExitCode::FAILURE
        }
    }
}
