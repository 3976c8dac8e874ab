//! What archives are packed with: gzip (RFC 1952), zstd (RFC 8878), xz (its file format 1.2.1).

use std::io::{self, BufRead, BufReader, Read};

use super::Input;

/// Bytes of an archive that are read ahead.
const AHEAD: usize = 256 << 10;

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// It is not.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// xz.
    Xz,
}

impl Packing {
    /// Bytes that [`Self::of`] wants.
    pub(crate) const MAGIC: usize = 6;

    /// By the first bytes.
    pub(crate) fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Self::Xz,
            _ => Self::None,
        }
    }
}

/// An archive without its packing.
pub struct Unpacked<'a> {
    stream: BufReader<Box<dyn Read + 'a>>,
    packing: Packing,
}

impl std::fmt::Debug for Unpacked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacked").field("packing", &self.packing).finish_non_exhaustive()
    }
}

impl<'a> Unpacked<'a> {
    /// Of what `raw` holds, packed or not: its first bytes say.
    ///
    /// # Errors
    /// Of reading those.
    pub fn new(mut raw: Box<dyn Read + 'a>) -> io::Result<Self> {
        let mut magic = Vec::new();
        raw.by_ref().take(Packing::MAGIC as u64).read_to_end(&mut magic)?;
        let packing = Packing::of(&magic);
        let whole = BufReader::with_capacity(AHEAD, io::Cursor::new(magic).chain(raw));
        let stream: Box<dyn Read + 'a> = match packing {
            Packing::None => Box::new(whole),
            Packing::Gzip => Box::new(GzipMembers(Some(flate2::bufread::GzDecoder::new(whole)))),
            Packing::Zstd => Box::new(zstd::Decoder::with_buffer(whole)?),
            Packing::Xz => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(whole)),
        };
        Ok(Self { stream: BufReader::with_capacity(AHEAD, stream), packing })
    }
}

impl Read for Unpacked<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buf)
    }
}

impl Input for Unpacked<'_> {
    fn finish(&mut self) -> io::Result<()> {
        match self.packing {
            // What stands behind an archive is nobody's.
            Packing::None => Ok(()),
            _ => io::copy(&mut self.stream, &mut io::sink()).map(drop),
        }
    }
}

/// The members of a gzip file, one behind the other, and zeros behind the last, which whole blocks on a tape bring.
struct GzipMembers<R>(Option<flate2::bufread::GzDecoder<R>>);

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let got = member.read(buf)?;
            if got > 0 || buf.is_empty() {
                return Ok(got);
            }
            let behind = self.0.take().map(flate2::bufread::GzDecoder::into_inner);
            if let Some(mut behind) = behind
                && !at_end(&mut behind)?
            {
                self.0 = Some(flate2::bufread::GzDecoder::new(behind));
            }
        }
        Ok(0)
    }
}

/// Passes over zeros; whether nothing else follows.
fn at_end(stream: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = stream.fill_buf()?;
        if bytes.is_empty() {
            return Ok(true);
        }
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        let all = zeros == bytes.len();
        stream.consume(zeros);
        if !all {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    /// What is read of it, the first `len` bytes by itself and the rest as what follows the archive.
    fn read(packed: &[u8], len: usize) -> io::Result<Vec<u8>> {
        let mut unpacked = Unpacked::new(Box::new(packed))?;
        let mut bytes = vec![0; len];
        unpacked.read_exact(&mut bytes)?;
        unpacked.finish()?;
        Ok(bytes)
    }

    #[test]
    fn gzip_members_follow_each_other_and_zeros_the_last() {
        let two = [gzip(b"one, "), gzip(b"two")].concat();
        assert_eq!(read(&two, 8).unwrap(), b"one, two");
        assert_eq!(read(&[&two[..], &[0; 10_000]].concat(), 8).unwrap(), b"one, two");
        let junk = read(&[&two[..], b"junk, and more than a header of it"].concat(), 8).unwrap_err();
        assert!(junk.to_string().contains("gzip"), "{junk}");
        let zeros_and_junk = [&two[..], &[0; 10], b"junk, and more than a header of it"].concat();
        assert!(read(&zeros_and_junk, 8).is_err());
    }

    #[test]
    fn what_is_wrong_behind_the_archive_is_found() {
        let bytes = vec![7; 10_000];
        let xz = {
            let mut out = liblzma::write::XzEncoder::new(Vec::new(), 0);
            out.write_all(&bytes).unwrap();
            out.finish().unwrap()
        };
        let zstd = {
            let mut out = zstd::Encoder::new(Vec::new(), 1).unwrap();
            out.include_checksum(true).unwrap();
            out.write_all(&bytes).unwrap();
            out.finish().unwrap()
        };
        for (name, whole) in [("gzip", gzip(&bytes)), ("xz", xz), ("zstd", zstd)] {
            assert_eq!(read(&whole, 9000).unwrap(), bytes[..9000], "{name}");
            for cut in 1..=4 {
                assert!(read(&whole[..whole.len() - cut], 9000).is_err(), "{name} without {cut} bytes");
            }
            let mut wrong = whole.clone();
            // Of gzip the length, of the others the sum.
            let at = if name == "xz" { whole.len() - 6 } else { whole.len() - 1 };
            wrong[at] ^= 1;
            assert!(read(&wrong, 9000).is_err(), "{name}");
        }
        // Not packed: what follows is not the archive's.
        assert_eq!(read(&bytes, 10).unwrap(), [7; 10]);
    }
}
