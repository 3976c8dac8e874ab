//! The kernel's own ext4 as an oracle: loop devices and mounts as guards, taken down again on return, on failure
//! and while unwinding.

use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use crate::oracle::{command, files_on_a_mount, run, run_ok};

/// A loop device on an image file. Detached when dropped.
#[derive(Debug)]
pub struct Loop {
    device: PathBuf,
    image: PathBuf,
}

/// Looks at a device that is on its way out, some seconds' worth.
const LOOKS: u64 = 200_000;

/// Waits until no loop device is attached to the image: one that detaches itself when its mount ends does so a moment later if
/// somebody else has it open (a search for a free one, say), and there is nothing to wait on but the state itself.
///
/// # Panics
/// If it stays attached.
pub fn wait_until_detached(image: &Path) {
    let image = std::fs::canonicalize(image).expect("the image is there");
    let attached = || {
        let devices = std::fs::read_dir("/sys/block").expect("/sys/block").flatten();
        let backing =
            devices.filter_map(|d| std::fs::read_to_string(d.path().join("loop/backing_file")).ok());
        backing.into_iter().any(|text| Path::new(text.trim_end()) == image)
    };
    let looks = std::iter::repeat_with(attached).take(LOOKS as usize).inspect(|_| std::thread::yield_now());
    assert!(looks.into_iter().any(|attached| !attached), "{} stays attached", image.display());
}

impl Loop {
    /// Attaches the image to a free loop device.
    ///
    /// # Panics
    /// If losetup fails; ask [`crate::env::kernel_mounts`] first.
    #[must_use]
    pub fn attach(image: &Path, read_only: bool) -> Self {
        let mut losetup = command("losetup");
        losetup.args(["-f", "--show"]);
        if read_only {
            losetup.arg("-r");
        }
        let name = run_ok(losetup.arg(image));
        let image = std::fs::canonicalize(image).expect("the image is there");
        Self { device: PathBuf::from(name.trim()), image }
    }

    /// Waits until the kernel has let go of the image. Who else looks at the device at the moment of the detach (a search
    /// for a free one, say) delays it, and there is nothing to wait on but the state itself.
    fn wait_until_free(&self) {
        let name = self.device.file_name().unwrap_or_default();
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        let image = self.image.to_string_lossy().into_owned();
        let mut looks = 0_u64;
        while std::fs::read_to_string(&backing).is_ok_and(|text| text.trim_end() == image) {
            looks += 1;
            assert!(looks < LOOKS || std::thread::panicking(), "{} stays attached", self.device.display());
            if looks >= LOOKS {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// `/dev/loopN`.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let outcome = run(command("losetup").arg("-d").arg(&self.device));
        if outcome.status != 0 && !std::thread::panicking() {
            panic!("losetup -d {}: {outcome}", self.device.display());
        }
        self.wait_until_free();
    }
}

/// A kernel mount of a block device. Unmounted when dropped.
#[derive(Debug)]
pub struct DeviceMount {
    dir: tempfile::TempDir,
    mounted: bool,
}

impl DeviceMount {
    /// Mounts a device as ext4 with the options given, or says what the kernel said.
    pub fn new(device: &Path, options: &str) -> Result<Self, rustix::io::Errno> {
        let dir = tempfile::Builder::new().prefix("extant-kernel-").tempdir().expect("folder to mount on");
        let mut flags = MountFlags::empty();
        let mut data = Vec::new();
        for option in options.split(',').filter(|o| !o.is_empty()) {
            match option {
                "ro" => flags |= MountFlags::RDONLY,
                "rw" => {}
                "noatime" => flags |= MountFlags::NOATIME,
                "sync" => flags |= MountFlags::SYNCHRONOUS,
                "dirsync" => flags |= MountFlags::DIRSYNC,
                other => data.push(other),
            }
        }
        let data = std::ffi::CString::new(data.join(",")).expect("mount options hold no NUL");
        rustix::mount::mount(device, dir.path(), "ext4", flags, data.as_c_str())?;
        Ok(Self { dir, mounted: true })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Unmounts, and fails the test if that fails.
    pub fn unmount(mut self) {
        self.unmount_now().unwrap_or_else(|err| panic!("unmount of {}: {err}", self.path().display()));
    }

    fn unmount_now(&mut self) -> Result<(), rustix::io::Errno> {
        rustix::mount::unmount(self.dir.path(), UnmountFlags::empty())?;
        self.mounted = false;
        Ok(())
    }
}

impl Drop for DeviceMount {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        if let Err(err) = self.unmount_now() {
            // A file left open by a failing test: let the mount go with its last user.
            let lazily = rustix::mount::unmount(self.dir.path(), UnmountFlags::DETACH);
            eprintln!("unmount of {}: {err}; detached: {lazily:?}", self.path().display());
        }
    }
}

/// A kernel mount of an image over a loop device. Unmounted, then detached, when dropped.
#[derive(Debug)]
pub struct KernelMount {
    mount: DeviceMount,
    // After the mount: fields drop in order.
    device: Loop,
}

impl KernelMount {
    /// Mounts an image read-write with the kernel's defaults.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn rw(image: &Path) -> Self {
        Self::with(image, "").unwrap_or_else(|err| panic!("kernel mount of {}: {err}", image.display()))
    }

    /// Mounts an image read-only. A journal that wants recovery is replayed *into the image* unless `noload` is
    /// among the options of [`KernelMount::with`]; the loop device here is writable.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn ro(image: &Path) -> Self {
        Self::with(image, "ro").unwrap_or_else(|err| panic!("kernel mount of {}: {err}", image.display()))
    }

    /// Mounts an image as ext4 with the options given (`"ro,noload,dioread_nolock"`), or says what the kernel said.
    pub fn with(image: &Path, options: &str) -> Result<Self, rustix::io::Errno> {
        let device = Loop::attach(image, false);
        Ok(Self { mount: DeviceMount::new(device.device(), options)?, device })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.mount.path()
    }

    /// The loop device under it.
    #[must_use]
    pub fn device(&self) -> &Path {
        self.device.device()
    }

    /// The content of a file on it.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn read(&self, name: &str) -> Vec<u8> {
        let _open = files_on_a_mount();
        let path = self.path().join(name);
        std::fs::read(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
    }

    /// syncfs(2).
    ///
    /// # Panics
    /// If it fails.
    pub fn sync(&self) {
        let _open = files_on_a_mount();
        let dir = std::fs::File::open(self.path()).expect("mount point");
        rustix::fs::syncfs(&dir).expect("syncfs");
    }

    /// Unmounts and detaches, and fails the test if that fails.
    pub fn unmount(self) {
        self.mount.unmount();
    }
}
