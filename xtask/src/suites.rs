//! `cargo xtask suites`: the field's own test suites against a mount of ours, with the kernel's ext4 as the measure.
//!
//! The suites are built outside of the project, in a folder given by `SUITES`:
//! `pjd/bin/pjdfstest`, `pjd/bin/fsx`, `xfstests/ltp/{fsx,fsstress}`. Each runs on a fresh image in memory; afterwards
//! the image must be clean for e2fsck. What fails on the kernel's ext4 too is the environment's.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::proc::{self, Verdict};

/// A suite: its name, the program that it needs, and what runs it.
struct Suite {
    name: &'static str,
    program: &'static str,
    run: fn(&Rig, long: bool) -> Result<String, String>,
}

const SUITES: &[Suite] = &[
    Suite { name: "pjdfstest", program: "pjd/bin/pjdfstest", run: pjdfstest },
    Suite { name: "fsx", program: "pjd/bin/fsx", run: fsx },
    Suite { name: "ltp-fsx", program: "xfstests/ltp/fsx", run: ltp_fsx },
    Suite { name: "fsstress", program: "xfstests/ltp/fsstress", run: fsstress },
];

/// `cargo xtask suites [--long] [NAME…]`.
pub(crate) fn command(args: &[String]) -> Verdict {
    let long = args.iter().any(|a| a == "--long");
    let wanted: Vec<&String> = args.iter().filter(|a| *a != "--long").collect();
    if let Some(unknown) = wanted.iter().find(|w| !SUITES.iter().any(|s| s.name == **w)) {
        let names: Vec<&str> = SUITES.iter().map(|s| s.name).collect();
        return Err(format!("no suite {unknown}; there are {}", names.join(", ")));
    }
    let folder = std::env::var_os("SUITES").ok_or("SUITES is not set: the folder of the built suites")?;
    let folder = PathBuf::from(folder);
    let rig = Rig::build(folder)?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for suite in SUITES.iter().filter(|s| wanted.is_empty() || wanted.iter().any(|w| *w == s.name)) {
        if !rig.suites.join(suite.program).is_file() {
            println!("{}: skipped: no {}", suite.name, rig.suites.join(suite.program).display());
            skipped += 1;
            continue;
        }
        let start = Instant::now();
        match (suite.run)(&rig, long) {
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

struct Rig {
    suites: PathBuf,
    extant: PathBuf,
    dir: PathBuf,
}

/// A mount that goes away with the value, ours or the kernel's.
struct Mounted<'a> {
    rig: &'a Rig,
    image: PathBuf,
    dir: PathBuf,
    kernel: bool,
    up: bool,
}

impl Rig {
    fn build(suites: PathBuf) -> Result<Self, String> {
        if !proc::succeeds(proc::cargo().args(["build", "--release", "--locked", "-q", "-p", "extant-cli"]))?
        {
            return Err("the program does not build".into());
        }
        let extant = fs::canonicalize("target/release/extant").map_err(|err| err.to_string())?;
        let base =
            if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let dir = base.join(format!("extant-suites-{}", std::process::id()));
        fs::create_dir_all(&dir).map_err(|err| format!("{}: {err}", dir.display()))?;
        Ok(Self { suites, extant, dir })
    }

    fn program(&self, path: &str) -> Command {
        Command::new(self.suites.join(path))
    }

    /// A fresh filesystem of so many MiB, mounted.
    fn mounted(&self, name: &str, mib: u64, kernel: bool) -> Result<Mounted<'_>, String> {
        let image = self.dir.join(format!("{name}.img"));
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).map_err(|err| err.to_string())?;
        quiet(Command::new("truncate").arg("-s").arg(format!("{mib}M")).arg(&image))?;
        quiet(Command::new(tool("mke2fs")?).args(["-q", "-F", "-t", "ext4"]).arg(&image))?;
        if kernel {
            quiet(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&image).arg(&dir))?;
        } else {
            quiet(Command::new(&self.extant).arg("mount").arg(&image).arg(&dir))?;
        }
        Ok(Mounted { rig: self, image, dir, kernel, up: true })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Mounted<'_> {
    /// Unmounts, and asks e2fsck.
    fn finish(mut self) -> Result<(), String> {
        self.unmount()?;
        quiet(Command::new(tool("e2fsck")?).arg("-fn").arg(&self.image))?;
        fs::remove_file(&self.image).map_err(|err| err.to_string())
    }

    fn unmount(&mut self) -> Result<(), String> {
        self.up = false;
        if self.kernel {
            return quiet(Command::new("umount").arg(&self.dir)).map(drop);
        }
        quiet(Command::new(&self.rig.extant).arg("umount").arg(&self.dir)).map(drop)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if self.up
            && let Err(err) = self.unmount()
        {
            eprintln!("{err}");
        }
    }
}

fn tool(name: &str) -> Result<PathBuf, String> {
    proc::find(name).ok_or_else(|| format!("no {name}"))
}

/// Runs a command that must succeed; its output, or all that it said.
fn quiet(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|err| format!("{command:?}: {err}"))?;
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{command:?}: {}\n{}", output.status, tail(&text)))
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
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

fn pjdfstest(rig: &Rig, _long: bool) -> Result<String, String> {
    let config = rig.dir.join("pjdfstest.toml");
    fs::write(&config, PJDFSTEST).map_err(|err| err.to_string())?;
    let failures = |kernel: bool| -> Result<(BTreeSet<String>, usize), String> {
        let mounted = rig.mounted(if kernel { "pjd-kernel" } else { "pjd" }, 256, kernel)?;
        let second = rig.mounted(if kernel { "pjd-kernel-2" } else { "pjd-2" }, 64, kernel)?;
        quiet(Command::new("chmod").arg("777").arg(&mounted.dir).arg(&second.dir))?;
        let mut command = rig.program("pjd/bin/pjdfstest");
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

fn fsx(rig: &Rig, long: bool) -> Result<String, String> {
    const WEIGHTS: &str = "flen = 262144\n[weights]\nclose_open = 1\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\n\
        invalidate = 1\ntruncate = 5\nfsync = 1\nfdatasync = 1\nposix_fallocate = 3\npunch_hole = 5\nsendfile = 3\n\
        posix_fadvise = 2\ncopy_file_range = 3\n";
    let config = rig.dir.join("fsx.toml");
    fs::write(&config, WEIGHTS).map_err(|err| err.to_string())?;
    let operations = if long { "1000000" } else { "50000" };
    let mounted = rig.mounted("fsx", 256, false)?;
    let mut command = rig.program("pjd/bin/fsx");
    quiet(
        command.args(["-q", "-N", operations, "-S", "1", "-f"]).arg(&config).arg(mounted.dir.join("file")),
    )?;
    mounted.finish()?;
    Ok(format!("{operations} operations"))
}

fn ltp_fsx(rig: &Rig, long: bool) -> Result<String, String> {
    let operations = if long { "1000000" } else { "50000" };
    let mounted = rig.mounted("ltp-fsx", 256, false)?;
    let mut command = rig.program("xfstests/ltp/fsx");
    // It writes a good copy and a log beside the file.
    command.args(["-q", "-N", operations, "-S", "1", "-P"]).arg(&rig.dir).arg(mounted.dir.join("file"));
    quiet(&mut command)?;
    mounted.finish()?;
    Ok(format!("{operations} operations"))
}

fn fsstress(rig: &Rig, long: bool) -> Result<String, String> {
    let operations = if long { "20000" } else { "2000" };
    let mounted = rig.mounted("fsstress", 1024, false)?;
    let mut command = rig.program("xfstests/ltp/fsstress");
    quiet(command.arg("-d").arg(mounted.dir.join("f")).args(["-n", operations, "-p", "4", "-s", "7"]))?;
    mounted.finish()?;
    Ok(format!("4 processes of {operations} operations, e2fsck clean"))
}
