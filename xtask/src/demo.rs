//! `cargo xtask demo`: makes an image, mounts it, works on it, unmounts it, checks it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::packages;
use crate::proc::{self, Verdict};

/// Size of the demo's image.
const IMAGE_SIZE: &str = "512M";
/// Bytes of the large file that is written and read back.
const LARGE: usize = 64 << 20;

/// `cargo xtask demo`.
pub(crate) fn command() -> Verdict {
    packages::ensure(packages::FOR_TESTS)?;
    println!("building the program (release)");
    if !proc::succeeds(proc::cargo().args(["build", "--release", "--locked", "--quiet", "-p", "extant-cli"]))?
    {
        return Err("the program does not build".into());
    }
    let mut demo = Demo::new()?;
    let done = demo.run();
    demo.clean_up();
    match &done {
        Ok(()) => println!("demo: everything held"),
        Err(err) => println!("demo: FAILED: {err}"),
    }
    Ok(done.is_ok())
}

struct Demo {
    extant: PathBuf,
    dir: PathBuf,
    image: PathBuf,
    mount: PathBuf,
    mounted: bool,
    step: u32,
}

type Step = Result<(), String>;

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> String + '_ {
    move |err| format!("{}: {err}", path.display())
}

impl Demo {
    fn new() -> Result<Self, String> {
        let base =
            if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let dir = base.join(format!("extant-demo-{}", std::process::id()));
        let mount = dir.join("mount");
        fs::create_dir_all(&mount).map_err(failed(&mount))?;
        Ok(Self {
            extant: proc::release("extant")?,
            image: dir.join("demo.img"),
            mount,
            dir,
            mounted: false,
            step: 0,
        })
    }

    fn run(&mut self) -> Step {
        self.make()?;
        if may_mount() {
            self.mount()?;
            self.work()?;
            self.unmount()?;
        } else {
            println!("   (no FUSE for this user here: working on the image without a mount)");
            self.work_without_mount()?;
        }
        self.look()?;
        self.check()
    }

    fn clean_up(&mut self) {
        if self.mounted {
            let _ = self.extant(&["umount".as_ref(), self.mount.as_os_str()]);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// Says what comes; gives the time of its beginning.
    fn say(&mut self, what: &str) -> Instant {
        self.step += 1;
        print!("{}. {what} ... ", self.step);
        let _ = std::io::stdout().flush();
        Instant::now()
    }

    fn extant(&self, args: &[&std::ffi::OsStr]) -> Result<String, String> {
        run(Command::new(&self.extant).args(args))
    }

    fn make(&mut self) -> Step {
        let start = self.say("making an ext4 image of 512 MiB");
        let size = std::ffi::OsStr::new(IMAGE_SIZE);
        self.extant(&["mkfs".as_ref(), "-q".as_ref(), self.image.as_os_str(), size])?;
        done(start, &self.image.display().to_string());
        Ok(())
    }

    fn mount(&mut self) -> Step {
        let start = self.say("mounting it, without the kernel's ext4");
        self.extant(&["mount".as_ref(), self.image.as_os_str(), self.mount.as_os_str()])?;
        self.mounted = true;
        done(start, &self.mount.display().to_string());
        Ok(())
    }

    fn unmount(&mut self) -> Step {
        let start = self.say("unmounting");
        self.extant(&["umount".as_ref(), self.mount.as_os_str()])?;
        self.mounted = false;
        done(start, "clean");
        Ok(())
    }

    fn work(&mut self) -> Step {
        let start = self.say("copying this project's sources into it with cp -a");
        run(Command::new("cp").args(["-a", "crates", "xtask", "docs", "README.md"]).arg(&self.mount))?;
        let copied = count(&self.mount)?;
        done(start, &format!("{copied} files and directories"));

        let start = self.say("comparing them with the originals");
        for name in ["crates", "xtask", "docs", "README.md"] {
            run(Command::new("diff").args(["-r", "--no-dereference", name]).arg(self.mount.join(name)))?;
        }
        done(start, "equal");

        let start = self.say("writing 64 MiB, fsync, reading them back");
        let path = self.mount.join("large");
        let written = pattern(LARGE);
        let file = fs::File::create(&path).map_err(failed(&path))?;
        file.write_all_at(&written, 0).map_err(failed(&path))?;
        file.sync_all().map_err(failed(&path))?;
        let mut read = Vec::with_capacity(LARGE);
        fs::File::open(&path).and_then(|mut f| f.read_to_end(&mut read)).map_err(failed(&path))?;
        if read != written {
            return Err("the bytes that came back are not those written".into());
        }
        done(start, "equal");

        let start = self.say("1,000 small files, renames, links, a sparse file, removal");
        self.small_files()?;
        done(start, "as it should be");
        Ok(())
    }

    fn small_files(&self) -> Step {
        let dir = self.mount.join("small");
        fs::create_dir(&dir).map_err(failed(&dir))?;
        for i in 0..1000 {
            let path = dir.join(format!("file-{i:04}"));
            fs::write(&path, format!("content {i}\n").repeat(20)).map_err(failed(&path))?;
        }
        for i in (0..1000).step_by(3) {
            let (from, to) = (dir.join(format!("file-{i:04}")), dir.join(format!("renamed-{i:04}")));
            fs::rename(&from, &to).map_err(failed(&from))?;
        }
        for i in (1..1000).step_by(3) {
            let path = dir.join(format!("file-{i:04}"));
            fs::remove_file(&path).map_err(failed(&path))?;
        }
        let (first, link, sym) = (dir.join("renamed-0000"), dir.join("hard"), dir.join("soft"));
        fs::hard_link(&first, &link).map_err(failed(&link))?;
        symlink("renamed-0000", &sym).map_err(failed(&sym))?;
        let sparse = dir.join("sparse");
        let file = fs::File::create(&sparse).map_err(failed(&sparse))?;
        file.set_len(1 << 40)
            .and_then(|()| file.write_all_at(b"end", (1 << 40) - 3))
            .map_err(failed(&sparse))?;
        file.sync_all().map_err(failed(&sparse))?;
        let meta = fs::metadata(&sparse).map_err(failed(&sparse))?;
        let links = fs::metadata(&link).map_err(failed(&link))?.nlink();
        let names = fs::read_dir(&dir).map_err(failed(&dir))?.count();
        let content = fs::read_to_string(&sym).map_err(failed(&sym))?;
        if meta.len() != 1 << 40 || meta.blocks() > 1024 || links != 2 || names != 670 {
            let blocks = meta.blocks();
            return Err(format!("a terabyte in {blocks} sectors, {links} links, {names} names"));
        }
        if content != "content 0\n".repeat(20) {
            return Err("a symbolic link leads to the wrong content".into());
        }
        Ok(())
    }

    fn work_without_mount(&mut self) -> Step {
        let start = self.say("putting this project's sources into the image");
        let args = ["put", "--owner", "0:0"].map(std::ffi::OsStr::new);
        let sources = ["crates", "xtask", "docs", "README.md", "/"].map(std::ffi::OsStr::new);
        self.extant(&[&args[..1], &[self.image.as_os_str()], &args[1..], &sources].concat())?;
        done(start, "done");

        let start = self.say("getting them back and comparing");
        let back = self.dir.join("back");
        fs::create_dir(&back).map_err(failed(&back))?;
        let names = ["crates", "xtask", "docs", "README.md"].map(std::ffi::OsStr::new);
        self.extant(&[&["get".as_ref(), self.image.as_os_str()], &names[..], &[back.as_os_str()]].concat())?;
        for name in names {
            run(Command::new("diff").args(["-r", "--no-dereference"]).arg(name).arg(back.join(name)))?;
        }
        done(start, "equal");
        Ok(())
    }

    fn look(&mut self) -> Step {
        let start = self.say("reading a file from the image, without a mount");
        let text = self.extant(&["cat".as_ref(), self.image.as_os_str(), "/README.md".as_ref()])?;
        let expected = fs::read_to_string("README.md").map_err(failed(Path::new("README.md")))?;
        if text != expected {
            return Err("README.md in the image differs".into());
        }
        done(start, "equal");
        Ok(())
    }

    fn check(&mut self) -> Step {
        let start = self.say("checking the image with our checker");
        self.extant(&["fsck".as_ref(), "-n".as_ref(), "-f".as_ref(), self.image.as_os_str()])?;
        done(start, "clean");
        let start = self.say("checking the image with e2fsck");
        let e2fsck = proc::find("e2fsck").ok_or("no e2fsck")?;
        run(Command::new(e2fsck).arg("-fn").arg(&self.image))?;
        done(start, "clean");
        Ok(())
    }
}

fn done(start: Instant, what: &str) {
    println!("{what} ({:.1} s)", start.elapsed().as_secs_f64());
}

/// Whether this user can mount through FUSE.
fn may_mount() -> bool {
    let opens = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    let root = fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
    opens && (root || proc::find("fusermount3").is_some())
}

/// Runs a program that must succeed; its output, or what it said.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|err| format!("{command:?}: {err}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(format!("{command:?}: {}\n{out}{err}", output.status))
}

fn count(dir: &Path) -> Result<u64, String> {
    let mut number = 0;
    let mut stack = vec![dir.to_owned()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).map_err(failed(&dir))? {
            let entry = entry.map_err(failed(&dir))?;
            number += 1;
            if entry.file_type().map_err(failed(&dir))?.is_dir() {
                stack.push(entry.path());
            }
        }
    }
    Ok(number)
}

/// Bytes in which no two blocks are equal.
fn pattern(len: usize) -> Vec<u8> {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend(word.to_le_bytes());
    }
    bytes
}
