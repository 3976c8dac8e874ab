//! What this machine has, scratch folders, seeds. A test that lacks something says so and returns:
//!
//! ```no_run
//! # use extant_testkit::{env, need};
//! need!(env::tools(&["mke2fs", "e2fsck"]), env::root());
//! ```

use std::path::{Path, PathBuf};

/// A scratch folder that goes away with the value.
#[derive(Debug)]
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path in the folder.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Creates a sparse file of `size` bytes in the folder.
    #[must_use]
    pub fn sparse(&self, name: &str, size: u64) -> PathBuf {
        let path = self.join(name);
        let file = std::fs::File::create(&path).expect("scratch file");
        file.set_len(size).expect("size of a scratch file");
        path
    }
}

/// A scratch folder in memory (`/dev/shm` where there is one).
///
/// # Panics
/// If no folder can be made.
#[must_use]
pub fn scratch() -> Scratch {
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
    Scratch(tempfile::Builder::new().prefix("extant-test-").tempdir_in(base).expect("scratch folder"))
}

/// A random test's seed: `SEED=` from the environment, else from the clock. It is printed, so that a failure can be
/// run again.
#[must_use]
pub fn seed() -> u64 {
    let seed = match std::env::var("SEED") {
        Ok(text) => text.trim().parse().unwrap_or_else(|_| panic!("SEED={text}: not a number")),
        Err(_) => fresh_seed(),
    };
    println!("seed={seed}");
    seed
}

/// `SEED=` if it is given, else `default`: for tests that are the same in every run unless asked otherwise.
#[must_use]
pub fn seed_or(default: u64) -> u64 {
    if std::env::var_os("SEED").is_some() {
        return seed();
    }
    println!("seed={default}");
    default
}

fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64 % 1_000_000_007
}

/// The full path of a program, looked for in `PATH` and in the system folders that a user's `PATH` often lacks.
#[must_use]
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
}

/// `Err` with a reason if one of the programs is missing.
pub fn tools(names: &[&str]) -> Result<(), String> {
    match names.iter().find(|name| tool(name).is_none()) {
        Some(name) => Err(format!("no {name} on this machine")),
        None => Ok(()),
    }
}

/// `Err` with a reason if this is not root.
pub fn root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err("not root".into()) }
}

/// `Err` with a reason if images cannot be mounted by the kernel here (root, loop devices, ext4).
pub fn kernel_mounts() -> Result<(), String> {
    root()?;
    tools(&["losetup", "mke2fs"])?;
    if !Path::new("/dev/loop-control").exists() {
        return Err("no loop devices".into());
    }
    match std::fs::read_to_string("/proc/filesystems") {
        Ok(list) if list.split_whitespace().any(|word| word == "ext4") => Ok(()),
        _ => Err("the kernel has no ext4".into()),
    }
}

/// `Err` with a reason if nothing can be mounted through FUSE here.
pub fn fuse() -> Result<(), String> {
    match rustix::fs::access("/dev/fuse", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK) {
        Ok(()) => Ok(()),
        Err(err) => Err(format!("/dev/fuse: {err}")),
    }
}

/// The folder of hostile and reference images: `EXTANT_IMAGES`.
pub fn images() -> Result<PathBuf, String> {
    match std::env::var_os("EXTANT_IMAGES") {
        Some(dir) if Path::new(&dir).is_dir() => Ok(dir.into()),
        Some(dir) => Err(format!("EXTANT_IMAGES={}: no such folder", Path::new(&dir).display())),
        None => Err("EXTANT_IMAGES is not set".into()),
    }
}

/// Returns from the test, saying what is missing, unless every requirement (a `Result<_, String>`) is `Ok`.
#[macro_export]
macro_rules! need {
    ($($what:expr),+ $(,)?) => {
        $(if let Err(reason) = $what {
            println!("skipped: {reason}");
            return;
        })+
    };
}
