use extant::Ino;

use super::{convert, ino_of, node_of};

#[test]
fn root_and_its_number_are_exchanged() {
    assert_eq!(node_of(Ino(2)), 1);
    assert_eq!(ino_of(1), Ok(Ino(2)));
    for node in [1, 2, 3, 11, 12, 4_000_000_000] {
        assert_eq!(node_of(ino_of(node).unwrap()), node);
    }
    assert!(ino_of(1 << 32).is_err());
}

#[test]
fn device_numbers_both_ways() {
    for word in [0, 0x0801, 0xfff0_0000 | 0xf_ff00 | 0xff, 0x1234_5678] {
        let device = convert::device_of(word);
        let again = device.minor & 0xff | (device.major & 0xfff) << 8 | (device.minor & 0xf_ff00) << 12;
        assert_eq!(again, word);
    }
}
