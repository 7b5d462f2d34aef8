//! Stream buffers that occupy only the memory that is used.
//!
//! A buffer is as large as the largest window, but most connections carry a few kilobytes. The allocator would zero
//! recycled memory, 4 MiB for each SYN. Fresh anonymous pages are zeroed by the kernel, each at its first access.

use memmap2::MmapMut;

use crate::{
    engine::StreamBuffer,
    error::{Error, Result},
};

/// Allocates a stream buffer of `length` bytes, at least one.
///
/// # Errors
/// [`Error::Io`] if the kernel has no address space for it.
pub(super) fn buffer(length: usize) -> Result<StreamBuffer> {
    let mut map = MmapMut::map_anon(length)
        .map_err(|source| Error::Io { action: format!("allocate a stream buffer of {length} bytes"), source })?;
    // SAFETY: the mapping does not move when `map` does, nothing else reads or writes it, and `StreamBuffer::within`
    // drops it after the last use of these bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr(), map.len()) };
    Ok(StreamBuffer::within(bytes, Box::new(map)))
}
