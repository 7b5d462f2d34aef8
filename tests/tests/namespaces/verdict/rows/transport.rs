//! Rows of TCP and UDP: ports, VLAN tags, IP options, extension headers, truncated packets.

use std::net::SocketAddr;

use crafter_common::reason::Reason;
use crafter_tests::frame::{self, ACK, SYN, TCP, Tcp, UDP, V4};

use super::*;

/// Ports owned on any address, on one address, and unowned ports, for TCP and UDP.
pub fn addressed_rows(rows: &mut Vec<Row>, version: usize, local: &str) {
    let (second, transit) = (SECOND[version], TRANSIT[version]);
    for (name, make, protocol, from) in
        [("TCP", segment as fn(SocketAddr) -> Vec<u8>, TCP, 80), ("UDP", datagram, UDP, 53)]
    {
        let last = if protocol == TCP { SEGMENT } else { (0, 0, 0) };
        let mut add = |what: &str, expect, address: &str, port| {
            let (local, peer) = (at(address, port), at(PEER[version], from));
            let row = row(format!("{name} to {what}, {address}"), expect, frame::framed(&make(local)));
            rows.push(row.updating(protocol, local, peer, last));
        };
        add("a port owned on any address", Consumed, local, ON_ANY);
        add("a port owned on any address, second address", Consumed, second, ON_ANY);
        add("a port owned on any address, forwarded", NOT_OWNED, transit, ON_ANY);
        add("a port owned on this address", Consumed, local, EXACT);
        add("a port owned on another address", NOT_OWNED, second, EXACT);
        add("a port owned on this and on any address, this address", is(Reason::Observed), local, BOTH);
        add("a port owned on this and on any address, second address", Consumed, second, BOTH);
        add("an observed port", is(Reason::Observed), local, OBSERVED);
        add("a port with policy pass", Consumed, local, ALLOWED);
        add("an unowned port", NOT_OWNED, local, FREE);
        // Special IPv6 addresses that the maps use with another meaning: RFC 4291, sections 2.5.2 and 2.5.5.2.
        if version == 1 {
            for port in [ON_ANY, EXACT, BOTH] {
                add(&format!("owned port {port} of the unspecified address"), NOT_OWNED, "::", port);
                add(&format!("owned port {port} of the loopback address"), NOT_OWNED, "::1", port);
                let mapped = format!("::ffff:{}", LOCAL[0]);
                add(&format!("owned port {port} of the IPv4 address"), NOT_OWNED, &mapped, port);
            }
        }
        // An adjacent port in the same word of the filter, and a port with the same bit of another word.
        add("the port below", NOT_OWNED, local, ON_ANY - 1);
        add("a port 64 above", NOT_OWNED, local, ON_ANY + 64);
    }
    let kernel = frame::packet(ip(PEER[version]), ip(local), 47, &[0; 20]);
    rows.push(row(format!("GRE, {local}"), OTHER, frame::framed(&kernel)));
    // A port owned for one transport is not owned for another.
    let sctp = frame::packet(ip(PEER[version]), ip(local), 132, &segment(at(LOCAL[0], ON_ANY))[20..]);
    rows.push(row(format!("SCTP to an owned number, {local}"), OTHER, frame::framed(&sctp)));
}

/// Packets truncated by one byte before the end of each header, and at its end.
pub fn short_rows(rows: &mut Vec<Row>, version: usize, local: &str) {
    let (local, peer) = (at(local, ON_ANY), PEER[version]);
    let ip_header = [20, 40][version];
    let (tcp, udp) = (segment(local), datagram(local));
    let mut add = |what: &str, expect, packet: &[u8]| {
        let row = row(format!("{what}, IPv{}", [4, 6][version]), expect, frame::framed(packet));
        rows.push(match packet[[9, 6][version]] {
            TCP => row.updating(TCP, local, at(peer, 80), SEGMENT),
            _ => row.updating(UDP, local, at(peer, 53), (0, 0, 0)),
        });
    };
    add("an IP header truncated by one byte", MALFORMED, &tcp[..ip_header - 1]);
    add("only an IP header", MALFORMED, &tcp[..ip_header]);
    add("ports truncated by one byte, TCP", MALFORMED, &tcp[..ip_header + 3]);
    add("ports truncated by one byte, UDP", MALFORMED, &udp[..ip_header + 3]);
    add("only ports, TCP", MALFORMED, &tcp[..ip_header + 4]);
    add("only ports, UDP", MALFORMED, &udp[..ip_header + 4]);
    add("a TCP header truncated by one byte", MALFORMED, &tcp[..ip_header + 19]);
    add("a UDP header truncated by one byte", MALFORMED, &udp[..ip_header + 7]);
    add("a complete TCP header without data", Consumed, &tcp[..ip_header + 20]);
    add("a complete UDP header without data", Consumed, &udp[..ip_header + 8]);
    // After an unowned port, the rest of the packet is not checked.
    let free = SocketAddr::new(local.ip(), FREE);
    add("only unowned ports, TCP", NOT_OWNED, &segment(free)[..ip_header + 4]);
    add("only unowned ports, UDP", NOT_OWNED, &datagram(free)[..ip_header + 4]);
}

pub fn tagged_rows(rows: &mut Vec<Row>, version: usize, local: &str) {
    let packet = segment(at(local, ON_ANY));
    let unowned = segment(at(local, FREE));
    // Priority 1 and 7 without a VLAN identifier, and VLAN 5 and 2,048.
    let (c, s, vlan, upper) = ((0x8100, 0x2000), (0x88a8, 0xe000), (0x8100, 0x2005), (0x88a8, 0x0800));
    for (name, tags) in [
        ("VLAN 5", vec![vlan]),
        ("VLAN 2048", vec![upper]),
        ("VLAN 5 after a priority tag", vec![s, vlan]),
        ("VLAN 2048 before a priority tag", vec![upper, c]),
    ] {
        let start = 14 + 4 * tags.len();
        for (owned, packet, expect) in [("owned", &packet, is(Reason::OtherLink)), ("not owned", &unowned, NOT_OWNED)] {
            let name = format!("{name}, {owned}, IPv{}", [4, 6][version]);
            rows.push(Row { start, ..row(name, expect, frame::tagged(&tags, packet)) });
        }
    }
    for (name, tags) in [
        ("one 802.1Q tag", vec![c]),
        ("one 802.1ad tag", vec![s]),
        ("two tags, 802.1ad outside", vec![s, c]),
        ("two 802.1Q tags", vec![c, c]),
    ] {
        let start = 14 + 4 * tags.len();
        for (owned, packet, expect) in [("owned", &packet, Consumed), ("not owned", &unowned, NOT_OWNED)] {
            let name = format!("{name}, {owned}, IPv{}", [4, 6][version]);
            let row = Row { start, ..row(name, expect, frame::tagged(&tags, packet)) };
            rows.push(row.updating(TCP, at(local, ON_ANY), at(PEER[version], 80), SEGMENT));
        }
    }
    rows.push(row(
        format!("a tag of 0x9100, IPv{}", [4, 6][version]),
        is(Reason::NotIp),
        frame::tagged(&[(0x9100, 1)], &packet),
    ));
    for (name, tags) in [("one tag", vec![c]), ("two tags", vec![s, c])] {
        // The ethertype after the last tag is missing or incomplete.
        let end = 14 + 4 * tags.len();
        for short in [1, 2, 3] {
            let frame = frame::tagged(&tags, &packet)[..end - short].to_vec();
            rows.push(row(format!("{name}, truncated by {short}, IPv{}", [4, 6][version]), is(Reason::NotIp), frame));
        }
        rows.push(row(
            format!("{name}, without a packet, IPv{}", [4, 6][version]),
            MALFORMED,
            frame::tagged(&tags, &packet)[..end].to_vec(),
        ));
    }
    rows.push(row(
        format!("three tags, IPv{}", [4, 6][version]),
        is(Reason::NotIp),
        frame::tagged(&[s, c, c], &packet),
    ));
}

pub fn option_rows(rows: &mut Vec<Row>) {
    let (peer, local) = (at(PEER[0], 80), at(LOCAL[0], ON_ANY));
    for words in 1..=10 {
        // No-operation options, whose bytes would be ports if read as TCP.
        let options = V4 { options: vec![1; words * 4], ..V4::default() };
        let packet = options.packet(peer.ip(), local.ip(), TCP, &Tcp::new(SYN | ACK, 1, 2).bytes(peer, local));
        let row = row(format!("IPv4 with {words} words of options"), Consumed, frame::framed(&packet));
        rows.push(row.updating(TCP, local, peer, (1, 2, SYN | ACK)));
    }
    let full = V4 { options: vec![1; 40], ..V4::default() };
    let udp = full.packet(peer.ip(), local.ip(), UDP, &frame::udp(peer, local, b""));
    let row_of_udp = row("IPv4 with 10 words of options, UDP without data", Consumed, frame::framed(&udp));
    rows.push(row_of_udp.updating(UDP, local, peer, (0, 0, 0)));
    for length in [0, 1, 4] {
        let mut packet = segment(local);
        packet[0] = 0x40 | length;
        rows.push(row(format!("IPv4 with a header of {length} words"), MALFORMED, frame::framed(&packet)));
    }
    // A header length of 15 words: the ports would be beyond the end.
    let mut packet = segment(local);
    packet[0] = 0x4f;
    rows.push(row("IPv4 with a header longer than the packet", MALFORMED, frame::framed(&packet)));
    // The data offset is not checked: below the minimum, and with 40 bytes of options.
    for words in [0, 4, 15] {
        let options = [1; 40];
        let tcp = Tcp { offset: Some(words), ..Tcp::new(SYN | ACK, 1, 2).with(&options) };
        let row = row(format!("TCP with a header of {words} words"), Consumed, frame::framed(&tcp.ip(peer, local)));
        rows.push(row.updating(TCP, local, peer, (1, 2, SYN | ACK)));
    }
    let free = at(LOCAL[0], FREE);
    let options = V4 { options: ON_ANY.to_be_bytes().repeat(4), ..V4::default() };
    let packet = options.packet(peer.ip(), free.ip(), TCP, &Tcp::new(SYN | ACK, 1, 2).bytes(peer, free));
    rows.push(row("IPv4 options with the bytes of an owned port", NOT_OWNED, frame::framed(&packet)));
}

pub fn extension_rows(rows: &mut Vec<Row>) {
    let (peer, local, free) = (at(PEER[1], 80), at(LOCAL[1], ON_ANY), at(LOCAL[1], FREE));
    let with = |kinds: &[u8], protocol: u8, to: SocketAddr| {
        let payload = match protocol {
            TCP => Tcp::new(SYN | ACK, 1, 2).bytes(peer, to),
            _ => frame::udp(peer, to, b"answer"),
        };
        let (next, bytes) = frame::extended(kinds, protocol, &payload);
        frame::framed(&frame::v6(peer.ip(), to.ip(), next, &bytes))
    };
    let chain = [0, 60, 43, 60, 44, 51, 135, 60, 60];
    for count in 0..=8 {
        let kinds = &chain[..count];
        let tcp = row(format!("IPv6 with {count} extension headers, TCP"), Consumed, with(kinds, TCP, local));
        rows.push(tcp.updating(TCP, local, peer, (1, 2, SYN | ACK)));
        let udp = row(format!("IPv6 with {count} extension headers, UDP"), Consumed, with(kinds, UDP, local));
        rows.push(udp.updating(UDP, local, peer, (0, 0, 0)));
        rows.push(row(format!("IPv6 with {count} extension headers, unowned"), NOT_OWNED, with(kinds, TCP, free)));
    }
    rows.push(row("IPv6 with 9 extension headers", OTHER, with(&chain, TCP, local)));
    for (name, kind) in
        [("hop-by-hop", 0), ("routing", 43), ("fragment", 44), ("authentication", 51), ("mobility", 135)]
    {
        let alone = row(format!("IPv6 with {name} alone"), Consumed, with(&[kind], TCP, local));
        rows.push(alone.updating(TCP, local, peer, (1, 2, SYN | ACK)));
        for (length, short) in [(40, "missing"), (41, "truncated to one byte")] {
            let cut = with(&[kind], TCP, local)[..14 + length].to_vec();
            rows.push(row(format!("IPv6 with {name} {short}"), MALFORMED, cut));
        }
    }
    // An atomic fragment header in the longest chain that is walked.
    for (kinds, expect) in MIXED {
        let row = row(format!("IPv6 with headers {kinds:?}"), expect.unwrap_or(OTHER), with(kinds, TCP, local));
        rows.push(row.updating(TCP, local, peer, (1, 2, SYN | ACK)));
    }
    // RFC 8200, section 4.4: with segments left the packet is for another node, and so is its port.
    let mut transit = with(&[43], TCP, local);
    transit[14 + 40 + 3] = 1;
    rows.push(row("IPv6 with a segment left in its routing header", NOT_OWNED, transit));
    let mut transit = with(&[43, 60, 43], TCP, local);
    transit[14 + 40 + 3] = 255;
    rows.push(row("IPv6 with segments left in the first of two routing headers", NOT_OWNED, transit));
    rows.push(row("a fragment header truncated by one byte", MALFORMED, with(&[44], TCP, local)[..14 + 47].to_vec()));
    rows.push(row(
        "a routing header truncated before segments left",
        MALFORMED,
        with(&[43], TCP, local)[..14 + 43].to_vec(),
    ));
    // A ninth header is not walked: here a later fragment of an owned datagram.
    let first =
        frame::v6(peer.ip(), local.ip(), 44, &frame::fragment6(UDP, 0, true, 77, &frame::udp(peer, local, b"")));
    let first = row("a first fragment, for the next row", Consumed, frame::framed(&first));
    rows.push(first.updating(UDP, local, peer, (0, 0, 0)));
    let (next, ninth) = frame::extended(&[60; 8], 44, &frame::fragment6(UDP, 8, false, 77, &[0; 8]));
    let ninth = frame::framed(&frame::v6(peer.ip(), local.ip(), next, &ninth));
    rows.push(row("IPv6 with a later fragment as ninth header", OTHER, ninth));
    let (next, ninth) = frame::extended(&[60; 8], 60, &[]);
    let ninth = frame::framed(&frame::v6(peer.ip(), local.ip(), next, &ninth));
    rows.push(row("IPv6 with a missing ninth header", OTHER, ninth));
    for kind in NINTH {
        let (next, ninth) = frame::extended(&[60; 8], kind, &segment(local)[40..]);
        let ninth = frame::framed(&frame::v6(peer.ip(), local.ip(), next, &ninth));
        rows.push(row(format!("IPv6 with {kind} as ninth header"), OTHER, ninth));
    }
    let (_, nothing) = frame::extended(&[60], 59, &[]);
    rows.push(row("IPv6 with no next header", OTHER, frame::framed(&frame::v6(peer.ip(), local.ip(), 60, &nothing))));
    // Headers that are not walked: HIP and Shim6.
    for (name, kind) in [("HIP", 139), ("Shim6", 140)] {
        let with_header = |kind: u8| {
            let (_, bytes) = frame::extended(&[60], TCP, &Tcp::new(SYN | ACK, 1, 2).bytes(peer, local));
            frame::framed(&frame::v6(peer.ip(), local.ip(), kind, &bytes))
        };
        rows.push(row(format!("IPv6 with a segment after a header of {name}"), OTHER, with_header(kind)));
    }
    // An extension header that ends after the end of the packet.
    let mut beyond = frame::framed(&frame::v6(peer.ip(), local.ip(), 60, &[47, 0, 1, 4, 0, 0, 0, 0]));
    rows.push(row("IPv6 with GRE after an extension header", OTHER, beyond.clone()));
    beyond.pop();
    rows.push(row("IPv6 with GRE after an extension header truncated by one byte", MALFORMED, beyond));
    let mut long = with(&[60], TCP, local);
    // A destination options header with a length of 2,048 bytes.
    long[14 + 40 + 1] = 255;
    rows.push(row("IPv6 with an extension header beyond the packet", MALFORMED, long));
}
