//! Whether our checker and e2fsck agree on what is clean.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Shown;
use crate::rig::{Rig, quiet, tool};

/// Whether a checker calls the image clean (0), damaged (4) or unusable (8 and more).
fn verdict(command: &mut Command) -> Result<&'static str, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|err| format!("{command:?}: {err}"))?;
    match output.status.code() {
        Some(0) => Ok("clean"),
        // An image that cannot be checked at all is not clean either.
        Some(4 | 8 | 12) => Ok("not clean"),
        other => {
            Err(format!("{command:?}: exit status {other:?}: {}", String::from_utf8_lossy(&output.stderr)))
        }
    }
}

/// What both say of one image: `None` if the same.
fn disagree(rig: &Rig, image: &Path) -> Result<Option<String>, String> {
    let theirs = verdict(Command::new(tool("e2fsck")?).arg("-fn").arg(image))?;
    let ours = match verdict(Command::new(&rig.extant).args(["fsck", "-n", "-f"]).arg(image)) {
        Ok(verdict) => verdict,
        Err(err) => return Ok(Some(err)),
    };
    Ok((ours != theirs).then(|| format!("e2fsck says {theirs}, we say {ours}")))
}

/// All images of the folder `EXTANT_IMAGES`, packed or not.
pub(crate) fn images(rig: &Rig) -> Result<Shown, String> {
    let top = std::env::var_os("EXTANT_IMAGES").ok_or("EXTANT_IMAGES is not set: the folder of images")?;
    let mut todo = vec![PathBuf::from(top)];
    let (mut checked, mut wrong) = (0, Vec::new());
    while let Some(dir) = todo.pop() {
        let mut entries: Vec<PathBuf> = fs::read_dir(&dir)
            .map_err(|err| format!("{}: {err}", dir.display()))?
            .flatten()
            .map(|e| e.path())
            .collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let Some(image) = unpack(rig, &path)? else { continue };
            checked += 1;
            if let Some(what) = disagree(rig, &image)? {
                println!("  {}: {what}", path.display());
                wrong.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
            }
            fs::remove_file(&image).map_err(|err| err.to_string())?;
        }
    }
    let figure = format!("{} of {checked} verdicts differ: {}", wrong.len(), wrong.join(" "));
    Ok(Shown::new(figure, "0 differ", wrong.is_empty() && checked > 0))
}

/// A copy of an image in the scratch folder; none of what is no image.
fn unpack(rig: &Rig, path: &Path) -> Result<Option<PathBuf>, String> {
    let image = rig.dir.join("image");
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let reader: &[&str] = match name.rsplit('.').next() {
        Some("xz") => &["xz", "-dc"],
        Some("gz") => &["gzip", "-dc"],
        Some("img") => &["cat"],
        _ => return Ok(None),
    };
    let out = fs::File::create(&image).map_err(|err| err.to_string())?;
    let status = Command::new(reader[0]).args(&reader[1..]).arg(path).stdout(out).status();
    match status {
        Ok(status) if status.success() => Ok(Some(image)),
        other => Err(format!("{}: {other:?}", path.display())),
    }
}

/// Inode fields and the values that they are given.
const INODE_FIELDS: &[(&str, &[&str])] = &[
    ("mode", &["0", "0140644", "0170000"]),
    ("links_count", &["0", "7", "65535"]),
    ("size", &["1", "99999999", "4398046511104"]),
    ("blocks", &["0", "3", "99999"]),
    ("flags", &["0", "0x10000000", "0x80000", "0x1000", "0x20"]),
    ("dtime", &["1000000"]),
    ("file_acl", &["5", "99999999"]),
    ("extra_isize", &["3", "200"]),
    ("generation", &["12345"]),
    ("block[0]", &["0", "5"]),
    ("block[1]", &["1", "0xffffffff"]),
    ("block[2]", &["7"]),
    ("block[3]", &["1"]),
    ("block[4]", &["50000"]),
    ("block[5]", &["1", "99999999"]),
    ("uid", &["77"]),
    ("atime", &["0"]),
];

/// The inodes that are damaged: a file, a directory, a large directory, the journal, the resize inode, a link.
const INODES: &[&str] = &["<2>", "/file", "/dir", "/many", "<8>", "<7>", "/link"];

/// Superblock fields.
const SUPER_FIELDS: &[(&str, &[&str])] = &[
    ("inodes_count", &["1", "100000"]),
    ("blocks_count", &["64", "99999999"]),
    ("free_blocks_count", &["0", "3"]),
    ("free_inodes_count", &["0", "3"]),
    ("first_data_block", &["7"]),
    ("log_block_size", &["9"]),
    ("blocks_per_group", &["8", "33"]),
    ("inodes_per_group", &["1"]),
    ("state", &["0", "2"]),
    ("rev_level", &["9"]),
    ("first_ino", &["3"]),
    ("inode_size", &["100", "64"]),
    ("journal_inum", &["0", "11"]),
    ("last_orphan", &["12", "999999"]),
    ("desc_size", &["7"]),
    ("want_extra_isize", &["300"]),
    ("mnt_count", &["50"]),
    ("magic", &["1"]),
    ("def_hash_version", &["9"]),
    ("reserved_gdt_blocks", &["5", "9999"]),
];

/// Group descriptor fields, of group 0.
const GROUP_FIELDS: &[(&str, &[&str])] = &[
    ("block_bitmap", &["1", "99999999"]),
    ("inode_bitmap", &["1", "99999999"]),
    ("inode_table", &["1", "99999999"]),
    ("free_blocks_count", &["0", "9999"]),
    ("free_inodes_count", &["0", "9999"]),
    ("used_dirs_count", &["0", "999"]),
    ("itable_unused", &["0", "60000"]),
    ("flags", &["0", "7"]),
];

/// 200 images, each with one field changed through debugfs (which makes the checksums right again).
pub(crate) fn fields(rig: &Rig) -> Result<Shown, String> {
    let mut requests = Vec::new();
    for inode in INODES {
        for (field, values) in INODE_FIELDS {
            requests.extend(values.iter().map(|value| format!("set_inode_field {inode} {field} {value}")));
        }
    }
    for (field, values) in SUPER_FIELDS {
        requests.extend(values.iter().map(|value| format!("set_super_value {field} {value}")));
    }
    for (field, values) in GROUP_FIELDS {
        requests.extend(values.iter().map(|value| format!("set_block_group 0 {field} {value}")));
    }
    let base = base_image(rig)?;
    let image = rig.dir.join("damaged.img");
    let mut wrong = Vec::new();
    for request in &requests {
        fs::copy(&base, &image).map_err(|err| err.to_string())?;
        let mut debugfs = Command::new(tool("debugfs")?);
        quiet(debugfs.args(["-w", "-R", request]).arg(&image))?;
        if let Some(what) = disagree(rig, &image)? {
            println!("  {request}: {what}");
            wrong.push(request.clone());
        }
    }
    let count = requests.len();
    let figure = format!("{} of {count} verdicts differ: {}", wrong.len(), wrong.join(", "));
    Ok(Shown::new(figure, "0 of at least 200 differ", wrong.is_empty() && count >= 200))
}

/// A small image with a file, a directory, a directory of several blocks and a link.
fn base_image(rig: &Rig) -> Result<PathBuf, String> {
    let image = rig.dir.join("base.img");
    let tree = rig.dir.join("tree");
    let failed = |err: std::io::Error| err.to_string();
    fs::create_dir_all(tree.join("dir")).map_err(failed)?;
    fs::create_dir_all(tree.join("many")).map_err(failed)?;
    fs::write(tree.join("file"), vec![7; 50_000]).map_err(failed)?;
    fs::write(tree.join("dir/inner"), "inner").map_err(failed)?;
    for i in 0..300 {
        fs::write(tree.join(format!("many/a-name-that-fills-the-directory-{i}")), "").map_err(failed)?;
    }
    std::os::unix::fs::symlink("file", tree.join("link")).map_err(failed)?;
    let mut make = Command::new(tool("mke2fs")?);
    quiet(make.args(["-q", "-F", "-t", "ext4", "-b", "1024", "-d"]).arg(&tree).arg(&image).arg("16M"))?;
    fs::remove_dir_all(&tree).map_err(failed)?;
    Ok(image)
}
