//! The rows: who owns what, what comes by, and what has to become of it.

use std::net::{IpAddr, SocketAddr};

use crafter::{datapath::program::LoadOptions, packet::Transport};
use crafter_common::{DEFAULT_MARK, reason::Reason};
use crafter_tests::{
    bench::{ANY, Bench, terms},
    frame::{self, ACK, MORE, RST, SYN, TCP, Tcp, UDP, V4},
};

/// This host, a second address of its, a host beyond, and the peer.
pub const LOCAL: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
pub const SECOND: [&str; 2] = ["192.0.2.3", "2001:db8::3"];
const TRANSIT: [&str; 2] = ["203.0.113.9", "2001:db8:1::9"];
pub const PEER: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// TCP and UDP on any address; on `LOCAL` only; observed; with policy `pass`; not owned.
pub const ON_ANY: u16 = 1000;
const EXACT: u16 = 1001;
/// Consumed on any address, but observed on `LOCAL`: the particular entry wins.
pub const BOTH: u16 = 1002;
pub const OBSERVED: u16 = 1003;
const ALLOWED: u16 = 1004;
pub const FREE: u16 = 1005;

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

pub fn bench(options: &LoadOptions, socket: bool) -> Bench {
    owning(Bench::new(options, 14, socket))
}

/// As [`bench`], but all leases have suppressed answers reported.
pub fn reporting(options: &LoadOptions) -> Bench {
    let mut bench = Bench::new(options, 14, false);
    bench.report = true;
    owning(bench)
}

fn owning(mut bench: Bench) -> Bench {
    let local: Vec<IpAddr> = [LOCAL, SECOND].concat().into_iter().map(ip).collect();
    bench.maps.set_local(&local).expect("list the local addresses");
    for transport in [Transport::Tcp, Transport::Udp, Transport::Icmp] {
        bench.own(transport, ANY, ON_ANY, terms(false, true));
        bench.own(transport, ANY, BOTH, terms(false, true));
        bench.own(transport, ANY, OBSERVED, terms(true, true));
        bench.own(transport, ANY, ALLOWED, terms(false, false));
        for address in LOCAL {
            bench.own(transport, ip(address), EXACT, terms(false, true));
            bench.own(transport, ip(address), BOTH, terms(true, true));
        }
    }
    bench
}

/// What a row expects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Expect {
    /// Consumed: redirected where there is a socket, else copied.
    Consumed,
    Reason(Reason),
}

pub struct Row {
    pub name: String,
    pub frame: Vec<u8>,
    /// Offset of the IP header.
    pub start: usize,
    pub expect: Expect,
}

fn row(name: impl Into<String>, expect: Expect, frame: Vec<u8>) -> Row {
    Row { name: name.into(), frame, start: 14, expect }
}

use Expect::Consumed;

const fn is(reason: Reason) -> Expect {
    Expect::Reason(reason)
}

const NOT_OWNED: Expect = is(Reason::NotOwned);
const OTHER: Expect = is(Reason::OtherProtocol);
const MALFORMED: Expect = is(Reason::Malformed);

/// A SYN-ACK from the peer to `destination`.
pub fn segment(destination: SocketAddr) -> Vec<u8> {
    let peer = PEER[usize::from(destination.is_ipv6())];
    Tcp::new(SYN | ACK, 7, 8).ip(at(peer, 80), destination)
}

pub fn datagram(destination: SocketAddr) -> Vec<u8> {
    let peer = PEER[usize::from(destination.is_ipv6())];
    frame::udp_ip(at(peer, 53), destination, b"answer")
}

pub fn ingress_rows() -> Vec<Row> {
    let mut rows = vec![
        row("ARP", is(Reason::NotIp), frame::ethernet(&[], 0x0806, &[0; 28])),
        row("an IPv4 ethertype around version 5", MALFORMED, frame::ethernet(&[], 0x0800, &[0x55; 40])),
        row("an IPv6 ethertype around version 4", MALFORMED, frame::ethernet(&[], 0x86dd, &[0x44; 60])),
        row("IPv4 of one byte", MALFORMED, frame::ethernet(&[(0x8100, 1)], 0x0800, &[0x45])),
        row("IPv4 with a header length of 16", MALFORMED, {
            let mut packet = segment(at(LOCAL[0], ON_ANY));
            packet[0] = 0x44;
            frame::framed(&packet)
        }),
    ];
    for (version, &local) in LOCAL.iter().enumerate() {
        addressed_rows(&mut rows, version, local);
        tagged_rows(&mut rows, version, local);
        icmp_rows(&mut rows, version, local);
        query_rows(&mut rows, version, local);
    }
    option_rows(&mut rows);
    extension_rows(&mut rows);
    fragment_rows(&mut rows);
    rows
}

/// Ports on any address, on one, on none; TCP and UDP.
fn addressed_rows(rows: &mut Vec<Row>, version: usize, local: &str) {
    let (second, transit) = (SECOND[version], TRANSIT[version]);
    for (name, make) in [("TCP", segment as fn(SocketAddr) -> Vec<u8>), ("UDP", datagram)] {
        let mut add = |what: &str, expect, address: &str, port| {
            rows.push(row(format!("{name} to {what}, {address}"), expect, frame::framed(&make(at(address, port)))));
        };
        add("a port owned on any address", Consumed, local, ON_ANY);
        add("a port owned on any address, by a second address", Consumed, second, ON_ANY);
        add("a port owned on any address, but in transit", NOT_OWNED, transit, ON_ANY);
        add("a port owned on this address", Consumed, local, EXACT);
        add("a port owned on another address", NOT_OWNED, second, EXACT);
        add("a port owned on this and on any, by this", is(Reason::Observed), local, BOTH);
        add("a port owned on this and on any, by another", Consumed, second, BOTH);
        add("an observed port", is(Reason::Observed), local, OBSERVED);
        add("a port with policy pass", Consumed, local, ALLOWED);
        add("a port that nobody owns", NOT_OWNED, local, FREE);
        // A neighbour in the same word of the filter, and the same bit of another.
        add("the port below", NOT_OWNED, local, ON_ANY - 1);
        add("a port 64 above", NOT_OWNED, local, ON_ANY + 64);
    }
    let kernel = frame::packet(ip(PEER[version]), ip(local), 47, &[0; 20]);
    rows.push(row(format!("GRE, {local}"), OTHER, frame::framed(&kernel)));
    // What is owned for one transport is not for the other.
    let sctp = frame::packet(ip(PEER[version]), ip(local), 132, &segment(at(LOCAL[0], ON_ANY))[20..]);
    rows.push(row(format!("SCTP to an owned number, {local}"), OTHER, frame::framed(&sctp)));
}

fn tagged_rows(rows: &mut Vec<Row>, version: usize, local: &str) {
    let packet = segment(at(local, ON_ANY));
    let unowned = segment(at(local, FREE));
    let (c, s) = ((0x8100, 0x2005), (0x88a8, 0x0006));
    for (name, tags) in [
        ("one 802.1Q tag", vec![c]),
        ("one 802.1ad tag", vec![s]),
        ("two tags, 802.1ad outside", vec![s, c]),
        ("two 802.1Q tags", vec![c, c]),
    ] {
        let start = 14 + 4 * tags.len();
        for (owned, packet, expect) in [("owned", &packet, Consumed), ("not owned", &unowned, NOT_OWNED)] {
            rows.push(Row {
                start,
                ..row(format!("{name}, {owned}, IPv{}", [4, 6][version]), expect, frame::tagged(&tags, packet))
            });
        }
    }
    rows.push(row("three tags", is(Reason::NotIp), frame::tagged(&[s, c, c], &packet)));
}

/// Errors that quote what an owned port sent, and others.
fn icmp_rows(rows: &mut Vec<Row>, version: usize, local: &str) {
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
        add(format!("{name} quoting a port of nobody"), not_owned, kind, code, &sent(FREE));
    }
    let (kind, code, _) = errors[0];
    let header = sent(ON_ANY).len() - 20;
    add("an error that quotes 8 bytes of TCP".into(), Consumed, kind, code, &sent(ON_ANY)[..header + 8]);
    add("an error that quotes 3 bytes of TCP".into(), not_owned, kind, code, &sent(ON_ANY)[..header + 3]);
    add("an error that quotes nothing".into(), not_owned, kind, code, &[]);
    // What we received from the owned number is not what the owned port sent.
    let reversed = Tcp::new(SYN, 1, 0).ip(at(peer, ON_ANY), at(local, FREE));
    add("an error about the peer's port of an owned number".into(), not_owned, kind, code, &reversed);
    let elsewhere = Tcp::new(SYN, 1, 0).ip(at(TRANSIT[version], ON_ANY), at(peer, 80));
    add("an error about another host's port of an owned number".into(), not_owned, kind, code, &elsewhere);
    let gre = frame::packet(ip(local), ip(peer), 47, &[0; 20]);
    add("an error about GRE".into(), not_owned, kind, code, &gre);
    let echo = if version == 0 { 8 } else { 128 };
    add("an echo request".into(), OTHER, echo, 0, &sent(ON_ANY));
    let redirect = if version == 0 { 5 } else { 137 };
    add("a redirect quoting an owned port".into(), OTHER, redirect, 1, &sent(ON_ANY));
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
    }
    // The ICMP of the other IP version is just another protocol.
    let wrong = if version == 0 { frame::ICMPV6 } else { frame::ICMP };
    let packet = frame::packet(ip(peer), ip(local), wrong, &[[3, 3, 0, 0, 0, 0, 0, 0].to_vec(), sent(ON_ANY)].concat());
    rows.push(row(format!("ICMP of the other version over IPv{}", [4, 6][version]), OTHER, frame::framed(&packet)));
}

/// ICMP queries, whose identifiers are owned like ports: replies, and errors that quote what was sent.
fn query_rows(rows: &mut Vec<Row>, version: usize, local: &str) {
    let (peer, second, transit) = (ip(PEER[version]), SECOND[version], TRANSIT[version]);
    let (request, reply) = [(8, 0), (128, 129)][version];
    let mut add = |name: &str, expect, packet: &[u8]| {
        rows.push(row(format!("{name}, IPv{}", [4, 6][version]), expect, frame::framed(packet)));
    };
    let to = |address: &str, kind, id| frame::icmp_query(peer, ip(address), kind, id, b"\0data");
    add("an echo reply to an owned identifier", Consumed, &to(local, reply, ON_ANY));
    add("an echo reply to one owned on this address", Consumed, &to(local, reply, EXACT));
    add("an echo reply to one owned on another address", NOT_OWNED, &to(second, reply, EXACT));
    add("an echo reply to an observed one", is(Reason::Observed), &to(local, reply, OBSERVED));
    add("an echo reply to one of nobody", NOT_OWNED, &to(local, reply, FREE));
    add("an echo reply in transit", NOT_OWNED, &to(transit, reply, ON_ANY));
    add("an echo request with an owned identifier", OTHER, &to(local, request, ON_ANY));
    let whole = to(local, reply, ON_ANY);
    let header = whole.len() - 5;
    add("an echo reply without data", Consumed, &whole[..header + 1]);
    add("an echo reply cut within its header", MALFORMED, &whole[..header]);
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
    quoting("an echo request of an observed one", is(Reason::Observed), &sent(request, OBSERVED));
    quoting("an echo request of nobody", not_owned, &sent(request, FREE));
    quoting("an echo reply with an owned identifier", not_owned, &sent(reply, ON_ANY));
    quoting("an echo request cut before its identifier", not_owned, &sent(request, ON_ANY)[..header + 1 - 4]);
}

fn option_rows(rows: &mut Vec<Row>) {
    let (peer, local) = (at(PEER[0], 80), at(LOCAL[0], ON_ANY));
    for words in 1..=10 {
        // Record route where it fits, else no-ops: bytes that would read as ports if taken for TCP.
        let options = V4 { options: vec![1; words * 4], ..V4::default() };
        let packet = options.packet(peer.ip(), local.ip(), TCP, &Tcp::new(SYN | ACK, 1, 2).bytes(peer, local));
        rows.push(row(format!("IPv4 with {words} words of options"), Consumed, frame::framed(&packet)));
    }
    let free = at(LOCAL[0], FREE);
    let options = V4 { options: ON_ANY.to_be_bytes().repeat(4), ..V4::default() };
    let packet = options.packet(peer.ip(), free.ip(), TCP, &Tcp::new(SYN | ACK, 1, 2).bytes(peer, free));
    rows.push(row("IPv4 options that read like an owned port", NOT_OWNED, frame::framed(&packet)));
}

fn extension_rows(rows: &mut Vec<Row>) {
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
        rows.push(row(format!("IPv6 with {count} extension headers, TCP"), Consumed, with(kinds, TCP, local)));
        rows.push(row(format!("IPv6 with {count} extension headers, UDP"), Consumed, with(kinds, UDP, local)));
        rows.push(row(format!("IPv6 with {count} extension headers, unowned"), NOT_OWNED, with(kinds, TCP, free)));
    }
    rows.push(row("IPv6 with 9 extension headers", OTHER, with(&chain, TCP, local)));
    for (name, kind) in
        [("hop-by-hop", 0), ("routing", 43), ("fragment", 44), ("authentication", 51), ("mobility", 135)]
    {
        rows.push(row(format!("IPv6 with {name} alone"), Consumed, with(&[kind], TCP, local)));
    }
    let (_, nothing) = frame::extended(&[60], 59, &[]);
    rows.push(row("IPv6 with no next header", OTHER, frame::framed(&frame::v6(peer.ip(), local.ip(), 60, &nothing))));
    let mut long = with(&[60], TCP, local);
    // A destination-options header that claims 2048 bytes.
    long[14 + 40 + 1] = 255;
    rows.push(row("IPv6 with an extension header beyond the packet", MALFORMED, long));
}

fn fragment_rows(rows: &mut Vec<Row>) {
    let mut add = |name: &str, expect, packet: Vec<u8>| rows.push(row(name, expect, frame::framed(&packet)));
    let (peer, local) = (at(PEER[0], 53), at(LOCAL[0], ON_ANY));
    let whole = frame::udp(peer, local, &[0x5a; 64]);
    let unowned = frame::udp(peer, at(LOCAL[0], FREE), &[0x5a; 64]);
    let v4 = |id, fragment, protocol, bytes: &[u8]| {
        V4 { id, fragment, ..V4::default() }.packet(peer.ip(), local.ip(), protocol, bytes)
    };
    let follows = is(Reason::FragmentNotOwned);
    add("a later fragment before its first", follows, v4(1, 2, UDP, &whole[16..]));
    add("a first fragment, owned", Consumed, v4(1, MORE, UDP, &whole[..16]));
    add("its second", Consumed, v4(1, MORE | 2, UDP, &whole[16..32]));
    add("its last", Consumed, v4(1, 4, UDP, &whole[32..]));
    add("a later fragment of another identification", follows, v4(2, 2, UDP, &whole[16..]));
    add("a later fragment of another protocol", follows, v4(1, 2, TCP, &whole[16..]));
    add("a later fragment from another host", follows, {
        V4 { id: 1, fragment: 2, ..V4::default() }.packet(ip(TRANSIT[0]), local.ip(), UDP, &whole[16..])
    });
    add("a first fragment, not owned", NOT_OWNED, v4(3, MORE, UDP, &unowned[..16]));
    add("the second of one not owned", follows, v4(3, 2, UDP, &unowned[16..]));
    let observed = frame::udp(peer, at(LOCAL[0], OBSERVED), &[0x5a; 64]);
    add("a first fragment, observed", is(Reason::Observed), v4(4, MORE, UDP, &observed[..16]));
    add("the second of one observed", is(Reason::Observed), v4(4, 2, UDP, &observed[16..]));
    add("a first fragment that ends in its header", MALFORMED, v4(5, MORE, UDP, &whole[..6]));

    let (peer, local) = (at(PEER[1], 53), at(LOCAL[1], ON_ANY));
    let whole = frame::udp(peer, local, &[0x5a; 64]);
    let unowned = frame::udp(peer, at(LOCAL[1], FREE), &[0x5a; 64]);
    let v6 = |id, offset, more, bytes: &[u8]| {
        frame::v6(peer.ip(), local.ip(), 44, &frame::fragment6(UDP, offset, more, id, bytes))
    };
    add("a later fragment before its first, IPv6", follows, v6(1, 16, false, &whole[16..]));
    add("a first fragment, owned, IPv6", Consumed, v6(1, 0, true, &whole[..16]));
    add("its second, IPv6", Consumed, v6(1, 16, true, &whole[16..32]));
    add("its last, IPv6", Consumed, v6(1, 32, false, &whole[32..]));
    add("a later fragment of another identification, IPv6", follows, v6(2, 16, false, &whole[16..]));
    add("a first fragment, not owned, IPv6", NOT_OWNED, v6(3, 0, true, &unowned[..16]));
    add("the second of one not owned, IPv6", follows, v6(3, 16, false, &unowned[16..]));
    let (next, behind) = frame::extended(&[0, 60], 44, &frame::fragment6(UDP, 0, true, 4, &whole[..16]));
    add("a first fragment behind extension headers", Consumed, frame::v6(peer.ip(), local.ip(), next, &behind));
    add("its second without them", Consumed, v6(4, 16, false, &whole[16..]));
    add("an atomic fragment, IPv6", Consumed, v6(5, 0, false, &whole));
}

/// (name, reason, frame, mark) at egress.
pub fn egress_rows() -> Vec<(String, Reason, Vec<u8>, u32)> {
    let mut rows = Vec::new();
    for (version, &local) in LOCAL.iter().enumerate() {
        let (peer, other) = (at(PEER[version], 80), SECOND[version]);
        let mut add = |name: &str, reason, packet: &[u8], mark| {
            rows.push((format!("{name}, IPv{}", [4, 6][version]), reason, frame::framed(packet), mark));
        };
        let tcp = |flags, address: &str, port| Tcp::new(flags, 5, 6).ip(at(address, port), peer);
        let rst = |address: &str, port| tcp(RST, address, port);
        add("a RST from an owned port", Reason::RstSuppressed, &rst(local, ON_ANY), 0);
        add("a RST-ACK from an owned port", Reason::RstSuppressed, &tcp(RST | ACK, local, ON_ANY), 0);
        add("a RST from a port owned on this address", Reason::RstSuppressed, &rst(local, EXACT), 0);
        add("a RST from a port owned on another address", Reason::RstNotOwned, &rst(other, EXACT), 0);
        add("a RST from an observed port", Reason::RstSuppressed, &rst(local, OBSERVED), 0);
        add("a RST from a port with policy pass", Reason::RstAllowed, &rst(local, ALLOWED), 0);
        add("a RST from a port of nobody", Reason::RstNotOwned, &rst(local, FREE), 0);
        add("a RST of a host that this one routes for", Reason::RstNotOwned, &rst(TRANSIT[version], ON_ANY), 0);
        add("a crafted RST", Reason::Crafted, &rst(local, ON_ANY), DEFAULT_MARK);
        add("a RST with another mark", Reason::RstSuppressed, &rst(local, ON_ANY), DEFAULT_MARK ^ 1);
        add("a crafted SYN", Reason::Crafted, &tcp(SYN, local, ON_ANY), DEFAULT_MARK);
        add("a marked segment of nobody", Reason::Crafted, &tcp(SYN, local, FREE), DEFAULT_MARK);
        add("the kernel's ACK from an owned port", Reason::EgressOther, &tcp(ACK, local, ON_ANY), 0);
        add("a SYN of the kernel", Reason::EgressOther, &tcp(SYN, local, FREE), 0);
        let datagram = frame::udp_ip(at(local, ON_ANY), peer, b"x");
        add("a datagram from an owned port", Reason::EgressOther, &datagram, 0);
        add("a crafted datagram", Reason::Crafted, &datagram, DEFAULT_MARK);

        let (kind, code) = [(3, 3), (1, 4)][version];
        let received = |address: &str, port| frame::udp_ip(peer, at(address, port), b"unexpected");
        let icmp = |kind, code, quoted: &[u8]| frame::icmp(ip(local), peer.ip(), kind, code, quoted);
        let unreachable = |quoted: &[u8]| icmp(kind, code, quoted);
        use Reason::{EgressOther, UnreachableAllowed, UnreachableNotOwned, UnreachableSuppressed};
        add("port unreachable for an owned port", UnreachableSuppressed, &unreachable(&received(local, ON_ANY)), 0);
        add("port unreachable for an observed one", UnreachableSuppressed, &unreachable(&received(local, OBSERVED)), 0);
        add("port unreachable with policy pass", UnreachableAllowed, &unreachable(&received(local, ALLOWED)), 0);
        add("port unreachable for a port of nobody", UnreachableNotOwned, &unreachable(&received(local, FREE)), 0);
        add("port unreachable, exact, other address", UnreachableNotOwned, &unreachable(&received(other, EXACT)), 0);
        add("a crafted port unreachable", Reason::Crafted, &unreachable(&received(local, ON_ANY)), DEFAULT_MARK);
        add("host unreachable quoting an owned port", EgressOther, &icmp(kind, 1, &received(local, ON_ANY)), 0);
        let segment = Tcp::new(SYN, 1, 0).ip(peer, at(local, ON_ANY));
        add("port unreachable about TCP", EgressOther, &unreachable(&segment), 0);
        add("port unreachable that quotes nothing", EgressOther, &unreachable(&[]), 0);
        let (request, reply) = [(8, 0), (128, 129)][version];
        let query = |kind| frame::icmp_query(ip(local), peer.ip(), kind, ON_ANY, b"\0ping");
        add("an echo reply of the kernel", EgressOther, &query(reply), 0);
        add("an echo request of the kernel", EgressOther, &query(request), 0);
        add("a crafted echo request", Reason::Crafted, &query(request), DEFAULT_MARK);
    }
    let (local, peer) = (at(LOCAL[0], ON_ANY), at(PEER[0], 80));
    let later = V4 { fragment: 1, ..V4::default() };
    let later = later.packet(local.ip(), peer.ip(), TCP, &Tcp::new(RST, 1, 0).bytes(local, peer));
    rows.push(("a later fragment that reads like a RST".into(), Reason::EgressOther, frame::framed(&later), 0));
    rows.push(("ARP".into(), Reason::EgressOther, frame::ethernet(&[], 0x0806, &[0; 28]), 0));
    let tagged = frame::tagged(&[(0x8100, 5)], &Tcp::new(RST, 5, 6).ip(local, peer));
    rows.push(("a tagged RST from an owned port".into(), Reason::RstSuppressed, tagged, 0));
    rows
}
