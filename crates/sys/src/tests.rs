//! Tests of the safe interfaces.

use std::io::{Seek, SeekFrom, Write};

use crate::{MemSlice, PagePool, preadv, pwritev, writev};

#[test]
fn an_end_at_once_runs_no_handler() {
    extern "C" fn handler() {
        std::fs::write(std::env::var_os("EXTANT_AT_EXIT").unwrap(), b"it ran").unwrap();
    }
    if std::env::var_os("EXTANT_AT_EXIT").is_some() {
        // SAFETY: the handler is a function of this program, which is not unloaded.
        assert_eq!(unsafe { libc::atexit(handler) }, 0);
        crate::exit_at_once(70);
    }
    let trace = std::env::temp_dir().join(format!("extant-sys-at-exit-{}", std::process::id()));
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "tests::an_end_at_once_runs_no_handler"]).env("EXTANT_AT_EXIT", &trace);
    assert_eq!(command.output().unwrap().status.code(), Some(70));
    let ran = std::fs::remove_file(&trace).is_ok();
    assert!(!ran);
}

#[test]
fn copies_go_in_and_out() {
    let mut memory = vec![0_u8; 100];
    let mem = MemSlice::from_mut(&mut memory);
    mem.copy_from(10, b"hello");
    mem.slice(8, 10).copy_from(7, b"abc");
    mem.zero(11, 2);
    let mut out = [0xFF; 10];
    mem.copy_to(8, &mut out);
    assert_eq!(&out, b"\0\0h\0\0loabc");
}

#[test]
#[should_panic(expected = "5 bytes at 96 of 100")]
fn out_of_range_panics() {
    let mut memory = vec![0_u8; 100];
    MemSlice::from_mut(&mut memory).copy_from(96, b"hello");
}

#[test]
#[should_panic(expected = "of 100")]
fn an_overflowing_range_panics() {
    let mut memory = vec![0_u8; 100];
    let _ = MemSlice::from_mut(&mut memory).slice(2, usize::MAX);
}

#[test]
fn vectored_io_reaches_a_file() {
    let dir = std::env::temp_dir().join(format!("extant-sys-{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&dir)
        .expect("a file");
    std::fs::remove_file(&dir).expect("remove it");
    file.write_all(&[7; 64]).expect("write");
    file.seek(SeekFrom::Start(0)).expect("seek");

    let (mut a, mut b) = (vec![1_u8; 16], vec![2_u8; 16]);
    let bufs = [MemSlice::from_mut(&mut a), MemSlice::from_mut(&mut b)];
    assert_eq!(pwritev(&file, &bufs, 40).expect("pwritev"), 32);
    assert_eq!(preadv(&file, &bufs, 32).expect("preadv"), 32);
    assert_eq!(
        (&a[..], &b[..]),
        (
            &[7, 7, 7, 7, 7, 7, 7, 7, 1, 1, 1, 1, 1, 1, 1, 1][..],
            &{
                let mut want = [2; 16];
                want[..8].fill(1);
                want
            }[..]
        )
    );
    assert_eq!(preadv(&file, &[MemSlice::from_mut(&mut a)], 1000).expect("past the end"), 0);
}

#[test]
fn a_message_is_a_head_and_pages() {
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let pool = PagePool::new(4096);
    // The first two lie behind each other, the last one does not.
    let pages = [pool.take(), pool.take(), pool.take()];
    for (page, value) in pages.iter().zip([1, 2, 3]) {
        page.mem().copy_from(0, &[value; 4096]);
    }
    let parts = [pages[0].mem().slice(4090, 6), pages[1].mem().slice(0, 3), pages[2].mem().slice(7, 2)];
    assert_eq!(writev(&write, b"head", &parts).expect("writev"), 15);
    let mut got = [0; 20];
    let n = rustix::io::read(&read, &mut got).expect("read");
    assert_eq!(&got[..n], b"head\x01\x01\x01\x01\x01\x01\x02\x02\x02\x03\x03");
}

#[test]
fn a_memory_file_has_pages_that_can_be_given_back() {
    let file = crate::MemFile::new("extant-test", 4096).expect("a memory file");
    file.resize(3 * 4096).expect("resize");
    let (one, two) = (file.page(1).expect("view"), file.page(2).expect("view"));
    assert!(one.is_of_file() && !PagePool::new(4096).take().is_of_file());
    one.mem().copy_from(0, b"one");
    two.mem().copy_from(4090, b"two");
    let mut seen = [0; 3];
    assert_eq!(rustix::io::pread(&*file, &mut seen, 4096).expect("pread"), 3);
    assert_eq!(&seen, b"one");
    file.discard(1..2).expect("punch");
    file.page(1).expect("view").mem().copy_to(0, &mut seen);
    assert_eq!(&seen, &[0; 3], "a page that was given back is full of zeros");
    two.mem().copy_to(4090, &mut seen);
    assert_eq!(&seen, b"two");
    // Far apart, in windows of their own.
    file.resize(1 << 40).expect("resize");
    file.page((1 << 28) - 1).expect("view").mem().copy_from(0, b"far");
    assert_eq!(rustix::io::pread(&*file, &mut seen, (1 << 40) - 4096).expect("pread"), 3);
    assert_eq!(&seen, b"far");
}
