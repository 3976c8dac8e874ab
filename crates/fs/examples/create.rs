//! Makes many empty files, prints the processor time that it took up to sync: `create IMAGE FILES DIRECTORIES [THREADS]`.
//! Each thread works in its own share of the directories.

use std::sync::Arc;

use extant::{Credentials, Filesystem, NewInode, Setup};
use extant_device::OpenOptions;

/// User and system time of this process so far, in milliseconds.
fn processor_ms() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").expect("proc");
    let fields: Vec<&str> = text.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks = |n: usize| fields[n].parse::<f64>().expect("number");
    (ticks(11) + ticks(12)) * 10.0
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (files, dirs): (u32, u32) = (args[2].parse().expect("files"), args[3].parse().expect("directories"));
    let device = OpenOptions::new().write(true).open(&args[1]).expect("image");
    let fs = Filesystem::open(Arc::new(device), Setup::default()).expect("mount");
    let cred = Credentials::root();
    let root = fs.root().expect("root");
    let start = processor_ms();
    let wall = std::time::Instant::now();
    let dirs: Vec<_> = (0..dirs)
        .map(|n| fs.mkdir(&root, format!("d{n}").as_bytes(), 0o755, &cred).expect("mkdir"))
        .collect();
    let threads: usize = args.get(4).map_or(1, |n| n.parse().expect("threads"));
    std::thread::scope(|scope| {
        for dirs in dirs.chunks(dirs.len().div_ceil(threads)) {
            let (fs, cred) = (&fs, &cred);
            let share = files / threads as u32;
            scope.spawn(move || {
                for n in 0..share {
                    let dir = &dirs[n as usize % dirs.len()];
                    fs.mknod(dir, format!("file{n}").as_bytes(), &NewInode::file(0o644), cred)
                        .expect("create");
                }
            });
        }
    });
    fs.sync().expect("sync");
    println!("{:.0} ms processor, {:.0} ms wall", processor_ms() - start, wall.elapsed().as_secs_f64() * 1e3);
    fs.unmount().expect("unmount");
}
