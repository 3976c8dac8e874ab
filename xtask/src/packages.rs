//! System packages: found out by the programs that they bring, installed where that is possible.

use std::process::Command;

use crate::proc;

/// Program and Debian package that the tests and the demo use.
pub(crate) const FOR_TESTS: &[(&str, &str)] = &[
    ("mke2fs", "e2fsprogs"),
    ("fusermount3", "fuse3"),
    ("getfattr", "attr"),
    ("setfacl", "acl"),
    ("xz", "xz-utils"),
    ("losetup", "mount"),
    ("tar", "tar"),
];

/// Makes sure that the programs are there; else says exactly what to run.
pub(crate) fn ensure(wanted: &[(&str, &str)]) -> Result<(), String> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| proc::find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand =
        format!("apt-get update && apt-get install -y --no-install-recommends {}", missing.join(" "));
    if proc::find("apt-get").is_none() {
        return Err(format!("missing: {}; on Debian or Ubuntu, as root: {by_hand}", missing.join(" ")));
    }
    let Some(prefix) = privilege() else {
        return Err(format!("missing: {}; run: sudo sh -c '{by_hand}'", missing.join(" ")));
    };
    println!("installing {}", missing.join(" "));
    let apt = |args: &[&str]| {
        let words: Vec<&str> =
            prefix.iter().chain(&["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]).copied().collect();
        proc::succeeds(Command::new(words[0]).args(&words[1..]).args(args))
    };
    let install = [&["install", "-y", "-q", "--no-install-recommends"][..], &missing[..]].concat();
    // The lists on the machine may be good enough, and the network away.
    if apt(&install)? || (apt(&["update", "-q"])? && apt(&install)?) {
        return Ok(());
    }
    Err(format!("could not install {}; as root: {by_hand}", missing.join(" ")))
}

/// What to put before a command to be root without being asked anything.
fn privilege() -> Option<&'static [&'static str]> {
    let id = proc::output(Command::new("id").arg("-u")).ok()?;
    if id.trim() == "0" {
        return Some(&[]);
    }
    let quiet = Command::new("sudo").args(["-n", "true"]).output().ok()?;
    quiet.status.success().then_some(&["sudo", "-n"])
}
