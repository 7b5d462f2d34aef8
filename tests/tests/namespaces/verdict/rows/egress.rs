//! Rows at egress: answers of the kernel from owned and other ports, and crafted packets.

use std::net::SocketAddr;

use crafter_common::{DEFAULT_MARK, reason::Reason};
use crafter_tests::{
    frame::{self, ACK, ICMP, MORE, RST, SYN, TCP, Tcp, UDP, V4},
    oracle::Flow,
};

use super::*;
use Reason::{
    Crafted, EgressOther, RstAllowed, RstNotOwned, RstSuppressed, UnreachableAllowed, UnreachableNotOwned,
    UnreachableSuppressed,
};

/// A packet sent by the kernel, without a mark.
fn kernel(name: &str, reason: Reason, packet: &[u8]) -> Row {
    row(format!("{name}, IPv{}", packet[0] >> 4), is(reason), frame::framed(packet))
}

/// A crafted packet.
fn crafted(name: &str, packet: &[u8]) -> Row {
    Row { mark: DEFAULT_MARK, ..kernel(name, Crafted, packet) }
}

impl Row {
    /// Expects that the flow between these ends counts a suppressed answer.
    fn suppressing(self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> Self {
        let flow = Flow { suppressed: 1, ..Flow::default() };
        Self { updates: Some((flow_id(protocol, local, remote), flow)), ..self }
    }

    /// Expects that the flow between these ends counts a crafted packet.
    fn counting(self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> Self {
        let flow = Flow { tx: (1, (self.frame.len() - self.start) as u64), ..Flow::default() };
        Self { updates: Some((flow_id(protocol, local, remote), flow)), ..self }
    }
}

pub fn egress_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for version in 0..2 {
        rst_rows(&mut rows, version);
        crafted_rows(&mut rows, version);
        unreachable_rows(&mut rows, version);
        peer_rows(&mut rows, version);
    }
    wrapped_rows(&mut rows);
    rows.push(row("ARP", is(EgressOther), frame::ethernet(&[], 0x0806, &[0; 28])));
    rows.push(Row { mark: DEFAULT_MARK, ..row("crafted ARP", is(Crafted), frame::ethernet(&[], 0x0806, &[0; 28])) });
    rows
}

fn rst_rows(rows: &mut Vec<Row>, version: usize) {
    let (local, other, peer) = (LOCAL[version], SECOND[version], at(PEER[version], 80));
    let tcp = |flags, address: &str, port| Tcp::new(flags, 5, 6).ip(at(address, port), peer);
    let rst = |address: &str, port| tcp(RST, address, port);
    for (name, flags, address, port) in [
        ("a RST from an owned port", RST, local, ON_ANY),
        ("a RST-ACK from an owned port", RST | ACK, local, ON_ANY),
        ("a segment with all flags from an owned port", 0xff, local, ON_ANY),
        ("a RST from a port owned on this address", RST, local, EXACT),
        ("a RST from a port owned on any address, second address", RST, other, ON_ANY),
        ("a RST from a port owned on this address and on any", RST, local, BOTH),
        ("a RST from a port owned on another address and on any", RST, other, BOTH),
        ("a RST from an observed port", RST, local, OBSERVED),
    ] {
        let row = kernel(name, RstSuppressed, &tcp(flags, address, port));
        rows.push(row.suppressing(TCP, at(address, port), peer));
    }
    let marked =
        Row { mark: DEFAULT_MARK ^ 1, ..kernel("a RST with another mark", RstSuppressed, &rst(local, ON_ANY)) };
    rows.push(marked.suppressing(TCP, at(local, ON_ANY), peer));
    rows.push(kernel("a RST from a port owned on another address", RstNotOwned, &rst(other, EXACT)));
    rows.push(kernel("a RST from a port with policy pass", RstAllowed, &rst(local, ALLOWED)));
    rows.push(kernel("a RST from an unowned port", RstNotOwned, &rst(local, FREE)));
    rows.push(kernel("a forwarded RST", RstNotOwned, &rst(TRANSIT[version], ON_ANY)));
    rows.push(kernel("the kernel's ACK from an owned port", EgressOther, &tcp(ACK, local, ON_ANY)));
    rows.push(kernel("all flags but RST from an owned port", EgressOther, &tcp(!RST, local, ON_ANY)));
    rows.push(kernel("a SYN of the kernel", EgressOther, &tcp(SYN, local, FREE)));
    let header = [20, 40][version];
    rows.push(kernel("a RST truncated by one byte", EgressOther, &rst(local, ON_ANY)[..header + 19]));
    rows.push(kernel("a RST truncated to its IP header", EgressOther, &rst(local, ON_ANY)[..header]));
    if version == 1 {
        let mapped = format!("::ffff:{}", LOCAL[0]);
        for (address, port) in [("::", BOTH), (&mapped, EXACT), (&mapped, ON_ANY), ("::1", BOTH)] {
            rows.push(kernel(&format!("a RST from {address} port {port}"), RstNotOwned, &rst(address, port)));
        }
    }
}

fn crafted_rows(rows: &mut Vec<Row>, version: usize) {
    let (local, peer) = (LOCAL[version], at(PEER[version], 80));
    let tcp = |flags, address: &str, port| Tcp::new(flags, 5, 6).ip(at(address, port), peer);
    let own = at(local, ON_ANY);
    rows.push(crafted("a crafted RST", &tcp(RST, local, ON_ANY)).counting(TCP, own, peer));
    rows.push(crafted("a crafted SYN", &tcp(SYN, local, ON_ANY)).counting(TCP, own, peer));
    rows.push(crafted("a crafted SYN from an unowned port", &tcp(SYN, local, FREE)));
    let datagram = frame::udp_ip(own, peer, b"x");
    rows.push(kernel("a datagram from an owned port", EgressOther, &datagram));
    rows.push(crafted("a crafted datagram", &datagram).counting(UDP, own, peer));
    let header = [20, 40][version];
    rows.push(crafted("a crafted datagram truncated to its ports", &datagram[..header + 4]).counting(UDP, own, peer));
    rows.push(crafted("a crafted datagram, ports truncated by one byte", &datagram[..header + 3]));
    rows.push(crafted("a crafted packet of another protocol", &frame::packet(ip(local), peer.ip(), 47, &[0; 20])));
    let query = |kind, id| frame::icmp_query(ip(local), peer.ip(), kind, id, b"\0ping");
    let (request, reply) = [(8, 0), (128, 129)][version];
    rows.push(kernel("an echo reply of the kernel", EgressOther, &query(reply, ON_ANY)));
    rows.push(kernel("an echo request of the kernel", EgressOther, &query(request, ON_ANY)));
    let host = SocketAddr::new(peer.ip(), 0);
    rows.push(crafted("a crafted echo request", &query(request, ON_ANY)).counting(ICMP, own, host));
    // RFC 792 and RFC 950; RFC 4443, section 4.1.
    let queries: [&[u8]; 2] = [&[8, 13, 15, 17], &[128]];
    for kind in 0..=255 {
        let row = crafted(&format!("crafted ICMP type {kind}"), &query(kind, ON_ANY));
        rows.push(if queries[version].contains(&kind) { row.counting(ICMP, own, host) } else { row });
    }
    if version == 1 {
        let mapped = format!("::ffff:{}", LOCAL[0]);
        for (address, port) in [("::", BOTH), (&mapped, EXACT), ("::1", BOTH)] {
            rows.push(crafted(&format!("a crafted SYN from {address}"), &tcp(SYN, address, port)));
            let echo = frame::icmp_query(ip(address), peer.ip(), request, port, b"\0ping");
            rows.push(crafted(&format!("a crafted echo request from {address}"), &echo));
        }
    }
    rows.push(crafted("a crafted echo request with an unowned identifier", &query(request, FREE)));
    rows.push(crafted("a crafted echo reply", &query(reply, ON_ANY)));
    rows.push(crafted("a truncated crafted echo request", &query(request, ON_ANY)[..header + 7]));
    rows.push(crafted("a crafted packet without transport header", &datagram[..header]));
}

fn unreachable_rows(rows: &mut Vec<Row>, version: usize) {
    let (local, other, peer) = (LOCAL[version], SECOND[version], at(PEER[version], 80));
    let (kind, code) = [(3, 3), (1, 4)][version];
    let received = |address: &str, port| frame::udp_ip(peer, at(address, port), b"unexpected");
    let icmp = |kind, code, quoted: &[u8]| frame::icmp(ip(local), peer.ip(), kind, code, quoted);
    let unreachable = |quoted: &[u8]| icmp(kind, code, quoted);
    for (name, port) in
        [("an owned port", ON_ANY), ("a port owned on this address", EXACT), ("an observed port", OBSERVED)]
    {
        let row = kernel(
            &format!("port unreachable for {name}"),
            UnreachableSuppressed,
            &unreachable(&received(local, port)),
        );
        rows.push(row.suppressing(UDP, at(local, port), peer));
    }
    let add = |name: &str, reason, quoted: &[u8]| kernel(name, reason, &unreachable(quoted));
    rows.push(add("port unreachable with policy pass", UnreachableAllowed, &received(local, ALLOWED)));
    rows.push(add("port unreachable for an unowned port", UnreachableNotOwned, &received(local, FREE)));
    rows.push(add(
        "port unreachable for a port owned on another address",
        UnreachableNotOwned,
        &received(other, EXACT),
    ));
    rows.push(crafted("a crafted port unreachable", &unreachable(&received(local, ON_ANY))));
    rows.push(kernel("host unreachable quoting an owned port", EgressOther, &icmp(kind, 1, &received(local, ON_ANY))));
    let exceeded = [11, 3][version];
    rows.push(kernel("time exceeded quoting an owned port", EgressOther, &icmp(exceeded, 4, &received(local, ON_ANY))));
    let segment = Tcp::new(SYN, 1, 0).ip(peer, at(local, ON_ANY));
    rows.push(add("port unreachable about TCP", EgressOther, &segment));
    rows.push(add("port unreachable that quotes nothing", EgressOther, &[]));
    let header = [20, 40][version];
    let quoted = received(local, ON_ANY);
    let just = add("port unreachable that quotes only the ports", UnreachableSuppressed, &quoted[..header + 4]);
    rows.push(just.suppressing(UDP, at(local, ON_ANY), peer));
    rows.push(add("port unreachable, quoted ports truncated by one byte", EgressOther, &quoted[..header + 3]));
    rows.push(add("port unreachable, quoted IP header truncated by one byte", EgressOther, &quoted[..header - 1]));
    let mut impossible = quoted.clone();
    impossible[0] = [0x44, 0x50][version];
    rows.push(add("port unreachable quoting an impossible IP header", EgressOther, &impossible));
    let other = frame::udp_ip(at(PEER[1 - version], 80), at(LOCAL[1 - version], ON_ANY), b"");
    rows.push(add("port unreachable quoting the other IP version", EgressOther, &other));
    let message = unreachable(&quoted);
    rows.push(kernel("an ICMP header of one byte", EgressOther, &message[..header + 1]));
    // Only one pair of type and code means that a port is closed.
    let closed = [(3, 3), (1, 4)][version];
    let pairs = (0..=255).map(|kind| (kind, closed.1)).chain((0..=15).map(|code| (closed.0, code)));
    for (kind, code) in pairs.filter(|pair| *pair != closed) {
        let message = icmp(kind, code, &received(local, ON_ANY));
        rows.push(kernel(&format!("ICMP type {kind} code {code}"), EgressOther, &message));
    }
    if version == 1 {
        let mapped = format!("::ffff:{}", LOCAL[0]);
        for (address, port) in [("::", BOTH), (&mapped, EXACT), (&mapped, ON_ANY), ("::1", BOTH)] {
            let name = format!("port unreachable of {address} port {port}");
            rows.push(add(&name, UnreachableNotOwned, &received(address, port)));
        }
        for ninth in NINTH {
            let (next, bytes) = frame::extended(&[60; 8], ninth, &frame::udp(peer, at(local, ON_ANY), b""));
            let quoted = frame::v6(peer.ip(), ip(local), next, &bytes);
            rows.push(add(&format!("port unreachable quoting {ninth} after eight headers"), EgressOther, &quoted));
        }
        for (kinds, walked) in MIXED {
            let (next, bytes) = frame::extended(kinds, UDP, &frame::udp(peer, at(local, ON_ANY), b""));
            let name = format!("port unreachable quoting headers {kinds:?}");
            let quoted = frame::v6(peer.ip(), ip(local), next, &bytes);
            rows.push(match walked {
                Some(_) => add(&name, UnreachableSuppressed, &quoted).suppressing(UDP, at(local, ON_ANY), peer),
                None => add(&name, EgressOther, &quoted),
            });
        }
        let later = frame::fragment6(UDP, 8, false, 1, &frame::udp(peer, at(local, ON_ANY), b""));
        rows.push(add(
            "port unreachable about a later fragment",
            EgressOther,
            &frame::v6(peer.ip(), ip(local), 44, &later),
        ));
    } else {
        let later = V4 { fragment: 1, ..V4::default() };
        let later = later.packet(peer.ip(), ip(local), UDP, &frame::udp(peer, at(local, ON_ANY), b""));
        rows.push(add("port unreachable about a later fragment", EgressOther, &later));
    }
}

/// A RST in fragments, with IP options, extension headers and VLAN tags.
fn wrapped_rows(rows: &mut Vec<Row>) {
    let (local, peer) = (at(LOCAL[0], ON_ANY), at(PEER[0], 80));
    let rst = Tcp::new(RST, 5, 6).bytes(local, peer);
    let v4 = |header: V4| header.packet(local.ip(), peer.ip(), TCP, &rst);
    let later = v4(V4 { fragment: 1, ..V4::default() });
    rows.push(kernel("a later fragment with the bytes of a RST", EgressOther, &later));
    rows.push(crafted("a crafted later fragment", &later));
    let first = kernel("a RST in a first fragment", RstSuppressed, &v4(V4 { fragment: MORE, ..V4::default() }));
    rows.push(first.suppressing(TCP, local, peer));
    let options =
        kernel("a RST after 40 bytes of options", RstSuppressed, &v4(V4 { options: vec![1; 40], ..V4::default() }));
    rows.push(options.suppressing(TCP, local, peer));
    let whole = v4(V4::default());
    for (name, tags, reason) in [
        ("a priority-tagged RST", vec![(0x8100, 0xe000)], RstSuppressed),
        ("a RST in a VLAN", vec![(0x8100, 5)], RstNotOwned),
        ("a twice priority-tagged RST", vec![(0x88a8, 0), (0x8100, 0)], RstSuppressed),
        ("a RST in an inner VLAN", vec![(0x88a8, 0), (0x8100, 6)], RstNotOwned),
        ("a thrice tagged RST", vec![(0x88a8, 5), (0x8100, 6), (0x8100, 7)], EgressOther),
    ] {
        let row = Row { start: 14 + 4 * tags.len(), ..row(name, is(reason), frame::tagged(&tags, &whole)) };
        rows.push(if reason == RstSuppressed { row.suppressing(TCP, local, peer) } else { row });
    }
    let (local, peer) = (at(LOCAL[1], ON_ANY), at(PEER[1], 80));
    for (kinds, walked) in MIXED {
        let (next, bytes) = frame::extended(kinds, TCP, &Tcp::new(RST, 5, 6).bytes(local, peer));
        let packet = frame::v6(local.ip(), peer.ip(), next, &bytes);
        let name = format!("a RST after headers {kinds:?}");
        rows.push(match walked {
            Some(_) => kernel(&name, RstSuppressed, &packet).suppressing(TCP, local, peer),
            None => kernel(&name, EgressOther, &packet),
        });
    }
    for (count, reason) in [(6, RstSuppressed), (7, RstSuppressed), (8, RstSuppressed), (9, EgressOther)] {
        let (next, bytes) = frame::extended(&vec![60; count], TCP, &Tcp::new(RST, 5, 6).bytes(local, peer));
        let packet = frame::v6(local.ip(), peer.ip(), next, &bytes);
        let row = kernel(&format!("a RST after {count} extension headers"), reason, &packet);
        rows.push(if reason == RstSuppressed { row.suppressing(TCP, local, peer) } else { row });
    }
}

/// The kernel's answers to peers that the lease has sent to are suppressed, those to others are not.
fn peer_rows(rows: &mut Vec<Row>, version: usize) {
    let local = |port| at(LOCAL[version], port);
    for (port, to, is_peer) in [
        (KNOWN, at(PEER[version], 80), true),
        (KNOWN, at(PEER[version], 81), false),
        (KNOWN, at(TRANSIT[version], 80), false),
        (BY_ADDRESS, at(PEER[version], 80), true),
        (BY_ADDRESS, at(PEER[version], 81), true),
        (BY_ADDRESS, at(TRANSIT[version], 80), false),
    ] {
        let expect = |suppressed, not_owned| if is_peer { suppressed } else { not_owned };
        let rst = Tcp::new(RST, 5, 6).ip(local(port), to);
        let row = kernel(&format!("a RST to {to} from port {port}"), expect(RstSuppressed, RstNotOwned), &rst);
        rows.push(if is_peer { row.suppressing(TCP, local(port), to) } else { row });
        let datagram = frame::udp_ip(to, local(port), b"question");
        let kind = [3, 1][version];
        let error = frame::icmp(ip(LOCAL[version]), to.ip(), kind, [3, 4][version], &datagram);
        let reason = expect(UnreachableSuppressed, UnreachableNotOwned);
        let row = kernel(&format!("a port-unreachable to {to} from port {port}"), reason, &error);
        rows.push(if is_peer { row.suppressing(UDP, local(port), to) } else { row });
    }
}
