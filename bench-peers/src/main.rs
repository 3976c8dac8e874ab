//! `bench-peers read-tree|create IMAGE …` on rust-fs-ext4, `bench-peers mkfs DIR IMAGE BYTES` on mkext4. Prints the
//! same line of JSON as `extant-bench`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use fs_ext4::Filesystem;
use fs_ext4::block_io::FileDevice;
use mkext4::sink::FileSink;
use mkext4::{FsBuilder, InodeHandle, Meta, Options, ROOT};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Walks from the root and reads every regular file, in pieces of 256 KiB.
fn read_tree(image: &str) -> Result<(u64, u64)> {
    let fs = Filesystem::mount(Arc::new(FileDevice::open(image)?))?;
    let mut buf = vec![0; 256 << 10];
    let (mut entries, mut bytes, mut todo) = (0, 0, vec![2u32]);
    while let Some(dir) = todo.pop() {
        for entry in fs.read_dir_ino(dir)? {
            if entry.name == b"." || entry.name == b".." {
                continue;
            }
            entries += 1;
            let inode = fs.stat_ino(entry.inode)?;
            if inode.is_dir() {
                todo.push(entry.inode);
                continue;
            }
            let mut pos = 0;
            while inode.is_file() {
                match fs.read_ino(entry.inode, pos, &mut buf)? {
                    0 => break,
                    n => pos += n as u64,
                }
            }
            bytes += pos;
        }
    }
    Ok((entries, bytes))
}

fn create(image: &str, dirs: usize, files: usize, size: usize) -> Result<()> {
    let fs = Filesystem::mount(Arc::new(FileDevice::open_rw(image)?))?;
    let data = vec![0x5a; size];
    for d in 0..dirs {
        fs.apply_mkdir(&format!("/d{d:04}"), 0o755)?;
    }
    for f in 0..files {
        let path = format!("/d{:04}/file-{f:06}", f % dirs);
        fs.apply_create(&path, 0o644)?;
        fs.apply_pwrite(&path, 0, &data)?;
    }
    fs.flush()?;
    Ok(())
}

fn declare(b: &mut FsBuilder, dir: InodeHandle, path: &Path, fills: &mut Vec<(InodeHandle, PathBuf)>) -> Result<()> {
    let mut children = std::fs::read_dir(path)?.collect::<std::io::Result<Vec<_>>>()?;
    children.sort_by_key(std::fs::DirEntry::file_name);
    for child in children {
        let name = child.file_name().into_string().map_err(|_| "a name is not UTF-8")?;
        let stat = child.metadata()?;
        if stat.is_dir() {
            let sub = b.mkdir(dir, &name, Meta::new(0o755, 0, 0, (0, 0)))?;
            declare(b, sub, &child.path(), fills)?;
        } else {
            let file = b.file(dir, &name, Meta::new(0o644, 0, 0, (0, 0)), stat.len())?;
            if stat.len() > 0 {
                fills.push((file, child.path()));
            }
        }
    }
    Ok(())
}

fn mkfs(source: &str, image: &str, bytes: u64) -> Result<()> {
    let mut b = FsBuilder::new(Options::new(bytes, *b"benchmark-bench.", 0))?;
    let mut fills = Vec::new();
    declare(&mut b, ROOT, Path::new(source), &mut fills)?;
    let layout = b.seal()?;
    let mut sink = FileSink::create(Path::new(image), layout.image_len())?;
    let mut writer = layout.writer(&mut sink)?;
    for (file, path) in &fills {
        writer.fill(*file, &mut std::fs::File::open(path)?)?;
    }
    writer.finish()?;
    Ok(())
}

/// User plus system time of this process, from `/proc/self/stat` (clock ticks of 10 ms).
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let begin = Instant::now();
    let (mut entries, mut bytes) = (0, 0);
    match args.iter().map(String::as_str).collect::<Vec<_>>()[1..] {
        ["read-tree", image] => (entries, bytes) = read_tree(image)?,
        ["create", image, dirs, files, size] => create(image, dirs.parse()?, files.parse()?, size.parse()?)?,
        ["mkfs", source, image, size] => mkfs(source, image, size.parse()?)?,
        _ => return Err("usage: read-tree IMAGE | create IMAGE DIRS FILES SIZE | mkfs DIR IMAGE BYTES".into()),
    }
    let wall = begin.elapsed().as_secs_f64();
    println!(
        "{{\"wall_s\":{wall},\"cpu_s\":{},\"open_s\":0,\"close_cpu_s\":0,\"entries\":{entries},\"bytes\":{bytes},\
         \"peak_rss_kib\":0,\"device\":null}}",
        cpu_s()
    );
    Ok(())
}
