//! Sequential writing: neighbours go out together, in large pieces.

use std::io;
use std::sync::Arc;

use extant_device::BlockDevice;

use crate::error::{MkfsError, Result};

/// Bytes collected before a write.
const CHUNK: usize = 4 << 20;

/// Collects writes at ascending offsets. What is not ascending goes out at once; [`Writer::finish`] sends the rest.
pub(crate) struct Writer {
    device: Arc<dyn BlockDevice>,
    at: u64,
    buffer: Vec<u8>,
    written: u64,
    /// The device reads as zeros where nothing was written, so zeros need not be.
    zeroed: bool,
}

impl Writer {
    pub(crate) fn new(device: Arc<dyn BlockDevice>, zeroed: bool) -> Self {
        Self { device, at: 0, buffer: Vec::with_capacity(CHUNK), written: 0, zeroed }
    }

    /// Bytes sent to the device so far, those still collected included.
    pub(crate) fn written(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Counts bytes that went to the device directly.
    pub(crate) fn wrote(&mut self, bytes: u64) {
        self.written += bytes;
    }

    pub(crate) fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let next = self.at + self.buffer.len() as u64;
        if offset != next || self.buffer.len() + data.len() > CHUNK {
            self.send()?;
            self.at = offset;
        }
        if data.len() >= CHUNK {
            self.written += data.len() as u64;
            self.at = offset + data.len() as u64;
            return self.device.write_at(offset, data).map_err(device_error("writing the image"));
        }
        self.buffer.extend_from_slice(data);
        Ok(())
    }

    /// Makes a range read as zeros.
    pub(crate) fn zero(&mut self, offset: u64, len: u64) -> Result<()> {
        self.send()?;
        if self.zeroed || len == 0 {
            return Ok(());
        }
        self.device.write_zeroes(offset, len).map_err(device_error("zeroing the image"))
    }

    fn send(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.device.write_at(self.at, &self.buffer).map_err(device_error("writing the image"))?;
        self.written += self.buffer.len() as u64;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Sends everything to the device; the caller flushes it.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.send()
    }
}

pub(crate) fn device_error(what: &'static str) -> impl Fn(io::Error) -> MkfsError {
    move |source| MkfsError::Device { what, source }
}

/// The device of a rehearsal: what is written is nowhere.
#[derive(Debug)]
pub(crate) struct Nowhere {
    pub(crate) bytes: u64,
}

impl BlockDevice for Nowhere {
    fn size(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}
