//! Whether the kernel would take a packet on an interface: only such a packet is delivered to the owner of a port.
//! Asked only about packets to owned ports, so that others pay nothing.

use crate::{
    Address, TCP,
    attached::{ACCEPT_LOCAL, Attached, CHECK_SOURCE, CHECK_STATION, ROUTE_LOCALNET},
    link::ETHERNET_HEADER,
    parse::{self, Bytes, IPV4_HEADER},
    reason::Reason,
};

/// Words of the longest IPv4 header, and of one without options.
const MAX_WORDS: usize = 15;
const MIN_WORDS: usize = IPV4_HEADER / 4;

/// The low 48 bits of 8 bytes from the start of a frame: the destination.
const STATION: u64 = 0xffff_ffff_ffff;

/// Whether a VLAN tag (IEEE 802.1Q) names a VLAN; with identifier 0 it holds a priority only.
#[inline(always)]
pub const fn names_vlan(tci: u16) -> bool {
    tci & 0x0fff != 0
}

/// Whether a tag before the IP header at `start` of an Ethernet frame names a VLAN. The kernel gives such a frame to
/// the device of that VLAN, and to no other (`vlan_do_receive()`, `__netif_receive_skb_core()`).
#[inline(always)]
pub fn other_vlan<B: Bytes + ?Sized>(bytes: &B, start: usize) -> bool {
    let names = |at| bytes.load::<2>(at).is_none_or(|tci| names_vlan(u16::from_be_bytes(tci)));
    (start > ETHERNET_HEADER && names(14)) || (start > ETHERNET_HEADER + 4 && names(18))
}

/// Why the kernel does not deliver the packet with an IP header at `start` on the interface `attached`; `None` where it
/// does. `tagged`: a VLAN tag that is not in the frame, but beside it, names a VLAN. `is_local`: whether an address is
/// this host's.
///
/// - The frame is for this interface: its VLAN, and its Ethernet address or a group. TCP in a frame to a group is
///   discarded (`eth_type_trans()`, `tcp_v4_rcv()`).
/// - The source can be a host's (`ip_route_input_slow()`, `fib_validate_source()`, `ip6_rcv_core()`).
/// - The checksum of an IPv4 header is right (`ip_rcv_core()`), and its time to live is not zero: no gateway sends such
///   a packet (RFC 791 section 3.2). A hop limit of zero is legal at the destination (RFC 8200 section 3).
#[inline(always)]
pub fn refusal<B: Bytes + ?Sized>(
    bytes: &B,
    (start, v6, protocol): (usize, bool, u8),
    attached: &Attached,
    tagged: bool,
    is_local: impl FnOnce(&Address) -> bool,
) -> Option<Reason> {
    if tagged || other_vlan(bytes, start) {
        return Some(Reason::OtherLink);
    }
    if attached.checks & CHECK_STATION != 0 {
        let Some(frame) = bytes.load::<8>(0) else { return Some(Reason::OtherLink) };
        let is_station = u64::from_le_bytes(frame) & STATION == u64::from_le_bytes(attached.station);
        let is_group = frame[0] & 1 != 0 && protocol != TCP;
        if !is_station && !is_group {
            return Some(Reason::OtherLink);
        }
    }
    if attached.checks & CHECK_SOURCE != 0 && is_martian(bytes, start, v6, attached.checks, is_local) {
        return Some(Reason::MartianSource);
    }
    if !v6 && !is_valid_header(bytes, start) {
        return Some(Reason::InvalidHeader);
    }
    None
}

#[inline(always)]
fn is_martian<B: Bytes + ?Sized>(
    bytes: &B,
    start: usize,
    v6: bool,
    checks: u32,
    is_local: impl FnOnce(&Address) -> bool,
) -> bool {
    let Some((source, _)) = parse::addresses(bytes, start, v6) else { return true };
    let number = u128::from_be_bytes(source);
    if v6 {
        // ff00::/8, ::1, and ::ffff:0:0/96, which Linux takes except for TCP, and which is another host's form in the maps.
        return source[0] == 0xff || number == 1 || number >> 32 == 0xffff;
    }
    let number = number as u32;
    let first = number >> 24;
    // Linux takes the rest of 0.0.0.0/8 since 5.3.
    if number == 0 || first >> 4 == 0xe || number == u32::MAX || (first == 127 && checks & ROUTE_LOCALNET == 0) {
        return true;
    }
    checks & ACCEPT_LOCAL == 0 && is_local(&source)
}

/// Whether the IPv4 header at `start` has the right checksum (RFC 1071), and a time to live.
#[inline(always)]
fn is_valid_header<B: Bytes + ?Sized>(bytes: &B, start: usize) -> bool {
    let Some(header) = bytes.load::<IPV4_HEADER>(start) else { return false };
    if header[8] == 0 {
        return false;
    }
    let words = (header[0] & 0x0f) as usize;
    let mut sum = 0_u64;
    let mut at = 0;
    while at < IPV4_HEADER {
        sum += u64::from(u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
        at += 4;
    }
    let mut word = MIN_WORDS;
    while word < MAX_WORDS {
        if word >= words {
            break;
        }
        let Some(option) = bytes.load::<4>(start + word * 4) else { return false };
        sum += u64::from(u32::from_be_bytes(option));
        word += 1;
    }
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum == 0xffff
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    fn checked(mut header: Vec<u8>) -> Vec<u8> {
        let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        header
    }

    fn header(words: u8, fill: u8) -> Vec<u8> {
        let mut header = std::vec![fill; usize::from(words) * 4];
        header[0] = 0x40 | words;
        header[10..12].copy_from_slice(&[0, 0]);
        checked(header)
    }

    #[test]
    fn header_checksum_covers_every_word() {
        for words in 5..=15 {
            for fill in [1, 0x5a, 0xff] {
                let valid = header(words, fill);
                assert!(is_valid_header(&valid[..], 0), "{words} words of {fill}");
                for at in 1..valid.len() {
                    let mut wrong = valid.clone();
                    wrong[at] ^= 0x10;
                    assert!(!is_valid_header(&wrong[..], 0), "{words} words, byte {at}");
                }
            }
        }
    }

    #[test]
    fn packet_without_time_to_live_is_refused() {
        let mut header = header(5, 1);
        header[8] = 0;
        header[10..12].copy_from_slice(&[0, 0]);
        assert!(!is_valid_header(&checked(header)[..], 0));
    }
}
