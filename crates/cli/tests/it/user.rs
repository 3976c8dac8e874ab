//! What a user without any right does and sees: options, messages, exit statuses.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use extant_testkit::{env, need, oracle};

use crate::run::{extant, ok};

/// An image with these files.
fn image(dir: &Path) -> PathBuf {
    let image = dir.join("image");
    ok(&[&"mkfs", &"-q", &image, &"16m"]);
    let tree = dir.join("tree");
    std::fs::create_dir_all(tree.join("docs")).unwrap();
    std::fs::write(tree.join("docs/readme"), "read me\n").unwrap();
    std::fs::write(tree.join("notes"), "notes\n").unwrap();
    ok(&[&"import", &image, &tree]);
    image
}

/// A disk with an MBR whose second partition holds a filesystem.
fn disk(dir: &Path) -> PathBuf {
    const START: u64 = 2048;
    let disk = dir.join("disk");
    let file = std::fs::File::create(&disk).unwrap();
    file.set_len(32 << 20).unwrap();
    let entry = |kind: u8, start: u64, sectors: u64| {
        let mut bytes = [0; 16];
        bytes[4] = kind;
        bytes[8..12].copy_from_slice(&(start as u32).to_le_bytes());
        bytes[12..16].copy_from_slice(&(sectors as u32).to_le_bytes());
        bytes
    };
    let image = std::fs::read(image(dir)).unwrap();
    file.write_all_at(&entry(0x83, 64, 1000), 446).unwrap();
    file.write_all_at(&entry(0x83, START, image.len() as u64 / 512), 462).unwrap();
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
    file.write_all_at(&image, START * 512).unwrap();
    disk
}

#[test]
fn a_partition_is_found_by_its_number_or_its_place() {
    let dir = env::scratch();
    let disk = disk(dir.path());
    for place in [&["--partition", "2"], &["--offset", "1048576"]] {
        assert_eq!(ok(&[&"cat", &place[0], &place[1], &disk, &"/docs/readme"]).text(), "read me\n");
        assert!(ok(&[&"fsck", &"-f", &place[0], &place[1], &disk]).text().contains("clean"));
        assert_eq!(ok(&[&"info", &"--json", &place[0], &place[1], &disk]).json()["clean"], true);
    }
    ok(&[&"rm", &"--partition", &"2", &disk, &"/notes"]);
    assert_eq!(ok(&[&"find", &"--partition", &"2", &disk, &"-name", &"notes"]).text(), "");
    let whole = extant(&[&"ls", &disk]);
    assert_eq!(whole.status, 1);
    assert!(
        whole.err.contains("no ext2, ext3 or ext4") && whole.err.contains("--partition"),
        "{}",
        whole.err
    );
    for number in ["1", "3", "9"] {
        assert_eq!(extant(&[&"ls", &"--partition", &number, &disk]).status, 1, "partition {number}");
        assert_eq!(extant(&[&"fsck", &"--partition", &number, &disk]).status, 8, "partition {number}");
    }
}

#[test]
fn errors_say_what_and_where() {
    let dir = env::scratch();
    let image = image(dir.path());
    let nothing = dir.join("nothing");
    let cases: [(&[&dyn AsRef<std::ffi::OsStr>], i32, &str); 12] = [
        (&[&"ls", &nothing], 1, "nothing: No such file"),
        (&[&"fsck", &nothing], 8, "extant fsck: "),
        (&[&"cat", &image, &"/no"], 1, "/no: no such file"),
        (&[&"cat", &image, &"/docs"], 1, "/docs: is a directory"),
        (&[&"rm", &image, &"/docs"], 1, "-r removes directories"),
        (&[&"put", &image, &nothing, &"/"], 1, "nothing: No such file"),
        (&[&"put", &image, &"/etc/hostname", &"/no/"], 1, "`extant mkdir -p` makes it"),
        (&[&"mkfs", &"-q", &image, &"8m"], 1, "-F"),
        (&[&"mkfs", &"-q", &"-b", &"3000", &nothing, &"8m"], 1, "-b 3000"),
        (&[&"mkfs", &"-q", &"-O", &"casefold", &nothing, &"8m"], 1, "casefold"),
        (&[&"mkfs", &"-q", &"-E", &"nonsense", &nothing, &"8m"], 1, "-E nonsense"),
        (&[&"import", &image, &"/proc/self/cmdline"], 1, "tar archive"),
    ];
    for (args, status, words) in cases {
        let ran = extant(args);
        let said: Vec<&std::ffi::OsStr> = args.iter().map(AsRef::as_ref).collect();
        assert_eq!(ran.status, status, "{said:?}: {}", ran.err);
        assert!(ran.err.contains(words), "{said:?} says {}, nothing of {words}", ran.err);
    }
    assert!(!nothing.exists(), "what is refused leaves nothing behind");
    assert!(ok(&[&"stat", &image, &"/notes"]).text().contains("flags     extents"));
}

#[test]
fn every_command_explains_itself() {
    let help = ok(&[&"--help"]).text();
    let list = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let names: Vec<&str> = list.lines().filter_map(|l| l.split_whitespace().next()).collect();
    assert!(names.len() > 20, "{help}");
    for name in names.iter().filter(|n| **n != "help") {
        let text = ok(&[name, &"--help"]).text();
        assert!(text.to_lowercase().contains("usage:") && text.lines().count() > 3, "{name}: {text}");
    }
    let dir = env::scratch();
    ok(&[&"man", &dir.path()]);
    for name in ["extant.1", "extant-mkfs.1", "extant-fsck.1", "extant-exec.1"] {
        assert!(std::fs::read_to_string(dir.join(name)).unwrap().contains("extant"), "{name}");
    }
    let page = |name| std::fs::read_to_string(dir.join(name)).unwrap().replace("\\-", "-");
    let fsck = page("extant-fsck.1");
    for word in ["-j JOURNAL", "--offset BYTES", "--partition NUMBER", "Exit status", "4 errors"] {
        assert!(fsck.contains(word), "fsck: {word}");
    }
    let mount = page("extant-mount.1");
    let words = ["transport=", "journal_path=", "data=ordered", "errors=", "there only fsync is durable"];
    let without_effect = extant::WITHOUT_EFFECT.iter().map(|(word, _)| *word);
    for word in words.into_iter().chain(without_effect) {
        assert!(mount.contains(word), "mount: {word}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(ok(&[&"completions", &shell]).text().contains("import"), "{shell}");
    }
}

#[test]
fn holes_of_every_tar_format_are_imported() {
    need!(env::tools(&["tar"]));
    let dir = env::scratch();
    let tree = dir.join("tree");
    std::fs::create_dir(&tree).unwrap();
    let file = std::fs::File::create(tree.join("holes")).unwrap();
    file.set_len(8 << 20).unwrap();
    for n in 0..40_u64 {
        file.write_all_at(&[n as u8 + 1; 3000], n * 200_000).unwrap();
    }
    let want = std::fs::read(tree.join("holes")).unwrap();
    for format in ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0"]
    {
        let (image, archive) = (dir.join("image"), dir.join("archive.tar"));
        let mut tar = Command::new("tar");
        tar.arg("-cS").args(format!("--format={format}").split(' ')).arg("-f").arg(&archive);
        assert!(oracle::output(tar.arg("-C").arg(&tree).arg(".")).unwrap().status.success());
        ok(&[&"mkfs", &"-q", &"-F", &image, &"16m"]);
        ok(&[&"import", &image, &archive]);
        assert!(ok(&[&"cat", &image, &"/holes"]).out == want, "{format}: another content");
        let stat = ok(&[&"stat", &"--json", &image, &"/holes"]).json();
        assert!(stat[0]["allocated"].as_u64().unwrap() < 600_000, "{format}: {stat}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error_to_talk_about() {
    let dir = env::scratch();
    let image = image(dir.path());
    std::fs::write(dir.join("large"), vec![7; 4 << 20]).unwrap();
    ok(&[&"put", &image, &dir.join("large"), &"/"]);
    let script =
        format!("{} export {} - | head -c 10 >/dev/null", env!("CARGO_BIN_EXE_extant"), image.display());
    let out = oracle::output(Command::new("sh").args(["-c", &script])).unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stderr), "");
}
