//! The record that precedes each packet in the ring buffer.

/// Header of each packet in the ring buffer; the packet follows directly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ReplyHeader {
    /// `bpf_ktime_get_ns` (CLOCK_MONOTONIC) when the hook saw the packet, host order.
    pub timestamp: u64,
    /// Bytes of the packet that follow, from the IP header on, host order.
    pub captured: u32,
    /// Bytes that the packet had, from the IP header on; more than `captured` if it was cut.
    pub length: u32,
    /// Interface that received it.
    pub ifindex: u32,
    /// The [`crate::reason::Reason`] that it got.
    pub reason: u32,
    /// Position of the first share of its lease ([`crate::share`]).
    pub share: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<ReplyHeader>() == 32);

/// Size classes of ring-buffer records, in bytes of packet: a reservation must have a constant
/// size for the verifier, and most replies are small.
pub const CLASSES: [u32; 4] = [256, 2048, 16 * 1024, 64 * 1024 + 512];

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above), valid for every bit pattern.
unsafe impl aya::Pod for ReplyHeader {}
