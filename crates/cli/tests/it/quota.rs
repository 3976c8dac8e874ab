//! `extant quota`, on images and on mounts; debugfs reads what was set.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use extant_testkit::{Scratch, env, oracle};

use crate::mounted::Mounted;
use crate::run::{extant, ok};

const ARGS: &str = "-t ext4 -b 4096 -J size=4 -O quota,project -E quotatype=usrquota:grpquota:prjquota";
const LIMITS: [&str; 8] =
    ["--space-soft", "8M", "--space-hard", "16M", "--inodes-soft", "10", "--inodes-hard", "20"];

fn image() -> (Scratch, PathBuf) {
    let scratch = env::scratch();
    let image = scratch.join("image");
    oracle::mke2fs(&image, 64 << 20, ARGS);
    (scratch, image)
}

/// What debugfs has of an id: space, soft, hard, inodes, soft, hard.
fn theirs(image: &Path, kind: &str, id: u32) -> Vec<u64> {
    let text = oracle::debugfs(image, &[&format!("get_quota {kind} {id}")]);
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(&id.to_string()));
    let line = line.unwrap_or_else(|| panic!("no {id} in {text}"));
    line.split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect()
}

fn quota(target: &Path, args: &[&str]) -> serde_json::Value {
    let args: Vec<&dyn AsRef<std::ffi::OsStr>> = args.iter().map(|a| a as _).collect();
    let all = [&[&"quota" as &dyn AsRef<std::ffi::OsStr>, &"--json", &target], &args[..]].concat();
    ok(&all).json()
}

fn set(target: &Path, args: &[&str]) {
    let args: Vec<&dyn AsRef<std::ffi::OsStr>> = args.iter().map(|a| a as _).collect();
    ok(&[&[&"quota" as &dyn AsRef<std::ffi::OsStr>, &target], &args[..]].concat());
}

#[test]
fn limits_of_an_image_are_set_and_shown() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let (_scratch, image) = image();
    for (kind, letter) in [("user", "-u"), ("group", "-g"), ("project", "-P")] {
        set(&image, &[&[letter, "--id", "1000"], &LIMITS[..]].concat());
        assert_eq!(theirs(&image, kind, 1000), [0, 8 << 10, 16 << 10, 0, 10, 20], "{kind}");
        set(&image, &[letter, "--id", "1000", "--space-soft", "0"]);
        assert_eq!(theirs(&image, kind, 1000), [0, 0, 16 << 10, 0, 10, 20], "the others stay");
        set(&image, &[letter, "--space-grace", "60"]);
        let shown = quota(&image, &[letter]);
        let table = &shown[format!("{kind}s")];
        assert_eq!(
            (table["space_grace"].as_u64(), table["inodes_grace"].as_u64()),
            (Some(60), Some(604_800))
        );
        let ids: Vec<u64> =
            table["ids"].as_array().unwrap().iter().map(|e| e["id"].as_u64().unwrap()).collect();
        assert_eq!(ids, [0, 1000]);
        assert_eq!(table["ids"][1]["space_hard_kib"], 16 << 10);
        let one = quota(&image, &[letter, "--id", "7"]);
        assert_eq!(one[format!("{kind}s")]["ids"][0]["space_hard_kib"], 0, "no entry is no limit");
    }
    let text = ok(&[&"quota", &image]).text();
    assert!(text.contains("users; grace times: space 60 s") && text.contains("projects"), "{text}");
    oracle::assert_clean(&image);
    let plain = image.with_extension("plain");
    oracle::mke2fs(&plain, 16 << 20, "-t ext4");
    let none = extant(&[&"quota", &plain]);
    assert!(none.status == 1 && none.err.contains("no quota is kept"), "{}", none.err);
}

fn as_user(uid: u32, args: &[&str]) -> Output {
    let uid = uid.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups", env!("CARGO_BIN_EXE_extant"), "quota"]);
    oracle::output(command.args(args)).unwrap()
}

#[test]
fn limits_of_a_mount_are_set_by_root_and_shown_to_whom_they_concern() {
    need!(env::root(), env::fuse(), env::tools(&["mke2fs", "e2fsck", "debugfs", "setpriv"]));
    let (scratch, image) = image();
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mounted = Mounted::new(&image, "usrquota,grpquota,prjquota");
    let top = mounted.path();
    // More than one answer has room for.
    for id in 2000..2100_u32 {
        let file = top.join(id.to_string());
        std::fs::write(&file, "content").unwrap();
        std::os::unix::fs::chown(&file, Some(id), Some(id)).unwrap();
    }
    set(top, &[&["-u", "--id", "2007"], &LIMITS[..]].concat());
    set(top, &["-g", "--inodes-grace", "90"]);
    let users = quota(top, &["-u"]);
    let ids = users["users"]["ids"].as_array().unwrap();
    assert_eq!(ids.len(), 101);
    assert_eq!((ids[8]["id"].as_u64(), ids[8]["space_soft_kib"].as_u64()), (Some(2007), Some(8 << 10)));
    assert_eq!(ids[8]["inodes"], 1);
    assert_eq!(quota(top, &["-g"])["groups"]["inodes_grace"], 90);
    // Root lets everybody in, and the program too.
    let said = |out: &Output| String::from_utf8_lossy(&[&out.stdout[..], &out.stderr].concat()).into_owned();
    let dir = top.to_str().unwrap();
    let own = as_user(2007, &["--json", dir, "-u", "--id", "2007"]);
    if said(&own).contains("setpriv:") {
        eprintln!("skipped: {}", said(&own));
    } else {
        assert!(own.status.success() && said(&own).contains("\"space_hard_kib\": 16384"), "{}", said(&own));
        for refused in [
            &["-u", "--id", "2008"][..],
            &["-u"],
            &["-P", "--id", "2007"],
            &["-u", "--id", "2007", "--space-hard", "0"],
        ] {
            let out = as_user(2007, &[&[dir], refused].concat());
            assert!(
                !out.status.success() && said(&out).contains("not permitted"),
                "{refused:?}: {}",
                said(&out)
            );
        }
    }
    mounted.unmount();
    assert_eq!(theirs(&image, "user", 2007)[1..], [8 << 10, 16 << 10, 1, 10, 20]);
    oracle::assert_clean(&image);
}

/// This machine's kernel may not mount quota for writing: the rule is the one by which it answers statfs(2) of such directories, and the
/// numbers are computed here.
#[test]
fn statfs_of_a_project_is_what_it_may_have() {
    need!(env::root(), env::fuse(), env::tools(&["mke2fs", "e2fsck", "chattr"]));
    let (_scratch, image) = image();
    for (options, counts) in [("", false), ("prjquota", true)] {
        let mounted = Mounted::new(&image, options);
        let dir = mounted.path().join("project");
        if !dir.exists() {
            std::fs::create_dir(&dir).unwrap();
            let done = oracle::output(Command::new("chattr").args(["-p", "77", "+P"]).arg(&dir)).unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            std::fs::write(dir.join("file"), vec![1; 1 << 20]).unwrap();
            std::fs::File::open(dir.join("file")).unwrap().sync_all().unwrap();
            set(mounted.path(), &[&["-P", "--id", "77"], &LIMITS[..]].concat());
        }
        let whole = rustix::fs::statvfs(mounted.path()).unwrap();
        let project = rustix::fs::statvfs(&dir).unwrap();
        if counts {
            // The directory and the file.
            let (limit, used) = (2048, 1 + 256);
            let space = (project.f_blocks, project.f_bfree, project.f_bavail);
            assert_eq!(space, (limit, limit - used, limit - used));
            assert_eq!((project.f_files, project.f_ffree), (10, 8));
        } else {
            assert_eq!((project.f_blocks, project.f_files), (whole.f_blocks, whole.f_files));
        }
        let file = rustix::fs::statvfs(dir.join("file")).unwrap();
        assert_eq!(file.f_blocks, whole.f_blocks, "nothing inherits from a file");
        mounted.unmount();
    }
    oracle::assert_clean(&image);
}
