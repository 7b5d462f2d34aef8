//! Bounds-checked reads: all access to packet memory and to the context is here.

use core::arch::asm;

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, xdp_md},
    helpers::generated::{bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    programs::{SkLookupContext, TcContext, XdpContext},
};
use crafter_common::{
    accept,
    parse::{self, Bytes, Extensions, Fragment, Network},
    reason::Reason,
    share::Mark,
};

use crate::{deliver, maps};

/// A packet in a hook.
pub trait Packet: Bytes {
    /// Bytes in the packet, link-layer header included.
    fn length(&self) -> u32;

    /// Copies `count` bytes from `offset` on to `target`. Fails where the packet is shorter.
    ///
    /// # Safety
    /// `target` must be valid for writes of `count` bytes.
    unsafe fn copy(&self, offset: u32, target: *mut u8, count: u32) -> bool;

    /// [`deliver::copy`], if the packet fits into the shares of its owner.
    fn deliver(&self, offset: u32, reason: Reason, share: u32) -> bool;

    /// Redirects the packet into the AF_XDP socket of its queue, with `share` in place of the first bytes of its Ethernet
    /// header; `Some(false)` where that share of the frames is used up, `None` where there is no socket, or the packet
    /// does not fit into one of its frames.
    fn redirect(&self, share: u32) -> Option<bool>;

    /// Why the kernel would not deliver this packet; `None` where it would.
    fn refusal(&self, net: &Network) -> Option<Reason>;

    /// Whether a VLAN tag beside the frame, not in it, names a VLAN.
    fn is_tagged(&self) -> bool;

    /// The interface whose hook this is.
    fn ifindex(&self) -> u32;

    /// Its slot.
    fn slot(&self) -> u32;
}

/// Reads a number at an address of any alignment: the kernel allows it in packets.
macro_rules! read {
    ($name:ident, $kind:ty, $instruction:literal) => {
        #[inline(always)]
        fn $name(start: usize) -> $kind {
            let value: u64;
            // SAFETY: the caller has checked the bounds, and the verifier checks them again.
            unsafe { asm!($instruction, out(reg) value, in(reg) start, options(pure, readonly, nostack)) };
            value as $kind
        }
    };
}
read!(read8, u64, "{0} = *(u64 *)({1} + 0)");
read!(read4, u32, "{0} = *(u32 *)({1} + 0)");
read!(read2, u16, "{0} = *(u16 *)({1} + 0)");
read!(read1, u8, "{0} = *(u8 *)({1} + 0)");

/// Reads `N` bytes at `offset` between `data` and `data_end`.
#[inline(always)]
fn load<const N: usize>(data: usize, data_end: usize, offset: usize) -> Option<[u8; N]> {
    let start = data + offset;
    if start + N > data_end {
        return None;
    }
    let mut bytes = [0; N];
    let mut at = 0;
    while at + 8 <= N {
        bytes[at..at + 8].copy_from_slice(&read8(start + at).to_ne_bytes());
        at += 8;
    }
    if at + 4 <= N {
        bytes[at..at + 4].copy_from_slice(&read4(start + at).to_ne_bytes());
        at += 4;
    }
    if at + 2 <= N {
        bytes[at..at + 2].copy_from_slice(&read2(start + at).to_ne_bytes());
        at += 2;
    }
    if at < N {
        bytes[at] = read1(start + at);
    }
    Some(bytes)
}

/// `value & MASK`, computed with the help of a number that is unknown to the verifier.
#[inline(always)]
fn opaque_mask<const MASK: u32>(mut value: usize, unknown: usize) -> usize {
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
    ifindex: u32,
}

impl<'a> XdpPacket<'a> {
    #[inline(always)]
    pub fn new(ctx: &'a XdpContext) -> Self {
        // Volatile: otherwise the compiler merges the read with those of the context's other fields into one by a
        // computed pointer, which the verifier refuses. SAFETY: the context is the one that the hook was called with.
        let ifindex = unsafe { (&raw const (*ctx.ctx).ingress_ifindex).read_volatile() };
        Self { ctx, data: ctx.data(), data_end: ctx.data_end(), ifindex }
    }
}

impl XdpPacket<'_> {
    /// Writes the position of the lease's share over the first bytes of the Ethernet header, which no reader of redirected
    /// frames looks at: the user half releases the frame in the share that it was admitted to.
    #[inline(always)]
    fn mark(&self, share: u32) -> bool {
        let mark: Mark = share.to_ne_bytes();
        if self.data + mark.len() > self.data_end {
            return false;
        }
        // SAFETY: the bytes lie before data_end, which the verifier checks again; an array of bytes has no alignment.
        unsafe { *(self.data as *mut Mark) = mark };
        true
    }
}

impl Bytes for XdpPacket<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        load(self.data, self.data_end, offset)
    }

    #[inline(always)]
    fn opaque_mask<const MASK: u32>(&self, value: usize) -> usize {
        opaque_mask::<MASK>(value, self.ifindex as usize)
    }

    #[inline(always)]
    fn network6(&self, start: usize) -> Result<Network, Reason> {
        network6(self, start, || crafter_xdp_network6(self.ctx.ctx, start as u32))
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
    fn deliver(&self, offset: u32, reason: Reason, share: u32) -> bool {
        deliver::admitted(self, offset, share, || crafter_xdp_copy(self.ctx.ctx, offset, reason as u32, share) != 0)
    }

    #[inline(always)]
    fn redirect(&self, share: u32) -> Option<bool> {
        let length = self.length();
        // A buffer in fragments would need a socket with XDP_USE_SG; the ring takes those.
        if length > maps::attached(self.slot()).socket_frame || self.data + length as usize > self.data_end {
            return None;
        }
        // SAFETY: as in `new`.
        let queue = unsafe { (&raw const (*self.ctx.ctx).rx_queue_index).read_volatile() };
        let socket = maps::socket(self.slot(), queue)?;
        Some(maps::redirect(self.slot(), socket, share) && self.mark(share))
    }

    #[inline(always)]
    fn refusal(&self, net: &Network) -> Option<Reason> {
        unpack_refusal(crafter_xdp_refusal(self.ctx.ctx, net.start as u32, u32::from(net.v6), u32::from(net.protocol)))
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        // An offloaded tag is not seen here: see Kernel::attach().
        false
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    #[inline(always)]
    fn slot(&self) -> u32 {
        maps::slot(self.ifindex)
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
        Some(Self::linear(ctx))
    }

    /// As much as there is in the linear part.
    #[inline(always)]
    fn linear(ctx: &'a TcContext) -> Self {
        Self { ctx, data: ctx.data(), data_end: ctx.data_end() }
    }
}

impl Bytes for SkbPacket<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        load(self.data, self.data_end, offset)
    }

    #[inline(always)]
    fn opaque_mask<const MASK: u32>(&self, value: usize) -> usize {
        opaque_mask::<MASK>(value, self.ctx.len() as usize)
    }

    #[inline(always)]
    fn network6(&self, start: usize) -> Result<Network, Reason> {
        network6(self, start, || crafter_skb_network6(self.ctx.skb.skb, start as u32))
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
    fn deliver(&self, offset: u32, reason: Reason, share: u32) -> bool {
        deliver::admitted(self, offset, share, || crafter_skb_copy(self.ctx.skb.skb, offset, reason as u32, share) != 0)
    }

    #[inline(always)]
    fn redirect(&self, _: u32) -> Option<bool> {
        None
    }

    #[inline(always)]
    fn refusal(&self, net: &Network) -> Option<Reason> {
        let (v6, protocol) = (u32::from(net.v6), u32::from(net.protocol));
        unpack_refusal(crafter_skb_refusal(self.ctx.skb.skb, net.start as u32, v6, protocol))
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        // SAFETY: the context is the __sk_buff that the hook was called with. Volatile: see XdpPacket::new().
        let (present, tci) = unsafe {
            let skb = self.ctx.skb.skb;
            ((&raw const (*skb).vlan_present).read_volatile(), (&raw const (*skb).vlan_tci).read_volatile())
        };
        present != 0 && accept::names_vlan(tci as u16)
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        ifindex(self.ctx)
    }

    #[inline(always)]
    fn slot(&self) -> u32 {
        maps::slot(ifindex(self.ctx))
    }
}

/// [`parse::network6`], by `walk` where there are extension headers. Most packets have none, and pay for no call.
#[inline(always)]
fn network6<P: Packet>(packet: &P, start: usize, walk: impl FnOnce() -> u64) -> Result<Network, Reason> {
    match packet.load::<{ parse::IPV6_HEADER }>(start) {
        Some(header) if header[0] >> 4 == 6 && !parse::extends(header[6]) => Ok(Network {
            start,
            transport: start + parse::IPV6_HEADER,
            protocol: header[6],
            v6: true,
            fragment: Fragment::Whole,
            identification: [0; 4],
            left: packet.opaque_mask::<0xff>(0),
            extensions: Extensions::default(),
        }),
        _ => unpack(start, walk()),
    }
}

/// [`parse::network6`] at the XDP hook, [packed](pack). With external linkage, it is verified once and by itself: its
/// callers continue on one path after each call.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn crafter_xdp_network6(ctx: *mut xdp_md, start: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    walk(&XdpPacket::new(&ctx), start)
}

/// The same at the tc hooks.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn crafter_skb_network6(ctx: *mut __sk_buff, start: u32) -> u64 {
    let ctx = TcContext::new(ctx);
    walk(&SkbPacket::linear(&ctx), start)
}

/// [`deliver::copy`] at the XDP hook: 1 where it succeeded.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn crafter_xdp_copy(ctx: *mut xdp_md, offset: u32, reason: u32, share: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    u32::from(deliver::copy(&XdpPacket::new(&ctx), offset, reason, share))
}

/// The same at the tc hooks.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn crafter_skb_copy(ctx: *mut __sk_buff, offset: u32, reason: u32, share: u32) -> u32 {
    let ctx = TcContext::new(ctx);
    u32::from(deliver::copy(&SkbPacket::linear(&ctx), offset, reason, share))
}

/// [`accept::refusal`] at the XDP hook, as a number for [`unpack_refusal`]. Called for owned packets only.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn crafter_xdp_refusal(ctx: *mut xdp_md, start: u32, v6: u32, protocol: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    refusal(&XdpPacket::new(&ctx), start, v6, protocol)
}

/// The same at the tc hooks.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn crafter_skb_refusal(ctx: *mut __sk_buff, start: u32, v6: u32, protocol: u32) -> u32 {
    let ctx = TcContext::new(ctx);
    refusal(&SkbPacket::linear(&ctx), start, v6, protocol)
}

#[inline(always)]
fn refusal<P: Packet>(packet: &P, start: u32, v6: u32, protocol: u32) -> u32 {
    // Behind two tags at most; by the mask, the verifier knows it here too.
    let header = (start as usize & 0x1f, v6 != 0, protocol as u8);
    let attached = maps::attached(packet.slot());
    accept::refusal(packet, header, &attached, packet.is_tagged(), maps::is_local).map_or(0, |reason| reason as u32)
}

#[inline(always)]
fn unpack_refusal(number: u32) -> Option<Reason> {
    const OTHER_LINK: u32 = Reason::OtherLink as u32;
    const MARTIAN_SOURCE: u32 = Reason::MartianSource as u32;
    match number {
        0 => None,
        OTHER_LINK => Some(Reason::OtherLink),
        MARTIAN_SOURCE => Some(Reason::MartianSource),
        _ => Some(Reason::InvalidHeader),
    }
}

#[inline(always)]
fn walk<P: Packet>(packet: &P, start: u32) -> u64 {
    // The callers have checked it; by the mask, the verifier knows it here too.
    pack(parse::network6(packet, start as usize & parse::MAX_OFFSET))
}

/// Bits of a packed [`Network`]: 0 to 15 the offset of the transport header, 16 to 23 its protocol, 24 to 25 the kind
/// of fragment, 26 whether segments are left, 28 to 29 the error, 32 to 63 the identification, in the order of its
/// bytes.
#[inline(always)]
fn pack(walked: Result<Network, Reason>) -> u64 {
    match walked {
        Ok(net) => {
            let fragment = match net.fragment {
                Fragment::Whole => 0,
                Fragment::First => 1,
                Fragment::Later => 2,
            };
            net.transport as u64
                | u64::from(net.protocol) << 16
                | fragment << 24
                | u64::from(net.left != 0) << 26
                | u64::from(u32::from_be_bytes(net.identification)) << 32
        }
        Err(Reason::OtherProtocol) => 2 << 28,
        Err(_) => 1 << 28,
    }
}

#[inline(always)]
fn unpack(start: usize, packed: u64) -> Result<Network, Reason> {
    match packed >> 28 & 3 {
        0 => {}
        2 => return Err(Reason::OtherProtocol),
        _ => return Err(Reason::Malformed),
    }
    Ok(Network {
        start,
        transport: packed as usize & 0xffff,
        protocol: (packed >> 16) as u8,
        v6: true,
        fragment: match packed >> 24 & 3 {
            0 => Fragment::Whole,
            1 => Fragment::First,
            _ => Fragment::Later,
        },
        identification: ((packed >> 32) as u32).to_be_bytes(),
        left: (packed >> 26 & 1) as usize,
        extensions: Extensions::default(),
    })
}

/// The interface whose hook this is.
#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is the __sk_buff that the hook was called with.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// The socket mark of a packet.
#[inline(always)]
pub fn mark(ctx: &TcContext) -> u32 {
    // SAFETY: the context is the __sk_buff that the hook was called with.
    unsafe { (*ctx.skb.skb).mark }
}

/// The local port of a datagram whose socket is looked up; `None` for other protocols.
#[inline(always)]
pub fn looked_up(ctx: &SkLookupContext) -> Option<u16> {
    // SAFETY: the context is the bpf_sk_lookup that the hook was called with.
    let (protocol, port) = unsafe { ((*ctx.lookup).protocol, (*ctx.lookup).local_port) };
    (protocol == u32::from(crafter_common::UDP)).then_some(port as u16)
}
