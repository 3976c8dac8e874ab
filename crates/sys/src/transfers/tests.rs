//! What may be under way in this process.

use std::io::{Read, Write};

use super::{all_over, waits};

#[test]
fn lines_of_threads() {
    assert!(waits("-1 0x7ffc 0x401000\n") && waits(&format!("{} 0x1 0x2\n", libc::SYS_futex)));
    assert!(!waits("running\n") && !waits("") && !waits(&format!("{} 0x1 0x2\n", libc::SYS_read)));
    assert!(!waits(&format!("{} 0x1\n", libc::SYS_preadv)) && !waits(&format!("{}\n", libc::SYS_io_submit)));
}

/// In a process of its own, in which no other test runs.
#[test]
fn what_is_under_way_is_seen() {
    const ASKED: &str = "EXTANT_TRANSFERS";
    if std::env::var_os(ASKED).is_none() {
        let program = std::env::current_exe().expect("this program");
        let name = "transfers::tests::what_is_under_way_is_seen";
        let mut command = std::process::Command::new(program);
        let output =
            command.args(["--exact", name, "--nocapture"]).env(ASKED, "1").output().expect("a program");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    if std::fs::read_to_string("/proc/sys/fs/aio-nr").ok().as_deref() != Some("0\n") {
        println!("skipped: a program of the system uses libaio");
        return;
    }
    // The thread that waits for this test may not have begun to.
    while !all_over() {
        std::thread::yield_now();
    }
    let (mut from, mut to) = std::io::pipe().expect("a pipe");
    let reading = std::thread::spawn(move || from.read(&mut [0; 1]).expect("a byte"));
    assert!(!all_over(), "a thread runs, or reads");
    to.write_all(&[1]).expect("a byte");
    assert_eq!(reading.join().expect("a thread"), 1);
    // A thread that was waited for may not be gone quite yet.
    while !all_over() {
        std::thread::yield_now();
    }
    if let Ok(ring) = io_uring::IoUring::new(2) {
        assert!(!all_over(), "there is a ring");
        drop(ring);
        assert!(all_over(), "the ring is gone");
    }
}
