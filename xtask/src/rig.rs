//! What the suites and the shows work on: the program in a release build, images in memory, mounts that go away.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::proc;

/// The program (release build) and a scratch folder in memory.
pub(crate) struct Rig {
    pub(crate) extant: PathBuf,
    pub(crate) dir: PathBuf,
}

/// A mount that goes away with the value, ours or the kernel's.
pub(crate) struct Mounted<'a> {
    rig: &'a Rig,
    pub(crate) image: PathBuf,
    pub(crate) dir: PathBuf,
    kernel: bool,
    up: bool,
}

impl Rig {
    pub(crate) fn build() -> Result<Self, String> {
        let extant = match std::env::var_os("EXTANT") {
            Some(path) => PathBuf::from(path),
            None => built()?,
        };
        let base =
            if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let dir = base.join(format!("extant-rig-{}", std::process::id()));
        fs::create_dir_all(&dir).map_err(|err| format!("{}: {err}", dir.display()))?;
        Ok(Self { extant, dir })
    }

    /// A fresh filesystem of so many MiB, mounted.
    pub(crate) fn mounted(&self, name: &str, mib: u64, kernel: bool) -> Result<Mounted<'_>, String> {
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

/// The release build of the program; `EXTANT=` names another one.
fn built() -> Result<PathBuf, String> {
    if !proc::succeeds(proc::cargo().args(["build", "--release", "--locked", "-q", "-p", "extant-cli"]))? {
        return Err("the program does not build".into());
    }
    proc::release("extant")
}

/// A library of the workspace that programs load, built now unless `EXTANT_PRELOAD` names one.
pub(crate) fn built_library(package: &str, file: &str) -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("EXTANT_PRELOAD") {
        return Ok(PathBuf::from(path));
    }
    if !proc::succeeds(proc::cargo().args(["build", "--release", "--locked", "-q", "-p", package]))? {
        return Err(format!("{package} does not build"));
    }
    proc::release(file)
}

/// The same with a feature that is for tests, in a folder of its own (`EXTANT_PRELOAD_TEST`: one that is there).
pub(crate) fn built_library_with(package: &str, file: &str, feature: &str) -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("EXTANT_PRELOAD_TEST") {
        return Ok(PathBuf::from(path));
    }
    let target = format!("target/{feature}");
    let mut build = proc::cargo();
    build.args(["build", "--release", "--locked", "-q", "-p", package, "--features", feature]);
    if !proc::succeeds(build.args(["--target-dir", &target]))? {
        return Err(format!("{package} with {feature} does not build"));
    }
    fs::canonicalize(format!("{target}/release/{file}")).map_err(|err| format!("{target}: {err}"))
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Mounted<'_> {
    /// Unmounts, and asks e2fsck.
    pub(crate) fn finish(mut self) -> Result<(), String> {
        self.unmount()?;
        quiet(Command::new(tool("e2fsck")?).arg("-fn").arg(&self.image))?;
        fs::remove_file(&self.image).map_err(|err| err.to_string())
    }

    pub(crate) fn unmount(&mut self) -> Result<(), String> {
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

pub(crate) fn tool(name: &str) -> Result<PathBuf, String> {
    proc::find(name).ok_or_else(|| format!("no {name}"))
}

/// Runs a command that must succeed; its output, or all that it said.
pub(crate) fn quiet(command: &mut Command) -> Result<String, String> {
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
