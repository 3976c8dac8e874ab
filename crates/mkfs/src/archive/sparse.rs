//! Members with holes. PAX archives have three formats, told apart by their headers; a fourth is GNU's own, which
//! `members` reads.
//!
//! | format | where the map is |
//! |---|---|
//! | 0.0 | pairs of headers `GNU.sparse.offset`, `GNU.sparse.numbytes` |
//! | 0.1 | one header `GNU.sparse.map`, numbers separated by commas |
//! | 1.0 | lines of decimal numbers before the data, filled up to 512 bytes |
//!
//! Source: GNU tar's manual, appendix "Sparse Formats".

use std::io::Read;
use std::path::Path;

use crate::error::{MkfsError, Result, source_error};

/// Unit of the map before the data.
const BLOCK: usize = 512;

/// A range of a file with holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// In the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Bytes of data before it: in an archive, data ranges follow each other.
    pub before: u64,
}

/// Adds a range behind the last one, joined to it where they touch.
pub(crate) fn add_data(ranges: &mut Vec<Data>, offset: u64, len: u64) {
    match ranges.last_mut() {
        Some(last) if last.offset + last.len == offset => last.len += len,
        last => {
            let before = last.map_or(0, |d| d.before + d.len);
            ranges.push(Data { offset, len, before });
        }
    }
}

/// What the headers of a sparse member say.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Format 1.0.
    map_in_data: bool,
    /// Offsets and lengths in turn, of the other formats.
    map: Vec<u64>,
}

impl PaxSparse {
    /// Takes a header `GNU.sparse.NAME` of the member `path`.
    ///
    /// # Errors
    /// [`MkfsError::Member`]: not a number, out of order, a format that is not known.
    pub(super) fn header(&mut self, name: &[u8], value: &[u8], path: &Path) -> Result<()> {
        match name {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number(value, path)?),
            b"major" => match number(value, path)? {
                0 => {}
                1 => self.map_in_data = true,
                other => return refuse(path, format!("sparse format {other} is unknown")),
            },
            b"offset" | b"numbytes" => {
                // They come in pairs, offset first.
                if (name == b"offset") != self.map.len().is_multiple_of(2) {
                    return refuse(path, "its sparse map has headers out of order");
                }
                self.map.push(number(value, path)?);
            }
            b"map" => {
                for part in value.split(|&b| b == b',').filter(|part| !part.is_empty()) {
                    self.map.push(number(part, path)?);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The member's own name; that of its header is made up.
    pub(super) fn name(&self) -> Option<&[u8]> {
        self.name.as_deref()
    }

    /// The size of the file.
    ///
    /// # Errors
    /// [`MkfsError::Member`]: it is not there.
    pub(super) fn size(&self, path: &Path) -> Result<u64> {
        self.size.map_or_else(|| refuse(path, "a sparse member without a size"), Ok)
    }

    /// The map, and how many bytes it takes before the data, which are read.
    ///
    /// # Errors
    /// [`MkfsError::Member`], [`MkfsError::Source`].
    pub(super) fn map(&self, data: &mut impl Read, path: &Path) -> Result<(Vec<u64>, u64)> {
        if !self.map_in_data {
            return Ok((self.map.clone(), 0));
        }
        let mut lines = Lines { data, path, block: [0; BLOCK], at: BLOCK, read: 0 };
        let count = lines.number()?;
        let mut map = Vec::new();
        for _ in 0..count {
            // Each line is read from the archive: what it does not hold ends this.
            map.push(lines.number()?);
            map.push(lines.number()?);
        }
        Ok((map, lines.read))
    }
}

/// The data of a file of `size` bytes, checked against the bytes that the archive holds.
///
/// # Errors
/// [`MkfsError::Member`]: a map that cannot be.
pub(super) fn ranges(size: u64, map: &[u64], stored: u64, path: &Path) -> Result<Vec<Data>> {
    if !map.len().is_multiple_of(2) {
        return refuse(path, "its sparse map ends within a pair");
    }
    let (mut ranges, mut end, mut sum) = (Vec::new(), 0, 0_u64);
    for pair in map.chunks_exact(2) {
        let (offset, len) = (pair[0], pair[1]);
        let Some(next) = offset.checked_add(len).filter(|&next| offset >= end && next <= size) else {
            return refuse(path, format!("its sparse map has {len} bytes at {offset}, which cannot be"));
        };
        (end, sum) = (next, sum + len);
        if len > 0 {
            add_data(&mut ranges, offset, len);
        }
    }
    if sum != stored {
        return refuse(path, format!("its sparse map has {sum} bytes of data, the archive {stored}"));
    }
    Ok(ranges)
}

/// Decimal numbers, one a line, from blocks before the data.
struct Lines<'a, R> {
    data: &'a mut R,
    path: &'a Path,
    block: [u8; BLOCK],
    at: usize,
    read: u64,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> Result<u64> {
        let mut digits = Vec::with_capacity(20);
        loop {
            if self.at == BLOCK {
                self.data.read_exact(&mut self.block).map_err(|e| source_error(self.path, e))?;
                (self.at, self.read) = (0, self.read + BLOCK as u64);
            }
            let byte = self.block[self.at];
            self.at += 1;
            if byte == b'\n' {
                return number(&digits, self.path);
            }
            if digits.len() == 20 {
                return refuse(self.path, "its sparse map has a number that does not end");
            }
            digits.push(byte);
        }
    }
}

fn number(text: &[u8], path: &Path) -> Result<u64> {
    let parsed = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok());
    match parsed {
        Some(number) if number <= i64::MAX as u64 => Ok(number),
        _ => refuse(path, format!("'{}' in its sparse headers is not a size", String::from_utf8_lossy(text))),
    }
}

fn refuse<T>(path: &Path, what: impl Into<String>) -> Result<T> {
    Err(MkfsError::Member { path: path.to_owned(), what: what.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse(headers: &[(&str, &str)]) -> Result<PaxSparse> {
        let mut sparse = PaxSparse::default();
        for (name, value) in headers {
            sparse.header(name.as_bytes(), value.as_bytes(), Path::new("member"))?;
        }
        Ok(sparse)
    }

    fn found(headers: &[(&str, &str)], data: &[u8], stored: u64) -> Result<Vec<(u64, u64, u64)>> {
        let (sparse, path) = (sparse(headers)?, Path::new("member"));
        let (map, len) = sparse.map(&mut &data[..], path)?;
        let found = ranges(sparse.size(path)?, &map, stored - len, path)?;
        Ok(found.iter().map(|d| (d.offset, d.len, d.before)).collect())
    }

    #[test]
    fn three_formats_say_the_same() {
        let want = vec![(0, 5, 0), (100, 7, 5)];
        let old = [
            ("size", "200"),
            ("numblocks", "3"),
            ("offset", "0"),
            ("numbytes", "5"),
            ("offset", "100"),
            ("numbytes", "7"),
            ("offset", "200"),
            ("numbytes", "0"),
        ];
        assert_eq!(found(&old, b"", 12).unwrap(), want);
        assert_eq!(found(&[("size", "200"), ("map", "0,5,100,7,200,0")], b"", 12).unwrap(), want);
        let mut block = b"3\n0\n5\n100\n7\n200\n0\n".to_vec();
        block.resize(512, 0);
        let new = [("major", "1"), ("minor", "0"), ("realsize", "200"), ("name", "x")];
        assert_eq!(found(&new, &block, 512 + 12).unwrap(), want);
    }

    #[test]
    fn maps_that_lie_are_refused() {
        for (headers, stored) in [
            (&[("size", "200"), ("map", "0,5,3,7")][..], 12),
            (&[("size", "200"), ("map", "0,5,199,7")], 12),
            (&[("size", "200"), ("map", "0,5,100")], 12),
            (&[("size", "200"), ("map", "0,5,100,7")], 13),
            (&[("map", "0,5")], 5),
            (&[("size", "200"), ("numbytes", "5")], 5),
            (&[("size", "9999999999999999999"), ("map", "0,5")], 5),
            (&[("major", "2")], 5),
        ] {
            assert!(found(headers, b"", stored).is_err(), "{headers:?}");
        }
        let endless = [b'7'; 512];
        assert!(found(&[("major", "1"), ("realsize", "9")], &endless, 512).is_err());
        let mut short = b"4000000000\n1\n2\n".to_vec();
        short.resize(512, b'\n');
        assert!(found(&[("major", "1"), ("realsize", "9")], &short, 512).is_err());
    }
}
