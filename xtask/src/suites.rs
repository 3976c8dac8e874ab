//! `cargo xtask suites`: the field's own test suites against a mount of ours, with the kernel's ext4 as the measure.
//!
//! The suites are built outside of the project, in a folder given by `SUITES`:
//! `pjd/bin/pjdfstest`, `pjd/bin/fsx`, `xfstests/{check,ltp/fsx,ltp/fsstress}`, `lmdb/{mtest…,mdb_dump}`. Each runs on a fresh image in memory; afterwards
//! the image must be clean for e2fsck. What fails on the kernel's ext4 too is the environment's.

mod databases;
mod preload;
mod xfstests;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::proc::Verdict;
use crate::rig::{Rig, quiet};
use crate::shows::{self, Shown};

/// A suite: its name, the program that it needs, and what runs it.
struct Suite {
    name: &'static str,
    program: &'static str,
    run: fn(&Built<'_>, long: bool) -> Result<String, String>,
}

const SUITES: &[Suite] = &[
    Suite { name: "pjdfstest", program: "pjd/bin/pjdfstest", run: pjdfstest },
    Suite { name: "fsx", program: "pjd/bin/fsx", run: fsx },
    Suite { name: "ltp-fsx", program: "xfstests/ltp/fsx", run: ltp_fsx },
    Suite { name: "fsstress", program: "xfstests/ltp/fsstress", run: fsstress },
    Suite { name: "preload-fsx", program: "xfstests/ltp/fsx", run: preload::fsx },
    Suite { name: "preload-mmap", program: "xfstests/src/holetest", run: preload::mappings },
    Suite { name: "preload-databases", program: "lmdb/mtest", run: databases::databases },
    Suite { name: "xfstests", program: "xfstests/check", run: xfstests::xfstests },
];

/// What suites there are.
pub(crate) fn names() -> Vec<&'static str> {
    SUITES.iter().map(|suite| suite.name).collect()
}

/// `cargo xtask suites [--long] [--record] [NAME…]`; `--record` adds each result to `docs/measured.md`.
pub(crate) fn command(args: &[String]) -> Verdict {
    let (options, wanted) = crate::options(args, &["--long", "--record"])?;
    let [long, record] = ["--long", "--record"].map(|name| options.contains(&name));
    if let Some(unknown) = wanted.iter().find(|name| !names().contains(name)) {
        return Err(format!("no suite {unknown}; there are {}", names().join(", ")));
    }
    let folder = std::env::var_os("SUITES").ok_or("SUITES is not set: the folder of the built suites")?;
    let folder = PathBuf::from(folder);
    let rig = Built { rig: &Rig::build()?, suites: folder };
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for suite in SUITES.iter().filter(|s| wanted.is_empty() || wanted.contains(&s.name)) {
        if !rig.suites.join(suite.program).is_file() {
            println!("{}: skipped: no {}", suite.name, rig.suites.join(suite.program).display());
            skipped += 1;
            continue;
        }
        let start = Instant::now();
        let done = (suite.run)(&rig, long);
        if record {
            let (Ok(figure) | Err(figure)) = &done;
            let name = format!("suites {}{}", if long { "--long " } else { "" }, suite.name);
            shows::add_to_record(&name, &Shown::new(figure, "nothing fails that need not", done.is_ok()))?;
        }
        match done {
            Ok(what) => {
                passed += 1;
                println!("{}: held: {what} ({} s)", suite.name, start.elapsed().as_secs());
            }
            Err(what) => {
                failed += 1;
                println!("{}: FAILED: {what} ({} s)", suite.name, start.elapsed().as_secs());
            }
        }
    }
    println!("suites: {passed} held, {failed} failed, {skipped} skipped");
    Ok(failed == 0 && passed > 0)
}

/// For `cargo xtask shows`.
pub(crate) fn fsx_sharpness(rig: &Rig) -> Result<String, String> {
    let suites = std::env::var_os("SUITES").ok_or("SUITES is not set: the folder of the built suites")?;
    preload::sharpness(&Built { rig, suites: PathBuf::from(suites) })
}

/// One suite, for `cargo xtask shows` as well.
pub(crate) fn one(rig: &Rig, name: &str, long: bool) -> Result<String, String> {
    let suites = std::env::var_os("SUITES").ok_or("SUITES is not set: the folder of the built suites")?;
    let suite = SUITES.iter().find(|s| s.name == name).ok_or_else(|| format!("no suite {name}"))?;
    (suite.run)(&Built { rig, suites: PathBuf::from(suites) }, long)
}

/// A rig with the folder of the suites.
struct Built<'a> {
    rig: &'a Rig,
    suites: PathBuf,
}

impl Built<'_> {
    fn program(&self, path: &str) -> Command {
        Command::new(self.suites.join(path))
    }
}

/// What the suite needs to know: features, and two users.
const PJDFSTEST: &str = "\
[features]
posix_fallocate = {}
file_flags = []
rename_ctime = {}
stat_st_birthtime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.01
allow_remount = true
expected_failures = []
[dummy_auth]
entries = [[\"nobody\", \"nogroup\"], [\"tests\", \"tests\"]]
";

fn pjdfstest(built: &Built<'_>, _long: bool) -> Result<String, String> {
    let config = built.rig.dir.join("pjdfstest.toml");
    fs::write(&config, PJDFSTEST).map_err(|err| err.to_string())?;
    let failures = |kernel: bool| -> Result<(BTreeSet<String>, usize), String> {
        let mounted = built.rig.mounted(if kernel { "pjd-kernel" } else { "pjd" }, 256, kernel)?;
        let second = built.rig.mounted(if kernel { "pjd-kernel-2" } else { "pjd-2" }, 64, kernel)?;
        quiet(Command::new("chmod").arg("777").arg(&mounted.dir).arg(&second.dir))?;
        let mut command = built.program("pjd/bin/pjdfstest");
        command.arg("-c").arg(&config).arg("-p").arg(&mounted.dir).arg("-s").arg(&second.dir);
        let output = command.stdin(Stdio::null()).output().map_err(|err| format!("{command:?}: {err}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        second.finish()?;
        mounted.finish()?;
        Ok(read_pjdfstest(&text))
    };
    let (theirs, _) = failures(true)?;
    let (ours, tests) = failures(false)?;
    let more: Vec<&String> = ours.difference(&theirs).collect();
    if tests < 300 {
        return Err(format!("only {tests} tests ran"));
    }
    if !more.is_empty() {
        return Err(format!("{} of {tests} fail that do not on the kernel's ext4: {more:?}", more.len()));
    }
    Ok(format!(
        "{} of {tests} fail, all of them on the kernel's ext4 too ({} there)",
        ours.len(),
        theirs.len()
    ))
}

/// Names of failed tests, and how many ran, from the suite's lines `name ... [result]`.
fn read_pjdfstest(text: &str) -> (BTreeSet<String>, usize) {
    let mut failed = BTreeSet::new();
    // Failed ones are listed twice.
    let mut tests = BTreeSet::new();
    for line in text.lines() {
        let plain = line.to_lowercase();
        let name = line.split_whitespace().next().unwrap_or_default();
        let verdict = [" ok", " failed", " skipped"].iter().any(|v| plain.trim_end().ends_with(v));
        if !name.contains("::") || line.starts_with(char::is_whitespace) || !verdict {
            continue;
        }
        tests.insert(name);
        if plain.trim_end().ends_with(" failed") {
            failed.insert(name.to_owned());
        }
    }
    (failed, tests.len())
}

/// Operations of one run of `fsx`. Version 0.3.2 never unmaps what it reads through a mapping: the work of each truncation and
/// invalidation grows with the mappings left behind, and at 65,530 of them (`vm.max_map_count`; a million operations make 175,000) it
/// panics on any file system.
const FSX_RUN: u32 = 5_000;

fn fsx(built: &Built<'_>, long: bool) -> Result<String, String> {
    // Of no byte posix_fallocate(3) is EINVAL anywhere, which it takes for a lack of support (seed 46).
    const WEIGHTS: &str = "flen = 262144\n[opsize]\nmin = 1\nmax = 65536\n[weights]\nclose_open = 1\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\n\
        invalidate = 1\ntruncate = 5\nfsync = 1\nfdatasync = 1\nposix_fallocate = 3\npunch_hole = 5\nsendfile = 3\n\
        posix_fadvise = 2\ncopy_file_range = 3\n";
    let config = built.rig.dir.join("fsx.toml");
    fs::write(&config, WEIGHTS).map_err(|err| err.to_string())?;
    let runs = if long { 200 } else { 10 };
    let mounted = built.rig.mounted("fsx", 256, false)?;
    for seed in 1..=runs {
        let mut command = built.program("pjd/bin/fsx");
        command.args(["-q", "-N", &FSX_RUN.to_string(), "-S", &seed.to_string(), "-f"]).arg(&config);
        quiet(command.arg(mounted.dir.join("file")))?;
    }
    mounted.finish()?;
    Ok(format!("{} operations, seeds 1 to {runs}", FSX_RUN * runs))
}

fn ltp_fsx(built: &Built<'_>, long: bool) -> Result<String, String> {
    let operations = if long { "1000000" } else { "50000" };
    let mounted = built.rig.mounted("ltp-fsx", 256, false)?;
    let mut command = built.program("xfstests/ltp/fsx");
    // It writes a good copy and a log beside the file.
    command.args(["-q", "-N", operations, "-S", "1", "-P"]).arg(&built.rig.dir).arg(mounted.dir.join("file"));
    quiet(&mut command)?;
    mounted.finish()?;
    Ok(format!("{operations} operations"))
}

fn fsstress(built: &Built<'_>, long: bool) -> Result<String, String> {
    let operations = if long { "20000" } else { "2000" };
    let mounted = built.rig.mounted("fsstress", 1024, false)?;
    let mut command = built.program("xfstests/ltp/fsstress");
    quiet(command.arg("-d").arg(mounted.dir.join("f")).args(["-n", operations, "-p", "4", "-s", "7"]))?;
    mounted.finish()?;
    Ok(format!("4 processes of {operations} operations, e2fsck clean"))
}
