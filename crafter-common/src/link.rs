//! Link-layer headers: which IP packet a frame holds, and where. The only walk over VLAN tags.

use crate::{parse::Bytes, reason::Reason};

/// Length of an Ethernet header without tags, in bytes.
pub const ETHERNET_HEADER: usize = 14;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// The tag of IEEE 802.1Q.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// The outer tag of IEEE 802.1ad.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;
/// An outer tag from before IEEE 802.1ad, which switches may accept and Linux does not (`eth_type_vlan()`).
pub const ETHERTYPE_OLD_QINQ: u16 = 0x9100;

/// The ethertype after the VLAN tags of an Ethernet frame, and the offset of the payload; `None` if the frame ends
/// before. With more than two tags it is the ethertype of the third tag.
#[inline(always)]
fn behind_tags<B: Bytes + ?Sized>(bytes: &B, is_tag: impl Fn(u16) -> bool) -> Option<(usize, u16)> {
    let mut offset = ETHERNET_HEADER;
    let mut ethertype = u16::from_be_bytes(bytes.load::<2>(12)?);
    if is_tag(ethertype) {
        ethertype = u16::from_be_bytes(bytes.load::<2>(16)?);
        offset = 18;
        if is_tag(ethertype) {
            ethertype = u16::from_be_bytes(bytes.load::<2>(20)?);
            offset = 22;
        }
    }
    Some((offset, ethertype))
}

/// The ethertype after up to two VLAN tags that Linux supports (IEEE 802.1Q, 802.1ad), and the offset of the payload in
/// bytes; `None` if the frame ends before.
#[inline(always)]
pub fn ethernet<B: Bytes + ?Sized>(bytes: &B) -> Option<(usize, u16)> {
    behind_tags(bytes, |ethertype| ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ)
}

/// Contents of an Ethernet frame, as the policy and the sender check them before the frame is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The ethertype is IPv4 or IPv6.
    Ip {
        /// The offset of the IP header in bytes.
        start: usize,
        /// Whether the IP version is 6.
        v6: bool,
    },
    /// The ethertype is another one.
    Other,
    /// It ends before its ethertype, or has more than two tags.
    Unreadable,
}

/// The contents of a frame after up to two tags: those that [`link`] reads, and [`ETHERTYPE_OLD_QINQ`], after which a
/// switch may find an IP packet that this host's kernel does not. A frame that is IP for [`link`] is IP here, too.
#[inline(always)]
pub fn frame<B: Bytes + ?Sized>(bytes: &B) -> Frame {
    let is_tag = |ethertype| matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ | ETHERTYPE_OLD_QINQ);
    match behind_tags(bytes, is_tag) {
        Some((start, ETHERTYPE_IPV4)) => Frame::Ip { start, v6: false },
        Some((start, ETHERTYPE_IPV6)) => Frame::Ip { start, v6: true },
        Some((_, ethertype)) if !is_tag(ethertype) => Frame::Other,
        _ => Frame::Unreadable,
    }
}

/// Finds the IP header after `link_header` bytes of link-layer header: Ethernet with up to two VLAN tags (IEEE 802.1Q,
/// 802.1ad) for 14, none for 0.
///
/// # Errors
/// [`Reason::NotIp`].
#[inline(always)]
pub fn link<B: Bytes + ?Sized>(bytes: &B, link_header: usize) -> Result<(usize, bool), Reason> {
    if link_header == 0 {
        // Two bytes, though one would do: the verifier derives nothing from `data < data_end`, to which the compiler
        // reduces the check of one byte (find_good_pkt_pointers() in kernel/bpf/verifier.c).
        let version = bytes.load::<2>(0).ok_or(Reason::NotIp)?[0] >> 4;
        return match version {
            4 => Ok((0, false)),
            6 => Ok((0, true)),
            _ => Err(Reason::NotIp),
        };
    }
    let (offset, ethertype) = ethernet(bytes).ok_or(Reason::NotIp)?;
    match ethertype {
        ETHERTYPE_IPV4 => Ok((offset, false)),
        ETHERTYPE_IPV6 => Ok((offset, true)),
        _ => Err(Reason::NotIp),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    #[test]
    fn ethernet_with_up_to_two_tags() {
        let frame = |tags: &[u16], kind: u16| {
            let mut bytes = Vec::from([0; 12]);
            for tag in tags {
                bytes.extend(tag.to_be_bytes());
                bytes.extend([0, 5]);
            }
            bytes.extend(kind.to_be_bytes());
            bytes
        };
        let link = |bytes: Vec<u8>| link(&bytes[..], 14);
        assert_eq!(link(frame(&[], 0x0800)), Ok((14, false)));
        assert_eq!(link(frame(&[0x8100], 0x86dd)), Ok((18, true)));
        assert_eq!(link(frame(&[0x88a8, 0x8100], 0x0800)), Ok((22, false)));
        assert_eq!(link(frame(&[0x88a8, 0x8100, 0x8100], 0x0800)), Err(Reason::NotIp));
        assert_eq!(link(frame(&[], 0x0806)), Err(Reason::NotIp));
        assert_eq!(link(Vec::from([0; 13])), Err(Reason::NotIp));
    }
}
