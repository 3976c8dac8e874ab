//! Mapped files when something goes wrong: a mount that is read-only from some time on, damage that a fault meets, an unmount under
//! stores, a kernel that lets no fault of its own be served.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use extant::{Advice, Credentials, Filesystem, Setup, ShutdownMode, SyncMode};
use extant_device::BlockDevice;
use extant_sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use extant_sync::thread;
use extant_testkit::env::{root, scratch, tools};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::{assert_clean, debugfs_write, mke2fs};
use extant_testkit::sim::SimDevice;

use crate::mapping::{new_file, open, shared, userfaultfd};
use crate::support::open_with;

const PAGE: usize = 4096;
const EFAULT: i32 = 14;

/// An image with a file `good` of four pages and a file `bad`, whose only extent lies behind the end of the device.
fn damaged(image: &Path) {
    mke2fs(image, 16 << 20, "-t ext4 -b 4096");
    let fs = open_with(image, "");
    for name in ["good", "bad"] {
        let file = open(&fs, &new_file(&fs, name), false);
        file.write_at(0, &[1; 4 * PAGE]).unwrap();
    }
    fs.unmount().unwrap();
    drop(fs);
    debugfs_write(image, &["sif /bad block[5] 0x7fffffff"]);
}

fn lookup(fs: &Arc<Filesystem>, name: &str) -> extant::InodeRef {
    fs.lookup(&fs.root().unwrap(), name.as_bytes(), &Credentials::root()).unwrap()
}

/// Once nothing is written any more no store is accepted, to pages that are dirty and could be stored to when it happened: at once after a
/// shutdown, as soon as that is seen to after an abort. Loads go on.
#[test]
fn no_store_after_an_abort() {
    need!(userfaultfd());
    need!(tools(&["mke2fs", "debugfs"]));
    let zero = File::open("/dev/zero").unwrap();
    for way in ["abort", "shutdown"] {
        let dir = scratch();
        let image = dir.join("image");
        damaged(&image);
        let fs = open_with(&image, "errors=remount-ro");
        let file = open(&fs, &lookup(&fs, "good"), false);
        let map = file.map(0, 4 * PAGE, &shared()).unwrap();
        map.write_at(0, &[7; 4 * PAGE]).unwrap();
        if way == "shutdown" {
            fs.shutdown(ShutdownMode::NoFlush, &Credentials::root()).unwrap();
        } else {
            let bad = open(&fs, &lookup(&fs, "bad"), false);
            assert_eq!(bad.read_at(0, &mut [0; 10]).unwrap_err().errno(), 117);
            assert!(fs.is_read_only());
            while map.read_from(&zero, 0, 100..101).is_ok() {
                thread::yield_now();
            }
        }
        let mut stored = 0;
        for page in 0..4 {
            match map.read_from(&zero, 0, page * PAGE..page * PAGE + 1) {
                Ok(_) => stored += 1,
                Err(error) => assert_eq!(error.errno(), EFAULT, "{way}"),
            }
        }
        assert_eq!(stored, 0, "{way}: stores that are never written");
        if way != "shutdown" {
            // A page that was refused is marked for a moment.
            map.user_pages().heal(&(0..4));
            let mut got = [0; 10];
            map.read_at(0, &mut got).unwrap();
            assert_eq!(got, [7; 10]);
        }
        drop((map, file));
        let _ = fs.unmount();
    }
}

/// Damage that a load or a store met is told to the next fsync of each open file, once, whatever `errors=` has done by then.
#[test]
fn damage_that_a_fault_meets() {
    need!(userfaultfd());
    need!(tools(&["mke2fs", "debugfs"]));
    let zero = File::open("/dev/zero").unwrap();
    for errors in ["continue", "remount-ro", "panic"] {
        for access in ["load", "store"] {
            let dir = scratch();
            let image = dir.join("image");
            damaged(&image);
            let fs = open_with(&image, &format!("errors={errors}"));
            let bad = lookup(&fs, "bad");
            let (one, two) = (open(&fs, &bad, false), open(&fs, &bad, false));
            let map = one.map(0, 4 * PAGE, &shared()).unwrap();
            if access == "load" {
                map.advise(0..PAGE, Advice::WillNeed).unwrap();
            } else {
                assert_eq!(map.read_from(&zero, 0, 0..1).unwrap_err().errno(), EFAULT);
            }
            let told = |n: usize, done: extant::Result<()>| {
                assert_eq!(done.unwrap_err().errno(), 117, "errors={errors}, {access}: {n}");
            };
            told(1, one.fsync(false));
            told(2, two.fsync(true));
            told(3, map.sync(0..PAGE, SyncMode::Sync));
            let again = one.fsync(false).err().map(|e| e.errno());
            let want = match errors {
                "continue" => None,
                "remount-ro" => Some(30),
                _ => Some(5),
            };
            assert_eq!(again, want, "errors={errors}");
            assert_eq!(fs.is_read_only(), errors != "continue");
            drop((map, one, two, bad));
            let _ = fs.unmount();
        }
    }
}

/// A device that lets others go on in each flush, for as long as it takes them to get somewhere.
#[derive(Debug)]
struct Slow {
    inner: Arc<SimDevice>,
    /// The storing thread's progress, while an unmount runs.
    watched: Mutex<Option<Arc<AtomicUsize>>>,
}

impl BlockDevice for Slow {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
        self.inner.write_at(offset, buf)
    }
    fn flush(&self) -> std::io::Result<()> {
        let watched = self.watched.lock().unwrap().clone();
        if let Some(stored) = watched {
            let before = stored.load(Ordering::Acquire);
            for _ in 0..20_000 {
                if stored.load(Ordering::Acquire) > before + 1 {
                    break;
                }
                thread::yield_now();
            }
        }
        self.inner.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.inner.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.inner.write_zeroes(offset, len)
    }
}

/// A store that was accepted while an unmount ran is on the device when that says that all went well.
#[test]
fn an_unmount_under_stores() {
    need!(userfaultfd());
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 4096");
    let source = dir.join("source");
    let numbers: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&source, &numbers).unwrap();
    let source = File::open(&source).unwrap();
    let sim = SimDevice::from_file(&image);
    let device = Arc::new(Slow { inner: Arc::clone(&sim), watched: Mutex::new(None) });
    let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
    let file = open(&fs, &new_file(&fs, "f"), false);
    file.set_len(PAGE as u64).unwrap();
    let map = file.map(0, PAGE, &shared()).unwrap();
    let (stored, stop) = (Arc::new(AtomicUsize::new(0)), AtomicBool::new(false));
    thread::scope(|scope| {
        let storing = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let next = (stored.load(Ordering::Relaxed) + 1) % 100_000;
                match map.read_from(&source, next as u64 * 4, 8..12) {
                    Ok(_) => stored.fetch_add(1, Ordering::Release),
                    Err(error) => {
                        assert_eq!(error.errno(), EFAULT);
                        return;
                    }
                };
            }
        });
        while stored.load(Ordering::Acquire) == 0 {
            thread::yield_now();
        }
        *device.watched.lock().unwrap() = Some(Arc::clone(&stored));
        fs.unmount().unwrap();
        stop.store(true, Ordering::Relaxed);
        storing.join().unwrap();
    });
    drop((map, file, fs));
    sim.content().to_file(&image).unwrap();
    assert_clean(&image);
    let mount = KernelMount::ro(&image);
    let got = mount.read("f");
    mount.unmount();
    let last = (stored.load(Ordering::Acquire) % 100_000) as u32;
    assert_eq!(
        u32::from_le_bytes(got[8..12].try_into().unwrap()),
        last,
        "stores that were accepted are lost"
    );
}

/// In a process without the right to serve faults of system calls: loads, stores, msync and a pin work, and a system call that meets a
/// page which is not there yet is EFAULT.
#[test]
fn faults_of_the_program_alone() {
    const IMAGE: &str = "EXTANT_USER_MODE_ONLY";
    if let Some(image) = std::env::var_os(IMAGE) {
        let fs = open_with(Path::new(&image), "");
        let file = open(&fs, &lookup(&fs, "f"), false);
        let map = file.map(0, 8 * PAGE, &shared()).unwrap();
        assert!(!map.serves_system_calls(), "the right to serve system calls was not given up");
        let zero = File::open("/dev/zero").unwrap();
        assert_eq!(map.read_from(&zero, 0, 0..10).unwrap_err().errno(), EFAULT);
        let mut got = [0; 10];
        map.read_at(0, &mut got).unwrap();
        assert_eq!(got, [1; 10]);
        map.write_at(PAGE, &[2; 2 * PAGE]).unwrap();
        assert_eq!(map.read_from(&zero, 0, PAGE..PAGE + 10).unwrap(), 10);
        map.sync(0..map.len(), SyncMode::Sync).unwrap();
        assert_eq!(map.read_from(&zero, 0, PAGE..PAGE + 10).unwrap_err().errno(), EFAULT, "a clean page");
        map.write_at(PAGE + 5, &[3]).unwrap();
        let pin = map.pin(4 * PAGE..5 * PAGE).unwrap();
        assert_eq!(file.read_at(PAGE as u64, &mut got).unwrap(), 10);
        assert_eq!(got, [0, 0, 0, 0, 0, 3, 0, 0, 0, 0]);
        drop((pin, map, file));
        fs.unmount().unwrap();
        return;
    }
    need!(userfaultfd());
    need!(root());
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 16 << 20, "-t ext4 -b 1024");
    let fs = open_with(&image, "");
    open(&fs, &new_file(&fs, "f"), false).write_at(0, &[1; 8 * PAGE]).unwrap();
    fs.unmount().unwrap();
    drop(fs);
    // Where somebody else may read the program and write the image.
    let program = dir.join("program");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for (path, mode) in [(dir.path(), 0o755), (&program, 0o755), (&image, 0o666)] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(&program);
    command.args(["--exact", "mapped_errors::faults_of_the_program_alone", "--nocapture"]);
    let output = extant_testkit::oracle::output(command.env(IMAGE, &image).uid(65534).gid(65534)).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", String::from_utf8_lossy(&output.stdout));
    assert_clean(&image);
    let mount = KernelMount::ro(&image);
    let got = mount.read("f");
    mount.unmount();
    assert!(got[..PAGE] == [1; PAGE] && got[PAGE + 5] == 3 && got[2 * PAGE..3 * PAGE] == [2; PAGE]);
}
