//! Reading the log through a window, round its end.

use crate::{LogPlace, Result};

/// A part of the journal, read in large pieces.
pub(super) struct LogReader<'a> {
    place: &'a LogPlace,
    first: u32,
    end: u32,
    window: Vec<u8>,
    window_at: u32,
    window_len: u32,
}

impl<'a> LogReader<'a> {
    /// For the journal blocks from `first` up to `end`.
    pub(super) fn new(place: &'a LogPlace, first: u32, end: u32) -> Self {
        Self { place, first, end, window: Vec::new(), window_at: 0, window_len: 0 }
    }

    /// Blocks of the log.
    pub(super) fn size(&self) -> u32 {
        self.end - self.first
    }

    /// The block `n` after `block`, round the end.
    pub(super) fn advance(&self, block: u32, n: u32) -> u32 {
        let at = u64::from(block - self.first) + u64::from(n);
        self.first + (at % u64::from(self.size())) as u32
    }

    /// The content of a block between `first` and `end`.
    pub(super) fn block(&mut self, block: u32) -> Result<&[u8]> {
        let size = self.place.block_size() as usize;
        if block < self.window_at || block - self.window_at >= self.window_len {
            self.fill(block, size)?;
        }
        let at = (block - self.window_at) as usize * size;
        Ok(&self.window[at..at + size])
    }

    fn fill(&mut self, block: u32, size: usize) -> Result<()> {
        let len = self.place.window().min(self.end - block);
        self.window_len = 0;
        self.window.resize(len as usize * size, 0);
        self.place.read(block, &mut self.window)?;
        self.window_at = block;
        self.window_len = len;
        Ok(())
    }
}
