//! Directory hashes: the number by which an indexed directory sorts its names.
//!
//! `s_def_hash_version` and `dx_root_info.hash_version` choose among three families (legacy, half-MD4, TEA), each in a
//! form that reads name bytes as signed and one as unsigned characters: a historic accident of the C `char` type that
//! the superblock's `s_flags` records. SipHash is used by directories that are both encrypted and casefolded; it needs
//! the directory's key, so such hashes are only ever read back from the entries that store them.
//!
//! Sources: kernel documentation `filesystems/ext4/directory.rst` (hash tree directories) and what
//! `debugfs dx_hash` answers, which the tests compare with.

/// Which hash an indexed directory is sorted by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum HashVersion {
    /// The first hash ext3 had, name bytes signed.
    Legacy = 0,
    /// Half of MD4, name bytes signed; the default of mke2fs.
    HalfMd4 = 1,
    /// The Tiny Encryption Algorithm as a hash, name bytes signed.
    Tea = 2,
    /// [`HashVersion::Legacy`] over unsigned name bytes.
    LegacyUnsigned = 3,
    /// [`HashVersion::HalfMd4`] over unsigned name bytes.
    HalfMd4Unsigned = 4,
    /// [`HashVersion::Tea`] over unsigned name bytes.
    TeaUnsigned = 5,
    /// SipHash-2-4 under the directory's key; recognised, not computed.
    SipHash = 6,
}

impl HashVersion {
    /// The version that the on-disk byte `raw` names, if it names one.
    #[must_use]
    pub const fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => Self::Legacy,
            1 => Self::HalfMd4,
            2 => Self::Tea,
            3 => Self::LegacyUnsigned,
            4 => Self::HalfMd4Unsigned,
            5 => Self::TeaUnsigned,
            6 => Self::SipHash,
            _ => return None,
        })
    }

    /// The on-disk byte.
    #[must_use]
    pub const fn raw(self) -> u8 {
        self as u8
    }

    /// The version that is computed for a directory that says `self` on a filesystem whose superblock says
    /// `unsigned` (`s_flags` bit 2): the three plain versions turn into their unsigned forms.
    #[must_use]
    pub const fn resolve(self, unsigned: bool) -> Self {
        match (self, unsigned) {
            (Self::Legacy, true) => Self::LegacyUnsigned,
            (Self::HalfMd4, true) => Self::HalfMd4Unsigned,
            (Self::Tea, true) => Self::TeaUnsigned,
            _ => self,
        }
    }

    /// The plain (signed) version of the same family: what `dx_root_info.hash_version` holds on disk.
    #[must_use]
    pub const fn family(self) -> Self {
        match self {
            Self::LegacyUnsigned => Self::Legacy,
            Self::HalfMd4Unsigned => Self::HalfMd4,
            Self::TeaUnsigned => Self::Tea,
            _ => self,
        }
    }
}

/// The hash of a name: `major` sorts the tree (its lowest bit is always 0), `minor` only breaks ties of readdir cookies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct DirHash {
    /// Sort key of the tree; bit 0 is 0, so that the index can mark continued collisions with it.
    pub major: u32,
    /// Tie breaker; 0 for the legacy hash.
    pub minor: u32,
}

/// The largest `major` that a name may have; the value above it means "end of directory" in readdir cookies.
pub const MAX_MAJOR: u32 = 0xffff_fffc;

/// How the names of one directory are hashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hasher {
    version: HashVersion,
    seed: [u32; 4],
}

/// What the hash families start from when the superblock's seed is all zero.
const DEFAULT_SEED: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

impl Hasher {
    /// A hasher for `version` (already [resolved](HashVersion::resolve)) and `s_hash_seed` as four little-endian
    /// words. `None` for [`HashVersion::SipHash`], whose key this library does not have.
    #[must_use]
    pub fn new(version: HashVersion, seed: [u32; 4]) -> Option<Self> {
        if version == HashVersion::SipHash {
            return None;
        }
        let seed = if seed == [0; 4] { DEFAULT_SEED } else { seed };
        Some(Self { version, seed })
    }

    /// The version in use.
    #[must_use]
    pub const fn version(&self) -> HashVersion {
        self.version
    }

    /// The hash of `name`, which is the bytes of the directory entry (at most 255, but any length works).
    #[must_use]
    pub fn hash(&self, name: &[u8]) -> DirHash {
        let (major, minor) = match self.version {
            HashVersion::Legacy => (legacy(name, signed), 0),
            HashVersion::LegacyUnsigned => (legacy(name, unsigned), 0),
            HashVersion::HalfMd4 => self.half_md4(name, signed),
            HashVersion::HalfMd4Unsigned => self.half_md4(name, unsigned),
            HashVersion::Tea => self.tea(name, signed),
            HashVersion::TeaUnsigned => self.tea(name, unsigned),
            HashVersion::SipHash => (0, 0),
        };
        DirHash { major: (major & !1).min(MAX_MAJOR), minor }
    }

    fn half_md4(&self, name: &[u8], widen: fn(u8) -> u32) -> (u32, u32) {
        let mut state = self.seed;
        let mut rest = name;
        while !rest.is_empty() {
            half_md4_transform(&mut state, &pack::<8>(rest, widen));
            rest = rest.get(32..).unwrap_or_default();
        }
        (state[1], state[2])
    }

    fn tea(&self, name: &[u8], widen: fn(u8) -> u32) -> (u32, u32) {
        let mut state = self.seed;
        let mut rest = name;
        while !rest.is_empty() {
            tea_transform(&mut state, &pack::<4>(rest, widen));
            rest = rest.get(16..).unwrap_or_default();
        }
        (state[0], state[1])
    }
}

fn signed(byte: u8) -> u32 {
    i32::from(byte as i8) as u32
}

fn unsigned(byte: u8) -> u32 {
    u32::from(byte)
}

fn legacy(name: &[u8], widen: fn(u8) -> u32) -> u32 {
    let (mut older, mut newer) = (0x37ab_e8f9_u32, 0x12a3_fe2d_u32);
    for &byte in name {
        let mut next = older.wrapping_add(newer ^ widen(byte).wrapping_mul(7_152_373));
        if next & 0x8000_0000 != 0 {
            next = next.wrapping_sub(0x7fff_ffff);
        }
        older = newer;
        newer = next;
    }
    newer << 1
}

/// Packs the start of `name` into `N` words, big end first within a word, padded with a word made of the
/// remaining length.
fn pack<const N: usize>(name: &[u8], widen: fn(u8) -> u32) -> [u32; N] {
    let len = name.len() as u32;
    let pad = (len | (len << 8)) | ((len | (len << 8)) << 16);
    let mut words = [pad; N];
    for (word, bytes) in words.iter_mut().zip(name.chunks(4)) {
        *word = bytes.iter().fold(pad, |value, &byte| widen(byte).wrapping_add(value << 8));
    }
    words
}

fn tea_transform(state: &mut [u32; 4], key: &[u32; 4]) {
    let (mut x, mut y, mut sum) = (state[0], state[1], 0_u32);
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        x = x.wrapping_add(tea_mix(y, key[0], key[1], sum));
        y = y.wrapping_add(tea_mix(x, key[2], key[3], sum));
    }
    state[0] = state[0].wrapping_add(x);
    state[1] = state[1].wrapping_add(y);
}

fn tea_mix(v: u32, left: u32, right: u32, sum: u32) -> u32 {
    (v << 4).wrapping_add(left) ^ v.wrapping_add(sum) ^ (v >> 5).wrapping_add(right)
}

/// Order in which the words enter the three rounds, and the rotations of each.
const MD4_ROUNDS: [([usize; 8], [u32; 4], u32); 3] = [
    ([0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19], 0),
    ([1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13], 0x5a82_7999),
    ([3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15], 0x6ed9_eba1),
];

fn half_md4_transform(state: &mut [u32; 4], words: &[u32; 8]) {
    let mut v = *state;
    for (round, (order, rotations, constant)) in MD4_ROUNDS.iter().enumerate() {
        for (step, &word) in order.iter().enumerate() {
            // The register that is written walks backwards: a, d, c, b, a, ...
            let at = |n: usize| (4 - step % 4 + n) % 4;
            let (x, y, z) = (v[at(1)], v[at(2)], v[at(3)]);
            let mixed = match round {
                0 => z ^ (x & (y ^ z)),
                1 => (x & y).wrapping_add((x ^ y) & z),
                _ => x ^ y ^ z,
            };
            let sum = v[at(0)].wrapping_add(mixed).wrapping_add(words[word]).wrapping_add(*constant);
            v[at(0)] = sum.rotate_left(rotations[step % 4]);
        }
    }
    for (s, v) in state.iter_mut().zip(v) {
        *s = s.wrapping_add(v);
    }
}

#[cfg(test)]
mod tests;
