//! Claims about making images.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::Shown;
use crate::rig::{Rig, quiet, tool};

/// Two runs of `mkfs -d` give the same bytes.
pub(crate) fn reproducible(rig: &Rig) -> Result<Shown, String> {
    let make = |name: &str| {
        let image = rig.dir.join(name);
        let mut mkfs = Command::new(&rig.extant);
        mkfs.args(["mkfs", "-q", "-U", "8b0b7d1e-6a0b-4f6c-9a53-0d2f3c1f4e11", "-d", "crates"]).arg(&image);
        quiet(mkfs.env("SOURCE_DATE_EPOCH", "1700000000"))?;
        Ok::<_, String>(image)
    };
    let (first, second) = (make("first.img")?, make("second.img")?);
    let same =
        Command::new("cmp").arg(&first).arg(&second).status().map_err(|err| err.to_string())?.success();
    quiet(Command::new(tool("e2fsck")?).arg("-fn").arg(&first))?;
    let size = fs::metadata(&first).map_err(|err| err.to_string())?.len();
    fs::remove_file(&first).and_then(|()| fs::remove_file(&second)).map_err(|err| err.to_string())?;
    let word = if same { "equal" } else { "different" };
    Ok(Shown::new(format!("two images of {size} bytes: {word}"), "equal", same))
}

/// 20 TiB, sparse: made, mounted within a second and 128 MiB, written above 16 TiB, clean; with a user's defaults, and with a
/// small cache.
pub(crate) fn sparse(rig: &Rig) -> Result<Shown, String> {
    let given = sparse_with(rig, "")?;
    let small = sparse_with(rig, "cache_size=32m")?;
    let figure = format!("defaults: {}; cache_size=32m: {}", given.figure, small.figure);
    Ok(Shown::new(figure, given.bound, given.held && small.held))
}

fn sparse_with(rig: &Rig, words: &str) -> Result<Shown, String> {
    let image = rig.dir.join("large.img");
    let mount = rig.dir.join("large");
    fs::create_dir_all(&mount).map_err(|err| err.to_string())?;
    let start = Instant::now();
    let options = ["mkfs", "-q", "-T", "largefile4", "-E", "lazy_itable_init=1"];
    quiet(Command::new(&rig.extant).args(options).arg(&image).arg("20t"))?;
    let made = start.elapsed();
    let start = Instant::now();
    quiet(
        Command::new(&rig.extant).args(["mount", "-o", &format!("defaults,{words}")]).arg(&image).arg(&mount),
    )?;
    let mounted = start.elapsed();
    let before = server_memory(&image);
    let work = above_16_tib(&mount);
    let after = server_memory(&image);
    quiet(Command::new(&rig.extant).arg("umount").arg(&mount))?;
    work?;
    let start = Instant::now();
    quiet(Command::new(tool("e2fsck")?).arg("-fn").arg(&image))?;
    let checked = start.elapsed();
    let highest = highest_block(&image, "/more")?;
    fs::remove_file(&image).map_err(|err| err.to_string())?;
    let (before, after) = (before? >> 10, after? >> 10);
    let figure = format!(
        "made in {:.2} s, mounted in {:.2} s and {before} MiB, at most {after} MiB while 18 TiB were allocated and block \
         {highest} was written, e2fsck clean in {:.0} s",
        made.as_secs_f64(),
        mounted.as_secs_f64(),
        checked.as_secs_f64()
    );
    // What the caches may hold comes on top of what the mount itself takes.
    let memory = if words.is_empty() { before } else { after };
    let held = mounted.as_secs_f64() < 1.0 && memory <= 128 && highest >= 1 << 32;
    Ok(Shown::new(
        figure,
        "mounted in under 1 s and 128 MiB (with the small cache over all of it), a block above 2^32, e2fsck clean",
        held,
    ))
}

/// The last block of a file, from debugfs.
fn highest_block(image: &Path, path: &str) -> Result<u64, String> {
    let text = quiet(
        Command::new(tool("debugfs")?).args(["-R", &format!("bmap {path} {}", (3u64 << 28) - 1)]).arg(image),
    )?;
    let number = text.split_whitespace().find_map(|word| word.parse().ok());
    number.ok_or_else(|| format!("debugfs bmap {path}: {text}"))
}

/// Directories spread over the groups; some file's blocks lie above 16 TiB.
fn above_16_tib(mount: &Path) -> Result<(), String> {
    // Taking most of the space with preallocation pushes what follows to the end.
    let filler = mount.join("filler");
    quiet(Command::new("fallocate").args(["-l", "15T"]).arg(&filler))?;
    let more = mount.join("more");
    quiet(Command::new("fallocate").args(["-l", "3T"]).arg(&more))?;
    let file = fs::File::options().write(true).open(&more).map_err(|err| err.to_string())?;
    for offset in [0, 1 << 40, (3 << 40) - 4096] {
        file.write_all_at(&[0x5a; 4096], offset).map_err(|err| err.to_string())?;
    }
    file.sync_all().map_err(|err| err.to_string())?;
    Ok(())
}

/// Peak memory of the process that serves an image, in KiB.
pub(super) fn server_memory(image: &Path) -> Result<u64, String> {
    let name = image.display().to_string();
    for entry in fs::read_dir("/proc").map_err(|err| err.to_string())?.flatten() {
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        if !String::from_utf8_lossy(&line).contains(&name) {
            continue;
        }
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let peak =
            status.lines().find_map(|l| l.strip_prefix("VmHWM:")).and_then(|l| l.split_whitespace().next());
        if let Some(kib) = peak.and_then(|text| text.parse().ok()) {
            return Ok(kib);
        }
    }
    Err("the server's process was not found".into())
}
