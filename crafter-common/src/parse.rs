//! Bytes to headers, over bounds-checked reads: the only reader of link and IP headers. The kernel half uses it, and so
//! does all code of user space that makes a decision about a packet. So the policy checks what is sent, and both halves
//! agree on which lease owns a packet. (Layers in Scapy's notation are dissected elsewhere: no decision depends on
//! them.)
//!
//! Only what is needed to find the ports is validated: a malformed segment to an owned port is delivered to its owner,
//! unless the kernel would not take the packet at all ([`crate::accept`]). User space reads no further than the packet's
//! own length field ([`declared_length`]), and refuses a packet that is shorter than that. For a packet that is cut, each
//! function here returns the same as for the whole packet, or an error.
//!
//! Points on which parsers differ, and how this one decides:
//! - An IPv6 packet has [`MAX_EXTENSION_HEADERS`] extension headers at most; after more, its transport is not known:
//!   [`Reason::OtherProtocol`].
//! - Extension headers are those that [`extends`] names. HIP (139) and Shim6 (140) are not among them: Linux delivers
//!   no segment after one, so each is a transport that has no ports, as is "no next header" (59).
//! - A header that does not end within the packet is malformed, also if nothing after it is needed.
//! - A second fragment header after that of a first fragment is malformed: RFC 8200 section 4.5 fragments a packet
//!   once, and Linux discards such a datagram (`ipv6_frag_rcv()`). Fragment headers of atomic fragments (RFC 6946) are
//!   skipped.
//! - The fragment header of a later fragment is followed by the middle of a datagram, which has no headers.
//! - A packet is for another node where a routing header has segments left ([`Network::left`]). IPv4 source routes are
//!   read in user space only ([`crate::route`]).
//! - There are at most two VLAN tags. After a third one, a frame is not IP for the kernel half ([`link`]), and
//!   unreadable for the policy, which checks frames before they are sent ([`frame`]).

pub use crate::link::{Frame, ethernet, frame, link};
use crate::{Address, ICMP, ICMPV6, TCP, UDP, flow::FragmentKey, mapped, reason::Reason};

/// Bounds-checked reads from a packet.
pub trait Bytes {
    /// The `N` bytes at `offset`, or `None` where the packet is shorter.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// `value & MASK`, of which the verifier knows only the mask. The verifier follows every path with its knowledge of
    /// every value, and merges paths whose knowledge is equal: hiding where exactly a header ends keeps the number of
    /// paths small. The mask bounds every copy of the value; a comparison does not, because kernels before 6.9 do not
    /// apply it to a copy that was spilled before.
    #[inline(always)]
    fn opaque_mask<const MASK: u32>(&self, value: usize) -> usize {
        value & MASK as usize
    }

    /// [`network6`] of these bytes. The kernel half calls a function here, which the verifier checks once instead of at
    /// each of the places that it is called from.
    #[inline(always)]
    fn network6(&self, start: usize) -> Result<Network, Reason> {
        network6(self, start)
    }
}

impl Bytes for [u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }
}

/// IPv6 extension headers that are walked before a packet counts as [`Reason::OtherProtocol`].
pub const MAX_EXTENSION_HEADERS: usize = 8;

/// IPv6 hop-by-hop options (RFC 8200 section 4.3).
pub const HOP_BY_HOP: u8 = 0;
/// IPv6 routing header (RFC 8200 section 4.4).
pub const ROUTING: u8 = 43;
/// IPv6 fragment header (RFC 8200 section 4.5).
pub const FRAGMENT: u8 = 44;
/// Authentication header (RFC 4302).
pub const AUTHENTICATION: u8 = 51;
/// IPv6 destination options (RFC 8200 section 4.6).
pub const DESTINATION_OPTIONS: u8 = 60;
/// Mobility header (RFC 6275).
pub const MOBILITY: u8 = 135;

/// Whether an IPv6 header of this type is an extension header that is walked.
#[inline(always)]
pub const fn extends(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY)
}

/// Length of an IPv4 header without options, in bytes.
pub const IPV4_HEADER: usize = 20;
/// Length of the fixed IPv6 header, in bytes.
pub const IPV6_HEADER: usize = 40;

/// Largest offset of a header, in bytes. A header beyond it counts as [`Reason::Malformed`]: the verifier needs a bound
/// below 65,536, and real chains of extension headers are far shorter.
pub const MAX_OFFSET: usize = OFFSET_MASK as usize;
const OFFSET_MASK: u32 = 0x7fff;

/// Which fragment of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented (or an atomic fragment, RFC 6946).
    Whole,
    /// Offset zero, more fragments follow: holds the ports.
    First,
    /// Offset above zero: holds no ports.
    Later,
}

/// Offsets of an IP packet's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Offset of the IP header.
    pub start: usize,
    /// Offset of the transport header.
    pub transport: usize,
    /// The transport protocol, after extension headers.
    pub protocol: u8,
    /// 6 rather than 4.
    pub v6: bool,
    /// Which fragment it is.
    pub fragment: Fragment,
    /// Identification, big-endian, if it is a fragment. Of several fragment headers, which RFC 8200 section 4.1
    /// does not foresee, the last one counts.
    pub identification: [u8; 4],
    /// Segments left: nodes that an IPv6 routing header still names (RFC 8200 section 4.4). If it is not zero, the
    /// destination is one of these nodes, and the ports belong to the last of them.
    pub left: usize,
    /// Offsets of some IPv6 headers. Always the default in the kernel half.
    pub extensions: Extensions,
}

/// Offsets of some IPv6 extension headers; 0 where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// Offset of the fragment header; of several, the last one's.
    pub fragment: usize,
    /// Offset of the byte that names it as the next header.
    pub fragment_named_at: usize,
    /// Offset of the routing header; of several, the last one's.
    pub routing: usize,
    /// How many routing headers there are.
    pub routings: usize,
}

impl Network {
    /// Source and destination in 16-byte form.
    #[inline(always)]
    pub fn addresses<B: Bytes + ?Sized>(&self, bytes: &B) -> Option<(Address, Address)> {
        addresses(bytes, self.start, self.v6)
    }

    /// Offset of this fragment's data in its datagram, in bytes, and whether more fragments follow.
    #[inline(always)]
    pub fn piece<B: Bytes + ?Sized>(&self, bytes: &B) -> Option<(u16, bool)> {
        if self.v6 {
            Some(piece6(bytes.load::<2>(self.extensions.fragment + 2)?))
        } else {
            Some(piece4(bytes.load::<2>(self.start + 6)?))
        }
    }

    /// `address`, unless it cannot be the source or destination of this packet. IPv6 has two such forms, which the maps
    /// use for something else: the unspecified address, here [`crate::ANY`] (RFC 4291 section 2.5.2), and IPv4-mapped
    /// addresses, which denote IPv4 nodes (section 2.5.5.2).
    #[inline(always)]
    pub fn end(&self, address: Address) -> Option<Address> {
        let number = u128::from_be_bytes(address);
        if self.v6 && (number == 0 || number >> 32 == 0xffff) { None } else { Some(address) }
    }

    /// The key of this datagram in the map of fragments; `link` is the number of the interface's attachment.
    #[inline(always)]
    pub fn fragment_key(&self, link: u32, source: Address, destination: Address) -> FragmentKey {
        FragmentKey {
            link,
            source,
            destination,
            identification: self.identification,
            protocol: u32::from(if self.v6 { 0 } else { self.protocol }).to_le_bytes(),
        }
    }
}

/// Source and destination, in 16-byte form, of the IP packet at `start`, whatever else is in it.
#[inline(always)]
pub fn addresses<B: Bytes + ?Sized>(bytes: &B, start: usize, v6: bool) -> Option<(Address, Address)> {
    if v6 {
        Some((bytes.load::<16>(start + 8)?, bytes.load::<16>(start + 24)?))
    } else {
        Some((mapped(bytes.load::<4>(start + 12)?), mapped(bytes.load::<4>(start + 16)?)))
    }
}

/// The length, in bytes, that the IP header at `start` says that the packet has. 0: it says none, as for a super-frame
/// that is too long for the field (BIG TCP, `skb_gro_receive()`).
#[inline(always)]
pub fn declared_length<B: Bytes + ?Sized>(bytes: &B, start: usize, v6: bool) -> Option<usize> {
    let field = bytes.load::<2>(start + if v6 { 4 } else { 2 })?;
    match (u16::from_be_bytes(field) as usize, v6) {
        (payload @ 1.., true) => Some(IPV6_HEADER + payload),
        (length, _) => Some(length),
    }
}

/// Offset in bytes, and whether more follow: RFC 791 section 3.1.
#[inline(always)]
const fn piece4(field: [u8; 2]) -> (u16, bool) {
    let field = u16::from_be_bytes(field);
    ((field & 0x1fff) << 3, field & 0x2000 != 0)
}

/// Offset in bytes, and whether more follow: RFC 8200 section 4.5.
#[inline(always)]
const fn piece6(field: [u8; 2]) -> (u16, bool) {
    let field = u16::from_be_bytes(field);
    (field & 0xfff8, field & 1 != 0)
}

impl Fragment {
    #[inline(always)]
    const fn of((offset, more): (u16, bool)) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First,
            _ => Self::Later,
        }
    }
}

/// Walks the IP header at `start` to the transport header.
///
/// # Errors
/// [`Reason::Malformed`] and [`Reason::OtherProtocol`].
#[inline(always)]
pub fn network<B: Bytes + ?Sized>(bytes: &B, start: usize, v6: bool) -> Result<Network, Reason> {
    if start > MAX_OFFSET {
        return Err(Reason::Malformed);
    }
    let mut found = if v6 { bytes.network6(start)? } else { network4(bytes, start)? };
    found.transport = advance(bytes, found.transport)?;
    // The last header ends within the packet, or at its end.
    bytes.load::<0>(found.transport).ok_or(Reason::Malformed)?;
    Ok(found)
}

/// `offset`, of which the verifier knows only the bound.
#[inline(always)]
fn advance<B: Bytes + ?Sized>(bytes: &B, offset: usize) -> Result<usize, Reason> {
    if offset > MAX_OFFSET { Err(Reason::Malformed) } else { Ok(bytes.opaque_mask::<OFFSET_MASK>(offset)) }
}

/// RFC 791 section 3.1.
#[inline(always)]
fn network4<B: Bytes + ?Sized>(bytes: &B, start: usize) -> Result<Network, Reason> {
    let header = bytes.load::<20>(start).ok_or(Reason::Malformed)?;
    let length = ((header[0] & 0x0f) as usize) << 2;
    if header[0] >> 4 != 4 || length < 20 {
        return Err(Reason::Malformed);
    }
    Ok(Network {
        start,
        transport: start + length,
        protocol: header[9],
        v6: false,
        fragment: Fragment::of(piece4([header[6], header[7]])),
        identification: [0, 0, header[4], header[5]],
        left: 0,
        extensions: Extensions { fragment: 0, fragment_named_at: 0, routing: 0, routings: 0 },
    })
}

/// Walks the IPv6 header at `start`, at most 32,767, and its extension headers (RFC 8200, sections 3 and 4).
///
/// # Errors
/// [`Reason::Malformed`] and [`Reason::OtherProtocol`].
#[inline(always)]
pub fn network6<B: Bytes + ?Sized>(bytes: &B, start: usize) -> Result<Network, Reason> {
    let header = bytes.load::<8>(start).ok_or(Reason::Malformed)?;
    // The addresses must be there too: callers rely on it.
    if header[0] >> 4 != 6 || bytes.load::<1>(start + 39).is_none() {
        return Err(Reason::Malformed);
    }
    let mut found = Network {
        start,
        transport: start + 40,
        protocol: header[6],
        v6: true,
        fragment: Fragment::Whole,
        identification: [0; 4],
        // Opaque: with a zero that it knows, the verifier would not merge the paths with and without a routing header.
        left: bytes.opaque_mask::<0xff>(0),
        extensions: Extensions { fragment: 0, fragment_named_at: 0, routing: 0, routings: 0 },
    };
    let mut named_at = start + 6;
    for _ in 0..MAX_EXTENSION_HEADERS {
        let at = found.transport;
        let unit = match found.protocol {
            // Length in units of 8 after the first.
            HOP_BY_HOP | DESTINATION_OPTIONS | MOBILITY => 8,
            ROUTING => {
                found.extensions.routing = at;
                found.extensions.routings += 1;
                found.left |= bytes.load::<4>(found.transport).ok_or(Reason::Malformed)?[3] as usize;
                8
            }
            // RFC 4302 section 2.2: units of 4, minus 2.
            AUTHENTICATION => 4,
            FRAGMENT => {
                if found.fragment == Fragment::First {
                    return Err(Reason::Malformed);
                }
                let extension = bytes.load::<8>(found.transport).ok_or(Reason::Malformed)?;
                found.extensions.fragment = at;
                found.extensions.fragment_named_at = named_at;
                named_at = at;
                found.protocol = extension[0];
                found.identification = [extension[4], extension[5], extension[6], extension[7]];
                found.transport = advance(bytes, found.transport + 8)?;
                found.fragment = Fragment::of(piece6([extension[2], extension[3]]));
                if found.fragment == Fragment::Later {
                    return Ok(found);
                }
                continue;
            }
            _ => return Ok(found),
        };
        let extension = bytes.load::<2>(found.transport).ok_or(Reason::Malformed)?;
        named_at = at;
        found.protocol = extension[0];
        found.transport += if unit == 8 { (extension[1] as usize + 1) * 8 } else { (extension[1] as usize + 2) * 4 };
        found.transport = advance(bytes, found.transport)?;
    }
    if extends(found.protocol) { Err(Reason::OtherProtocol) } else { Ok(found) }
}

/// The ports of a TCP or UDP header at `offset`: source, destination, big-endian.
#[inline(always)]
pub fn ports<B: Bytes + ?Sized>(bytes: &B, offset: usize) -> Option<([u8; 2], [u8; 2])> {
    let four = bytes.load::<4>(offset)?;
    Some(([four[0], four[1]], [four[2], four[3]]))
}

/// Length of the fixed part of the header of `protocol`: a shorter one is malformed.
#[inline(always)]
pub const fn header_length(protocol: u8) -> usize {
    if protocol == TCP { 20 } else { 8 }
}

/// Whether `protocol` has ports that can be owned.
#[inline(always)]
pub const fn has_ports(protocol: u8) -> bool {
    protocol == TCP || protocol == UDP
}

/// What an ICMP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp {
    /// A question that carries an identifier, big-endian, which its answer repeats: echo (RFC 792, RFC 4443
    /// section 4.1), timestamp, information, address mask (RFC 950).
    Query {
        /// The identifier.
        id: [u8; 2],
    },
    /// The answer to such a question.
    Reply {
        /// The identifier.
        id: [u8; 2],
    },
    /// An error that quotes the packet it is about; `port_unreachable` is RFC 792's type 3 code 3
    /// and RFC 4443's type 1 code 4.
    Error {
        /// Whether it says that the port is not open.
        port_unreachable: bool,
    },
    /// Anything else.
    Other,
}

/// Reads the ICMP header at `net.transport`; `None` where it is cut short.
#[inline(always)]
pub fn icmp<B: Bytes + ?Sized>(bytes: &B, net: &Network) -> Option<Icmp> {
    let [kind, code] = bytes.load::<2>(net.transport)?;
    let error = if net.v6 {
        // RFC 4443 section 2.1: types below 128 are errors; 1 to 4 are assigned.
        matches!(kind, 1..=4)
    } else {
        // RFC 792: destination unreachable, source quench, time exceeded, parameter problem. A redirect
        // (5) quotes a packet too, but is for the routing table, not for the sender of the packet.
        matches!(kind, 3 | 4 | 11 | 12)
    };
    if error {
        let port_unreachable = if net.v6 { kind == 1 && code == 4 } else { kind == 3 && code == 3 };
        return Some(Icmp::Error { port_unreachable });
    }
    let query = if net.v6 { kind == 128 } else { matches!(kind, 8 | 13 | 15 | 17) };
    let reply = if net.v6 { kind == 129 } else { matches!(kind, 0 | 14 | 16 | 18) };
    if !query && !reply {
        return Some(Icmp::Other);
    }
    let header = bytes.load::<8>(net.transport)?;
    let id = [header[4], header[5]];
    Some(if query { Icmp::Query { id } } else { Icmp::Reply { id } })
}

/// Whether `net` carries the ICMP of its IP version.
#[inline(always)]
pub const fn is_icmp(net: &Network) -> bool {
    (net.v6 && net.protocol == ICMPV6) || (!net.v6 && net.protocol == ICMP)
}

/// Walks the packet that the ICMP error at `net.transport` quotes.
///
/// # Errors
/// [`Reason::Malformed`] and [`Reason::OtherProtocol`].
#[inline(always)]
pub fn quoted<B: Bytes + ?Sized>(bytes: &B, net: &Network) -> Result<Network, Reason> {
    network(bytes, net.transport + 8, net.v6)
}

/// Who sent the packet that the ICMP error at `net.transport` quotes: the packet, the protocol that is owned, and its
/// ports, big-endian: the sender's, or the identifier, and the receiver's, zero for ICMP. `None` where the quotation does not say: such as that of a later fragment.
#[inline(always)]
pub fn quoted_sender<B: Bytes + ?Sized>(bytes: &B, net: &Network) -> Option<(Network, u8, [[u8; 2]; 2])> {
    let quoted = quoted(bytes, net).ok()?;
    if quoted.fragment == Fragment::Later {
        return None;
    }
    if has_ports(quoted.protocol) {
        let (source, destination) = ports(bytes, quoted.transport)?;
        Some((quoted, quoted.protocol, [source, destination]))
    } else if is_icmp(&quoted)
        && let Icmp::Query { id } = icmp(bytes, &quoted)?
    {
        Some((quoted, ICMP, [id, [0; 2]]))
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
