//! What a mount keeps in the superblock, against the kernel's after the same work.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use extant::{Credentials, Filesystem, NewInode, Setup};
use extant_device::OpenOptions;
use extant_testkit::env::{kernel_mounts, scratch};
use extant_testkit::kernel::KernelMount;
use extant_testkit::oracle::{self, assert_clean, command, files_on_a_mount, mke2fs_with, run_ok};

/// `dumpe2fs -h` by field.
fn header(image: &Path) -> BTreeMap<String, String> {
    let text = run_ok(command("dumpe2fs").arg("-h").arg(image));
    text.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k.to_owned(), v.trim().to_owned())).collect()
}

/// Fields that differ after the same work, and why.
const EXPLAINED: &[(&str, &str)] = &[
    ("Last mounted on", "two mount points"),
    ("Last mount time", "two moments"),
    ("Last write time", "two moments"),
    ("Lifetime writes", "each writes its metadata in its own order; the same unit and the same start"),
    ("Journal sequence", "each groups operations into its own transactions"),
    ("Checksum", "of the superblock, times included"),
    ("Journal checksum", "of the journal superblock, its sequence included"),
];

fn work_by_kernel(root: &Path) {
    for d in 0..5 {
        let dir = root.join(format!("dir{d}"));
        std::fs::create_dir(&dir).unwrap();
        for f in 0..40 {
            std::fs::File::create(dir.join(format!("file{f}"))).unwrap();
        }
        std::fs::remove_file(dir.join("file7")).unwrap();
    }
    std::fs::remove_dir_all(root.join("dir3")).unwrap();
}

fn work_by_us(fs: &Filesystem) {
    let cred = Credentials::root();
    let root = fs.root().unwrap();
    for d in 0..5 {
        let dir = fs.mkdir(&root, format!("dir{d}").as_bytes(), 0o755, &cred).unwrap();
        for f in 0..40 {
            fs.mknod(&dir, format!("file{f}").as_bytes(), &NewInode::file(0o644), &cred).unwrap();
        }
        fs.unlink(&dir, b"file7", &cred).unwrap();
    }
    let dir = fs.lookup(&root, b"dir3", &cred).unwrap();
    for f in (0..40).filter(|f| *f != 7) {
        fs.unlink(&dir, format!("file{f}").as_bytes(), &cred).unwrap();
    }
    fs.rmdir(&root, b"dir3", &cred).unwrap();
}

#[test]
fn as_the_kernel_keeps_it() {
    need!(kernel_mounts());
    for args in [
        "-t ext4",
        "-t ext4 -O orphan_file",
        "-t ext4 -O ^has_journal",
        "-t ext2",
        "-t ext3",
        "-t ext4 -O bigalloc",
    ] {
        println!("{args}");
        let dir = scratch();
        let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
        let uuid = "7f7a8d1e-6a4f-4c54-9a57-1f3b1c0d2e5f";
        let mut words: Vec<&str> = args.split_whitespace().collect();
        words.extend(["-U", uuid, "-E", "hash_seed=7f7a8d1e-6a4f-4c54-9a57-1f3b1c0d2e5f,lazy_itable_init=0"]);
        mke2fs_with(&ours, 64 << 20, &words);
        std::fs::copy(&ours, &theirs).unwrap();
        for _ in 0..2 {
            let mount = KernelMount::rw(&theirs);
            let open = files_on_a_mount();
            let _ = std::fs::remove_dir_all(mount.path().join("dir0"));
            if !mount.path().join("dir1").exists() {
                work_by_kernel(mount.path());
            }
            drop(open);
            mount.unmount();
            let device = OpenOptions::new().write(true).open(&ours).unwrap();
            let setup = Setup { mounted_at: Some(b"/somewhere".to_vec()), ..Setup::default() };
            let fs = Filesystem::open(Arc::new(device), setup).unwrap();
            let root = fs.root().unwrap();
            let cred = Credentials::root();
            match fs.lookup(&root, b"dir0", &cred) {
                Ok(old) => {
                    for f in (0..40).filter(|f| *f != 7) {
                        fs.unlink(&old, format!("file{f}").as_bytes(), &cred).unwrap();
                    }
                    drop(old);
                    fs.rmdir(&root, b"dir0", &cred).unwrap();
                }
                Err(_) => work_by_us(&fs),
            }
            drop(root);
            fs.unmount().unwrap();
        }
        assert_clean(&ours);
        let (a, b) = (header(&ours), header(&theirs));
        let fields: Vec<&String> = a.keys().chain(b.keys()).collect();
        for field in fields {
            if a.get(field) != b.get(field) {
                let known = EXPLAINED.iter().any(|(f, _)| f == field);
                assert!(known, "{args}: {field}: ours {:?}, the kernel's {:?}", a.get(field), b.get(field));
            }
        }
        let mounted = a.get("Last mounted on").map(String::as_str);
        assert_eq!(mounted, Some("/somewhere"), "{args}");
    }
}

/// tune2fs and the kernel put a label into every copy of the superblock; the rest of the copies stays.
#[test]
fn a_label_is_in_every_copy_of_the_superblock() {
    need!(extant_testkit::env::tools(&["mke2fs", "e2fsck", "tune2fs"]));
    let dir = scratch();
    let (image, theirs) = (dir.join("image"), dir.join("theirs"));
    oracle::mke2fs(&image, 64 << 20, "-t ext4 -b 1024 -L before");
    std::fs::copy(&image, &theirs).unwrap();
    oracle::tune2fs(&theirs, "-L after");
    let fs = crate::support::open_rw(&image);
    fs.set_label(b"after", &extant::Credentials::root()).unwrap();
    let copy = |image: &Path, group: u64| {
        let mut bytes = vec![0; 1024];
        let file = std::fs::File::open(image).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, (1 + group * 8192) * 1024).unwrap();
        extant_format::Superblock::read(&bytes).unwrap()
    };
    for group in [1, 3, 5, 7] {
        assert_eq!(copy(&image, group).label(), b"after", "group {group}, while it is mounted");
        assert_eq!(copy(&theirs, group).label(), b"after", "group {group} of tune2fs");
        let features = copy(&image, group).features();
        assert!(group == 1 || !features.incompat.contains(extant_format::Incompat::RECOVER), "group {group}");
    }
    fs.unmount().unwrap();
    drop(fs);
    assert_clean(&image);
}
