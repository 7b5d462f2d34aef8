//! Converts packets that smoltcp cannot read.

use crafter_packet::view::field::{ipv4, ipv6, tcp};
use crafter_packet::view::{Flags, Seq, TcpView, ip};

/// Payload of the pieces of a super-frame, in bytes.
const PIECE: usize = 32 << 10;

/// First byte of an IPv4 header without options: version 4, 5 words.
const VERSION_4_NO_OPTIONS: u8 = 0x45;

/// Passes the segment to `take` as packets that smoltcp can read: itself, or copies in `buffer`. The checksums of the
/// copies are wrong; [`OneShot`](super::device::OneShot) has smoltcp ignore them.
pub(crate) fn for_each_plain(view: &TcpView<'_>, buffer: &mut Vec<u8>, take: &mut dyn FnMut(&[u8])) {
    let packet = view.ip.bytes();
    let (length, fixed) = match view.ip.version() {
        4 => (&packet[ipv4::LENGTH], view.ip.payload.start),
        _ => (&packet[ipv6::LENGTH], ip::IPV6_HEADER),
    };
    if length == [0, 0] {
        in_pieces(view, buffer, take);
    } else if view.ip.payload.start != fixed {
        without_extension_headers(view, buffer);
        take(buffer);
    } else {
        take(packet);
    }
}

/// Copies an IPv6 segment to `buffer` without its extension headers.
///
/// - smoltcp: `process_ipv6` reads hop-by-hop options; `process_nxt_hdr` answers any other extension header with a
///   parameter problem.
/// - Required: a node accepts extension headers in any order and number (RFC 8200, section 4.1); the parser has skipped
///   them already.
/// - Otherwise: a peer that uses destination options or segment routing receives ICMPv6 errors.
/// - Remove when smoltcp reads past all extension headers.
pub(crate) fn without_extension_headers(view: &TcpView<'_>, buffer: &mut Vec<u8>) {
    copy_piece(view, 0..view.payload().len(), buffer);
}

/// Passes a super-frame to `take` in pieces whose lengths fit the IP header, each copied to `buffer`, without IPv4
/// options and IPv6 extension headers.
///
/// - smoltcp: `check_len` of IPv4 rejects a length field of 0; IPv6 reads an empty packet.
/// - Required: no RFC. Linux delivers merged segments (`skb_gro_receive`) as one packet, with length 0 if the sum
///   exceeds 16 bits (BIG TCP).
/// - Otherwise: super-frames of 64 KiB and more are lost.
/// - Remove when smoltcp uses the length of the buffer if the length field is 0, or reads segments without an IP
///   header.
pub(crate) fn in_pieces(view: &TcpView<'_>, buffer: &mut Vec<u8>, take: &mut dyn FnMut(&[u8])) {
    let length = view.payload().len();
    let mut start = 0;
    loop {
        let end = length.min(start + PIECE);
        copy_piece(view, start..end, buffer);
        take(buffer);
        if end == length {
            return;
        }
        start = end;
    }
}

/// Copies the headers and a part of the payload, which must fit the length field of the IP header.
fn copy_piece(view: &TcpView<'_>, part: std::ops::Range<usize>, buffer: &mut Vec<u8>) {
    let (packet, segment, payload) = (view.ip.bytes(), view.ip.payload(), view.payload());
    let is_ipv4 = view.ip.version() == 4;
    let ip_header = if is_ipv4 { ip::IPV4_HEADER } else { ip::IPV6_HEADER };
    let tcp_header = segment.len() - payload.len();
    buffer.clear();
    buffer.extend_from_slice(&packet[..ip_header]);
    buffer.extend_from_slice(&segment[..tcp_header]);
    buffer.extend_from_slice(&payload[part.clone()]);
    let length = tcp_header + part.len();
    if is_ipv4 {
        buffer[ipv4::VERSION_IHL] = VERSION_4_NO_OPTIONS;
        buffer[ipv4::LENGTH].copy_from_slice(&((ip_header + length) as u16).to_be_bytes());
    } else {
        buffer[ipv6::LENGTH].copy_from_slice(&(length as u16).to_be_bytes());
        buffer[ipv6::NEXT_HEADER] = ip::TCP;
    }
    let copy = &mut buffer[ip_header..];
    copy[tcp::SEQ].copy_from_slice(&(Seq(view.seq) + part.start as u32).to_be_bytes());
    if part.end < payload.len() {
        // FIN follows the last byte of the super-frame.
        copy[tcp::FLAGS] &= !((Flags::FIN | Flags::PSH).0 as u8);
    }
}
