//! Bounds-checked reads: all access to packet memory is here.

use core::arch::asm;

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    programs::{TcContext, XdpContext},
};
use crafter_common::parse::Bytes;

use crate::maps;

/// A packet in a hook.
pub trait Packet: Bytes {
    /// Bytes in the packet, link-layer header included.
    fn length(&self) -> u32;

    /// Copies `count` bytes from `offset` on to `target`. Fails where the packet is shorter.
    ///
    /// # Safety
    /// `target` must be valid for writes of `count` bytes.
    unsafe fn copy(&self, offset: u32, target: *mut u8, count: u32) -> bool;

    /// Redirects the packet into the AF_XDP socket of its queue; false where there is none, or
    /// the packet does not fit into one of its frames.
    fn redirect(&self) -> bool;

    /// The interface that the packet came in on.
    fn ifindex(&self) -> u32;
}

/// Reads `N` bytes at `offset` between `data` and `data_end`.
#[inline(always)]
fn load<const N: usize>(data: usize, data_end: usize, offset: usize) -> Option<[u8; N]> {
    let start = data + offset;
    if start + N > data_end {
        return None;
    }
    // SAFETY: the N bytes from start on lie before data_end, which the verifier checks again;
    // an array of bytes has no alignment.
    Some(unsafe { *(start as *const [u8; N]) })
}

/// `value & MASK`, by way of a number that the verifier knows nothing of.
#[inline(always)]
fn forget<const MASK: u32>(mut value: usize, unknown: usize) -> usize {
    // In Rust the compiler would fold two XORs to nothing, and a mask that it knows to be superfluous.
    // SAFETY: registers only.
    unsafe {
        asm!(
            "{0} ^= {1}",
            "{0} ^= {1}",
            "{0} &= {2}",
            inout(reg) value,
            in(reg) unknown,
            const MASK,
            options(pure, nomem, nostack)
        );
    }
    value
}

/// A packet at the XDP hook.
pub struct XdpPacket<'a> {
    ctx: &'a XdpContext,
    data: usize,
    data_end: usize,
    queue: u32,
}

impl<'a> XdpPacket<'a> {
    #[inline(always)]
    pub fn new(ctx: &'a XdpContext) -> Self {
        // Volatile: read wherever it is used, the compiler merges it with reads of the context's other fields into one
        // by a computed pointer, which the verifier refuses.
        // SAFETY: the context is the one that the hook was called with.
        let queue = unsafe { (&raw const (*ctx.ctx).rx_queue_index).read_volatile() };
        Self { ctx, data: ctx.data(), data_end: ctx.data_end(), queue }
    }
}

impl Bytes for XdpPacket<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        load(self.data, self.data_end, offset)
    }

    #[inline(always)]
    fn forget<const MASK: u32>(&self, value: usize) -> usize {
        forget::<MASK>(value, self.queue as usize)
    }
}

impl Packet for XdpPacket<'_> {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context is the one that the hook was called with.
        unsafe { bpf_xdp_get_buff_len(self.ctx.ctx) as u32 }
    }

    #[inline(always)]
    unsafe fn copy(&self, offset: u32, target: *mut u8, count: u32) -> bool {
        // SAFETY: the caller vouches for target; the helper checks offset and count against the packet.
        unsafe { bpf_xdp_load_bytes(self.ctx.ctx, offset, target.cast(), count) == 0 }
    }

    #[inline(always)]
    fn redirect(&self) -> bool {
        let length = self.length();
        // A buffer in fragments would need a socket with XDP_USE_SG; the ring takes those.
        if length > maps::socket_frame() || self.data + length as usize > self.data_end {
            return false;
        }
        maps::redirect(self.queue)
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }
}

/// Bytes that are made linear before parsing: link header, IPv4 with options or IPv6 with some
/// extension headers, TCP; and an ICMP error with what it quotes.
const HEADERS: u32 = 256;

/// A packet at a tc hook.
pub struct SkbPacket<'a> {
    ctx: &'a TcContext,
    data: usize,
    data_end: usize,
}

impl<'a> SkbPacket<'a> {
    /// Pulls the headers into the linear part where they are not there yet; `None` where memory
    /// for that is short.
    #[inline(always)]
    pub fn new(ctx: &'a TcContext) -> Option<Self> {
        let wanted = if ctx.len() < HEADERS { ctx.len() } else { HEADERS };
        if ctx.data() + wanted as usize > ctx.data_end() {
            ctx.pull_data(wanted).ok()?;
        }
        Some(Self { ctx, data: ctx.data(), data_end: ctx.data_end() })
    }
}

impl Bytes for SkbPacket<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        load(self.data, self.data_end, offset)
    }

    #[inline(always)]
    fn forget<const MASK: u32>(&self, value: usize) -> usize {
        forget::<MASK>(value, self.ctx.len() as usize)
    }
}

impl Packet for SkbPacket<'_> {
    #[inline(always)]
    fn length(&self) -> u32 {
        self.ctx.len()
    }

    #[inline(always)]
    unsafe fn copy(&self, offset: u32, target: *mut u8, count: u32) -> bool {
        // SAFETY: the caller vouches for target; the helper checks offset and count against the packet.
        unsafe { bpf_skb_load_bytes(self.ctx.as_ptr(), offset, target.cast(), count) == 0 }
    }

    #[inline(always)]
    fn redirect(&self) -> bool {
        false
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is the __sk_buff that the hook was called with.
        unsafe { (*self.ctx.skb.skb).ifindex }
    }
}

/// The socket mark of a packet.
#[inline(always)]
pub fn mark(ctx: &TcContext) -> u32 {
    // SAFETY: the context is the __sk_buff that the hook was called with.
    unsafe { (*ctx.skb.skb).mark }
}
