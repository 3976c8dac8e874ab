//! Device numbers in `i_block` of device nodes: the old form in its first word, the new one in its second.
//!
//! Source: debugfs and the kernel on images made by mknod(1) through a loop mount: numbers below 256 are stored
//! in the old form.

use super::I_BLOCK_SIZE;

/// Major and minor number of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct DeviceNumber {
    /// 12 bits.
    pub major: u32,
    /// 20 bits.
    pub minor: u32,
}

impl DeviceNumber {
    /// From `i_block`; the old form counts where it is not zero.
    #[must_use]
    pub fn decode(i_block: &[u8; I_BLOCK_SIZE]) -> Self {
        let word =
            |at: usize| u32::from_le_bytes([i_block[at], i_block[at + 1], i_block[at + 2], i_block[at + 3]]);
        let (old, new) = (word(0), word(4));
        if old != 0 {
            return Self { major: old >> 8 & 0xff, minor: old & 0xff };
        }
        Self { major: (new & 0xf_ff00) >> 8, minor: new & 0xff | new >> 12 & 0xf_ff00 }
    }

    /// Into a fresh `i_block`. Bits beyond 12 and 20 are lost; [`DeviceNumber::fits`] says whether there are any.
    #[must_use]
    pub fn encode(self) -> [u8; I_BLOCK_SIZE] {
        let mut i_block = [0; I_BLOCK_SIZE];
        if self.major < 256 && self.minor < 256 {
            let old = self.major << 8 | self.minor;
            i_block[..4].copy_from_slice(&old.to_le_bytes());
        } else {
            let new = self.minor & 0xff | (self.major & 0xfff) << 8 | (self.minor & 0xf_ff00) << 12;
            i_block[4..8].copy_from_slice(&new.to_le_bytes());
        }
        i_block
    }

    /// Whether the on-disk form can hold it.
    #[must_use]
    pub const fn fits(self) -> bool {
        self.major < 1 << 12 && self.minor < 1 << 20
    }
}
