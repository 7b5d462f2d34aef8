//! Interfaces that share one load of the programs and its maps.
//!
//! Each has a slot, which its index selects: arrays hold the values of a slot side by side. Keys of hashes carry the
//! number of the attachment instead, which no other attachment gets: what is left in them never belongs to another
//! interface.

/// Interfaces that one load of the programs has room for; a power of two.
pub const SLOTS: u32 = 64;

/// The interface that is attached in a slot, in host order. All zero: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Attached {
    /// Number of the attachment, from 1 on.
    pub link: u32,
    /// Longest frame, in bytes, that an AF_XDP frame of this interface holds; the ring buffer takes longer ones.
    pub socket_frame: u32,
    /// Position of its pools in the map of shares; see [`crate::share`].
    pub pools: u32,
    /// Frames of each AF_XDP socket that packets may wait in.
    pub frames: u32,
    /// Units of the ring buffer that packets may wait in.
    pub ring: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<Attached>() == 24 && SLOTS.is_power_of_two());

#[cfg(feature = "user")]
// SAFETY: repr(C), six u32: no padding, valid for every bit pattern.
unsafe impl aya::Pod for Attached {}
