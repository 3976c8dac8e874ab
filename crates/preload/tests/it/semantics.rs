//! Every call, its results and its error numbers, as the kernel's ext4 has them: the probes print, the outputs are compared.

use extant_testkit::{env, need, oracle};

use crate::support::{Image, compare, python, said};

const COMMON: &str = include_str!("probes/common.py");

#[track_caller]
fn probe(text: &str) {
    probe_on("-t ext4 -b 1024", text);
}

#[track_caller]
fn probe_on(mkfs: &str, text: &str) {
    need!(env::kernel_mounts());
    let Some(python) = python() else {
        println!("skipped: no python3 on this machine");
        return;
    };
    compare(mkfs, &python, &["-c", &format!("{COMMON}\n{text}")]);
}

#[test]
fn opening() {
    probe(include_str!("probes/opening.py"));
}

#[test]
fn content() {
    probe(include_str!("probes/content.py"));
}

#[test]
fn names() {
    probe(include_str!("probes/names.py"));
}

#[test]
fn attributes() {
    probe(include_str!("probes/attributes.py"));
}

#[test]
fn directories() {
    probe(include_str!("probes/directories.py"));
}

#[test]
fn descriptors_and_locks() {
    probe(include_str!("probes/descriptors.py"));
}

#[test]
fn streams() {
    probe(include_str!("probes/streams.py"));
}

#[test]
fn asynchronous_requests() {
    probe(include_str!("probes/aio.py"));
}

/// Caller memory that lies in a mapping of the very file (S0-E).
#[test]
fn buffers_in_a_mapping() {
    for mkfs in ["-t ext4 -b 1024", "-t ext4 -b 4096", "-t ext4 -b 1024 -O inline_data"] {
        probe_on(mkfs, include_str!("probes/mapped.py"));
    }
}

#[test]
fn ranges() {
    probe(include_str!("probes/ranges.py"));
}

/// RLIMIT_FSIZE of the program is the one of its files, whatever the image needs.
#[test]
fn limited_sizes() {
    probe(include_str!("probes/limit.py"));
}

#[test]
fn mappings_past_all_files() {
    for mkfs in ["-t ext4 -b 1024", "-t ext4 -b 4096"] {
        probe_on(mkfs, include_str!("probes/far.py"));
    }
}

#[test]
fn extents() {
    probe(include_str!("probes/extents.py"));
}

/// MAP_SYNC is what the mount can keep: in DAX mode on a device that is persistent memory, or is declared so.
#[test]
fn map_sync() {
    need!(env::tools(&["mke2fs"]), userfaultfd());
    let Some(python) = python() else {
        println!("skipped: no python3 on this machine");
        return;
    };
    let program = "
fd = os.open('f', os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8192)
for kind in (3, 1, 2):
    def stored():
        at = c('mmap', None, 8192, 3, kind | 0x80000, fd, 0)
        ctypes.memset(at + 4096, 0x40 + kind, 1)
        c('munmap', ctypes.c_void_p(at), 8192)
        return os.pread(fd, 1, 4096)
    show('MAP_SYNC', stored)
";
    for (options, wanted) in
        [("dax=always,pmem=on", true), ("dax=always", false), ("dax=inode,pmem=on", false)]
    {
        let image = Image::new("-t ext4 -b 4096");
        let mut command = image.command(&python);
        command.args(["-c", &format!("{COMMON}\n{program}")]).env("EXTANT_OPTIONS", options);
        let output = said(&oracle::output(&mut command).expect("program"));
        println!("{options}:\n{output}");
        let lines: Vec<&str> = output.lines().filter(|line| line.starts_with("MAP_SYNC")).collect();
        // The private one's store is its own.
        let each = if wanted { ["b'C'", "b'A'", "b'A'"] } else { ["ENOTSUP"; 3] };
        assert!(
            lines.len() == 3 && lines.iter().zip(each).all(|(line, each)| line.contains(each)),
            "{options}: {output}"
        );
        image.assert_clean();
    }
}

fn userfaultfd() -> Result<(), String> {
    std::fs::File::open("/dev/userfaultfd").map(drop).map_err(|e| format!("/dev/userfaultfd: {e}"))
}
