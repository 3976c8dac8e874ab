use zerocopy::IntoBytes;

use super::{DirBuffer, EntryOut, InitFlags, opcode};

#[test]
fn names_of_opcodes_are_at_their_places() {
    assert_eq!(opcode::name(opcode::LOOKUP), "LOOKUP");
    assert_eq!(opcode::name(opcode::FSYNC), "FSYNC");
    assert_eq!(opcode::name(opcode::DESTROY), "DESTROY");
    assert_eq!(opcode::name(opcode::STATX), "STATX");
    assert_eq!(opcode::name(opcode::COPY_FILE_RANGE_64), "COPY_FILE_RANGE_64");
    assert_eq!(opcode::name(99), "?");
}

#[test]
fn init_flags_travel_in_two_words() {
    let flags = InitFlags::ASYNC_READ | InitFlags::ALLOW_IDMAP;
    let (low, high) = flags.words();
    assert_eq!((low, high), (1, 1 << 8));
    assert_eq!(InitFlags::from_words(low, high), flags);
}

#[test]
fn directory_buffer_pads_names_and_stops_at_its_room() {
    let mut dir = DirBuffer::new(72);
    assert!(dir.push(12, 1, 4, b"lost+found"));
    assert_eq!(dir.bytes().len(), 24 + 16);
    assert_eq!(&dir.bytes()[24..40], b"lost+found\0\0\0\0\0\0");
    assert!(dir.push(13, 2, 8, b"12345678"));
    assert!(!dir.push(14, 3, 8, b"x"));
    assert_eq!(dir.bytes().len(), 72);
}

#[test]
fn directory_buffer_with_attributes() {
    let mut dir = DirBuffer::new(128 + 24 + 8);
    let entry = EntryOut { nodeid: 7, ..EntryOut::default() };
    assert!(dir.push_plus(&entry, 7, 1, 8, b"a"));
    assert_eq!(&dir.bytes()[..128], entry.as_bytes());
    assert!(!dir.fits_plus(b"b"));
}
