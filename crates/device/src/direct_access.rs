//! Devices whose bytes are memory (DAX).

use std::io;
use std::sync::Arc;

use extant_sys::DeviceMemory;

/// The bytes of a device as memory: what [`write_at`](crate::BlockDevice::write_at) changes is there at once, and what a mapping stores
/// there is what [`read_at`](crate::BlockDevice::read_at) reads.
#[derive(Clone, Debug)]
pub struct DirectAccess {
    memory: Arc<DeviceMemory>,
    /// Byte of the memory at which the device begins.
    start: u64,
    persistent: bool,
}

impl DirectAccess {
    /// All of a file's memory; persistent memory if the kernel says so, which is that it maps the file with MAP_SYNC.
    #[must_use]
    pub fn new(memory: Arc<DeviceMemory>) -> Self {
        let persistent = memory.maps_sync();
        Self { memory, start: 0, persistent }
    }

    /// The same, declared to be persistent memory, for a device that knows it better than the kernel does: what is stored through a
    /// mapping is durable once its lines have left the processor's caches, with no call to the device.
    #[must_use]
    pub fn persistent(self) -> Self {
        Self { persistent: true, ..self }
    }

    /// Whether it is persistent memory.
    #[must_use]
    pub fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// The part that a device has which begins `start` bytes further on.
    #[must_use]
    pub fn from_offset(self, start: u64) -> Self {
        Self { start: self.start + start, ..self }
    }

    /// The memory, for mappings.
    #[must_use]
    pub fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }

    /// Where a byte of the device is in the memory.
    #[must_use]
    pub fn place(&self, at: u64) -> u64 {
        self.start + at
    }

    /// Whether pages of `size` bytes can be mapped: each has to begin at one of the memory.
    #[must_use]
    pub fn has_pages_of(&self, size: u64) -> bool {
        self.start.is_multiple_of(size)
    }

    /// Copies bytes of the device, all of `buf`.
    ///
    /// # Errors
    /// EIO past the end; the system's.
    pub fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.memory.read_at(self.place(at), buf)
    }

    /// Writes bytes of the device, all of `buf`.
    ///
    /// # Errors
    /// EIO past the end; the system's.
    pub fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.memory.write_at(self.place(at), buf)
    }
}
