//! Stream buffers that cost what is used of them.
//!
//! A buffer is as large as the largest window, but most connections carry a few kilobytes. Memory
//! from the allocator may have been used before, and would be zeroed here whole, 4 MiB for each
//! SYN; fresh anonymous pages come from the kernel zeroed, each when it is first touched.

use memmap2::MmapMut;

use crate::{
    engine::StreamBuffer,
    error::{Error, Result},
};

/// A stream's buffer of `length` bytes; at least one.
///
/// # Errors
/// [`Error::Io`] where the kernel has no address space for it.
pub(super) fn buffer(length: usize) -> Result<StreamBuffer> {
    let mut map = MmapMut::map_anon(length)
        .map_err(|source| Error::Io { action: format!("allocate a stream buffer of {length} bytes"), source })?;
    // SAFETY: the mapping stays where it is wherever `map` is moved, nothing else reads or writes it, and
    // `StreamBuffer::within` drops it after the last use of these bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr(), map.len()) };
    Ok(StreamBuffer::within(bytes, Box::new(map)))
}
