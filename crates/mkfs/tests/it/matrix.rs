//! The same options to mke2fs and to us: equal dumpe2fs, equal bytes.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use extant_device::{BlockDevice, FileDevice};
use extant_mkfs::{Conf, Options, Params, make};

use crate::support::{Scratch, TIME, UUID, assert_clean, run, text, tool};

/// Arguments after the UUID and before the image, and the size.
const MATRIX: &str = include_str!("matrix.txt");

struct Line {
    args: &'static str,
    size: &'static str,
    /// Why bytes differ, where they do.
    reason: Option<&'static str>,
}

fn matrix() -> impl Iterator<Item = Line> {
    let lines = MATRIX.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines.map(|line| {
        let (line, reason) = match line.split_once(" # ") {
            Some((line, reason)) => (line, Some(reason)),
            None => (line, None),
        };
        let (args, size) = line.rsplit_once(' ').unwrap();
        Line { args, size, reason }
    })
}

fn params(args: &str, size: &str) -> Params {
    let seed = format!("hash_seed={UUID}");
    let line = ["-U", UUID, "-E", &seed].into_iter().chain(args.split_whitespace()).chain(["image", size]);
    let command = extant_mkfs::cli::parse(line.map(Into::into)).unwrap();
    let options = Options { time: Some(TIME), ..command.options };
    let conf = Conf::load(Path::new("/etc/mke2fs.conf"));
    Params::resolve(&options, &conf, None).unwrap_or_else(|e| panic!("{args} {size}: {e}"))
}

fn make_theirs(mke2fs: &Path, args: &str, path: &Path, bytes: u64) {
    let _ = std::fs::remove_file(path);
    std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
    let seed = format!("hash_seed={UUID}");
    // A second -E would replace the first one.
    let joined = match args.split_once("-E ") {
        Some((before, after)) => format!("{before}-E {seed},{after}"),
        None => format!("{args} -E {seed}"),
    };
    let path = path.to_string_lossy().into_owned();
    let mut argv = vec!["-q", "-F", "-U", UUID];
    argv.extend(joined.split_whitespace());
    argv.push(&path);
    let out = run(mke2fs, &argv);
    assert!(out.status.success(), "{argv:?}: {}", text(&out));
}

#[test]
fn same_as_mke2fs() {
    let (Some(mke2fs), Some(dumpe2fs)) = (tool("mke2fs"), tool("dumpe2fs")) else { return };
    let scratch = Scratch::new();
    let mut wrong = Vec::new();
    for line in matrix() {
        if let Err(e) = check_line(&line, &scratch, &mke2fs, &dumpe2fs) {
            wrong.push(format!("{} {}: {e}", line.args, line.size));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn check_line(line: &Line, scratch: &Scratch, mke2fs: &Path, dumpe2fs: &Path) -> Result<(), String> {
    let (theirs, ours) = (scratch.path("theirs"), scratch.path("ours"));
    let p = params(line.args, line.size);
    let bytes = p.blocks_asked * u64::from(p.block_size);
    let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::create(&ours, bytes).unwrap());
    make(&p, device, true).map_err(|e| e.to_string())?;
    make_theirs(mke2fs, line.args, &theirs, bytes);
    assert_clean(&ours);
    let dump = |path: &Path| explained(&text(&run(dumpe2fs, &[&path.to_string_lossy()])));
    let (a, b) = (dump(&theirs), dump(&ours));
    for (a, b) in a.lines().zip(b.lines()) {
        if a != b {
            return Err(format!("dumpe2fs of mke2fs's image says '{a}', of ours '{b}'"));
        }
    }
    if a.lines().count() != b.lines().count() {
        return Err("dumpe2fs says more about one image".to_owned());
    }
    match (first_difference(&theirs, &ours), line.reason) {
        (None, None) | (Some(_), Some(_)) => Ok(()),
        (different, reason) => Err(format!("{different:?}, expected reason {reason:?}")),
    }
}

/// dumpe2fs's text without what must differ: how much was written, hence the superblock's checksum, and what is in
/// the MMP block (its clock and host).
fn explained(dump: &str) -> String {
    let differs = |l: &str| {
        ["Lifetime writes:", "Checksum:", "    mmp_"].iter().any(|p| l.starts_with(p))
            && !l.contains("mmp_magic")
    };
    dump.lines().filter(|l| !differs(l)).map(|l| format!("{l}\n")).collect()
}

/// Where either file has data, in blocks of 4 KiB.
fn data_blocks(file: &std::fs::File) -> std::collections::BTreeSet<u64> {
    use rustix::fs::{SeekFrom, seek};
    let (mut blocks, mut at) = (std::collections::BTreeSet::new(), 0);
    while let Ok(start) = seek(file, SeekFrom::Data(at)) {
        let end = seek(file, SeekFrom::Hole(start)).unwrap();
        blocks.extend(start / 4096..end.div_ceil(4096));
        at = end;
    }
    blocks
}

/// The first byte that differs, kilobytes written and checksum of superblocks apart.
fn first_difference(theirs: &Path, ours: &Path) -> Option<String> {
    let (a, b) = (std::fs::File::open(theirs).unwrap(), std::fs::File::open(ours).unwrap());
    let (mut x, mut y) = (vec![0; 4096], vec![0; 4096]);
    let mut all = data_blocks(&a);
    all.extend(data_blocks(&b));
    for block in all {
        let at = block * 4096;
        a.read_exact_at(&mut x, at).unwrap();
        b.read_exact_at(&mut y, at).unwrap();
        for piece in 0..4 {
            let (x, y) = (&x[piece * 1024..][..1024], &y[piece * 1024..][..1024]);
            let superblock = x[0x38..0x3a] == [0x53, 0xef];
            let excused = |i: usize| superblock && ((0x178..0x180).contains(&i) || i >= 0x3fc);
            if let Some(i) = (0..1024).find(|&i| x[i] != y[i] && !excused(i)) {
                let byte = at + piece as u64 * 1024 + i as u64;
                return Some(format!("byte {byte:#x}: mke2fs {:#04x}, we {:#04x}", x[i], y[i]));
            }
        }
    }
    None
}
