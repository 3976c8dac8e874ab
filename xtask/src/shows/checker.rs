//! Whether our checker and e2fsck agree on what is clean.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Shown, damage};
use crate::rig::{Rig, tool};

/// Said of a checker that a signal ended.
const CRASHED: &str = "it crashed";

/// Whether a checker calls the image clean (0), damaged (4) or unusable (8 and more).
fn verdict(command: &mut Command) -> Result<&'static str, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|err| format!("{command:?}: {err}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    // e2fsck catches the signal, prints the stack and ends with the status of an image that cannot be checked.
    let caught = output.status.code() == Some(8) && text.lines().any(|line| line.starts_with("Signal ("));
    match output.status.code() {
        // What it had found before is its verdict all the same.
        _ if caught && String::from_utf8_lossy(&output.stdout).contains("? no") => {
            println!("  {CRASHED} after it had found damage: {command:?}");
            Ok("not clean")
        }
        _ if caught => Err(format!("{command:?}: {CRASHED}: {text}")),
        None => Err(format!("{command:?}: {CRASHED}: {text}")),
        Some(0) => Ok("clean"),
        // An image that cannot be checked at all is not clean either.
        Some(4 | 8 | 12) => Ok("not clean"),
        Some(other) => Err(format!("{command:?}: exit status {other}: {text}")),
    }
}

/// What e2fsck says of one image, and what differs.
struct Judged {
    theirs: &'static str,
    differs: Option<String>,
}

/// What both say of one image. `damaged` images may make e2fsck itself crash: no verdict, no difference.
fn judged(rig: &Rig, image: &Path, damaged: bool) -> Result<Judged, String> {
    let theirs = match verdict(Command::new(tool("e2fsck")?).arg("-fn").arg(image)) {
        Err(err) if damaged && err.contains(CRASHED) => {
            println!("  e2fsck crashed, no verdict: {}", err.lines().next().unwrap_or_default());
            return Ok(Judged { theirs: CRASHED, differs: None });
        }
        other => other?,
    };
    let ours = match verdict(Command::new(&rig.extant).args(["fsck", "-n", "-f"]).arg(image)) {
        Ok(verdict) => verdict,
        Err(err) => return Ok(Judged { theirs, differs: Some(err) }),
    };
    let differs = (ours != theirs).then(|| format!("e2fsck says {theirs}, we say {ours}"));
    Ok(Judged { theirs, differs })
}

/// All images of the folder `EXTANT_IMAGES`, packed or not.
pub(crate) fn images(rig: &Rig) -> Result<Shown, String> {
    let top = std::env::var_os("EXTANT_IMAGES").ok_or("EXTANT_IMAGES is not set: the folder of images")?;
    let mut todo = vec![PathBuf::from(top)];
    let (mut checked, mut wrong) = (0, Vec::new());
    while let Some(dir) = todo.pop() {
        let mut entries: Vec<PathBuf> = fs::read_dir(&dir)
            .map_err(|err| format!("{}: {err}", dir.display()))?
            .flatten()
            .map(|e| e.path())
            .collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let Some(image) = unpack(rig, &path)? else { continue };
            checked += 1;
            if let Some(what) = judged(rig, &image, false)?.differs {
                println!("  {}: {what}", path.display());
                wrong.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
            }
            fs::remove_file(&image).map_err(|err| err.to_string())?;
        }
    }
    let figure = format!("{} of {checked} verdicts differ {}", wrong.len(), wrong.join(" "));
    Ok(Shown::new(figure.trim(), "0 differ", wrong.is_empty() && checked > 0))
}

/// A copy of an image in the scratch folder; none of what is no image.
fn unpack(rig: &Rig, path: &Path) -> Result<Option<PathBuf>, String> {
    let image = rig.dir.join("image");
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let reader: &[&str] = match name.rsplit('.').next() {
        Some("xz") => &["xz", "-dc"],
        Some("gz") => &["gzip", "-dc"],
        Some("img") => &["cat"],
        _ => return Ok(None),
    };
    let out = fs::File::create(&image).map_err(|err| err.to_string())?;
    let status = Command::new(reader[0]).args(&reader[1..]).arg(path).stdout(out).status();
    match status {
        Ok(status) if status.success() => Ok(Some(image)),
        other => Err(format!("{}: {other:?}", path.display())),
    }
}

/// Images with one field changed through debugfs, which makes the checksums right again, or with one byte changed where
/// there are none. Without `SEED` a fixed table on one image; with it 200 drawn ones on the image that the seed chooses.
/// `SEED=a..b` runs many.
pub(crate) fn fields(rig: &Rig) -> Result<Shown, String> {
    let seeds = match std::env::var("SEED") {
        Err(_) => None,
        Ok(text) => Some(range(&text).ok_or_else(|| format!("SEED={text}: a number or a..b"))?),
    };
    let mut tally = Tally::default();
    let Some(seeds) = seeds else {
        judge(rig, damage::FIXED, &damage::table(), &mut tally)?;
        return Ok(tally.shown());
    };
    for seed in seeds {
        let options = damage::options(seed);
        println!("  seed={seed}: mke2fs {options}");
        let base = damage::base_image(rig, options)?;
        let requests = damage::drawn(&base, seed, 200)?;
        judge(rig, options, &requests, &mut tally)?;
    }
    Ok(tally.shown())
}

fn range(text: &str) -> Option<std::ops::Range<u64>> {
    match text.split_once("..") {
        Some((a, b)) => Some(a.parse().ok()?..b.parse().ok()?),
        None => text.parse().ok().map(|n| n..n + 1),
    }
}

/// Images with a damage, counted.
#[derive(Default)]
struct Tally {
    /// Those that a damage has changed.
    changed: usize,
    /// Those of them that e2fsck calls not clean.
    damaged: usize,
    /// Damages that debugfs refused, or that were there before.
    nothing: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn shown(&self) -> Shown {
        let figure = format!(
            "{} of {} verdicts differ, {} of the images are not clean for e2fsck; {} damages changed nothing {}",
            self.wrong.len(),
            self.changed,
            self.damaged,
            self.nothing,
            self.wrong.join(", ")
        );
        let held = self.wrong.is_empty() && self.changed >= 200;
        // Drawn damages often hit what no checker looks at; the fixed table must be damage.
        let fixed = std::env::var_os("SEED").is_none();
        let bound = if fixed { "0 differ, of at least 200 that are not clean" } else { "0 differ" };
        Shown::new(
            figure.trim(),
            bound,
            if fixed { held && self.damaged >= 200 } else { self.wrong.is_empty() },
        )
    }
}

/// How many images are damaged at a time: more where debugfs sits out the interval of multiple-mount protection each time.
fn together(options: &str) -> usize {
    if options.contains("mmp") { 24 } else { 1 }
}

fn judge(rig: &Rig, options: &str, damages: &[damage::Damage], tally: &mut Tally) -> Result<(), String> {
    let base = damage::base_image(rig, options)?;
    let before = fs::read(&base).map_err(|err| err.to_string())?;
    for some in damages.chunks(together(options)) {
        let images: Vec<PathBuf> =
            (0..some.len()).map(|n| rig.dir.join(format!("damaged-{n}.img"))).collect();
        std::thread::scope(|scope| {
            let make = |damage: &damage::Damage, image: &Path| {
                fs::copy(&base, image).map_err(|err| err.to_string())?;
                damage.apply(image)
            };
            let made: Vec<_> = some
                .iter()
                .zip(&images)
                .map(|(damage, image)| scope.spawn(move || make(damage, image)))
                .collect();
            made.into_iter().try_for_each(|made| made.join().map_err(|_| "a thread panicked".to_owned())?)
        })?;
        for (damage, image) in some.iter().zip(&images) {
            if fs::read(image).map_err(|err| err.to_string())? == before {
                tally.nothing += 1;
            } else {
                tally.changed += 1;
                let judged = judged(rig, image, true)?;
                tally.damaged += usize::from(judged.theirs != "clean");
                if let Some(what) = judged.differs {
                    println!("  {options}: {damage}: {what}");
                    tally.wrong.push(damage.to_string());
                }
            }
            fs::remove_file(image).map_err(|err| err.to_string())?;
        }
    }
    Ok(())
}
