//! Records of PAX headers: `LEN KEY=VALUE` and a newline, where LEN counts the whole record in bytes. A value may hold
//! any byte.

use extant_format::Timestamp;

/// What keys of extended attributes begin with.
pub const XATTR: &[u8] = b"SCHILY.xattr.";
/// An access control list as text.
pub const ACL_ACCESS: &[u8] = b"SCHILY.acl.access";
/// A directory's default access control list as text.
pub const ACL_DEFAULT: &[u8] = b"SCHILY.acl.default";
/// The attribute that an access control list is.
pub const XATTR_ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that a default access control list is.
pub const XATTR_ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// The records of a header: keys and values in order; `None` for bytes that are no records.
#[must_use]
pub fn records(mut bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|b| *b == b' ')?;
        let digits =
            std::str::from_utf8(&bytes[..space]).ok().filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
        let len: usize = digits.parse().ok()?;
        let record = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|b| *b == b'=')?;
        found.push((&record[..equals], &record[equals + 1..]));
        bytes = &bytes[len..];
    }
    Some(found)
}

/// One record.
#[must_use]
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// The key of an extended attribute. A key ends at the first `=`: GNU tar writes `=` as `%3D` and `%` as `%25`.
#[must_use]
pub fn xattr_key(name: &[u8]) -> Vec<u8> {
    let mut key = XATTR.to_vec();
    for byte in name {
        match byte {
            b'=' => key.extend(b"%3D"),
            b'%' => key.extend(b"%25"),
            byte => key.push(*byte),
        }
    }
    key
}

/// The name of the extended attribute whose key is `XATTR` and `rest`.
#[must_use]
pub fn xattr_name(rest: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(rest.len());
    let mut at = 0;
    while let Some(byte) = rest.get(at) {
        // Other programs do not encode: what is neither of the two stays as it is.
        let (byte, len) = match rest.get(at..at + 3) {
            Some(b"%3D") => (b'=', 3),
            Some(b"%25") => (b'%', 3),
            _ => (*byte, 1),
        };
        name.push(byte);
        at += len;
    }
    name
}

/// A time as decimal seconds, with nine digits behind the point.
#[must_use]
pub fn time_text(time: Timestamp) -> Vec<u8> {
    let Timestamp { sec, nsec } = time;
    if sec < 0 && nsec > 0 {
        return format!("-{}.{:09}", -(sec + 1), 1_000_000_000 - nsec).into_bytes();
    }
    format!("{sec}.{nsec:09}").into_bytes()
}

/// Decimal seconds as a time; `None` for anything else. Digits behind the ninth are cut off.
#[must_use]
pub fn time(text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = format!("{fraction:0<9}");
    let (sec, nsec): (i64, u32) = (whole.parse().ok()?, digits.get(..9)?.parse().ok()?);
    if whole.starts_with('-') && nsec > 0 {
        return Some(Timestamp { sec: sec.checked_sub(1)?, nsec: 1_000_000_000 - nsec });
    }
    Some(Timestamp { sec, nsec })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_itself() {
        assert_eq!(record(b"path", b"abc"), b"12 path=abc\n");
        for len in [1, 80, 88, 89, 90, 91, 985, 990, 9983, 9990] {
            let record = record(b"key", &vec![b'x'; len]);
            let text = String::from_utf8(record.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse(), Ok(record.len()));
        }
    }

    #[test]
    fn values_hold_every_byte() {
        let every: Vec<u8> = (0..=255).collect();
        let lines = b"a\n13 path=evil\n\n".to_vec();
        let want: [(&[u8], &[u8]); 4] = [(b"a", &every), (b"b", b""), (b"c", &lines), (b"d", b"==\n")];
        let bytes: Vec<u8> = want.iter().flat_map(|(key, value)| record(key, value)).collect();
        assert_eq!(records(&bytes).unwrap(), want);
    }

    #[test]
    fn what_is_no_record_is_none() {
        for bad in [
            &b"12 path=abc"[..],
            b"11 path=abc\n",
            b"13 path=abc\n",
            b"+12 path=ab\n",
            b"9 pathabc\n",
            b"0 a=b\n",
            b"2 \n",
            b"x a=b\n",
            b"99999999999999999999999 a=b\n",
            b"6 a=b\n\0\0",
        ] {
            assert_eq!(records(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn attribute_names_survive_their_keys() {
        for name in [&b"user.a"[..], b"user.a=b%c", b"user.%3D%25", b"user.%", b"user.=", b"user.\xff\n"] {
            let key = xattr_key(name);
            assert!(!key.contains(&b'='));
            assert_eq!(xattr_name(key.strip_prefix(XATTR).unwrap()), name);
        }
        assert_eq!(xattr_key(b"user.a=b%c"), b"SCHILY.xattr.user.a%3Db%25c");
        assert_eq!(xattr_name(b"user.100%"), b"user.100%");
    }

    #[test]
    fn times_survive_their_text() {
        for (sec, nsec) in [(0, 0), (1, 500_000_000), (-1, 250_000_000), (-5, 0), (-5, 1), (1 << 34, 1)] {
            let stamp = Timestamp { sec, nsec };
            assert_eq!(time(&time_text(stamp)), Some(stamp), "{stamp:?}");
        }
        assert_eq!(time(b"7.1234567891"), Some(Timestamp { sec: 7, nsec: 123_456_789 }));
        for bad in [&b""[..], b"x", b"1.x", b"1.-5", b"99999999999999999999"] {
            assert_eq!(time(bad), None);
        }
    }
}
