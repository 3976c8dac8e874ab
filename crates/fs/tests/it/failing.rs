//! A device that fails when an explored scenario wants it to.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use extant_device::{BlockDevice, DirectAccess};
use extant_fsck::Report;
use rustix::io::Errno;

use crate::explore::Checked;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Read,
    Write,
    Flush,
}

/// The next failure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    pub(crate) call: Call,
    /// So many calls go well before it.
    pub(crate) after: u32,
    /// All that follow fail too.
    pub(crate) for_good: bool,
    /// Only calls count whose bytes are a file's of `explore_map`: they begin with the same byte twice, one of those that the operations write.
    pub(crate) of_content: bool,
}

#[derive(Debug)]
pub(crate) struct Failing {
    inner: Box<dyn Checked>,
    next: Mutex<Option<Failure>>,
    failed: AtomicU32,
}

impl Failing {
    pub(crate) fn on(inner: impl Checked + 'static) -> Arc<Self> {
        Arc::new(Self { inner: Box::new(inner), next: Mutex::new(None), failed: AtomicU32::new(0) })
    }

    pub(crate) fn will(&self, failure: Failure) {
        *self.next.lock().unwrap() = Some(failure);
    }

    /// No failure comes any more; how many there were.
    pub(crate) fn heal(&self) -> u32 {
        *self.next.lock().unwrap() = None;
        self.failed.load(Ordering::Relaxed)
    }

    fn may_fail(&self, call: Call, bytes: &[u8]) -> std::io::Result<()> {
        // At byte 100: some operations write less from the start on.
        let is_content = bytes.len() >= 512 && (1..=6).contains(&bytes[100]) && bytes[100] == bytes[101];
        let mut next = self.next.lock().unwrap();
        let Some(failure) = next.as_mut().filter(|f| f.call == call && (is_content || !f.of_content)) else {
            return Ok(());
        };
        if failure.after > 0 {
            failure.after -= 1;
            return Ok(());
        }
        if !failure.for_good {
            *next = None;
        }
        self.failed.fetch_add(1, Ordering::Relaxed);
        Err(Errno::IO.into())
    }
}

impl BlockDevice for Failing {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.inner.read_at(offset, buf)?;
        self.may_fail(Call::Read, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
        self.may_fail(Call::Write, buf)?;
        self.inner.write_at(offset, buf)
    }
    fn flush(&self) -> std::io::Result<()> {
        self.may_fail(Call::Flush, &[])?;
        self.inner.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.may_fail(Call::Write, &[])?;
        self.inner.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.may_fail(Call::Write, &[])?;
        self.inner.write_zeroes(offset, len)
    }
    fn direct_access(&self) -> Option<DirectAccess> {
        self.inner.direct_access()
    }
}

impl Checked for Failing {
    fn checked(&self) -> Report {
        self.inner.checked()
    }
}
