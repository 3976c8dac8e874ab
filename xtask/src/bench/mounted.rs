//! The mount beside the kernel on a loop device, fuse2fs, and the null server on the same transport.

use std::path::Path;
use std::process::Command;

use super::Rounds;
use super::measure::{self, Metric, Sample, Series};
use super::place::{self, Mounted, Scratch, Server};
use super::report::{Bound, Figure, ratio_figure};

/// A step of the whole work; steps of one case run in this order on one mount, remounted cold where asked.
struct Step {
    name: &'static str,
    /// Bound relative to kernel ext4 on loop.
    kernel: Option<f64>,
    /// Bound relative to the null server.
    null: Option<f64>,
    cold: bool,
    run: fn(&Path, Option<usize>) -> Result<Sample, String>,
}

fn workload(dir: &Path, pin: Option<usize>, name: &str, args: &[&str]) -> Result<Sample, String> {
    measure::workload(name, &format!("dir:{}", dir.display()), args, pin)
}

const STEPS: &[Step] = &[
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
    Step { name: "untar", kernel: Some(3.5), null: Some(1.5), cold: false, run: untar },
    Step { name: "grep cold", kernel: Some(2.5), null: Some(1.5), cold: true, run: grep },
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
    Step {
        name: "appends, each fsynced",
        kernel: Some(0.8),
        null: None,
        cold: false,
        run: |d, p| workload(d, p, "append-fsync", &["path=log"]),
    },
    Step { name: "SQLite WAL", kernel: Some(2.2), null: Some(1.5), cold: false, run: sqlite },
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

/// All steps on all servers, interleaved by round.
pub(crate) fn whole_work(
    rounds: Rounds,
    pin: Option<usize>,
    only: Option<&str>,
) -> Result<Vec<Figure>, String> {
    const SERVERS: [Server; 4] = [Server::Kernel, Server::Extant, Server::Null, Server::Fuse2fs];
    let scratch = Scratch::new()?;
    make_tar(&scratch)?;
    let mut series: Vec<Vec<Series>> =
        SERVERS.iter().map(|_| STEPS.iter().map(|_| Series::default()).collect()).collect();
    for round in 0..rounds.0 {
        for (server, row) in SERVERS.iter().zip(&mut series) {
            // The slowest one tells its figure once.
            if *server == Server::Fuse2fs && round > 0 {
                continue;
            }
            one_round(*server, &scratch, pin, only, row)?;
        }
    }
    let label = if pin.is_some() { "one processor" } else { "unpinned" };
    let mut out = Vec::new();
    for (i, step) in STEPS.iter().enumerate() {
        let (kernel, ours, null, fuse2fs) = (&series[0][i], &series[1][i], &series[2][i], &series[3][i]);
        if ours.0.is_empty() {
            continue;
        }
        let us = ("extant", ours);
        // Bounds are for one processor; unpinned figures are reported beside them, with one bound of their own.
        let bound = |b: Option<f64>| b.filter(|_| pin.is_some()).map(Bound::AtMost);
        let name = |to: &str| format!("{}: to {to}, {label}", step.name);
        out.push(ratio_figure(name("kernel"), us, ("kernel", kernel), Metric::Wall, bound(step.kernel)));
        out.push(ratio_figure(name("null"), us, ("null", null), Metric::Wall, bound(step.null)));
        let slower = if pin.is_none() { Some(Bound::AtMost(1.0)) } else { None };
        out.push(ratio_figure(name("fuse2fs"), us, ("fuse2fs", fuse2fs), Metric::Wall, slower));
    }
    Ok(out)
}

fn one_round(
    server: Server,
    scratch: &Scratch,
    pin: Option<usize>,
    only: Option<&str>,
    row: &mut [Series],
) -> Result<(), String> {
    let image = scratch.join("work.img");
    place::make_image(&image, "4g")?;
    let mut mounted = Mounted::new(server, &image, pin)?;
    for (step, series) in STEPS.iter().zip(row) {
        if only.is_some_and(|o| o != step.name) {
            continue;
        }
        if step.cold && server != Server::Null {
            mounted.unmount()?;
            mounted = Mounted::new(server, &image, pin)?;
        }
        if step.cold {
            place::drop_caches()?;
        }
        series.0.push(
            (step.run)(&mounted.dir, pin)
                .map_err(|err| format!("{} on {}: {err}", step.name, server.name()))?,
        );
    }
    mounted.unmount()?;
    if server == Server::Extant {
        super::inproc::check(&image)?;
    }
    Ok(())
}
