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
    /// [`CHECK_STATION`], [`CHECK_SOURCE`], [`ACCEPT_LOCAL`] and [`ROUTE_LOCALNET`].
    pub checks: u32,
    /// Its Ethernet address, then two zeros.
    pub station: [u8; 8],
}

/// See [`Attached::checks`]: frames are for [`Attached::station`] or a group. Neither loopback nor links without
/// Ethernet have such addresses.
pub const CHECK_STATION: u32 = 1;
/// Sources are checked. The kernel does not on loopback, where it knows the route of what it sent itself.
pub const CHECK_SOURCE: u32 = 2;
/// The host's own addresses may be sources (`accept_local` in ip-sysctl).
pub const ACCEPT_LOCAL: u32 = 4;
/// 127.0.0.0/8 may be sources (`route_localnet` in ip-sysctl).
pub const ROUTE_LOCALNET: u32 = 8;

const _: () = assert!(size_of::<Attached>() == 32 && SLOTS.is_power_of_two());

#[cfg(feature = "user")]
// SAFETY: repr(C), six u32 and eight bytes: no padding, valid for every bit pattern.
unsafe impl aya::Pod for Attached {}
