//! Blocks that more than one owner claims: who they are.

use crate::blocks::spans;
use crate::context::{Context, Record};
use crate::finding::{Kind, Pass, Place};
use crate::inodes::{self, Info, Inodes};
use crate::map::{self, Buffers, Piece};
use extant_format::{Incompat, Ino, Pblk, RoCompat};

const PASS: Pass = Pass::SharedBlocks;

/// Reports every inode that has a part in a shared block. Deduplicated filesystems share blocks on purpose.
pub(crate) fn check(cx: &Context<'_>, inodes: &Inodes) {
    if cx.shared.is_empty() || cx.ro_compat(RoCompat::SHARED_BLOCKS) {
        return;
    }
    // Tree blocks are entered once, whoever has them: that bounds the work.
    let entered = crate::blocks::BlockMap::new(&cx.geo);
    let (mut bytes, mut buffers) = (Vec::new(), Buffers::default());
    for (group, infos) in inodes.groups.iter().enumerate() {
        let first = group as u64 * u64::from(cx.geo.inodes_per_group()) + 1;
        for (n, _) in infos.iter().enumerate().filter(|(_, i)| i.is(Info::USED)) {
            let ino = Ino((first + n as u64) as u32);
            let rec = cx.read_inode(ino, &mut bytes).then(|| Record::new(ino, &bytes)).flatten();
            if let Some(rec) = rec {
                one(cx, &rec, &mut buffers, &entered);
            }
        }
    }
    // The blocks themselves, in case their owners cannot be told.
    for group in cx.geo.group_numbers() {
        for (n, word) in cx.shared.group(group).unwrap_or_default().iter().enumerate() {
            let bits = word.load(std::sync::atomic::Ordering::Relaxed);
            if bits != 0 {
                let block = cx.geo.block_of_bit(group, n as u32 * 64 + bits.trailing_zeros()).0;
                cx.found(PASS, Place::Block(block), Kind::SharedBlock { block });
            }
        }
    }
}

fn one(cx: &Context<'_>, rec: &Record, buffers: &mut Buffers, entered: &crate::blocks::BlockMap) {
    let mut hit = None;
    let mut look = |start: Pblk, len: u64| {
        for span in spans(&cx.geo, start, len) {
            for bit in span.first..span.first + span.count {
                if hit.is_none() && cx.shared.test(span.group, bit) {
                    hit = Some((span.group, bit));
                }
            }
        }
    };
    if inodes::has_map(rec) {
        map::walk(cx, rec, buffers, false, |piece| match piece {
            Piece::Tree(block) => {
                look(block, 1);
                spans(&cx.geo, block, 1).all(|s| entered.claim(s, None).is_none())
            }
            Piece::Data { pblk, len, .. } => {
                look(pblk, u64::from(len));
                true
            }
        });
    }
    let acl = rec.file_acl(cx.incompat(Incompat::BIT64));
    if cx.geo.contains(acl) {
        look(acl, 1);
    }
    if let Some((group, bit)) = hit {
        let block = cx.geo.block_of_bit(extant_format::GroupNr(group), bit).0;
        let kind = if cx.metadata.test(group, bit) {
            Kind::SharedWithMetadata { block }
        } else {
            Kind::SharedBlock { block }
        };
        cx.found(PASS, Place::Inode(rec.ino.0), kind);
    }
}
