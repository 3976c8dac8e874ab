//! DAX: which files go past the page cache to a device that is memory, and when that changes.
//!
//! The persistent flag (`x` of chattr, FS_XFLAG_DAX) is advice that may be set on regular files and directories at any time, on any
//! device; `dax=` says what becomes of it (`Documentation/filesystems/dax.rst`): `inode` follows it, `always` and `never` do not. A file
//! is never in this mode while its content is in its inode or goes through the journal. What is in effect now ([`Filesystem::effective_dax`])
//! is the page cache's to know ([`extant_vm::AddressSpace::is_dax`]).
//!
//! Unlike the kernel, which goes by the flag when an inode is next read, a changed flag takes effect at once, also under mappings;
//! `dax_switch=deferred` is the kernel's way: it takes effect when nobody has the file open or mapped any more, whatever the caches keep.

use std::time::Duration;

use extant_device::BlockDevice;
use extant_format::inode::InodeFlags;
use extant_format::{Incompat, Superblock};
use extant_sync::atomic::Ordering;
use extant_vm::SwitchTimes;

use crate::error::{Error, Result};
use crate::filesystem::Filesystem;
use crate::freeze::Level;
use crate::icache::InodeRef;
use crate::inode::Inode;
use crate::options::{DataMode, DaxMode, DaxSwitch, MountOptions};

/// Flags that exclude DAX, and that it excludes.
const EXCLUDES: InodeFlags = InodeFlags::from_bits_retain(
    InodeFlags::VERITY.bits()
        | InodeFlags::ENCRYPT.bits()
        | InodeFlags::JOURNAL_DATA.bits()
        | InodeFlags::INLINE_DATA.bits(),
);

/// Refuses `dax=always` and `pmem=on` where they cannot be. `device`: what the filesystem will be on, an overlay for some that are read-only.
pub(crate) fn check_mount(sb: &Superblock, options: &MountOptions, device: &dyn BlockDevice) -> Result<()> {
    if options.pmem == Some(true) && device.direct_access().is_none() {
        return Err(Error::Incompatible("`pmem=on`: this device has no direct access".into()));
    }
    if options.dax != Some(DaxMode::Always) {
        return Ok(());
    }
    let refuse = |why: &str| Err(Error::Incompatible(format!("`dax=always`: {why}").into()));
    if sb.features().incompat.contains(Incompat::INLINE_DATA) {
        return refuse(
            "files of this filesystem may have their content in their inodes (feature inline_data)",
        );
    }
    if options.data == Some(DataMode::Journal) {
        return refuse("data that goes through the journal (`data=journal`) is not written to its place");
    }
    let page = extant_sys::page_size();
    if sb.geometry().block_size() as usize != page {
        return refuse(&format!("blocks of {} bytes are no pages of {page}", sb.geometry().block_size()));
    }
    match device.direct_access() {
        None => refuse("this device has no direct access: it takes an image file that is open for writing"),
        Some(access) if !access.has_pages_of(page as u64) => {
            refuse("the filesystem does not begin at a page of the device")
        }
        Some(_) => Ok(()),
    }
}

/// What a change of the mode that a file is in took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DaxSwitchTimes {
    /// How long faults and reads had to wait: the exclusive `invalidate_lock` was held.
    pub held: Duration,
    /// Of this, looking for what was to be written, and writing it.
    pub writing: Duration,
    /// Of this, freeing the pages that were cached.
    pub freeing: Duration,
}

impl Filesystem {
    /// Whether a regular file goes past the page cache at present (`STATX_ATTR_DAX`).
    #[must_use]
    pub fn effective_dax(&self, inode: &InodeRef) -> bool {
        match inode.data.get() {
            Some(data) if !Self::is_mode_due(inode) => data.pages.is_dax(),
            _ => self.wants_dax(inode, inode.flags()),
        }
    }

    /// Whether a file with these flags is to be in DAX mode.
    pub(crate) fn wants_dax(&self, inode: &Inode, flags: InodeFlags) -> bool {
        let asked = match self.options().dax {
            DaxMode::Never => false,
            DaxMode::Always => true,
            DaxMode::Inode => flags.contains(InodeFlags::DAX),
        };
        let journalled = self.journal.has_log() && self.data_mode == DataMode::Journal;
        asked
            && self.pages.dax().is_some()
            && inode.is_regular()
            && !journalled
            && !flags.intersects(EXCLUDES | InodeFlags::EA_INODE)
    }

    /// Whether what is stored to the device through a mapping is durable once its lines have left the processor's caches: the device says
    /// so, or the mount (`pmem=`).
    #[must_use]
    pub fn is_persistent(&self) -> bool {
        self.pages.dax().is_some_and(|dax| self.options().given.pmem.unwrap_or(dax.is_persistent()))
    }

    /// Refuses flags that exclude each other, as the kernel does.
    pub(crate) fn may_set_dax(&self, inode: &Inode, old: InodeFlags, asked: InodeFlags) -> Result<()> {
        if inode.is_dir() && old.contains(InodeFlags::INLINE_DATA) {
            // A directory's flag is for what is made in it.
            return Ok(());
        }
        let both = (old.intersects(EXCLUDES) && asked.contains(InodeFlags::DAX))
            || (old.contains(InodeFlags::DAX) && asked.intersects(EXCLUDES));
        if both {
            return Err(Error::NotSupported("DAX beside inline, journalled, encrypted or verified content"));
        }
        let journal = (old ^ asked).contains(InodeFlags::JOURNAL_DATA);
        if journal && inode.data.get().map_or_else(|| self.wants_dax(inode, old), |data| data.pages.is_dax())
        {
            return Err(Error::Busy);
        }
        Ok(())
    }

    /// The mode that a file comes into when its flags change from `old` to `new`, if that happens at once. Under the inode lock, held
    /// exclusively.
    pub(crate) fn mode_to_follow(&self, inode: &Inode, old: InodeFlags, new: InodeFlags) -> Option<bool> {
        let at_once = self.options().given.dax_switch == DaxSwitch::Live;
        if !(old ^ new).contains(InodeFlags::DAX) || !inode.is_regular() || !at_once {
            return None;
        }
        // Made now: else it could be made by a reader who has seen the old flags.
        let is = inode.data(self).pages.is_dax();
        let wanted = self.wants_dax(inode, new);
        (wanted != is).then_some(wanted)
    }

    /// Makes freed blocks usable that mappings of files in DAX mode have shown, if no transfer can be under way to them; bytes of those
    /// that are not yet. The filesystem does this every few seconds, and before it says that there is no space.
    #[must_use]
    pub fn release_shown_blocks(&self) -> u64 {
        self.pages.end_grace();
        self.pages.grace_bytes()
    }

    /// With `dax_switch=deferred`: the flag counts when the file is next opened with nobody having it open or mapped.
    pub(crate) fn follow_later(&self, inode: &Inode) {
        if self.options().given.dax_switch == DaxSwitch::Deferred && inode.is_regular() {
            inode.mode_due.store(true, Ordering::Release);
        }
    }

    /// Whether the mode that a file is in is not the one that it will be opened in.
    fn is_mode_due(inode: &Inode) -> bool {
        inode.mode_due.load(Ordering::Acquire) && inode.openers.load(Ordering::Acquire) == 0
    }

    /// Before a file is opened, with nothing held: if nobody has it open or mapped, it comes into the mode that its flags ask for. An error
    /// leaves it in the one that it is in, for this time.
    pub(crate) fn open_in_its_mode(&self, inode: &Inode) {
        if Self::is_mode_due(inode)
            && let Err(error) = self.follow_now(inode)
        {
            tracing::warn!("inode {} keeps its DAX mode for now: {error}", inode.ino);
        }
    }

    fn follow_now(&self, inode: &Inode) -> Result<()> {
        // What a frozen filesystem shows stays what it is.
        let Some(_write) = self.gate.try_enter(Level::Write) else { return Ok(()) };
        let _lock = inode.lock.write();
        if !Self::is_mode_due(inode) {
            return Ok(());
        }
        let on = self.wants_dax(inode, inode.flags());
        if let Some(data) = inode.data.get().filter(|data| data.pages.is_dax() != on) {
            data.pages.begin_switch(&**data)?;
            let guard = data.pages.exclusive();
            if !data.pages.switch_dax(&guard, &**data, on)? {
                // Pinned, by who has unmapped it: the next time.
                return Ok(());
            }
        }
        inode.mode_due.store(false, Ordering::Release);
        Ok(())
    }

    /// Keeps what the last change of a mode took.
    pub(crate) fn note_switch(&self, held: Duration, SwitchTimes { writing, freeing }: SwitchTimes) {
        *self.maps.last_switch.lock() = Some(DaxSwitchTimes { held, writing, freeing });
    }

    /// What the last change of a file's mode took, of any file.
    #[must_use]
    pub fn last_dax_switch(&self) -> Option<DaxSwitchTimes> {
        *self.maps.last_switch.lock()
    }

    /// Takes the device out of all mappings of files in DAX mode, and copies of it: what an access gets is decided anew. For who changes
    /// whether anything may be stored at all.
    pub(crate) fn hide_devices(&self) -> Result<()> {
        Ok(self.pages.hide_dax()?)
    }

    /// After it was said that nothing is written any more: the next store to a mapping is a fault, which is refused. With nothing held.
    pub(crate) fn end_stores(&self) -> Result<()> {
        let ended = self.pages.end_stores();
        self.hide_devices()?;
        Ok(ended?)
    }
}
