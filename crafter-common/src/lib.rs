//! What the kernel half and the user half of crafter share: the layout of every map, the reasons of a verdict, and the
//! parser of both.
//!
//! Everything here is `no_std`. Protocol fields are byte arrays in network byte order, so that both halves build the
//! same keys; counters and times are in host order. Every struct is free of padding, and its size is asserted at
//! compile time.

#![no_std]

pub mod accept;
pub mod attached;
pub mod flow;
pub mod link;
pub mod map;
pub mod parse;
pub mod port;
pub mod reason;
pub mod reply;
pub mod route;
pub mod share;

/// The socket mark (`SO_MARK`, `skb->mark`) of crafted packets, which the egress program passes.
/// The letters `crft` in ASCII; settable at load time where another program uses the same value.
pub const DEFAULT_MARK: u32 = 0x6372_6674;

/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;
/// `IPPROTO_ICMP`.
pub const ICMP: u8 = 1;
/// `IPPROTO_ICMPV6`.
pub const ICMPV6: u8 = 58;

/// The 16-byte form that every address takes here: IPv6 as it is, IPv4 mapped (`::ffff:a.b.c.d`,
/// RFC 4291 section 2.5.5.2).
pub type Address = [u8; 16];

/// Any local address, in an [`port::OwnedKey`].
pub const ANY: Address = [0; 16];

/// An IPv4 address in its mapped 16-byte form.
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> Address {
    // As one number: the compiler for eBPF keeps the elements of an array of bytes in a register each.
    ((u32::from_le_bytes(v4) as u128) << 96 | 0xffff << 80).to_le_bytes()
}
