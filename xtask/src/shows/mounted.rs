//! Real work of unmodified programs on a mount. After each: unmount, e2fsck, and the kernel's view of the same image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Shown, manifest};
use crate::proc;
use crate::rig::{Mounted, Rig, quiet, tool};

const BOUND: &str = "all succeeds, e2fsck -fn finds nothing, the kernel sees the same tree";

/// Files of the large tree.
const FILES: usize = 12_000;

/// Unmounts and compares; `what` is said if all held.
fn close(mounted: Mounted<'_>, what: String) -> Result<Shown, String> {
    let ours = manifest::read(&mounted.dir)?;
    let mut mounted = mounted;
    mounted.unmount()?;
    quiet(Command::new(tool("e2fsck")?).arg("-fn").arg(&mounted.image))?;
    quiet(Command::new("mount").args(["-t", "ext4", "-o", "loop,ro"]).arg(&mounted.image).arg(&mounted.dir))?;
    let theirs = manifest::read(&mounted.dir);
    quiet(Command::new("umount").arg(&mounted.dir))?;
    let count = ours.len();
    let differ = manifest::differences(&ours, &theirs?);
    fs::remove_file(&mounted.image).map_err(|err| err.to_string())?;
    Ok(match differ {
        None => Shown::new(format!("{what}; {count} names equal"), BOUND, true),
        Some(lines) => Shown::new(format!("the kernel sees something else: {lines}"), BOUND, false),
    })
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> String + '_ {
    move |err| format!("{}: {err}", path.display())
}

/// A large tree of sources that every machine with this project's dependencies has.
fn sources() -> Result<PathBuf, String> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cargo")));
    let dir = home.ok_or("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    if dir.is_dir() { Ok(dir) } else { Err(format!("{}: not there; build the project once", dir.display())) }
}

/// Archive of about 12,000 files; and how many it holds.
fn archive(rig: &Rig) -> Result<(PathBuf, usize), String> {
    let dir = sources()?;
    let list = proc::output(Command::new("find").args([".", "-type", "f"]).current_dir(&dir))?;
    let mut names: Vec<&str> = list.lines().collect();
    names.sort_unstable();
    names.truncate(FILES);
    let path = rig.dir.join("tree.tar");
    let pack = |how: &str, names: &[&str], rename: &str| {
        let wanted = rig.dir.join("names");
        fs::write(&wanted, names.join("\n")).map_err(failed(&wanted))?;
        let mut tar = Command::new("tar");
        quiet(tar.args([how, rename, "-f"]).arg(&path).arg("-C").arg(&dir).arg("-T").arg(&wanted))
    };
    pack("-c", &names, "--transform=s,x,x,")?;
    // A second copy under another name makes up for what is missing.
    let again = names.len().min(FILES - names.len());
    pack("-r", &names[..again], "--transform=s,^\\./,./again/,")?;
    Ok((path, names.len() + again))
}

/// `git clone`, `git fsck`.
pub(crate) fn git(rig: &Rig) -> Result<Shown, String> {
    let origin = rig.dir.join("origin");
    let git = |dir: &Path, args: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=Extant", "-c", "user.email=extant@localhost", "-c", "gc.auto=0"]);
        quiet(command.args(["-c", "safe.directory=*"]).arg("-C").arg(dir).args(args))
    };
    fs::create_dir_all(&origin).map_err(failed(&origin))?;
    let (tar, files) = archive(rig)?;
    quiet(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&origin))?;
    git(&origin, &["init", "-q"])?;
    git(&origin, &["add", "-A", "-f"])?;
    git(&origin, &["commit", "-q", "-m", "all"])?;
    let mounted = rig.mounted("git", 1024, false)?;
    let from = origin.display().to_string();
    git(&mounted.dir, &["clone", "-q", "--no-hardlinks", &from, "clone"])?;
    let clone = mounted.dir.join("clone");
    git(&clone, &["fsck", "--full", "--strict"])?;
    let status = git(&clone, &["status", "--porcelain"])?;
    fs::remove_dir_all(&origin).map_err(failed(&origin))?;
    if !status.trim().is_empty() {
        return Ok(Shown::new(format!("git status after the clone: {status}"), BOUND, false));
    }
    close(mounted, format!("a clone of {files} files, fsck clean"))
}

/// `cargo build` of this workspace, sources and target folder on the mount.
pub(crate) fn cargo_build(rig: &Rig) -> Result<Shown, String> {
    let mounted = rig.mounted("cargo", 4096, false)?;
    let list = proc::output(Command::new("git").args(["ls-files"]))?;
    let wanted = rig.dir.join("files");
    fs::write(&wanted, list).map_err(failed(&wanted))?;
    let tar = rig.dir.join("workspace.tar");
    quiet(Command::new("tar").arg("-cf").arg(&tar).arg("-T").arg(&wanted))?;
    quiet(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&mounted.dir))?;
    let mut cargo = proc::cargo();
    cargo.args(["build", "--offline", "--locked", "-q", "-p", "extant-cli"]).current_dir(&mounted.dir);
    quiet(cargo.env_remove("CARGO_TARGET_DIR"))?;
    quiet(Command::new(mounted.dir.join("target/debug/extant")).arg("--version"))?;
    close(mounted, "built, and the program runs from there".into())
}

/// `tar -x` of 12,000 files, then each compared with the archive.
pub(crate) fn untar(rig: &Rig) -> Result<Shown, String> {
    let (tar, files) = archive(rig)?;
    let mounted = rig.mounted("untar", 1024, false)?;
    quiet(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&mounted.dir))?;
    quiet(Command::new("tar").arg("--compare").arg("-f").arg(&tar).arg("-C").arg(&mounted.dir))?;
    close(mounted, format!("{files} files unpacked and compared"))
}

/// SQLite in WAL mode.
pub(crate) fn sqlite(rig: &Rig) -> Result<Shown, String> {
    const SCRIPT: &str = "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000)
        INSERT INTO t SELECT i, randomblob(200) FROM n;
        DELETE FROM t WHERE id % 7 = 0; UPDATE t SET body = randomblob(300) WHERE id % 5 = 0;
        PRAGMA wal_checkpoint(TRUNCATE); VACUUM; PRAGMA integrity_check; SELECT count(*) FROM t;";
    let mounted = rig.mounted("sqlite", 256, false)?;
    let database = mounted.dir.join("t.db");
    let said = quiet(Command::new(tool("sqlite3")?).arg(&database).arg(SCRIPT))?;
    if !said.contains("ok") || !said.contains("17143") {
        return Ok(Shown::new(format!("sqlite says: {said}"), BOUND, false));
    }
    close(mounted, "20,000 inserts, integrity ok".into())
}

/// PostgreSQL: initdb, pgbench.
pub(crate) fn postgres(rig: &Rig) -> Result<Shown, String> {
    let versions = fs::read_dir("/usr/lib/postgresql").map_err(|err| format!("no PostgreSQL: {err}"))?;
    let bin = versions.flatten().map(|e| e.path().join("bin")).find(|p| p.join("initdb").is_file());
    let bin = bin.ok_or("no PostgreSQL: initdb is missing")?;
    let mounted = rig.mounted("postgres", 1024, false)?;
    // The server does not run as root.
    quiet(Command::new("chmod").arg("755").arg(&rig.dir))?;
    let data = mounted.dir.join("data");
    fs::create_dir(&data).map_err(failed(&data))?;
    quiet(Command::new("chown").arg("postgres").arg(&data))?;
    let sockets = rig.dir.join("sockets");
    fs::create_dir_all(&sockets).map_err(failed(&sockets))?;
    quiet(Command::new("chown").arg("postgres").arg(&sockets))?;
    let run = |program: &str, args: &[&str]| {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(bin.join(program)).args(args).current_dir("/");
        quiet(&mut command)
    };
    let (data_arg, socket_arg) = (data.display().to_string(), sockets.display().to_string());
    run("initdb", &["-D", &data_arg, "--no-instructions"])?;
    let options = format!("-k {socket_arg} -c listen_addresses=''");
    let log = format!("{socket_arg}/log");
    run("pg_ctl", &["-D", &data_arg, "-w", "-l", &log, "-o", &options, "start"])?;
    let work = run("pgbench", &["-h", &socket_arg, "-i", "-q", "-s", "3", "postgres"])
        .and_then(|_| run("pgbench", &["-h", &socket_arg, "-c", "4", "-t", "500", "postgres"]));
    let stopped = run("pg_ctl", &["-D", &data_arg, "-w", "-m", "fast", "stop"]);
    let said = work?;
    stopped?;
    let line = said.lines().find(|l| l.contains("tps")).unwrap_or("no rate").trim().to_owned();
    close(mounted, line)
}

/// `rsync -aAXH` there and back.
pub(crate) fn rsync(rig: &Rig) -> Result<Shown, String> {
    let from = rig.dir.join("rsync-from");
    let back = rig.dir.join("rsync-back");
    fs::create_dir_all(&from).map_err(failed(&from))?;
    let (tar, files) = archive(rig)?;
    quiet(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&from))?;
    decorate(&from)?;
    let mounted = rig.mounted("rsync", 1024, false)?;
    let slash = |path: &Path| format!("{}/", path.display());
    let rsync = |args: &[&str], a: &Path, b: &Path| {
        quiet(Command::new(tool("rsync")?).args(args).arg(slash(a)).arg(slash(b)))
    };
    let there = mounted.dir.join("tree");
    rsync(&["-aAXH"], &from, &there)?;
    rsync(&["-aAXH"], &there, &back)?;
    let left = rsync(&["-aAXHnci", "--delete"], &from, &back)?;
    fs::remove_dir_all(&from).map_err(failed(&from))?;
    fs::remove_dir_all(&back).map_err(failed(&back))?;
    if !left.trim().is_empty() {
        return Ok(Shown::new(format!("differences after the round trip: {left}"), BOUND, false));
    }
    close(mounted, format!("{files} files there and back, nothing differs"))
}

/// Links, attributes, lists and owners, so that rsync has something to keep.
fn decorate(dir: &Path) -> Result<(), String> {
    let list = proc::output(Command::new("find").arg(dir).args(["-type", "f"]))?;
    for (i, path) in list.lines().step_by(50).enumerate().take(200) {
        let link = dir.join(format!("link-{i}"));
        fs::hard_link(path, &link).map_err(failed(&link))?;
        quiet(Command::new(tool("setfattr")?).args(["-n", "user.number", "-v", &i.to_string(), path]))?;
        quiet(Command::new(tool("setfacl")?).args(["-m", &format!("u:{}:r", 2000 + i), path]))?;
        quiet(Command::new("chown").args([&format!("{}:{}", i, 100 + i), path]))?;
    }
    Ok(())
}
