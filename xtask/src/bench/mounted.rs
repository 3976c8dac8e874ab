//! The mount beside the kernel on a loop device, fuse2fs, and the null server on the same transport.
//!
//! The work comes in pieces, each with images and mounts of its own, so that a piece can be run alone within a minute:
//! `bench mounted=files`. A piece is also found by the name of one of its steps.

use std::path::Path;
use std::process::Command;

use super::Rounds;
use super::measure::{self, Metric, Sample, Series};
use super::place::{self, How, Mounted, Scratch, Server};
use super::report::{Bound, Figure, ratio_figure};

/// A step of the whole work; steps of one piece run in this order on one mount, remounted cold where asked.
struct Step {
    name: &'static str,
    /// Bound relative to kernel ext4 on loop.
    kernel: Option<f64>,
    /// Bound relative to the null server.
    null: Option<f64>,
    cold: bool,
    run: fn(&Path, Option<usize>) -> Result<Sample, String>,
}

struct Piece {
    name: &'static str,
    image: &'static str,
    /// More rounds for what is short.
    times: usize,
    steps: &'static [Step],
}

fn workload(dir: &Path, pin: Option<usize>, name: &str, args: &[&str]) -> Result<Sample, String> {
    measure::workload(name, &format!("dir:{}", dir.display()), args, pin)
}

const PIECES: &[Piece] = &[
    Piece {
        name: "files",
        image: "1g",
        times: 1,
        steps: &[
            Step {
                name: "create",
                kernel: Some(3.5),
                null: Some(1.5),
                cold: false,
                run: |d, p| workload(d, p, "create", &["base=c", "size=2048"]),
            },
            Step {
                name: "stat cold",
                kernel: Some(2.5),
                null: Some(1.5),
                cold: true,
                run: |d, p| workload(d, p, "stat", &["base=c"]),
            },
            Step {
                name: "remove",
                kernel: Some(3.5),
                null: Some(1.5),
                cold: false,
                run: |d, p| workload(d, p, "remove", &["base=c"]),
            },
        ],
    },
    Piece {
        name: "tree",
        image: "2g",
        times: 1,
        steps: &[
            Step { name: "untar", kernel: Some(3.5), null: Some(1.5), cold: false, run: untar },
            Step { name: "grep cold", kernel: Some(2.5), null: Some(1.5), cold: true, run: grep },
        ],
    },
    Piece {
        name: "big",
        image: "4g",
        times: 1,
        steps: &[
            Step {
                name: "write 1 GiB + fsync",
                kernel: None,
                null: Some(1.5),
                cold: false,
                run: |d, p| workload(d, p, "seq-write", &["mib=1024"]),
            },
            Step {
                name: "read 1 GiB cold",
                kernel: None,
                null: Some(1.5),
                cold: true,
                run: |d, p| workload(d, p, "seq-read", &[]),
            },
            Step {
                name: "random reads",
                kernel: Some(0.5),
                null: Some(1.5),
                cold: true,
                run: |d, p| workload(d, p, "random-read", &[]),
            },
            Step {
                name: "random writes + fsync",
                kernel: None,
                null: Some(1.5),
                cold: false,
                run: |d, p| workload(d, p, "random-write", &[]),
            },
        ],
    },
    Piece {
        name: "database",
        image: "1g",
        times: 3,
        steps: &[
            Step {
                name: "appends, each fsynced",
                kernel: Some(0.8),
                null: None,
                cold: false,
                run: |d, p| workload(d, p, "append-fsync", &["path=log"]),
            },
            Step { name: "SQLite WAL", kernel: Some(2.2), null: Some(1.5), cold: false, run: sqlite },
        ],
    },
];

/// Single requests: what is asked, how often in one slice, and the least rate as a part of the null server's.
const RATES: &[(&str, &str, &str, Option<f64>)] = &[
    ("lookup", "rate-lookup", "files=10000", Some(0.85)),
    ("getattr", "rate-getattr", "n=20000", Some(0.85)),
    ("4 KiB write", "rate-write-4k", "n=20000", Some(0.85)),
    ("1 MiB read", "rate-read-1m", "n=1000", Some(0.85)),
    ("create + unlink", "rate-create-unlink", "n=4000", Some(0.7)),
    ("open + close", "rate-open-close", "n=10000", None),
    ("4 KiB read", "rate-read-4k", "n=20000", None),
];

fn on(pin: Option<usize>, program: &str) -> Result<Command, String> {
    Ok(place::pinned(pin, &crate::proc::find(program).ok_or_else(|| format!("{program} is not installed"))?))
}

fn untar(dir: &Path, pin: Option<usize>) -> Result<Sample, String> {
    let tar = dir.parent().ok_or("mounted at the root")?.join("tree.tar");
    let mut sh = on(pin, "sh")?;
    measure::program(sh.arg("-c").arg("tar xf \"$0\" && sync -f .").arg(tar), dir)
}

fn grep(dir: &Path, pin: Option<usize>) -> Result<Sample, String> {
    let mut sh = on(pin, "sh")?;
    measure::program(sh.arg("-c").arg("grep -rc no-such-text-anywhere tree >/dev/null; test $? -le 1"), dir)
}

fn sqlite(dir: &Path, pin: Option<usize>) -> Result<Sample, String> {
    const SQL: &str = "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); BEGIN; \
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000) \
        INSERT INTO t SELECT i, hex(randomblob(50)) FROM n; COMMIT; \
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<2000) \
        SELECT sum(length(v)) FROM n JOIN t ON t.id = n.i*10; PRAGMA integrity_check;";
    let mut sqlite = on(pin, "sqlite3")?;
    measure::program(sqlite.args(["work.db", SQL]), dir)
}

/// 12,000 files, 150 MB, as a tar beside the images.
fn make_tar(scratch: &Scratch) -> Result<(), String> {
    let tree = scratch.join("src/tree");
    std::fs::create_dir_all(&tree).map_err(|err| err.to_string())?;
    measure::workload("fill", &format!("dir:{}", tree.display()), &["files=12000", "mib=150"], None)?;
    let mut tar = Command::new("tar");
    crate::proc::output(
        tar.arg("cf").arg(scratch.join("tree.tar")).arg("-C").arg(scratch.join("src")).arg("tree"),
    )?;
    std::fs::remove_dir_all(scratch.join("src")).map_err(|err| err.to_string())
}

/// One side of a comparison: a server as it is started.
#[derive(Clone, Copy)]
struct Side {
    server: Server,
    how: How,
}

impl Side {
    fn new(server: Server, pin: Option<usize>) -> Self {
        Self { server, how: How { pin, ..How::default() } }
    }
}

fn wanted(only: Option<&str>, name: &str, mut inside: impl Iterator<Item = &'static str>) -> bool {
    only.is_none_or(|only| only == name || inside.any(|step| step == only))
}

/// The whole work and the single requests, as far as `only` names them.
pub(crate) fn run(rounds: Rounds, pin: Option<usize>, only: Option<&str>) -> Result<Vec<Figure>, String> {
    let mut out = Vec::new();
    if wanted(only, "rates", RATES.iter().map(|r| r.0)) {
        out.extend(rates(rounds, pin, only.filter(|o| *o != "rates"))?);
    }
    for piece in PIECES {
        if wanted(only, piece.name, piece.steps.iter().map(|s| s.name)) {
            out.extend(whole_work(piece, rounds, pin)?);
        }
    }
    if out.is_empty() {
        let names: Vec<_> = PIECES.iter().map(|p| p.name).collect();
        return Err(format!("no piece {}; there are rates, {}", only.unwrap_or(""), names.join(", ")));
    }
    Ok(out)
}

/// All steps of a piece on all servers, interleaved by round.
fn whole_work(piece: &Piece, rounds: Rounds, pin: Option<usize>) -> Result<Vec<Figure>, String> {
    // fuse2fs is the measure of what is not pinned.
    let servers: &[Server] = if pin.is_some() {
        &[Server::Kernel, Server::Extant, Server::Null]
    } else {
        &[Server::Kernel, Server::Extant, Server::Null, Server::Fuse2fs]
    };
    let sides: Vec<_> = servers.iter().map(|&s| Side::new(s, pin)).collect();
    let series = measured(piece, rounds, &sides)?;
    let label = if pin.is_some() { "one processor" } else { "unpinned" };
    let mut out = Vec::new();
    for (i, step) in piece.steps.iter().enumerate() {
        let us = ("extant", &series[1][i]);
        for (side, row) in sides.iter().zip(&series).filter(|(side, _)| side.server != Server::Extant) {
            // Bounds are for one processor; unpinned figures are reported beside them, with one bound of their own.
            let bound = match (side.server, pin) {
                (Server::Kernel, Some(_)) => step.kernel,
                (Server::Null, Some(_)) => step.null,
                (Server::Fuse2fs, None) => Some(1.0),
                _ => None,
            };
            let to = side.server.name();
            let name = format!("{}: to {to}, {label}", step.name);
            out.push(ratio_figure(name, us, (to, &row[i]), Metric::Wall, bound.map(Bound::AtMost)));
        }
    }
    Ok(out)
}

/// The series of each side, step by step.
fn measured(piece: &Piece, rounds: Rounds, sides: &[Side]) -> Result<Vec<Vec<Series>>, String> {
    let scratch = Scratch::new()?;
    if piece.name == "tree" {
        make_tar(&scratch)?;
    }
    let empty = || piece.steps.iter().map(|_| Series::default()).collect();
    let mut series: Vec<Vec<Series>> = sides.iter().map(|_| empty()).collect();
    for _ in 0..rounds.0 * piece.times {
        for (side, row) in sides.iter().zip(&mut series) {
            one_round(piece, *side, &scratch, row)?;
        }
    }
    Ok(series)
}

fn one_round(piece: &Piece, side: Side, scratch: &Scratch, row: &mut [Series]) -> Result<(), String> {
    let Side { server, how } = side;
    let image = scratch.join("work.img");
    place::make_image(&image, piece.image)?;
    let mut mounted = Mounted::new(server, &image, how)?;
    for (step, series) in piece.steps.iter().zip(row) {
        if step.cold && server == Server::Null {
            // It would lose everything; the kernel's caches are what can be cold.
            workload(&mounted.dir, None, "forget", &[])?;
        } else if step.cold {
            mounted.unmount()?;
            mounted = Mounted::new(server, &image, how)?;
        }
        series.0.push(
            (step.run)(&mounted.dir, how.pin)
                .map_err(|err| format!("{} on {}: {err}", step.name, server.name()))?,
        );
    }
    mounted.unmount()?;
    if server == Server::Extant {
        super::inproc::check(&image)?;
        if piece.name == "database" {
            really_committed(&image, 1000)?;
        }
    }
    Ok(())
}

/// A fsync that commits nothing would be fast: the fresh image's journal must have counted a transaction for each.
fn really_committed(image: &Path, least: u32) -> Result<(), String> {
    let mut dumpe2fs = Command::new(crate::proc::find("dumpe2fs").ok_or("dumpe2fs is not installed")?);
    let text = crate::proc::output(dumpe2fs.arg("-h").arg(image))?;
    let line = text.lines().find_map(|l| l.strip_prefix("Journal sequence:"));
    let hex = line.and_then(|l| l.trim().strip_prefix("0x")).unwrap_or_default();
    let next = u32::from_str_radix(hex, 16)
        .map_err(|err| format!("{}: no journal sequence: {err}", image.display()))?;
    // The first transaction has the number 1.
    if next > least {
        Ok(())
    } else {
        Err(format!("{}: {next} transactions for {least} fsyncs", image.display()))
    }
}

/// Single requests: us and the null server, both mounted, in turn by short slices.
fn rates(rounds: Rounds, pin: Option<usize>, only: Option<&str>) -> Result<Vec<Figure>, String> {
    let scratch = Scratch::new()?;
    let image = scratch.join("work.img");
    place::make_image(&image, "1g")?;
    let how = How { pin, ..How::default() };
    let ours = Mounted::new(Server::Extant, &image, how)?;
    let null = Mounted::new(Server::Null, &image, how)?;
    for dir in [&ours.dir, &null.dir] {
        workload(dir, pin, "create", &["base=c", "size=0"])?;
        workload(dir, pin, "rate-prepare", &[])?;
    }
    let label = if pin.is_some() { "one processor" } else { "unpinned" };
    let mut out = Vec::new();
    for (name, what, n, least) in RATES.iter().filter(|r| only.is_none_or(|o| o == r.0)) {
        let (mut us, mut them) = (Series::default(), Series::default());
        for _ in 0..rounds.0 * 3 {
            them.0.push(workload(&null.dir, pin, what, &["base=c", n])?);
            us.0.push(workload(&ours.dir, pin, what, &["base=c", n])?);
        }
        let bound = least.filter(|_| pin.is_some()).map(Bound::AtLeast);
        let name = format!("{name}: rate to null, {label}");
        out.push(ratio_figure(name, ("null", &them), ("extant", &us), Metric::Wall, bound));
    }
    ours.unmount()?;
    null.unmount()?;
    Ok(out)
}

/// The kernel's writeback cache on and off, on what it is for and what it costs; reported, the default is chosen from it.
pub(crate) fn writeback(
    rounds: Rounds,
    pin: Option<usize>,
    only: Option<&str>,
) -> Result<Vec<Figure>, String> {
    let with = |server, options| Side { server, how: How { pin, options: Some(options) } };
    let off = ("nowriteback_cache", "");
    let on = ("writeback_cache", "--writeback-cache");
    let sides = [
        Side::new(Server::Kernel, pin),
        with(Server::Extant, off),
        with(Server::Extant, on),
        with(Server::Null, off),
        with(Server::Null, on),
    ];
    let label = if pin.is_some() { "one processor" } else { "unpinned" };
    let mut out = Vec::new();
    for piece in PIECES {
        if !wanted(only, piece.name, piece.steps.iter().map(|s| s.name)) {
            continue;
        }
        let series = measured(piece, rounds, &sides)?;
        for (i, step) in piece.steps.iter().enumerate() {
            for (index, name) in [(1, "off"), (2, "on")] {
                for (to, other) in [("kernel", 0), ("null", index + 2)] {
                    let title = format!("{}: writeback cache {name}, to {to}, {label}", step.name);
                    let (us, them) = (("extant", &series[index][i]), (to, &series[other][i]));
                    out.push(ratio_figure(title, us, them, Metric::Wall, None));
                }
            }
        }
    }
    Ok(out)
}
