//! Every call, its results and its error numbers, as the kernel's ext4 has them: the probes print, the outputs are compared.

use extant_testkit::{env, need};

use crate::support::{compare, python};

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

#[test]
fn extents() {
    probe(include_str!("probes/extents.py"));
}
