//! A claim about memory: walking a million files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Shown;
use super::images::server_memory;
use crate::proc;
use crate::rig::{Rig, quiet, tool};

/// What the caches may take, and what everything else may, in MiB.
const CACHE: u64 = 64;
const BESIDE: u64 = 64;

const FILES: u64 = 1_000_000;

/// Lists, stats, opens and reads 1,000,000 files, in process and through a mount: peak memory of the process that does the
/// filesystem's work. Each file has a page of its own, so their pages would be 4 GiB.
pub(crate) fn walk(rig: &Rig) -> Result<Shown, String> {
    let bench = bench()?;
    let image = rig.dir.join("million.img");
    make(&bench, &image)?;
    let options = format!("cache_size={CACHE}m");
    let target = format!("image:{}", image.display());
    let line = quiet(Command::new(&bench).args(["visit", &target]).arg(format!("o={options}")))?;
    let inside = number(&line, "peak_rss_kib")? >> 10;

    let dir = rig.dir.join("million");
    fs::create_dir_all(&dir).map_err(|err| err.to_string())?;
    quiet(Command::new(&rig.extant).args(["mount", "-o", &options]).arg(&image).arg(&dir))?;
    let visited = quiet(Command::new(&bench).arg("visit").arg(format!("dir:{}", dir.display())));
    let mounted = server_memory(&image);
    quiet(Command::new(&rig.extant).arg("umount").arg(&dir))?;
    let (seen, seen_mounted) = (number(&line, "entries")?, number(&visited?, "entries")?);
    let same = seen == seen_mounted && seen >= FILES;
    let mounted = mounted? >> 10;
    quiet(Command::new(tool("e2fsck")?).arg("-fn").arg(&image))?;
    fs::remove_file(&image).map_err(|err| err.to_string())?;
    let figure = format!("{seen} entries: {inside} MiB in process, {mounted} MiB in the server of a mount");
    let bound = format!("{} MiB with cache_size={CACHE}m, all entries both times", CACHE + BESIDE);
    Ok(Shown::new(figure, bound, same && inside.max(mounted) <= CACHE + BESIDE))
}

/// The workloads' program; `EXTANT_BENCH=` names a build of it.
fn bench() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("EXTANT_BENCH") {
        return Ok(path.into());
    }
    if !proc::succeeds(proc::cargo().args(["build", "--release", "--locked", "-q", "-p", "extant-bench"]))? {
        return Err("the workloads do not build".into());
    }
    proc::release("extant-bench")
}

/// 1,000,000 files of 600 bytes in 1,000 directories.
fn make(bench: &Path, image: &Path) -> Result<(), String> {
    quiet(
        Command::new(tool("mke2fs")?)
            .args(["-q", "-F", "-t", "ext4", "-b", "1024", "-N", "1100000"])
            .arg(image)
            .arg("3g"),
    )?;
    let files = format!("files={FILES}");
    let target = format!("image:{}", image.display());
    quiet(Command::new(bench).args(["create", &target, "dirs=1000", &files, "size=600"])).map(drop)
}

fn number(line: &str, key: &str) -> Result<u64, String> {
    let line = line.lines().last().unwrap_or_default();
    let value: serde_json::Value = serde_json::from_str(line).map_err(|err| format!("{line}: {err}"))?;
    value[key].as_u64().ok_or_else(|| format!("{line}: no {key}"))
}
