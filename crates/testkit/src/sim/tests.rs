use std::io::IoSlice;

use extant_device::BlockDevice as _;

use super::{Content, Counts, Cut, Failpoint, Kind, Mappable, SectorSet, SimDevice, sector_digest};

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

#[test]
fn a_write_is_torn_at_every_sector_both_ways() {
    let dev = SimDevice::new(1 << 16);
    dev.write_at(512, &[1; 4 * 512]).unwrap();
    dev.write_zeroes(8192, 1024).unwrap();
    let states = dev.crash_plan(1).states();
    let torn: Vec<_> = states.iter().map(|s| &s.cut).filter(|cut| matches!(cut, Cut::Torn(..))).collect();
    let expected = [(0, 0..1), (0, 1..4), (0, 0..2), (0, 2..4), (0, 0..3), (0, 3..4), (1, 0..1), (1, 1..2)];
    assert_eq!(torn, expected.map(|(i, part)| Cut::Torn(i, part)).iter().collect::<Vec<_>>());
    let state = states.iter().find(|s| s.cut == Cut::Torn(0, 2..4)).unwrap();
    let new = |sector: u64| byte(&state.content, sector * 512) == 1;
    assert_eq!([1, 2, 3, 4].map(new), [false, false, true, true]);
}

#[test]
fn sketches_are_the_states_without_their_contents() {
    let dev = SimDevice::new(1 << 16);
    dev.corrupt(0, |bytes| bytes.fill(9), 1 << 16);
    for i in 0..6u8 {
        dev.write_at(u64::from(i) * 1536, &vec![i; 2048]).unwrap();
        dev.mark(u64::from(i));
        match i {
            2 => dev.flush().unwrap(),
            3 => dev.write_zeroes(1024, 3072).unwrap(),
            4 => dev.write_fua_at(512, &[IoSlice::new(&[9; 1024])]).unwrap(),
            _ => {}
        }
    }
    let base = SimDevice::new(1 << 16);
    base.corrupt(0, |bytes| bytes.fill(9), 1 << 16);
    let base = base.content();
    let plan = dev.crash_plan(3);
    let mut states = plan.states().into_iter();
    let mut by_digest = std::collections::HashMap::new();
    plan.for_each_sketch(|sketch| {
        let state = states.next().expect("as many");
        assert_eq!((sketch.epoch, sketch.cut, sketch.marks), (state.epoch, &state.cut, &state.marks[..]));
        let (content, digest) = (sketch.content().digest(), sketch.digest());
        assert_eq!(content, state.content.digest());
        assert_eq!(*by_digest.entry(digest).or_insert(content), content, "equal digests, equal contents");
        for (sector, value) in sketch.sectors().iter().zip(sketch.values()) {
            let mut bytes = [0; 512];
            state.content.read(sector * 512, &mut bytes);
            assert_eq!(*value, sector_digest(&base, *sector, &bytes));
        }
    });
    assert!(states.next().is_none());
    let contents: std::collections::HashSet<u64> = by_digest.values().copied().collect();
    assert_eq!(contents.len(), by_digest.len(), "equal contents, equal digests");
    assert!(contents.len() > 20);
}

#[test]
fn a_footprint_is_what_was_read_first_and_what_was_written() {
    let dev = SimDevice::new(1 << 16);
    dev.read_at(0, &mut [0; 512]).unwrap();
    dev.watch();
    dev.write_at(1024, &[1; 1024]).unwrap();
    dev.read_at(1536, &mut [0; 1024]).unwrap();
    dev.write_at(4000, &[2; 1000]).unwrap();
    dev.write_zeroes(8192, 512).unwrap();
    dev.read_at(8000, &mut [0; 500]).unwrap();
    let footprint = dev.footprint().unwrap();
    let sectors = |set: &SectorSet| set.iter().collect::<Vec<_>>();
    assert_eq!(sectors(&footprint.read), [4, 7, 9, 15], "5 to 6 were never read, 8 written whole");
    assert_eq!(sectors(&footprint.written), [2, 3, 7, 8, 9, 16]);
    assert!(footprint.read.contains(15) && !footprint.read.contains(16));
    assert!(dev.footprint().is_none());
}

#[test]
fn stores_are_recorded_line_by_line() {
    let dev = Mappable::from_content(Content::zeroed(1 << 16));
    let mapping = dev.direct_access().expect("it is memory");
    dev.write_at(0, &[1; 512]).unwrap();
    // As a store: the device sees no call.
    mapping.write_at(4000, &[2; 100]).unwrap();
    dev.note_stores();
    mapping.write_at(60_000, &[3]).unwrap();
    dev.flush().unwrap();
    mapping.write_at(0, &[4]).unwrap();
    assert_eq!(byte(&dev.record().content(), 0), 1, "nobody has looked since");
    dev.note_stores();
    let plan = dev.record().crash_plan(1);
    let seen: Vec<[u8; 4]> =
        plan.states().iter().map(|s| [0, 4031, 4032, 60_000].map(|at| byte(&s.content, at))).collect();
    // In the first epoch each line is there or not, whatever the others are; in the second they are all there.
    for state in [[0, 0, 0, 0], [1, 0, 0, 0], [1, 2, 0, 0], [1, 0, 2, 3], [1, 2, 0, 3], [1, 2, 2, 0]] {
        assert!(seen.contains(&state), "{state:?} of {seen:?}");
    }
    assert!(seen.contains(&[1, 2, 2, 3]) && seen.contains(&[4, 2, 2, 3]));
    assert!(seen.iter().all(|state| state[0] != 4 || *state == [4, 2, 2, 3]), "{seen:?}");
    // And the sketches of the same states have the same contents.
    let mut sketches = Vec::new();
    plan.for_each_sketch(|sketch| sketches.push((sketch.digest(), sketch.content().digest())));
    assert_eq!(sketches.len(), seen.len());
    for ((digest, content), state) in sketches.iter().zip(plan.states()) {
        assert_eq!(*content, state.content.digest());
        assert_eq!(*digest == 0, *content == Content::zeroed(1 << 16).digest());
    }
}
