//! Quota over an ioctl of our own ([`crate::private::QUOTA`]): quotactl(2) does not reach a FUSE mount.

use extant::{Caps, Credentials, QuotaGrace, QuotaKind, QuotaLimits};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::{Adapter, caller, errno};
use crate::private::{QUOTA_ROOM, QuotaEntry, QuotaHead, quota_op};
use crate::server::Request;

const KINDS: [QuotaKind; 3] = [QuotaKind::User, QuotaKind::Group, QuotaKind::Project];

/// Whether these are the caller's own numbers.
fn is_own(kind: QuotaKind, id: u32, cred: &Credentials) -> bool {
    match kind {
        QuotaKind::User => cred.uid == id,
        QuotaKind::Group => cred.gid == id || cred.groups.as_ref().is_some_and(|groups| groups.contains(&id)),
        QuotaKind::Project => false,
    }
}

impl Adapter {
    pub(super) fn quota_ioctl(&self, req: &Request<'_>, data: &[u8]) -> Result<Vec<u8>, Errno> {
        let (mut head, rest) = QuotaHead::read_from_prefix(data).map_err(|_| Errno::INVAL)?;
        let (limits, _) = QuotaEntry::read_from_prefix(rest).map_err(|_| Errno::INVAL)?;
        let kind = *KINDS.get(head.kind as usize).ok_or(Errno::INVAL)?;
        let cred = caller::privileged(req);
        let free = head.op == quota_op::LOOK || (head.op == quota_op::GET && is_own(kind, head.id, &cred));
        if !free && !cred.has(Caps::SYS_ADMIN) {
            return Err(Errno::PERM);
        }
        let entries = self.quota_op(&head, &limits, kind, &cred)?;
        let on_record = self.fs.quota_on_record();
        head.kinds = on_record.iter().map(|kind| 1 << *kind as u32).sum();
        if on_record.contains(&kind) {
            let grace = self.fs.quota_grace(kind).map_err(|e| errno(&e))?;
            (head.space_grace, head.inodes_grace) = (grace.space, grace.inodes);
        }
        head.count = entries.len() as u32;
        let mut out = vec![0; data.len()];
        out[..size_of::<QuotaHead>()].copy_from_slice(head.as_bytes());
        let places = out[size_of::<QuotaHead>()..].chunks_exact_mut(size_of::<QuotaEntry>());
        places.zip(&entries).for_each(|(place, entry)| place.copy_from_slice(entry.as_bytes()));
        Ok(out)
    }

    fn quota_op(
        &self,
        head: &QuotaHead,
        limits: &QuotaEntry,
        kind: QuotaKind,
        cred: &Credentials,
    ) -> Result<Vec<QuotaEntry>, Errno> {
        let fail = |e: extant::Error| errno(&e);
        let list = |from, most: usize| self.fs.quota_list(kind, from, most).map_err(fail);
        match head.op {
            quota_op::LOOK => Ok(Vec::new()),
            quota_op::LIST => {
                let found = list(head.id, (head.count as usize).min(QUOTA_ROOM))?;
                Ok(found.iter().map(|(id, dq)| QuotaEntry::new(*id, dq)).collect())
            }
            quota_op::GET => {
                let found = list(head.id, 1)?.pop().filter(|(id, _)| *id == head.id);
                Ok(vec![QuotaEntry::new(head.id, &found.unwrap_or_default().1)])
            }
            quota_op::SET => {
                let limits = QuotaLimits {
                    space_hard: limits.space_hard,
                    space_soft: limits.space_soft,
                    inodes_hard: limits.inodes_hard,
                    inodes_soft: limits.inodes_soft,
                };
                self.fs.set_quota(kind, head.id, limits, cred).map(|()| Vec::new()).map_err(fail)
            }
            quota_op::SET_GRACE => {
                let grace = QuotaGrace { space: head.space_grace, inodes: head.inodes_grace };
                self.fs.set_quota_grace(kind, grace, cred).map(|()| Vec::new()).map_err(fail)
            }
            _ => Err(Errno::INVAL),
        }
    }
}
