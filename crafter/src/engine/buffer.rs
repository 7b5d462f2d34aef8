//! Stream buffers that cost what is used of them.
//!
//! A buffer is as large as the largest window, but most connections carry a few kilobytes. Memory
//! from the allocator may have been used before, and would be zeroed here whole, 4 MiB for each
//! SYN; fresh anonymous pages come from the kernel zeroed, each when it is first touched.

use memmap2::MmapMut;

use crate::error::{Error, Result};

/// A buffer of zeroes.
pub(super) struct Buffer(MmapMut);

impl Buffer {
    /// `length` zero bytes; at least one.
    pub(super) fn new(length: usize) -> Result<Self> {
        let map = MmapMut::map_anon(length)
            .map_err(|source| Error::Io { action: format!("allocate a stream buffer of {length} bytes"), source })?;
        Ok(Self(map))
    }

    /// The bytes.
    ///
    /// # Safety
    /// The slice must not be used once `self` is dropped, and not be lent twice.
    pub(super) unsafe fn lend(&mut self) -> &'static mut [u8] {
        // SAFETY: the mapping stays where it is while `self` lives, wherever `self` is moved; the
        // caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr(), self.0.len()) }
    }
}
