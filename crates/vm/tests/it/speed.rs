//! Micro-benchmarks, small and large; figures are printed, not judged.

use std::time::Instant;

use extant_vm::{CacheConfig, ReadAhead};

use crate::sim::SimFs;

fn rate(what: &str, bytes: usize, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{what}: {:.0} MB/s", bytes as f64 / 1e6 / seconds);
}

#[test]
fn write_sync_read() {
    for megabytes in [1_usize, 64] {
        let size = megabytes << 20;
        let fs = SimFs::new(4096, (size / 4096 + 10) as u64, CacheConfig::default());
        let file = fs.file(12);
        let data = vec![5; 128 << 10];
        let start = Instant::now();
        for at in (0..size).step_by(data.len()) {
            file.pages.write(&*file, at as u64, &data);
        }
        rate(&format!("{megabytes} MiB write"), size, start);
        let start = Instant::now();
        fs.cache.sync_all().expect("sync");
        rate(&format!("{megabytes} MiB sync"), size, start);
        let mut buf = vec![0; 128 << 10];
        let mut ahead = ReadAhead::default();
        let start = Instant::now();
        for at in (0..size).step_by(buf.len()) {
            file.pages.read(&*file, at as u64, &mut buf, &mut ahead).expect("read");
        }
        rate(&format!("{megabytes} MiB cached read"), size, start);
    }
}
