//! A reader's buffer: data of a WRITE begins on a page.

use zerocopy::{FromBytes, IntoBytes};

use crate::wire::{InHeader, WriteIn};

const PAGE: usize = 4096;
/// What precedes the data of a WRITE.
const HEAD: usize = size_of::<InHeader>() + size_of::<WriteIn>();
/// Where a request begins, so that its data begins on a page. A multiple of 8, as the structures need.
const START: usize = PAGE - HEAD;

const _: () = assert!(START.is_multiple_of(8));

/// One page, aligned.
#[derive(Clone, FromBytes, IntoBytes, zerocopy::Immutable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Room for one request.
pub(crate) struct Buffer {
    pages: Vec<Page>,
}

impl Buffer {
    /// For requests whose data has at most `max_write` bytes.
    pub(crate) fn new(max_write: u32) -> Self {
        // One page before the data, one after it for what is longer than a WRITE's head.
        let pages = (max_write as usize).div_ceil(PAGE) + 2;
        Self { pages: vec![Page([0; PAGE]); pages] }
    }

    /// Where to read a request to.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_slice().as_mut_bytes()[START..]
    }

    /// The first `len` bytes read.
    pub(crate) fn filled(&self, len: usize) -> &[u8] {
        &self.pages.as_slice().as_bytes()[START..START + len]
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffer, HEAD};

    #[test]
    fn data_of_a_write_is_on_a_page_boundary() {
        let mut buffer = Buffer::new(1 << 20);
        let space = buffer.space();
        assert!(space.len() >= (1 << 20) + HEAD);
        assert_eq!(space.as_ptr().addr() % 8, 0);
        assert_eq!(space[HEAD..].as_ptr().addr() % 4096, 0);
    }
}
