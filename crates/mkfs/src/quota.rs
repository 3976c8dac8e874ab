//! Quota files from what owners use.

use std::collections::BTreeMap;

use extant_format::Ino;
use extant_format::quota::{BLOCK_LEN, Dqblk, QuotaError, QuotaFile, QuotaInfo, QuotaKind, QuotaStore};

use crate::builder::{Builder, Usage};
use crate::error::Result;
use crate::special::broken;

/// A quota file in memory.
struct Memory(Vec<[u8; BLOCK_LEN]>);

impl QuotaStore for Memory {
    type Error = QuotaError;

    fn read(&mut self, block: u32, into: &mut [u8; BLOCK_LEN]) -> std::result::Result<(), QuotaError> {
        // A block past the end reads as zeros; the tree checks its references itself.
        *into = self.0.get(block as usize).copied().unwrap_or([0; BLOCK_LEN]);
        Ok(())
    }

    fn write(&mut self, block: u32, from: &[u8; BLOCK_LEN]) -> std::result::Result<(), QuotaError> {
        let at = block as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, [0; BLOCK_LEN]);
        }
        self.0[at] = *from;
        Ok(())
    }
}

/// The bytes of a quota file with these usages and no limits.
fn content(kind: QuotaKind, usage: &BTreeMap<u32, Usage>) -> std::result::Result<Vec<u8>, QuotaError> {
    let (_, empty) = QuotaInfo::empty_file(kind);
    let (blocks, _) = empty.as_chunks::<BLOCK_LEN>();
    let store = Memory(blocks.to_vec());
    let mut file = QuotaFile::open(store, kind, empty.len() as u64)?;
    for (&id, used) in usage {
        let dq = Dqblk { curinodes: used.inodes, curspace: used.space, ..Dqblk::default() };
        file.insert(id, &dq)?;
    }
    Ok(file.into_store().0.concat())
}

impl Builder {
    /// Writes the quota files whose numbers [`Builder::quota_inos`] gave out.
    pub(crate) fn make_quota_files(&mut self, inos: [Option<Ino>; 3]) -> Result<()> {
        let kinds = [QuotaKind::User, QuotaKind::Group, QuotaKind::Project];
        for (n, (ino, kind)) in inos.into_iter().zip(kinds).enumerate() {
            let Some(ino) = ino else { continue };
            let bytes = content(kind, &self.usage[n]).map_err(broken)?;
            self.make_quota_file(ino, &bytes)?;
        }
        Ok(())
    }
}
