//! What may be under way in this process.

use std::io::{Read, Write};

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{AFTER_RING, UnderWay, all_over, has_ring_descriptor, of, rings_are_over, under_way};

#[test]
fn lines_of_threads() {
    let call = |number: i64| of(&format!("{number} 0x1 0x2\n"));
    assert_eq!((of("-1 0x7ffc 0x401000\n"), call(libc::SYS_futex)), (UnderWay::Nothing, UnderWay::Nothing));
    assert_eq!((of("running\n"), of("")), (UnderWay::ThreadsRun, UnderWay::Perhaps));
    for number in [libc::SYS_read, libc::SYS_preadv, libc::SYS_io_submit] {
        assert_eq!(call(number), UnderWay::Perhaps);
    }
}

#[test]
fn a_ring_is_over_half_a_minute_after_it_was_seen() {
    let start = Instant::now();
    let mut seen = None;
    assert!(rings_are_over(false, &mut seen, start));
    assert!(!rings_are_over(true, &mut seen, start));
    assert!(!rings_are_over(false, &mut seen, start + AFTER_RING - Duration::from_millis(1)));
    assert!(!rings_are_over(true, &mut seen, start + AFTER_RING));
    assert!(!rings_are_over(false, &mut seen, start + AFTER_RING));
    assert!(rings_are_over(false, &mut seen, start + 2 * AFTER_RING));
}

/// A descriptor that goes between the listing and the look at it leaves no doubt.
#[test]
fn descriptors_that_come_and_go_are_no_rings() {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let some: Vec<_> =
                    (0..50).map(|_| std::fs::File::open("/dev/null").expect("a file")).collect();
                drop(some);
            }
        });
        let looks: Vec<_> = (0..500).map(|_| has_ring_descriptor()).collect();
        stop.store(true, Ordering::Relaxed);
        for look in looks {
            look.expect("a look");
        }
    });
}

/// Registers a ring for the calling thread, which can then use it without a descriptor.
fn register(ring: &io_uring::IoUring) -> std::io::Result<()> {
    const IORING_REGISTER_RING_FDS: libc::c_uint = 20;
    // `struct io_uring_rsrc_update`: any place in the thread's table, and the ring.
    let mut update = [u64::from(u32::MAX), ring.as_raw_fd() as u64];
    // SAFETY: the system reads and writes one element of the table, which is there, and changes no other memory.
    let done = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            IORING_REGISTER_RING_FDS,
            update.as_mut_ptr(),
            1,
        )
    };
    if done == 1 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
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
    // One of which it is known that it does nothing of the kind.
    let (mut from, mut to) = std::io::pipe().expect("a pipe");
    let (send, said) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let _harmless = super::harmless();
        send.send(()).expect("said");
        from.read(&mut [0; 1]).expect("a byte")
    });
    said.recv().expect("said");
    while !all_over() {
        std::thread::yield_now();
    }
    to.write_all(&[1]).expect("a byte");
    assert_eq!(reading.join().expect("a thread"), 1);
    // A thread that was waited for may not be gone quite yet.
    while !all_over() {
        std::thread::yield_now();
    }
    if let Ok(ring) = io_uring::IoUring::new(2) {
        // One that works without a descriptor is the only one that was ever seen.
        register(&ring).expect("a ring that is registered");
        let ring = ManuallyDrop::new(ring);
        // SAFETY: nobody uses or closes the descriptor from here on: the ring is never dropped.
        drop(unsafe { OwnedFd::from_raw_fd(ring.as_raw_fd()) });
        assert_eq!(under_way(), UnderWay::Perhaps, "there is a ring, without a descriptor");
    }
    if let Ok(ring) = io_uring::IoUring::new(2) {
        assert_eq!(under_way(), UnderWay::Perhaps, "there is a ring");
        drop(ring);
        assert_eq!(under_way(), UnderWay::Perhaps, "its requests may run still");
    }
}

/// A wait with a limit that a signal, or a freezer, interrupts goes on in another call.
#[test]
fn an_interrupted_wait_is_one() {
    assert_eq!(of(&format!("{} 0x1 0x2\n", libc::SYS_restart_syscall)), UnderWay::Nothing);
}
