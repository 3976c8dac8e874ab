use std::io::IoSlice;

use extant_device::BlockDevice as _;

use super::{Content, Counts, Cut, Failpoint, Kind, SimDevice};

fn byte(content: &Content, at: u64) -> u8 {
    let mut buf = [0];
    content.read(at, &mut buf);
    buf[0]
}

#[test]
fn reads_back_what_was_written_across_chunks() {
    let dev = SimDevice::new(1 << 20);
    let data: Vec<u8> = (0..10_000).map(|i| i as u8).collect();
    dev.write_vectored_at(4000, &[IoSlice::new(&data[..7]), IoSlice::new(&data[7..])]).unwrap();
    let mut back = vec![0; data.len()];
    dev.read_at(4000, &mut back).unwrap();
    assert_eq!(back, data);
    dev.write_zeroes(4096, 8192).unwrap();
    dev.read_at(4000, &mut back).unwrap();
    assert_eq!(back[..96], data[..96]);
    assert!(back[96..96 + 8192].iter().all(|b| *b == 0));
    assert_eq!(back[96 + 8192..], data[96 + 8192..]);
    let expected = Counts { reads: 2, read_bytes: 20_000, writes: 2, written_bytes: 18_192, flushes: 0 };
    assert_eq!(dev.counts(), expected);
    assert!(dev.write_at((1 << 20) - 1, &[0, 0]).is_err(), "past the end");
}

#[test]
fn equal_contents_have_equal_digests_whatever_their_history() {
    let mut a = Content::zeroed(1 << 20);
    let mut b = Content::zeroed(1 << 20);
    a.write(5, b"x");
    a.write(70_000, b"y");
    b.write(70_000, b"y");
    b.write(8192, b"gone");
    b.write(5, b"x");
    assert_ne!(a.digest(), b.digest());
    b.write(8192, &[0; 4]);
    assert_eq!(a.digest(), b.digest());
}

#[test]
fn a_content_survives_a_file_sparsely() {
    let dir = crate::scratch();
    let mut content = Content::zeroed(64 << 20);
    content.write((40 << 20) + 17, b"data");
    content.to_file(&dir.join("image")).unwrap();
    let back = Content::from_file(&dir.join("image")).unwrap();
    assert_eq!(back.digest(), content.digest());
    assert_eq!(back.size(), 64 << 20);
}

#[test]
fn crash_states_keep_what_was_flushed_and_cut_what_was_not() {
    let dev = SimDevice::new(1 << 16);
    dev.write_at(0, &[1; 512]).unwrap();
    dev.flush().unwrap();
    dev.mark(7);
    dev.write_at(512, &[2; 1024]).unwrap();
    dev.write_at(4096, &[3; 512]).unwrap();
    dev.mark(8);
    let plan = dev.crash_plan(1);
    let states = plan.states();
    assert_eq!(states.len(), plan.len());
    for state in states.iter().filter(|s| s.epoch == 1) {
        assert_eq!(byte(&state.content, 0), 1, "flushed: {:?}", state.cut);
        assert!(state.marks.contains(&7));
    }
    let state = |epoch, cut: Cut| {
        states.iter().find(|s| s.epoch == epoch && s.cut == cut).unwrap_or_else(|| panic!("{epoch} {cut:?}"))
    };
    assert_eq!(byte(&state(0, Cut::Prefix(0)).content, 0), 0);
    assert_eq!(state(1, Cut::Prefix(1)).marks, [7], "8 was promised after the second write");
    assert_eq!(state(1, Cut::Dropped(0)).marks, [7, 8]);
    let dropped = &state(1, Cut::Dropped(0)).content;
    assert_eq!((byte(dropped, 512), byte(dropped, 4096)), (0, 3));
    let torn = &state(1, Cut::Torn(0, 0..1)).content;
    assert_eq!((byte(torn, 512), byte(torn, 1024), byte(torn, 4096)), (2, 0, 3));
    let torn = &state(1, Cut::Torn(0, 1..2)).content;
    assert_eq!((byte(torn, 512), byte(torn, 1024)), (0, 2));
    let whole = states.last().unwrap();
    assert_eq!(whole.cut, Cut::Whole);
    assert_eq!(whole.content.digest(), dev.content().digest());
    assert_eq!(states.iter().filter(|s| matches!(s.cut, Cut::Subset(_))).count(), 16);
}

#[test]
fn subsets_are_the_same_under_the_same_seed() {
    let dev = SimDevice::new(1 << 16);
    for i in 0..20 {
        dev.write_at(i * 1024, &[i as u8 + 1; 1024]).unwrap();
    }
    let digests =
        |seed| -> Vec<u64> { dev.crash_plan(seed).states().iter().map(|s| s.content.digest()).collect() };
    assert_eq!(digests(1), digests(1));
    assert_ne!(digests(1), digests(2));
}

#[test]
fn failpoints_fail_when_and_where_they_should() {
    let dev = SimDevice::new(1 << 16);
    dev.fail(Failpoint::nth(Kind::Write, 1));
    dev.write_at(0, &[1; 512]).unwrap();
    let err = dev.write_at(0, &[2; 512]).unwrap_err();
    assert_eq!(err.raw_os_error(), Some(5));
    assert_eq!(byte(&dev.content(), 0), 1, "a failed write changes nothing");
    dev.write_at(0, &[3; 512]).unwrap();

    dev.fail(Failpoint::all_from(Kind::Read, 0).within(4096..8192));
    let mut buf = [0; 512];
    dev.read_at(0, &mut buf).unwrap();
    dev.read_at(8192, &mut buf).unwrap();
    for _ in 0..3 {
        dev.read_at(4096, &mut buf).unwrap_err();
    }
    dev.heal();
    dev.read_at(4096, &mut buf).unwrap();

    dev.fail(Failpoint::nth(Kind::Flush, 0).with_errno(28));
    assert_eq!(dev.flush().unwrap_err().raw_os_error(), Some(28));
    dev.flush().unwrap();
    assert_eq!(dev.counts().flushes, 1);
}

#[test]
fn a_forced_write_is_there_without_those_before_it() {
    let dev = SimDevice::new(1 << 16);
    dev.write_at(0, &[1; 512]).unwrap();
    dev.write_fua_at(4096, &[IoSlice::new(&[2; 1024])]).unwrap();
    dev.mark(1);
    let states = dev.crash_plan(1).states();
    let state = |cut: Cut| states.iter().find(|s| s.cut == cut).unwrap_or_else(|| panic!("{cut:?}"));
    let none = state(Cut::Prefix(0));
    assert_eq!((byte(&none.content, 0), byte(&none.content, 4096)), (0, 2));
    assert_eq!(none.marks, [1]);
    assert_eq!(byte(&state(Cut::Prefix(1)).content, 4096), 0);
    let torn = state(Cut::Torn(1, 0..1));
    assert_eq!((byte(&torn.content, 4096), byte(&torn.content, 4608)), (2, 0));
    assert_eq!(torn.marks, [], "the write had not returned");
    for state in states.iter().filter(|s| s.marks == [1]) {
        assert_eq!(byte(&state.content, 4096), 2, "{:?}", state.cut);
    }
}
