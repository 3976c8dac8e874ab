//! `extant exec`, as a user without any right.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use extant_testkit::{Scratch, env, oracle, scratch};
use rustix::process::Signal;

/// Runs `extant exec` with these arguments as nobody, with a FUSE device that nobody may open. `None` where that is not to be
/// had.
fn as_nobody(scratch: &Path, args: &[&str]) -> Option<Output> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: not root, so it cannot become nobody");
        return None;
    }
    // A device file of our own, on a mount that only this shell sees.
    let script = "mkdir -p \"$0/dev\" && mount -t tmpfs none \"$0/dev\" && mknod -m 666 \"$0/dev/fuse\" c 10 229 && \
        mount --bind \"$0/dev/fuse\" /dev/fuse && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(scratch).arg(env!("CARGO_BIN_EXE_extant")).arg("exec");
    let output = oracle::output(command.args(args).env("TMPDIR", "/tmp")).ok()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("namespace")
        || said.contains("unshare:")
        || said.contains("/dev/fuse")
        || said.contains("exec: Permission")
    {
        eprintln!("skipped: {said}");
        return None;
    }
    Some(output)
}

fn image(scratch: &Scratch) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let image = scratch.join("image");
    let mut mkfs = Command::new(env!("CARGO_BIN_EXE_extant"));
    let made = oracle::output(mkfs.args(["mkfs", "-q"]).arg(&image).arg("32m"));
    assert!(made.unwrap().status.success());
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o666)).unwrap();
    image
}

fn checked(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}\n{out}{}", output.status, String::from_utf8_lossy(&output.stderr));
    out
}

/// What debugfs says of a file: mode, user, group.
fn stat(image: &Path, path: &str) -> String {
    let mut debugfs = Command::new("debugfs");
    let out = oracle::output(debugfs.args(["-R", &format!("stat {path}")]).arg(image)).unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn fakeroot_keeps_ids_and_devices() {
    let scratch = scratch();
    let image = image(&scratch);
    let script = "set -e; cd \"$EXTANT_ROOT\"; mkdir d; echo text >d/file; chmod 4755 d/file; \
        chown 1234:5678 d/file; chown 10:20 d; ln -s file d/link; chown -h 7:8 d/link; \
        mknod -m 640 d/disk b 8 1; chgrp 6 d/disk; chmod 600 d/file; echo more >>d/file; \
        stat -c '%n %u:%g %a %F' d d/file d/link d/disk; cat d/file; \
        tar -cf t.tar d; tar --numeric-owner -tvf t.tar | cut -d' ' -f1,2; mkdir e; tar -xpf t.tar -C e; \
        stat -c '%n %u:%g' e/d/file; chown root:root t.tar; stat -c '%u:%g' t.tar / >/dev/null; touch d/.x; test -e d/.x";
    let args = ["--fakeroot", image.to_str().unwrap(), "--", "sh", "-c", script];
    let Some(output) = as_nobody(scratch.path(), &args) else { return };
    let said = checked(&output);
    for line in [
        "d 10:20 755 directory",
        "d/file 1234:5678 600 regular file",
        "d/link 7:8 777 symbolic link",
        "d/disk 0:6 640 block special file",
        "text\nmore",
        "-rw------- 1234/5678",
        "e/d/file 1234:5678",
    ] {
        assert!(said.contains(line), "{line} is not in:\n{said}");
    }
    if oracle::output(Command::new("debugfs").arg("-V")).is_err() {
        eprintln!("skipped: debugfs is not installed");
        return;
    }
    let file = stat(&image, "/d/file");
    assert!(file.contains("User:  1234   Group:  5678"), "{file}");
    assert!(stat(&image, "/d/disk").contains("Type: block special"));
    assert!(stat(&image, "/d/disk").contains("08:01"), "{}", stat(&image, "/d/disk"));
    let clean = oracle::output(Command::new("e2fsck").arg("-fn").arg(&image)).unwrap();
    assert!(clean.status.success(), "{}", String::from_utf8_lossy(&clean.stdout));
}

#[test]
fn without_it_foreign_ids_are_refused() {
    let scratch = scratch();
    let image = image(&scratch);
    let script =
        "cd \"$EXTANT_ROOT\" && : >file && ! chown 1234 file 2>/dev/null && stat -c %u:%g file; exit 7";
    let Some(output) = as_nobody(scratch.path(), &[image.to_str().unwrap(), "--", "sh", "-c", script]) else {
        return;
    };
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0:0\n");
}

/// A command that cannot be run has env(1)'s statuses, and the image is clean.
#[test]
fn a_command_that_is_not_there() {
    need!(env::root(), env::fuse(), env::tools(&["e2fsck"]));
    let scratch = scratch();
    let image = image(&scratch);
    let text = scratch.join("text");
    std::fs::write(&text, "no program").unwrap();
    let missing = scratch.join("missing");
    let cases = [
        (Path::new("nonexistent-command"), 127),
        (&missing, 127),
        (&text, 126),
        (Path::new("/"), 126),
        (Path::new("true"), 0),
        (Path::new("false"), 1),
    ];
    for (program, status) in cases {
        let env = oracle::output(Command::new("env").arg(program)).unwrap();
        assert_eq!(env.status.code(), Some(status), "env(1): {}", program.display());
        let ran = crate::run::extant(&[&"exec", &image, &"--", &program]);
        assert_eq!(ran.status, status, "{}: {}", program.display(), ran.err);
        assert_eq!(ran.err.contains(program.to_str().unwrap()), status >= 126, "{}", ran.err);
        oracle::assert_clean(&image);
    }
}

/// Signals that ask it to end go to the command; the mount ends in order.
#[test]
fn a_signal_ends_the_command_and_leaves_the_image_clean() {
    need!(env::root(), env::fuse(), env::tools(&["e2fsck"]));
    let handled = "trap 'exit 5' TERM; echo started; read line";
    for (signal, last, status) in [
        (Signal::TERM, "echo started; exec cat", 128 + 15),
        (Signal::HUP, "echo started; exec cat", 128 + 1),
        (Signal::TERM, handled, 5),
    ] {
        let scratch = scratch();
        let image = image(&scratch);
        let tmp = scratch.join("tmp");
        std::fs::create_dir(&tmp).unwrap();
        let script = format!("echo content >$EXTANT_ROOT/file; {last}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_extant"));
        command.arg("exec").arg(&image).args(["--", "sh", "-c", &script]).env("TMPDIR", &tmp);
        let mut child = oracle::start(command.stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "started\n");
        let stdin = child.stdin.take();
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status), "{signal:?} {last}");
        drop(stdin);
        assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 0, "no folder is left");
        oracle::assert_clean(&image);
        let info = crate::run::ok(&[&"info", &image, &"--json"]).json();
        assert_eq!(info["needs_recovery"], false);
        assert_eq!(crate::run::ok(&[&"cat", &image, &"/file"]).text(), "content\n");
    }
}
