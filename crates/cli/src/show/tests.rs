use extant_format::inode::FileType;

use super::{mode, name, size, time, uuid};

#[test]
fn times_are_calendar_dates() {
    assert_eq!(time(0), "1970-01-01 00:00:00");
    assert_eq!(time(951_782_400), "2000-02-29 00:00:00");
    assert_eq!(time(-1), "1969-12-31 23:59:59");
    assert_eq!(time(15_032_385_535), "2446-05-10 22:38:55");
}

#[test]
fn sizes_have_three_digits() {
    assert_eq!(size(1023), "1023 B");
    assert_eq!(size(1536), "1.50 KiB");
    assert_eq!(size(200 << 20), "200 MiB");
    assert_eq!(size(u64::MAX), "16.0 EiB");
}

#[test]
fn modes_look_as_in_ls() {
    assert_eq!(mode(FileType::Regular, 0o4755), "-rwsr-xr-x");
    assert_eq!(mode(FileType::Directory, 0o1777), "drwxrwxrwt");
    assert_eq!(mode(FileType::Regular, 0o2644), "-rw-r-Sr--");
}

#[test]
fn names_cannot_draw_on_a_terminal() {
    assert_eq!(name(b"a\x1b[2Jb\xff\xc3\xa4"), "a\\u{1b}[2Jb\\xffä");
    assert_eq!(uuid(&[0xab; 16]), "abababab-abab-abab-abab-abababababab");
}
