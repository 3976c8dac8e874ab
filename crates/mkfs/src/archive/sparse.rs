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

/// Most ranges of data that a member may have: each stays in memory, and takes only a few bytes of a packed archive.
const MAX_RANGES: usize = 1 << 22;

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

/// Where data is, as far as it was read.
#[derive(Debug, Default)]
pub(super) struct Map {
    ranges: Vec<Data>,
    /// Of the last pair.
    end: u64,
    /// Bytes of data.
    sum: u64,
}

impl Map {
    /// Takes a pair of the map of the member `path`. One without bytes says no more than where the file ends, and is not kept.
    ///
    /// # Errors
    /// [`MkfsError::Member`]: before the end of the one before, or too many.
    pub(super) fn add(&mut self, offset: u64, len: u64, path: &Path) -> Result<()> {
        let Some(end) = offset.checked_add(len).filter(|_| offset >= self.end) else {
            return refuse(path, format!("its sparse map has {len} bytes at {offset}, which cannot be"));
        };
        self.end = end;
        if len == 0 {
            return Ok(());
        }
        // No more than `end`, since ranges do not overlap.
        self.sum += len;
        add_data(&mut self.ranges, offset, len);
        if self.ranges.len() > MAX_RANGES {
            return refuse(path, format!("its sparse map has more than {MAX_RANGES} ranges"));
        }
        Ok(())
    }

    /// The data of a file of `size` bytes, checked against the bytes that the archive holds.
    ///
    /// # Errors
    /// [`MkfsError::Member`]: a map that cannot be.
    pub(super) fn data(mut self, size: u64, stored: u64, path: &Path) -> Result<Vec<Data>> {
        let (end, sum) = (self.end, self.sum);
        if end > size {
            return refuse(path, format!("its sparse map ends at {end}, behind its {size} bytes"));
        }
        if sum != stored {
            return refuse(path, format!("its sparse map has {sum} bytes of data, the archive {stored}"));
        }
        self.ranges.shrink_to_fit();
        Ok(self.ranges)
    }
}

/// What the headers of a sparse member say.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Format 1.0.
    map_in_data: bool,
    /// Of the other formats.
    map: Map,
    /// An offset whose length is to come.
    offset: Option<u64>,
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
                if (name == b"offset") != self.offset.is_none() {
                    return refuse(path, "its sparse map has headers out of order");
                }
                self.number(number(value, path)?, path)?;
            }
            b"map" => {
                for part in value.split(|&b| b == b',').filter(|part| !part.is_empty()) {
                    self.number(number(part, path)?, path)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Offsets and lengths in turn.
    fn number(&mut self, number: u64, path: &Path) -> Result<()> {
        match self.offset.take() {
            Some(offset) => self.map.add(offset, number, path),
            None => {
                self.offset = Some(number);
                Ok(())
            }
        }
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

    /// The map; what of it is before the data is read.
    ///
    /// # Errors
    /// [`MkfsError::Member`], [`MkfsError::Source`].
    pub(super) fn map(self, data: &mut impl Read, path: &Path) -> Result<Map> {
        if !self.map_in_data {
            return match self.offset {
                None => Ok(self.map),
                Some(_) => refuse(path, "its sparse map ends within a pair"),
            };
        }
        let mut lines = Lines { data, path, block: [0; BLOCK], at: BLOCK };
        let count = lines.number()?;
        let mut map = Map::default();
        for _ in 0..count {
            // Each line is read from the archive: what it does not hold ends this.
            map.add(lines.number()?, lines.number()?, path)?;
        }
        Ok(map)
    }
}

/// Decimal numbers, one a line, from blocks before the data.
struct Lines<'a, R> {
    data: &'a mut R,
    path: &'a Path,
    block: [u8; BLOCK],
    at: usize,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> Result<u64> {
        let mut digits = Vec::with_capacity(20);
        loop {
            if self.at == BLOCK {
                self.data.read_exact(&mut self.block).map_err(|e| source_error(self.path, e))?;
                self.at = 0;
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
        let (size, mut left) = (sparse.size(path)?, data);
        let map = sparse.map(&mut left, path)?;
        let found = map.data(size, stored - (data.len() - left.len()) as u64, path)?;
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
        assert!(found(&[("size", "200"), ("map", "100,5,0,5")], b"", 10).is_err());
        let endless = [b'7'; 512];
        assert!(found(&[("major", "1"), ("realsize", "9")], &endless, 512).is_err());
        let mut short = b"4000000000\n1\n2\n".to_vec();
        short.resize(512, b'\n');
        assert!(found(&[("major", "1"), ("realsize", "9")], &short, 512).is_err());
    }

    #[test]
    fn only_so_many_ranges_and_none_without_bytes_are_kept() {
        let path = Path::new("member");
        let mut map = Map::default();
        for n in 0..MAX_RANGES as u64 {
            map.add(2 * n, 1, path).unwrap();
            map.add(2 * n + 1, 0, path).unwrap();
        }
        let end = 2 * MAX_RANGES as u64;
        // Joined to the last one.
        map.add(end - 1, 1, path).unwrap();
        assert_eq!(map.ranges.len(), MAX_RANGES);
        assert!(map.add(end + 1, 1, path).unwrap_err().to_string().contains("more than 4194304 ranges"));
    }
}
