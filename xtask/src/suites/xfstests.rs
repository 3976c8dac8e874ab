//! xfstests, as for ext4: it makes its file systems with mke2fs and has e2fsck look at them after each test, and only the mounts
//! of the two devices go to the program. [`LIST`] are the tests that the kernel's own ext4 passes.
//!
//! Everything happens in a mount and process namespace of its own, in which `/sbin` has the program as mount(8)'s helper.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Built;
use crate::rig::{quiet, tool};

/// The tests, and why some cannot pass through FUSE.
const LIST: &str = include_str!("xfstests.txt");
/// Bytes of each device.
const DEVICE: &str = "3G";
/// Most seconds for a test, on average; some take minutes.
const SECONDS: usize = 60;

/// Between mount(8) and the suite, first in `PATH`: a mount of the devices as ext4 is one of ours.
const MOUNT: &str = r#"#!/bin/bash
ours=
for word; do
  case $word in
    "$TEST_DEV" | "$SCRATCH_DEV") ours=1 ;;
    *remount* | --bind | --rbind | --move | --make-*) exec /usr/bin/mount "$@" ;;
  esac
done
words=() typed=
while [ $# -gt 0 ]; do
  case $1 in
    -t) case $2 in ext4) words+=(-t fuse.extant) typed=1 ;; *) ours= typed=1; words+=(-t "$2") ;; esac; shift ;;
    *) words+=("$1") ;;
  esac
  shift
done
if [ -z "$ours" ]; then
  for i in "${!words[@]}"; do [ "${words[i]}" = fuse.extant ] && words[i]=ext4; done
  exec /usr/bin/mount "${words[@]}"
fi
[ -n "$typed" ] || words=(-t fuse.extant "${words[@]}")
exec /usr/bin/mount "${words[@]}"
"#;

/// What the suite looks for among mounts is called `fuseblk` there.
const FINDMNT: &str = r#"#!/bin/bash
words=()
for word; do [ "$word" = ext4 ] && word=ext4,fuseblk.extant,fuseblk; words+=("$word"); done
exec /usr/bin/findmnt "${words[@]}"
"#;
const DF: &str =
    "#!/bin/bash\nset -o pipefail\n/usr/bin/df \"$@\" | sed 's/fuseblk\\(\\.extant\\)\\?/ext4/'\n";

/// Runs in the namespaces: `$1` the rig's folder, `$2` xfstests, `$3` the seconds, then the tests.
const RUN: &str = r#"
rig=$1 suite=$2 seconds=$3; shift 3
mount -t overlay -o lowerdir=$rig/sbin:$(readlink -f /sbin) overlay $(readlink -f /sbin) || exit 99
mount -t tmpfs -o mode=1777 tmpfs /tmp && mount -t tmpfs tmpfs /run || exit 99
export FSTYP=ext4 TEST_DIR=$rig/test SCRATCH_MNT=$rig/scratch RESULT_BASE=$rig/results HOST_OPTIONS=/nonexistent
export PATH=$rig/bin:$PATH
mkfs.ext4 -q -F "$TEST_DEV" || exit 99
cd "$suite" && timeout "$seconds" ./check "$@"
"#;

/// A test of the list.
struct Test<'a> {
    name: &'a str,
    short: bool,
    /// Why it cannot pass.
    cause: Option<&'a str>,
}

fn list() -> Vec<Test<'static>> {
    LIST.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let name = words.next()?;
            let rest: Vec<&str> = words.collect();
            let cause = rest.iter().copied().find(|word| *word != "*");
            Some(Test { name, short: rest.contains(&"*"), cause })
        })
        .collect()
}

/// How a test went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Went {
    Passed,
    Failed,
    NotRun,
}

pub(super) fn xfstests(built: &Built<'_>, long: bool) -> Result<String, String> {
    let tests: Vec<Test<'_>> = list().into_iter().filter(|t| long || t.short).collect();
    let said = run(built, &tests)?;
    let went = read(&said);
    let of = |t: &Test<'_>| went.get(t.name).copied();
    let passed = tests.iter().filter(|t| of(t) == Some(Went::Passed)).count();
    let caused = tests.iter().filter(|t| t.cause.is_some() && of(t) != Some(Went::Passed)).count();
    let wrong: Vec<String> = tests
        .iter()
        .filter(|t| t.cause.is_none() && of(t) != Some(Went::Passed))
        .map(|t| format!("{} {:?}", t.name, of(t)))
        .collect();
    let figures = format!(
        "{passed} of {} tests that the kernel's ext4 passes, {caused} that a FUSE mount cannot",
        tests.len()
    );
    if wrong.is_empty() {
        return Ok(figures);
    }
    let log = std::env::temp_dir().join("extant-xfstests.log");
    let _ = fs::write(&log, &said);
    Err(format!("{figures}; {}: {} (see {})", wrong.len(), wrong.join(", "), log.display()))
}

fn run(built: &Built<'_>, tests: &[Test<'_>]) -> Result<String, String> {
    let rig = &built.rig.dir;
    let text = |err: std::io::Error| err.to_string();
    for dir in ["sbin", "bin", "test", "scratch", "results"] {
        fs::create_dir_all(rig.join(dir)).map_err(text)?;
    }
    for name in ["mount.fuse.extant", "mount.fuseblk.extant"] {
        symlink(&built.rig.extant, rig.join("sbin").join(name)).map_err(text)?;
    }
    for (name, script) in [("mount", MOUNT), ("findmnt", FINDMNT), ("df", DF)] {
        let path = rig.join("bin").join(name);
        fs::write(&path, script).map_err(text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(text)?;
    }
    let devices = [Loop::new(&rig.join("test.img"))?, Loop::new(&rig.join("scratch.img"))?];
    let mut command = Command::new(tool("unshare")?);
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "bash", "-c", RUN, "xfstests"]);
    command.arg(rig).arg(built.suites.join("xfstests")).arg((SECONDS * tests.len()).to_string());
    command.args(tests.iter().map(|t| t.name));
    command.env("TEST_DEV", &devices[0].0).env("SCRATCH_DEV", &devices[1].0);
    let output = command.stdin(Stdio::null()).output().map_err(|err| format!("unshare: {err}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.code() == Some(99) || !said.contains("generic/") {
        return Err(format!("the suite did not start: {said}{}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(said)
}

/// A sparse file in memory behind a loop device.
struct Loop(PathBuf);

impl Loop {
    fn new(image: &Path) -> Result<Self, String> {
        quiet(Command::new("truncate").args(["-s", DEVICE]).arg(image))?;
        let device = quiet(Command::new(tool("losetup")?).args(["-f", "--show"]).arg(image))?;
        Ok(Self(device.trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(err) = quiet(Command::new("losetup").arg("-d").arg(&self.0)) {
            eprintln!("{err}");
        }
    }
}

/// What `check` said of each test: `generic/001  3s`, `generic/009  [not run] …`, and lists at the end.
fn read(said: &str) -> BTreeMap<&str, Went> {
    let mut went = BTreeMap::new();
    for line in said.lines() {
        if let Some(failed) = line.strip_prefix("Failures: ") {
            went.extend(failed.split_ascii_whitespace().map(|name| (name, Went::Failed)));
            continue;
        }
        let Some((name, rest)) = line.split_once(char::is_whitespace) else { continue };
        if !name.starts_with("generic/") || went.get(name) == Some(&Went::Failed) {
            continue;
        }
        // The time of the last run may stand before this one's: the last word counts.
        let last = rest.split_ascii_whitespace().next_back().unwrap_or_default();
        let seconds = last.strip_suffix('s').is_some_and(|n| n.parse::<u32>().is_ok());
        let verdict = match (rest.contains("[not run]"), seconds) {
            (true, _) => Went::NotRun,
            (false, true) => Went::Passed,
            (false, false) => Went::Failed,
        };
        went.insert(name, verdict);
    }
    went
}

#[cfg(test)]
mod tests {
    use super::{Went, list, read};

    #[test]
    fn verdicts() {
        let said = "generic/001         10s\ngeneric/009        [not run] xfs_io fiemap  failed\n\
            generic/050        - output mismatch (see results)\n    --- a\ngeneric/417 5s ...  12s\n\
            generic/037         31s\n_check_dmesg: something\ngeneric/424\nRan: generic/001\n\
            Failures: generic/050 generic/037\nFailed 2 of 6 tests\n";
        let went = read(said);
        let of = |name: &str| went.get(name).copied();
        assert_eq!(of("generic/001"), Some(Went::Passed));
        assert_eq!(of("generic/417"), Some(Went::Passed));
        assert_eq!(of("generic/009"), Some(Went::NotRun));
        assert_eq!((of("generic/050"), of("generic/037")), (Some(Went::Failed), Some(Went::Failed)));
        assert_eq!(of("generic/424"), None, "it did not end");
    }

    #[test]
    fn the_list_names_each_test_once_and_no_cause_that_is_not_explained() {
        let tests = list();
        assert!(tests.windows(2).all(|w| w[0].name < w[1].name));
        let explained = include_str!("../../../docs/xfstests.md");
        for test in &tests {
            let number = test.name.strip_prefix("generic/").unwrap();
            assert!(number.len() == 3 && number.bytes().all(|b| b.is_ascii_digit()));
            assert!(!test.short || test.cause.is_none());
            if let Some(cause) = test.cause {
                let row = explained.lines().find(|line| line.starts_with(&format!("| {cause} |")));
                assert!(row.is_some_and(|row| row.contains(number)), "{} {cause}", test.name);
            }
        }
    }
}
