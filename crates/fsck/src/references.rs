//! Connectivity, link counts, and other counts of references.

use crate::context::Context;
use crate::dirs::Tree;
use crate::finding::{Kind, Pass, Place};
use crate::inodes::{Info, Inodes};
use crate::xattrs::OWNED;
use extant_format::{Ino, RoCompat};
use std::sync::atomic::Ordering;

/// The most links a directory counts; with `dir_nlink` more are written as 1.
const LINK_MAX: u32 = 65000;

/// Whether every directory leads to the root by its parents, and `..` names the parent.
pub(crate) fn connectivity(cx: &Context<'_>, inodes: &Inodes, tree: &Tree) -> bool {
    let add = |ino, kind| cx.found(Pass::Connectivity, Place::Inode(ino), kind);
    let root = inodes.info(Ino::ROOT.0);
    if !root.is(Info::USED) {
        add(Ino::ROOT.0, Kind::RootMissing {});
        return false;
    }
    let place = |ino: u32| inodes.dirs.binary_search_by_key(&ino, |d| d.ino).ok();
    let Some(root_at) = place(Ino::ROOT.0) else {
        add(Ino::ROOT.0, Kind::RootNotDirectory {});
        return false;
    };
    // 0: unknown, 1: on the way that is followed now, 2: connected, 3: not.
    let mut state = vec![0_u8; inodes.dirs.len()];
    state[root_at] = 2;
    let mut way = Vec::new();
    for start in 0..inodes.dirs.len() {
        let mut at = start;
        let verdict = loop {
            match state[at] {
                0 => {}
                1 => {
                    add(inodes.dirs[at].ino, Kind::DirectoryLoop {});
                    break 3;
                }
                known => break known,
            }
            state[at] = 1;
            way.push(at);
            match place(tree.parent[at].load(Ordering::Relaxed)) {
                Some(parent) => at = parent,
                None => {
                    add(inodes.dirs[at].ino, Kind::Unconnected {});
                    break 3;
                }
            }
        };
        way.drain(..).for_each(|n| state[n] = verdict);
    }
    for (at, dir) in inodes.dirs.iter().enumerate() {
        let parent = tree.parent[at].load(Ordering::Relaxed);
        let should = if dir.ino == Ino::ROOT.0 { Ino::ROOT.0 } else { parent };
        let is = tree.dotdot[at].load(Ordering::Relaxed);
        if should != 0 && is != should {
            add(dir.ino, Kind::DotdotWrong { is: u64::from(is), should: u64::from(should) });
        }
    }
    true
}

/// Link counts of all inodes.
pub(crate) fn links(cx: &Context<'_>, inodes: &Inodes) {
    for (group, infos) in inodes.groups.iter().enumerate() {
        let first = group as u64 * u64::from(cx.geo.inodes_per_group()) + 1;
        for (n, info) in infos.iter().enumerate() {
            let ino = (first + n as u64) as u32;
            let ordinary = ino >= cx.geo.first_ino().0 || ino == Ino::ROOT.0;
            if info.is(Info::USED) && ordinary && !info.is(Info::SYSTEM) {
                one(cx, inodes, ino, info);
            }
        }
    }
}

fn one(cx: &Context<'_>, inodes: &Inodes, ino: u32, info: &Info) {
    let add = |kind| cx.found(Pass::References, Place::Inode(ino), kind);
    // A value inode that directories name is judged as any other; else it is there for the attributes, as if named once.
    let named = match inodes.named(ino) {
        0 if info.is(Info::EA_INODE) && inodes.ea_refs.contains_key(&ino) => {
            value_references(inodes, ino, add);
            1
        }
        named => named,
    };
    if named == 0 {
        add(Kind::Unattached {});
        return;
    }
    let links = u32::from(info.links);
    let overflown = info.kind == 2 && named > LINK_MAX && cx.ro_compat(RoCompat::DIR_NLINK);
    let right = links == named || (overflown && links == 1);
    if !right {
        add(Kind::LinkCount { links: u64::from(links), should: u64::from(named) });
    }
}

/// The count that a value inode keeps, against the attributes that name it.
fn value_references(inodes: &Inodes, ino: u32, add: impl Fn(Kind)) {
    let should = inodes.ea_refs.get(&ino).copied().unwrap_or(0);
    let refcount = inodes.ea_stored.get(&ino).copied().unwrap_or(0);
    if refcount != should && should != OWNED {
        add(Kind::EaInodeRefcount { refcount, should });
    }
}
