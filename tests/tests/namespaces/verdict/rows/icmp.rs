//! Rows of ICMP and ICMPv6: errors that quote sent packets, queries and replies.

use std::net::SocketAddr;

use crafter_common::reason::Reason;
use crafter_tests::frame::{self, ICMP, MORE, SYN, TCP, Tcp, UDP, V4};

use super::*;

/// Errors that quote packets from owned ports, and other errors.
pub fn icmp_rows(rows: &mut Vec<Row>, version: usize, local: &str) {
    let peer = PEER[version];
    let errors: &[(u8, u8, &str)] = [
        &[
            (3, 3, "port unreachable"),
            (3, 4, "fragmentation needed"),
            (4, 0, "source quench"),
            (11, 0, "time exceeded"),
            (12, 0, "parameter problem"),
        ][..],
        &[(1, 4, "port unreachable"), (2, 0, "packet too big"), (3, 0, "time exceeded"), (4, 0, "parameter problem")],
    ][version];
    let sent = |port| Tcp::new(SYN, 1, 0).ip(at(local, port), at(peer, 80));
    let sent_udp = |port| frame::udp_ip(at(local, port), at(peer, 53), b"query");
    let not_owned = is(Reason::IcmpNotOwned);
    let mut add = |name: String, expect, kind, code, quoted: &[u8]| {
        let packet = frame::icmp(ip(peer), ip(local), kind, code, quoted);
        rows.push(row(format!("{name}, IPv{}", [4, 6][version]), expect, frame::framed(&packet)));
    };
    for &(kind, code, name) in errors {
        add(format!("{name} quoting an owned TCP port"), Consumed, kind, code, &sent(ON_ANY));
        add(format!("{name} quoting an owned UDP port"), Consumed, kind, code, &sent_udp(EXACT));
        add(format!("{name} quoting an observed port"), is(Reason::Observed), kind, code, &sent(OBSERVED));
        add(format!("{name} quoting an unowned port"), not_owned, kind, code, &sent(FREE));
    }
    let (kind, code, _) = errors[0];
    let header = sent(ON_ANY).len() - 20;
    add("an error that quotes 8 bytes of TCP".into(), Consumed, kind, code, &sent(ON_ANY)[..header + 8]);
    add("an error that quotes 3 bytes of TCP".into(), not_owned, kind, code, &sent(ON_ANY)[..header + 3]);
    add("an error that quotes nothing".into(), not_owned, kind, code, &[]);
    // A quoted packet that was received, not sent, by the owned port.
    let reversed = Tcp::new(SYN, 1, 0).ip(at(peer, ON_ANY), at(local, FREE));
    add("an error about the peer's port with an owned number".into(), not_owned, kind, code, &reversed);
    let elsewhere = Tcp::new(SYN, 1, 0).ip(at(TRANSIT[version], ON_ANY), at(peer, 80));
    add("an error about another host's port with an owned number".into(), not_owned, kind, code, &elsewhere);
    let gre = frame::packet(ip(local), ip(peer), 47, &[0; 20]);
    add("an error about GRE".into(), not_owned, kind, code, &gre);
    let echo = if version == 0 { 8 } else { 128 };
    add("an echo request".into(), OTHER, echo, 0, &sent(ON_ANY));
    let redirect = if version == 0 { 5 } else { 137 };
    add("a redirect quoting an owned port".into(), OTHER, redirect, 1, &sent(ON_ANY));
    cut_quotes(version, local, &mut |name, expect, quoted: &[u8]| add(name, expect, kind, code, quoted));
    let queries: [&[u8]; 2] = [&[8, 13, 15, 17], &[128]];
    for quoted in 0..=255 {
        let expect = if queries[version].contains(&quoted) { Consumed } else { not_owned };
        let sent = frame::icmp_query(ip(local), ip(peer), quoted, ON_ANY, b"\0data");
        add(format!("an error quoting ICMP type {quoted}"), expect, kind, code, &sent);
    }
    let mut impossible = sent(ON_ANY);
    impossible[0] = [0x44, 0x50][version];
    add("an error quoting an impossible IP header".into(), not_owned, kind, code, &impossible);
    if version == 0 {
        let later = V4 { fragment: 185, ..V4::default() };
        let later = later.packet(ip(local), ip(peer), UDP, &ON_ANY.to_be_bytes().repeat(8));
        add("an error about a later fragment".into(), not_owned, kind, code, &later);
        let routed = V4 { options: vec![1; 12], ..V4::default() };
        let routed =
            routed.packet(ip(local), ip(peer), TCP, &Tcp::new(SYN, 1, 0).bytes(at(local, ON_ANY), at(peer, 80)));
        add("an error quoting IPv4 options".into(), Consumed, kind, code, &routed);
    } else {
        let (next, bytes) =
            frame::extended(&[60, 43], TCP, &Tcp::new(SYN, 1, 0).bytes(at(local, ON_ANY), at(peer, 80)));
        let extended = frame::v6(ip(local), ip(peer), next, &bytes);
        add("an error quoting extension headers".into(), Consumed, kind, code, &extended);
        for (count, expect) in [(6, Consumed), (7, Consumed), (8, Consumed), (9, not_owned)] {
            let (next, bytes) = frame::extended(&vec![60; count], TCP, &sent(ON_ANY)[40..]);
            let extended = frame::v6(ip(local), ip(peer), next, &bytes);
            add(format!("an error quoting {count} extension headers"), expect, kind, code, &extended);
        }
        for ninth in NINTH {
            let (next, bytes) = frame::extended(&[60; 8], ninth, &sent(ON_ANY)[40..]);
            let extended = frame::v6(ip(local), ip(peer), next, &bytes);
            add(format!("an error quoting {ninth} after eight extension headers"), not_owned, kind, code, &extended);
        }
        for (kinds, expect) in MIXED {
            let (next, bytes) = frame::extended(kinds, TCP, &sent(ON_ANY)[40..]);
            let extended = frame::v6(ip(local), ip(peer), next, &bytes);
            add(format!("an error quoting headers {kinds:?}"), expect.unwrap_or(not_owned), kind, code, &extended);
        }
        let loopback = Tcp::new(SYN, 1, 0).ip(at("::1", BOTH), at(peer, 80));
        add("an error about the loopback address".into(), not_owned, kind, code, &loopback);
        // A sent packet, quoted before it reached the end of its source route.
        let (next, mut bytes) = frame::extended(&[43], TCP, &sent(ON_ANY)[40..]);
        bytes[3] = 1;
        let routed = frame::v6(ip(local), ip(peer), next, &bytes);
        add("an error quoting a segment left".into(), Consumed, kind, code, &routed);
        let mapped = Tcp::new(SYN, 1, 0).ip(at(&format!("::ffff:{}", LOCAL[0]), EXACT), at(peer, 80));
        add("an error about the IPv4 address".into(), not_owned, kind, code, &mapped);
        let unspecified = Tcp::new(SYN, 1, 0).ip(at("::", BOTH), at(peer, 80));
        add("an error about the unspecified address".into(), not_owned, kind, code, &unspecified);
    }
    let other = frame::udp_ip(at(LOCAL[1 - version], ON_ANY), at(PEER[1 - version], 53), b"query");
    add("an error quoting the other IP version".into(), not_owned, kind, code, &other);
    // The ICMP of the other IP version counts as any other protocol.
    let wrong = if version == 0 { frame::ICMPV6 } else { frame::ICMP };
    let packet = frame::packet(ip(peer), ip(local), wrong, &[[3, 3, 0, 0, 0, 0, 0, 0].to_vec(), sent(ON_ANY)].concat());
    rows.push(row(format!("ICMP of the other version over IPv{}", [4, 6][version]), OTHER, frame::framed(&packet)));
}

/// Errors whose quoted packet is truncated within each header, or is a fragment.
fn cut_quotes(version: usize, local: &str, add: &mut dyn FnMut(String, Expect, &[u8])) {
    let (local, peer) = (at(local, ON_ANY), at(PEER[version], 80));
    let not_owned = is(Reason::IcmpNotOwned);
    let header = [20, 40][version];
    for (name, quoted) in [("TCP", Tcp::new(SYN, 1, 0).ip(local, peer)), ("UDP", frame::udp_ip(local, peer, b"query"))]
    {
        add(
            format!("an error that quotes an IP header truncated by one byte, {name}"),
            not_owned,
            &quoted[..header - 1],
        );
        add(format!("an error that quotes only an IP header, {name}"), not_owned, &quoted[..header]);
        add(format!("an error that quotes ports truncated by one byte, {name}"), not_owned, &quoted[..header + 3]);
        add(format!("an error that quotes only the ports, {name}"), Consumed, &quoted[..header + 4]);
        add(format!("an error that quotes 8 bytes, {name}"), Consumed, &quoted[..header + 8]);
    }
    let udp = frame::udp(local, peer, &[7; 40]);
    for (name, expect, first, more) in
        [("first", Consumed, true, true), ("last", not_owned, false, false), ("middle", not_owned, false, true)]
    {
        let offset = if first { 0 } else { 16 };
        let quoted = match version {
            0 => V4 { fragment: (offset / 8) | if more { MORE } else { 0 }, ..V4::default() }.packet(
                local.ip(),
                peer.ip(),
                UDP,
                &udp[usize::from(offset)..],
            ),
            _ => frame::v6(
                local.ip(),
                peer.ip(),
                44,
                &frame::fragment6(UDP, offset, more, 9, &udp[usize::from(offset)..]),
            ),
        };
        add(format!("an error that quotes the {name} fragment"), expect, &quoted);
    }
}

/// Replies to ICMP queries, whose identifiers are owned like ports, and errors that quote queries.
pub fn query_rows(rows: &mut Vec<Row>, version: usize, local: &str) {
    let (peer, second, transit) = (ip(PEER[version]), SECOND[version], TRANSIT[version]);
    let (request, reply) = [(8, 0), (128, 129)][version];
    let mut add = |name: &str, expect, packet: &[u8]| {
        let row = row(format!("{name}, IPv{}", [4, 6][version]), expect, frame::framed(packet));
        // Errors do not update a flow. All owned replies are sent to `local`.
        let header = [20, 40][version];
        rows.push(match packet.get(header) {
            Some(3 | 11) => row,
            _ => {
                let id = packet.get(header + 4..header + 6).map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
                row.updating(ICMP, at(local, id), SocketAddr::new(peer, 0), (0, 0, 0))
            }
        });
    };
    let to = |address: &str, kind, id| frame::icmp_query(peer, ip(address), kind, id, b"\0data");
    add("an echo reply to an owned identifier", Consumed, &to(local, reply, ON_ANY));
    add("an echo reply to an identifier owned on this address", Consumed, &to(local, reply, EXACT));
    add("an echo reply to an identifier owned on another address", NOT_OWNED, &to(second, reply, EXACT));
    add("an echo reply to an observed identifier", is(Reason::Observed), &to(local, reply, OBSERVED));
    add("an echo reply to an unowned identifier", NOT_OWNED, &to(local, reply, FREE));
    add("an echo reply in transit", NOT_OWNED, &to(transit, reply, ON_ANY));
    if version == 1 {
        for (address, id) in [("::", BOTH), ("::1", BOTH), (&format!("::ffff:{}", LOCAL[0]), EXACT)] {
            add(&format!("an echo reply to {address}"), NOT_OWNED, &to(address, reply, id));
        }
    }
    add("an echo request with an owned identifier", OTHER, &to(local, request, ON_ANY));
    let whole = to(local, reply, ON_ANY);
    let header = whole.len() - 5;
    add("an echo reply without data", Consumed, &whole[..header + 1]);
    add("an echo reply truncated within its header", MALFORMED, &whole[..header]);
    add("an ICMP header of one byte", MALFORMED, &whole[..header + 1 - 7]);
    add("an empty ICMP message", MALFORMED, &whole[..header + 1 - 8]);
    add("a message of type 200 truncated to type and code", OTHER, &to(local, 200, ON_ANY)[..header + 1 - 6]);
    if version == 0 {
        for kind in [14, 16, 18] {
            add(&format!("a reply of type {kind} to an owned identifier"), Consumed, &to(local, kind, ON_ANY));
        }
        for kind in [9, 10, 13, 15, 17] {
            add(&format!("type {kind} with an owned identifier"), OTHER, &to(local, kind, ON_ANY));
        }
    }
    let (kind, code) = [(11, 0), (3, 0)][version];
    let sent = |kind, id| frame::icmp_query(ip(local), peer, kind, id, b"\0data");
    let mut quoting = |name: &str, expect, quoted: &[u8]| {
        add(&format!("time exceeded quoting {name}"), expect, &frame::icmp(peer, ip(local), kind, code, quoted));
    };
    let not_owned = is(Reason::IcmpNotOwned);
    quoting("an echo request of an owned identifier", Consumed, &sent(request, ON_ANY));
    quoting("an echo request of an observed identifier", is(Reason::Observed), &sent(request, OBSERVED));
    quoting("an echo request of an unowned identifier", not_owned, &sent(request, FREE));
    quoting("an echo reply with an owned identifier", not_owned, &sent(reply, ON_ANY));
    if version == 1 {
        for (address, id) in [("::", BOTH), ("::1", BOTH), (&format!("::ffff:{}", LOCAL[0]), EXACT)] {
            let request = frame::icmp_query(ip(address), peer, request, id, b"\0data");
            quoting(&format!("an echo request from {address}"), not_owned, &request);
        }
    }
    quoting("an echo request truncated before its identifier", not_owned, &sent(request, ON_ANY)[..header + 1 - 4]);
}

/// Every type, with an owned identifier and a quoted packet from an owned port.
pub fn type_rows(rows: &mut Vec<Row>, version: usize, local: &str) {
    let (own, peer) = (at(local, ON_ANY), at(PEER[version], 80));
    let quoted = Tcp::new(SYN, 1, 0).ip(own, peer);
    for kind in 0..=255 {
        let packet = frame::icmp_query(peer.ip(), own.ip(), kind, ON_ANY, &[&[0], &quoted[..]].concat());
        // RFC 792 and RFC 950; RFC 4443.
        let (error, reply) = match version {
            0 => ([3, 4, 11, 12].contains(&kind), [0, 14, 16, 18].contains(&kind)),
            _ => ((1..=4).contains(&kind), kind == 129),
        };
        let expect = if error || reply { Consumed } else { OTHER };
        let row = row(format!("ICMP type {kind}, IPv{}", [4, 6][version]), expect, frame::framed(&packet));
        let host = SocketAddr::new(peer.ip(), 0);
        rows.push(if reply { row.updating(ICMP, own, host, (0, 0, 0)) } else { row });
    }
}
