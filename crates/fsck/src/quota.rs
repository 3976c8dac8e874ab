//! Quota files: their tree, and the usage in them against what was counted.

use crate::context::{Context, Record};
use crate::finding::{Kind, Pass, Place};
use crate::inodes::{Inodes, Usage};
use crate::special::runs_of;
use extant_format::quota::{BLOCK_LEN, Dqblk, QuotaError, QuotaFile, QuotaKind, QuotaStore, block_place};
use extant_format::{Ino, Pblk, RoCompat};
use rustc_hash::FxHashMap;

struct Store<'a, 'd> {
    cx: &'a Context<'d>,
    runs: Vec<(u32, u64, u32)>,
}

enum Failure {
    Read,
    Format,
}

impl From<QuotaError> for Failure {
    fn from(_: QuotaError) -> Self {
        Self::Format
    }
}

impl QuotaStore for Store<'_, '_> {
    type Error = Failure;

    fn read(&mut self, block: u32, into: &mut [u8; BLOCK_LEN]) -> Result<(), Failure> {
        let (lblk, offset) = block_place(block, self.cx.geo.block_size());
        let at = self.runs.partition_point(|r| r.0 <= lblk.0).checked_sub(1).ok_or(Failure::Read)?;
        let (first, pblk, len) = self.runs[at];
        let n = lblk.0 - first;
        if n >= len {
            return Err(Failure::Read);
        }
        let place = Pblk(pblk + u64::from(n)).0 * u64::from(self.cx.geo.block_size()) + offset as u64;
        self.cx.dev.read_at(place, into).map_err(|_| Failure::Read)
    }

    fn write(&mut self, _: u32, _: &[u8; BLOCK_LEN]) -> Result<(), Failure> {
        Err(Failure::Read)
    }
}

/// Compares the quota files that the superblock names with what the inodes add up to.
pub(crate) fn check(cx: &Context<'_>, inodes: &Inodes) {
    if !cx.ro_compat(RoCompat::QUOTA) {
        return;
    }
    let raw = cx.sb.raw();
    let files = [
        (QuotaKind::User, raw.s_usr_quota_inum.get()),
        (QuotaKind::Group, raw.s_grp_quota_inum.get()),
        (QuotaKind::Project, raw.s_prj_quota_inum.get()),
    ];
    for (n, (kind, ino)) in files.into_iter().enumerate().filter(|(_, f)| f.1 != 0) {
        let add = |finding| cx.found(Pass::Quota, Place::QuotaFile(n as u8), finding);
        match read(cx, kind, ino) {
            Ok((stored, worst)) => {
                if let Some(kind) = worst {
                    add(kind);
                }
                compare(&stored, &inodes.usage[n], add);
            }
            Err(Failure::Read) => add(Kind::QuotaUnreadable {}),
            Err(Failure::Format) => add(Kind::QuotaCorrupt {}),
        }
    }
}

fn read(
    cx: &Context<'_>,
    kind: QuotaKind,
    ino: u32,
) -> Result<(FxHashMap<u32, Usage>, Option<Kind>), Failure> {
    let mut bytes = Vec::new();
    let rec = cx.read_inode(Ino(ino), &mut bytes).then(|| Record::new(Ino(ino), &bytes)).flatten();
    let rec = rec.filter(Record::is_reg).ok_or(Failure::Read)?;
    let runs = runs_of(cx, &rec);
    // What the file can really hold bounds the walk.
    let mapped: u64 = runs.iter().map(|r| u64::from(r.2)).sum();
    let len = rec.size().min(mapped * u64::from(cx.geo.block_size()));
    let mut file = QuotaFile::open(Store { cx, runs }, kind, len)?;
    let mut stored = FxHashMap::default();
    let mut worst = None;
    let each = |id, dq: &Dqblk| {
        stored.insert(id, Usage { space: dq.curspace, inodes: dq.curinodes });
    };
    file.scan(each, |e| {
        // A reference back into the file leads to nothing new; one out of it is corrupt.
        let outside = matches!(e, QuotaError::BlockRange { block, blocks, .. } if block >= blocks);
        let kind = if outside { Kind::QuotaCorrupt {} } else { Kind::QuotaTree {} };
        worst = if outside { Some(kind) } else { worst.or(Some(kind)) };
    })?;
    Ok((stored, worst))
}

fn compare(stored: &FxHashMap<u32, Usage>, counted: &FxHashMap<u32, Usage>, add: impl Fn(Kind)) {
    let mut ids: Vec<u32> = stored.keys().chain(counted.keys()).copied().collect();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        let [is, should] = [stored, counted].map(|m| m.get(&id).copied().unwrap_or_default());
        if is != should {
            add(Kind::QuotaUsage {
                id: u64::from(id),
                space: is.space,
                inodes: is.inodes,
                counted_space: should.space,
                counted_inodes: should.inodes,
            });
        }
    }
}
