//! Mappings of our files: mmap and what changes or asks of mapped memory.
//!
//! [`extant::Mapping`] does the work; here are the addresses of each, so that a range of the program's is split into what is ours and
//! what is the kernel's.

use std::ffi::{c_int, c_long, c_void};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use extant::{Advice, MapOptions, Mapping, Protection, SyncMode, Target};
use libc::{off_t, size_t};

use crate::abi::{Address, Answer, Errno, interpose};
use crate::table::{self, is_ours};
use crate::{limit, mount, real};

interpose! {
    fn mmap[mmap64](
        address: *mut c_void,
        len: size_t,
        protection: c_int,
        flags: c_int,
        fd: c_int,
        at: off_t,
    ) -> Address,
        if is_about_us(address, len, flags, fd) => map(address, len, protection, flags, fd, at);
    fn munmap(address: *mut c_void, len: size_t) -> c_int,
        if is_mapped(address, len) => unmap(address, len);
    fn mremap(address: *mut c_void, old: size_t, new: size_t, flags: c_int, target: *mut c_void) -> Address,
        if is_mapped(address, old.max(1)) || flags & libc::MREMAP_FIXED != 0 && is_mapped(target, new) => {
            remap(address, old, new, flags, target)
        };
    fn mprotect(address: *mut c_void, len: size_t, protection: c_int) -> c_int,
        if is_mapped(address, len) => protect(address, len, protection);
    fn msync(address: *mut c_void, len: size_t, flags: c_int) -> c_int,
        if is_mapped(address, len) => sync(address, len, flags);
    fn madvise(address: *mut c_void, len: size_t, advice: c_int) -> c_int,
        if is_mapped(address, len) => advise(address, len, advice);
    fn posix_madvise(address: *mut c_void, len: size_t, advice: c_int) -> c_int,
        // The C library does nothing for POSIX_MADV_DONTNEED: the content of a private mapping must stay.
        if advice != libc::POSIX_MADV_DONTNEED && is_mapped(address, len) => {
            match advise(address, len, advice) {
                Err(Errno(number)) => Ok(Some(number)),
                done => done,
            }
        };
    fn pkey_mprotect(address: *mut c_void, len: size_t, protection: c_int, key: c_int) -> c_int,
        if is_mapped(address, len) => protect_by(address, len, protection, key);
}

/// A mapping, and the addresses that are left of it, in order.
struct Mapped {
    mapping: Mapping,
    pieces: Vec<Range<usize>>,
}

/// All mappings. The lock is held over changes of them: two threads that map and unmap at one address are one after the other.
static MAPPED: RwLock<Vec<Mapped>> = RwLock::new(Vec::new());

/// System calls that are given mapped memory wait for its faults.
static SERVES_SYSTEM_CALLS: AtomicBool = AtomicBool::new(false);

/// Whether any of this memory lies in a mapping of ours.
pub(crate) fn overlaps_mapping(base: *const u8, len: usize) -> bool {
    extant::overlaps_mapping(base, len)
}

pub(crate) fn serves_system_calls() -> bool {
    SERVES_SYSTEM_CALLS.load(Ordering::Relaxed)
}

pub(crate) fn has_mappings() -> bool {
    !MAPPED.read().unwrap_or_else(PoisonError::into_inner).is_empty()
}

/// A child of fork has no mapping, and may find locks held for ever.
fn is_mapped(address: *mut c_void, len: usize) -> bool {
    !crate::abi::is_inside() && lies_in_mapping(address, len)
}

/// The same for who is inside of a call.
fn lies_in_mapping(address: *mut c_void, len: usize) -> bool {
    !mount::is_forked() && overlaps_mapping(address.cast(), len)
}

fn is_about_us(address: *mut c_void, len: usize, flags: c_int, fd: c_int) -> bool {
    (flags & libc::MAP_ANONYMOUS == 0 && is_ours(fd))
        || (flags & libc::MAP_FIXED != 0 && is_mapped(address, len))
}

fn page() -> usize {
    // SAFETY: it cannot fail.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.cast_unsigned() as usize
}

/// The addresses of a range of the program's: whole pages from an aligned start on.
fn range_of(address: *mut c_void, len: usize) -> Result<Range<usize>, Errno> {
    let start = address.expose_provenance();
    let end = len.checked_next_multiple_of(page()).and_then(|len| start.checked_add(len));
    match end {
        Some(end) if start.is_multiple_of(page()) => Ok(start..end),
        _ => Err(Errno(libc::EINVAL)),
    }
}

fn protection_of(bits: c_int) -> Protection {
    // What may be stored to or executed may be loaded from, on all machines that this runs on.
    Protection {
        read: bits & (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) != 0,
        write: bits & libc::PROT_WRITE != 0,
        exec: bits & libc::PROT_EXEC != 0,
    }
}

/// What MAP_SHARED_VALIDATE lets through, with the place for a size of huge pages.
const VALID: c_int = libc::MAP_TYPE
    | libc::MAP_FIXED
    | libc::MAP_FIXED_NOREPLACE
    | libc::MAP_32BIT
    | libc::MAP_GROWSDOWN
    | libc::MAP_DENYWRITE
    | libc::MAP_EXECUTABLE
    | libc::MAP_LOCKED
    | libc::MAP_NORESERVE
    | libc::MAP_POPULATE
    | libc::MAP_NONBLOCK
    | libc::MAP_STACK
    | libc::MAP_SYNC
    | libc::MAP_HUGETLB
    | libc::MAP_HUGE_2MB
    | libc::MAP_HUGE_1GB;

fn map(
    address: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    at: off_t,
) -> Answer<Address> {
    if flags & libc::MAP_ANONYMOUS != 0 || !is_ours(fd) {
        // Somebody else's, over a mapping of ours.
        let mut all = MAPPED.write().unwrap_or_else(PoisonError::into_inner);
        take_out(&mut all, &range_of(address, len)?)?;
        return Ok(Some(real::call!(mmap(address: *mut c_void, len: size_t, protection: c_int, flags: c_int, fd: c_int, at: off_t) -> Address)))
            .and_then(succeeded);
    }
    let description = table::get(fd)?;
    description.check_open()?;
    if description.inode().is_dir() {
        return Err(Errno(libc::ENODEV));
    }
    let (shared, validated) = match flags & libc::MAP_TYPE {
        libc::MAP_SHARED => (true, false),
        libc::MAP_SHARED_VALIDATE => (true, true),
        libc::MAP_PRIVATE => (false, false),
        _ => return Err(Errno(libc::EINVAL)),
    };
    let unknown = validated && flags & !VALID != 0;
    if unknown || flags & libc::MAP_32BIT != 0 {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    if flags & libc::MAP_HUGETLB != 0 {
        return Err(Errno(libc::EINVAL));
    }
    let at = u64::try_from(at).map_err(|_| Errno(libc::EINVAL))?;
    let fixed = flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) != 0;
    let hint = if fixed { 0 } else { address.addr() };
    // The kernel's ext4 goes by MAP_SYNC whatever is beside it.
    let sync = flags & libc::MAP_SYNC != 0;
    let options = MapOptions { protection: protection_of(protection), shared, sync, hint };
    let file = description.file()?;
    let mapped = {
        let _limit = limit::steady();
        file.map(at, len, &options)
    };
    let mapping = match mapped {
        Err(error)
            if error.errno() == libc::EOVERFLOW
                && lies_past(description.fs().max_file_size(description.inode()), at, len) =>
        {
            let kind = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
            let flags = flags & !(libc::MAP_TYPE | libc::MAP_SYNC) | kind;
            return map_nothing(address, len, protection, flags, file.mode().write);
        }
        done => done?,
    };
    SERVES_SYSTEM_CALLS.store(mapping.serves_system_calls(), Ordering::Relaxed);
    let mut all = MAPPED.write().unwrap_or_else(PoisonError::into_inner);
    if fixed {
        put_at(&mut all, &mapping, range_of(address, len)?, flags & libc::MAP_FIXED_NOREPLACE == 0)?;
    }
    let start = mapping.as_ptr();
    if flags & libc::MAP_POPULATE != 0 {
        mapping.advise(0..mapping.len(), Advice::WillNeed)?;
    }
    let piece = start.addr()..start.addr() + mapping.len();
    all.push(Mapped { mapping, pieces: vec![piece] });
    Ok(Some(Address(start.cast())))
}

/// Whether a range has a place among offsets, but none in a file of up to `most` bytes.
fn lies_past(most: u64, at: u64, len: usize) -> bool {
    let end = len.checked_next_multiple_of(page()).and_then(|len| at.checked_add(len as u64));
    at >= most && end.is_some_and(|end| end <= i64::MAX.cast_unsigned())
}

/// A mapping of what no file has: each access is SIGBUS. It is one of an empty file of the kernel's, and not one of ours.
fn map_nothing(
    address: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    writable: bool,
) -> Answer<Address> {
    let range = range_of(if flags & libc::MAP_FIXED != 0 { address } else { std::ptr::null_mut() }, len)?;
    // SAFETY: a C string.
    let empty = owned(unsafe { libc::memfd_create(c"extant-nothing".as_ptr(), libc::MFD_CLOEXEC) })?;
    // Of a file that is open for reading alone no shared mapping may become writable.
    let file = if writable {
        empty
    } else {
        let path = format!("/proc/self/fd/{}\0", empty.as_raw_fd());
        // SAFETY: a C string.
        owned(unsafe { libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC) })?
    };
    let (fd, at) = (file.as_raw_fd(), 0);
    let mut all = MAPPED.write().unwrap_or_else(PoisonError::into_inner);
    if flags & libc::MAP_FIXED != 0 {
        take_out(&mut all, &range)?;
    }
    succeeded(Some(
        real::call!(mmap(address: *mut c_void, len: size_t, protection: c_int, flags: c_int, fd: c_int, at: off_t) -> Address),
    ))
}

fn owned(fd: c_int) -> Result<OwnedFd, Errno> {
    if fd < 0 {
        return Err(Errno(crate::abi::errno()));
    }
    // SAFETY: just opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn succeeded(address: Option<Address>) -> Answer<Address> {
    if address == Some(Address(libc::MAP_FAILED)) { Err(Errno(crate::abi::errno())) } else { Ok(address) }
}

/// Moves a new mapping to the addresses that the program asked for.
fn put_at(all: &mut Vec<Mapped>, mapping: &Mapping, range: Range<usize>, replace: bool) -> Result<(), Errno> {
    if range.is_empty() {
        return Err(Errno(libc::EINVAL));
    }
    if replace {
        take_out(all, &range)?;
    }
    reserve(&range, replace)?;
    let old = mapping.as_ptr().addr()..mapping.as_ptr().addr() + mapping.len();
    // SAFETY: nobody has seen the old addresses; the new ones were reserved just now, or are the program's to replace.
    unsafe { mapping.user_pages().remap(old, range.len(), Target::Fixed(range.start)) }.map_err(system)?;
    Ok(())
}

/// Takes addresses, without access: for what is to be put there next. `replace`: whatever is there goes.
fn reserve(range: &Range<usize>, replace: bool) -> Result<(), Errno> {
    let address = std::ptr::with_exposed_provenance_mut::<c_void>(range.start);
    let how = if replace { libc::MAP_FIXED } else { libc::MAP_FIXED_NOREPLACE };
    let flags = how | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let (len, protection, fd, at) = (range.len(), libc::PROT_NONE, -1, 0);
    let done = real::call!(mmap(address: *mut c_void, len: size_t, protection: c_int, flags: c_int, fd: c_int, at: off_t) -> Address);
    succeeded(Some(done)).map(drop)
}

fn system(error: std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

fn intersection(a: &Range<usize>, b: &Range<usize>) -> Option<Range<usize>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (!both.is_empty()).then_some(both)
}

/// Unmaps what of the range is in mappings of ours. Returns those parts.
fn take_out(all: &mut Vec<Mapped>, range: &Range<usize>) -> Result<Vec<Range<usize>>, Errno> {
    let mut gone = Vec::new();
    for one in all.iter_mut() {
        let parts: Vec<_> = one.pieces.iter().filter_map(|piece| intersection(piece, range)).collect();
        for part in parts {
            // SAFETY: the program gives these addresses up.
            unsafe { one.mapping.user_pages().unmap(part.clone()) }.map_err(system)?;
            let mut left = Vec::new();
            for piece in one.pieces.drain(..) {
                if intersection(&piece, &part).is_none() {
                    left.push(piece);
                    continue;
                }
                left.extend((piece.start < part.start).then_some(piece.start..part.start));
                left.extend((part.end < piece.end).then_some(part.end..piece.end));
            }
            one.pieces = left;
            gone.push(part);
        }
    }
    // Of a mapping without pieces nothing is left to unmap.
    all.retain(|one| !one.pieces.is_empty());
    gone.sort_unstable_by_key(|part| part.start);
    Ok(gone)
}

/// What of `range` is in none of `parts`, which are in order.
fn gaps(range: &Range<usize>, parts: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut at = range.start;
    let mut gaps = Vec::new();
    for part in parts {
        gaps.extend((at < part.start).then_some(at..part.start));
        at = part.end;
    }
    gaps.extend((at < range.end).then_some(at..range.end));
    gaps
}

/// Asks the kernel about what is its own.
fn for_gaps(gaps: &[Range<usize>], ask: impl Fn(*mut c_void, usize) -> c_int) -> Result<(), Errno> {
    for gap in gaps {
        if ask(std::ptr::with_exposed_provenance_mut(gap.start), gap.len()) != 0 {
            return Err(Errno(crate::abi::errno()));
        }
    }
    Ok(())
}

fn unmap(address: *mut c_void, len: usize) -> Answer<c_int> {
    let range = range_of(address, len)?;
    if range.is_empty() {
        return Err(Errno(libc::EINVAL));
    }
    let mut all = MAPPED.write().unwrap_or_else(PoisonError::into_inner);
    let gone = take_out(&mut all, &range)?;
    for_gaps(
        &gaps(&range, &gone),
        |address, len| real::call!(munmap(address: *mut c_void, len: size_t) -> c_int),
    )?;
    Ok(Some(0))
}

/// Calls `f` with each part of `range` that is ours, as a range of its mapping; then `ask` with what is the kernel's.
fn for_parts(
    range: &Range<usize>,
    mut f: impl FnMut(&Mapping, Range<usize>) -> Result<(), Errno>,
    ask: impl Fn(*mut c_void, usize) -> c_int,
) -> Answer<c_int> {
    let all = MAPPED.read().unwrap_or_else(PoisonError::into_inner);
    let mut ours = Vec::new();
    for one in all.iter() {
        let base = one.mapping.as_ptr().addr();
        for part in one.pieces.iter().filter_map(|piece| intersection(piece, range)) {
            let start = part.start.checked_sub(base).ok_or(Errno(libc::EINVAL))?;
            f(&one.mapping, start..start + part.len())?;
            ours.push(part);
        }
    }
    ours.sort_unstable_by_key(|part| part.start);
    for_gaps(&gaps(range, &ours), ask)?;
    Ok(Some(0))
}

fn protect(address: *mut c_void, len: usize, bits: c_int) -> Answer<c_int> {
    if bits & !(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) != 0 {
        return Err(Errno(libc::EINVAL));
    }
    let wanted = protection_of(bits);
    let range = range_of(address, len)?;
    for_parts(
        &range,
        |mapping, part| Ok(mapping.protect(part, wanted)?),
        |address, len| real::call!(mprotect(address: *mut c_void, len: size_t, bits: c_int) -> c_int),
    )
}

/// Keys of protection are the kernel's: no mapping of ours has one.
fn protect_by(address: *mut c_void, len: usize, bits: c_int, key: c_int) -> Answer<c_int> {
    if key != -1 {
        return Err(Errno(libc::EINVAL));
    }
    protect(address, len, bits)
}

/// What a program asks by the number of a system call, if it is about a mapping of ours.
pub(super) fn by_number(number: c_long, [a, b, c, d, e, f]: [c_long; 6]) -> Answer<c_long> {
    let (address, len) = (std::ptr::with_exposed_provenance_mut::<c_void>(a as usize), b as usize);
    let (third, fourth) = (c as c_int, d as c_int);
    let place =
        |done: Answer<Address>| done.map(|place| place.map(|Address(at)| at.expose_provenance() as c_long));
    let plain = |done: Answer<c_int>| done.map(|value| value.map(Into::into));
    if number == libc::SYS_mmap {
        // A descriptor of ours is none to who does not ask the library for a mapping.
        let over = fourth & libc::MAP_FIXED != 0 && lies_in_mapping(address, len);
        return if over { place(map(address, len, third, fourth, e as c_int, f)) } else { Ok(None) };
    }
    if number == libc::SYS_mremap {
        let (new, flags) = (c as usize, fourth);
        let target = std::ptr::with_exposed_provenance_mut::<c_void>(e as usize);
        let ours = lies_in_mapping(address, len.max(1))
            || flags & libc::MREMAP_FIXED != 0 && lies_in_mapping(target, new);
        return if ours { place(remap(address, len, new, flags, target)) } else { Ok(None) };
    }
    if !lies_in_mapping(address, len) {
        return Ok(None);
    }
    plain(match number {
        libc::SYS_munmap => unmap(address, len),
        libc::SYS_mprotect => protect(address, len, third),
        libc::SYS_pkey_mprotect => protect_by(address, len, third, fourth),
        libc::SYS_msync => sync(address, len, third),
        libc::SYS_madvise => advise(address, len, third),
        _ => Ok(None),
    })
}

fn sync(address: *mut c_void, len: usize, flags: c_int) -> Answer<c_int> {
    let known = libc::MS_ASYNC | libc::MS_SYNC | libc::MS_INVALIDATE;
    if flags & !known != 0 || flags & (libc::MS_ASYNC | libc::MS_SYNC) == libc::MS_ASYNC | libc::MS_SYNC {
        return Err(Errno(libc::EINVAL));
    }
    let mode = if flags & libc::MS_SYNC != 0 { SyncMode::Sync } else { SyncMode::Async };
    let range = range_of(address, len)?;
    for_parts(
        &range,
        |mapping, part| Ok(mapping.sync(part, mode)?),
        |address, len| real::call!(msync(address: *mut c_void, len: size_t, flags: c_int) -> c_int),
    )
}

fn advise(address: *mut c_void, len: usize, given: c_int) -> Answer<c_int> {
    let advice = match given {
        libc::MADV_NORMAL => Some(Advice::Normal),
        libc::MADV_RANDOM => Some(Advice::Random),
        libc::MADV_SEQUENTIAL => Some(Advice::Sequential),
        libc::MADV_WILLNEED | libc::MADV_POPULATE_READ => Some(Advice::WillNeed),
        libc::MADV_DONTNEED => Some(Advice::DontNeed),
        // Hints that change nothing; and what is true of these mappings anyway.
        libc::MADV_COLD
        | libc::MADV_PAGEOUT
        | libc::MADV_DONTDUMP
        | libc::MADV_DODUMP
        | libc::MADV_DONTFORK => None,
        _ => return Err(Errno(libc::EINVAL)),
    };
    let range = range_of(address, len)?;
    for_parts(
        &range,
        |mapping, part| Ok(advice.map_or(Ok(()), |advice| mapping.advise(part, advice))?),
        |address, len| real::call!(madvise(address: *mut c_void, len: size_t, given: c_int) -> c_int),
    )
}

fn remap(address: *mut c_void, old: usize, new: usize, flags: c_int, target: *mut c_void) -> Answer<Address> {
    let fixed = flags & libc::MREMAP_FIXED != 0;
    let may_move = flags & libc::MREMAP_MAYMOVE != 0;
    if flags & !(libc::MREMAP_FIXED | libc::MREMAP_MAYMOVE) != 0 || (fixed && !may_move) {
        return Err(Errno(libc::EINVAL));
    }
    let (from, new_len) = (range_of(address, old)?, range_of(std::ptr::null_mut(), new)?.len());
    let onto = if fixed { Some(range_of(target, new)?) } else { None };
    if from.is_empty()
        || new_len == 0
        || onto.as_ref().is_some_and(|onto| intersection(onto, &from).is_some())
    {
        return Err(Errno(libc::EINVAL));
    }
    let mut all = MAPPED.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(onto) = &onto {
        take_out(&mut all, onto)?;
        reserve(onto, true)?;
    }
    let holds = |one: &Mapped| one.pieces.iter().any(|p| p.start <= from.start && from.end <= p.end);
    let Some(one) = all.iter_mut().find(|one| holds(one)) else {
        if overlaps_mapping(address.cast(), old) {
            return Err(Errno(libc::EFAULT));
        }
        return Ok(Some(real::call!(mremap(address: *mut c_void, old: size_t, new: size_t, flags: c_int, target: *mut c_void) -> Address)))
            .and_then(succeeded);
    };
    // A part that moved away would have its addresses relative to nothing.
    if one.pieces != [from.clone()] && (may_move || new_len > from.len()) {
        return Err(Errno(libc::EINVAL));
    }
    let target = match &onto {
        Some(onto) => Target::Fixed(onto.start),
        None if may_move => Target::Anywhere,
        None => Target::InPlace,
    };
    // SAFETY: the program gives the old addresses up; those that it named as new were reserved just now.
    let start = unsafe { one.mapping.user_pages().remap(from.clone(), new_len, target) }.map_err(system)?;
    one.mapping.has_grown(new_len.saturating_sub(from.len()));
    if one.pieces == [from.clone()] {
        one.pieces.fill(start..start + new_len);
    } else {
        // Cut short in the middle.
        let cut = from.start + new_len..from.end;
        let left = |piece: &Range<usize>| gaps(piece, intersection(piece, &cut).as_slice());
        one.pieces = one.pieces.iter().flat_map(left).collect();
    }
    Ok(Some(Address(std::ptr::with_exposed_provenance_mut(start))))
}

#[cfg(test)]
mod tests {
    use super::{gaps, intersection};

    #[test]
    fn ranges_are_split() {
        assert_eq!(intersection(&(0..4), &(2..8)), Some(2..4));
        assert_eq!(intersection(&(0..4), &(4..8)), None);
        let whole = 0..10;
        assert_eq!(gaps(&whole, &[]), std::slice::from_ref(&whole));
        assert_eq!(gaps(&whole, &[0..3, 5..6]), [3..5, 6..10]);
        assert_eq!(gaps(&whole, &[2..4, 6..10]), [0..2, 4..6]);
        assert!(gaps(&whole, &[0..4, 4..10]).is_empty());
    }
}
