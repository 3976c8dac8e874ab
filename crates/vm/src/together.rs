//! Writing many inodes together: small files that the allocator put side by side reach the device in one write.

use extant_device::MemSlice;
use extant_format::Pblk;

use crate::PageCache;
use crate::cache::WRITE_BATCH;
use crate::host::{Held, Pending};
use crate::writeback::MOST_BYTES;

/// Inodes that are in writeback at the same time.
pub(crate) const TOGETHER: usize = 128;

/// A run of some inode.
struct Run {
    pblk: Pblk,
    len: u32,
    /// Which inode, and which of its runs.
    of: (usize, usize),
}

impl PageCache {
    /// Writes the first dirty pages of each inode, all at once; whether each one went well. `owners` ascend by number, all of one
    /// filesystem. Takes the gate of each; the caller holds nothing from 28 on.
    pub(crate) fn write_together(&self, owners: &[Held]) -> Vec<bool> {
        let mut good = vec![true; owners.len()];
        if let Some(first) = owners.first() {
            first.in_background_dyn(&mut || self.write_group(owners, &mut good));
        }
        good
    }

    fn write_group(&self, owners: &[Held], good: &mut [bool]) {
        let mut pending: Vec<(usize, Box<dyn Pending + '_>)> = Vec::with_capacity(owners.len());
        // A clean one may be what is left of an inode that was read anew since: its number comes twice.
        for (at, owner) in owners.iter().enumerate().filter(|(_, owner)| owner.pages().is_dirty()) {
            pending.extend(owner.begin_write(WRITE_BATCH).map(|p| (at, p)));
        }
        let mut runs: Vec<Run> = Vec::new();
        for (inode, (_, one)) in pending.iter().enumerate() {
            let of_inode = (0..).map_while(|n| Some((n, one.run(n)?)));
            runs.extend(of_inode.map(|(n, (pblk, len))| Run { pblk, len, of: (inode, n) }));
        }
        runs.sort_unstable_by_key(|r| r.pblk);
        let mut at = 0;
        while at < runs.len() {
            let together = self.side_by_side(&runs[at..]);
            let group = &runs[at..at + together];
            at += together;
            match self.write_runs(&pending, group) {
                Ok(()) => continue,
                Err(e) if together == 1 => {
                    pending[group[0].of.0].1.failed(group[0].of.1, e);
                    continue;
                }
                Err(_) => {}
            }
            // Each for itself: a bad one stays dirty alone.
            for run in group {
                if let Err(e) = self.write_runs(&pending, std::slice::from_ref(run)) {
                    pending[run.of.0].1.failed(run.of.1, e);
                }
            }
        }
        for (owner, one) in pending {
            good[owner] = one.finish();
        }
    }

    /// How many runs from the first on lie behind each other on the device.
    fn side_by_side(&self, runs: &[Run]) -> usize {
        let geo = self.geometry();
        let mut bytes = geo.block_bytes(runs[0].len);
        let mut together = 1;
        for pair in runs.windows(2) {
            bytes += geo.block_bytes(pair[1].len);
            if pair[0].pblk.0.checked_add(pair[0].len.into()) != Some(pair[1].pblk.0) || bytes > MOST_BYTES {
                break;
            }
            together += 1;
        }
        together
    }

    fn write_runs(&self, pending: &[(usize, Box<dyn Pending + '_>)], group: &[Run]) -> std::io::Result<()> {
        let mut slices: Vec<MemSlice<'_>> = Vec::new();
        for run in group {
            pending[run.of.0].1.memory(run.of.1, &mut slices);
        }
        self.device().write_mem_at(self.geometry().pblk_bytes(group[0].pblk)?, &slices)
    }
}
