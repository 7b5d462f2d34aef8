//! Property: the eBPF programs and user space read the same fields of any bytes, or both reject them.
//!
//! Runs the parser functions as the ingress and egress programs call them, on slices, and compares the results with the
//! types of user space on the same bytes.

use std::net::{IpAddr, SocketAddr};

use crafter_common::parse::{self, Bytes as _, Icmp, Network};
use crafter_packet::layer::{Tcp, Udp};
use crafter_packet::view::{
    Framed, IcmpError, IpPacket, TcpView, Transport, UdpView, flow, framed, icmp_query, ip, received,
};
use proptest::{collection::vec, prelude::*, sample::select};

/// The fields that a parser reads.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    transport: usize,
    /// Identification, and whether it is a fragment other than the first.
    fragment: Option<(u32, bool)>,
    ends: Ends,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// TCP and UDP.
    Ports(u16, u16),
    /// ICMP of the packet's IP version; the owner of the identifier, for a reply or an error about a query.
    Icmp(Option<SocketAddr>),
    /// Other protocols, and fragments other than the first.
    None,
}

/// The fields that the eBPF programs read; `None` if they pass the packet as malformed or unknown.
fn kernel(bytes: &[u8], v6: bool) -> Option<(Network, Seen)> {
    let net = parse::network(bytes, 0, v6).ok()?;
    let (source, destination) = net.addresses(bytes)?;
    let id = u32::from_be_bytes(net.identification);
    let fragment = match net.fragment {
        parse::Fragment::Whole => None,
        parse::Fragment::First => Some((id, false)),
        parse::Fragment::Later => Some((id, true)),
    };
    let ends = if net.fragment == parse::Fragment::Later {
        Ends::None
    } else if parse::has_ports(net.protocol) {
        bytes.get(net.transport..net.transport + if net.protocol == crafter_common::TCP { 20 } else { 8 })?;
        let (source, destination) = parse::ports(bytes, net.transport)?;
        Ends::Ports(u16::from_be_bytes(source), u16::from_be_bytes(destination))
    } else if parse::is_icmp(&net) {
        Ends::Icmp(owner(bytes, &net))
    } else {
        Ends::None
    };
    let (source, destination) = (ip::address(source, v6), ip::address(destination, v6));
    Some((net, Seen { source, destination, protocol: net.protocol, transport: net.transport, fragment, ends }))
}

/// The owner that the eBPF programs look up for an ICMP packet.
fn owner(bytes: &[u8], net: &Network) -> Option<SocketAddr> {
    let (address, id) = match parse::icmp(bytes, net)? {
        Icmp::Reply { id } if net.left == 0 => (net.end(net.addresses(bytes)?.1)?, id),
        Icmp::Error { .. } => {
            let (quoted, protocol, [id, _]) = parse::quoted_sender(bytes, net)?;
            let address = quoted.end(quoted.addresses(bytes)?.0)?;
            (Some(address).filter(|_| protocol == crafter_common::ICMP)?, id)
        }
        _ => return None,
    };
    Some((ip::address(address, net.v6), u16::from_be_bytes(id)).into())
}

/// The fields that user space reads.
fn user(bytes: &[u8]) -> Option<Seen> {
    let packet = IpPacket::read(bytes).ok()?;
    let fragment = packet.fragment.map(|fragment| (fragment.id, fragment.offset > 0));
    let is_later = fragment.is_some_and(|(_, is_later)| is_later);
    let flow = flow(bytes);
    let ends = match flow.map(|flow| (flow.protocol, flow)) {
        Some((Transport::Icmp, _)) => Ends::Icmp(icmp_query(bytes)),
        Some((_, flow)) => Ends::Ports(flow.source.port(), flow.destination.port()),
        None if !is_later && matches!(packet.protocol, ip::TCP | ip::UDP) => return None,
        None => Ends::None,
    };
    if let Some(flow) = flow {
        assert_eq!((flow.source.ip(), flow.destination.ip()), (packet.source, packet.destination));
    }
    assert!(matches!(ends, Ends::Icmp(_)) || icmp_query(bytes).is_none());
    Some(Seen {
        source: packet.source,
        destination: packet.destination,
        protocol: packet.protocol,
        transport: packet.payload.start,
        fragment,
        ends,
    })
}

/// The declared length of a packet in bytes; 0: up to the end of the bytes.
fn declared(bytes: &[u8], v6: bool) -> Option<usize> {
    let field = |at: usize| Some(usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])));
    if v6 { field(4).map(|length| if length == 0 { 0 } else { 40 + length }) } else { field(2) }
}

/// Whether `part`, read from the first bytes of a packet, equals `all`, read from more bytes, or has less information.
fn agrees(part: &Seen, all: &Seen) -> bool {
    let ends = part.ends == all.ends || (part.ends == Ends::Icmp(None) && matches!(all.ends, Ends::Icmp(_)));
    ends && Seen { ends: all.ends, ..part.clone() } == *all
}

/// Asserts the property for any bytes.
fn check(bytes: &[u8]) {
    let Ok((0, v6)) = parse::link(bytes, 0) else {
        assert_eq!(user(bytes), None);
        return;
    };
    let (seen, found) = (kernel(bytes, v6), user(bytes));

    // Within the declared length, both read the same or reject.
    let length = declared(bytes, v6).map_or(0, |length| if length == 0 { bytes.len() } else { length });
    let whole = bytes.get(..length).and_then(|whole| kernel(whole, v6)).map(|(_, seen)| seen);
    assert_eq!(found, whole, "{bytes:02x?}");

    // Bytes after that, which user space ignores, do not change what the eBPF programs read.
    if let Some(found) = &found {
        assert!(seen.as_ref().is_some_and(|(_, seen)| agrees(found, seen)), "{found:?} {seen:?} {bytes:02x?}");
    }

    // A packet that the eBPF programs pass to the kernel has no owner in user space.
    let claimed = received(bytes).filter(|flow| flow.protocol != Transport::Icmp);
    let owned = found.as_ref().zip(seen.as_ref()).is_some_and(|(found, (net, _))| {
        let destination = net.addresses(bytes).expect("addresses").1;
        matches!(found.ends, Ends::Ports(..)) && net.left == 0 && net.end(destination).is_some()
    });
    assert_eq!(claimed.is_some(), owned, "{claimed:?} {bytes:02x?}");

    // The views of transports agree.
    let ports = |source: SocketAddr, destination: SocketAddr| Ends::Ports(source.port(), destination.port());
    if let Ok(view) = TcpView::read(bytes) {
        let found = found.as_ref().expect("a segment");
        assert_eq!(
            (found.protocol, found.fragment, found.ends),
            (ip::TCP, None, ports(view.source(), view.destination()))
        );
    }
    if let Ok(view) = UdpView::read(bytes) {
        let found = found.as_ref().expect("a datagram");
        let ends = ports(view.source(), view.destination());
        assert_eq!((found.protocol, found.fragment, found.ends), (ip::UDP, None, ends));
    }
    if let Ok(error) = IcmpError::read(bytes) {
        let (net, _) = seen.expect("an ICMP error");
        assert!(parse::is_icmp(&net));
        // Redirects and undefined errors are left to the kernel.
        if let Some(Icmp::Error { .. }) = parse::icmp(bytes, &net)
            && matches!(error.quoted.protocol, ip::TCP | ip::UDP)
        {
            let (quoted, protocol, [port, to]) = parse::quoted_sender(bytes, &net).expect("what is quoted");
            let (source, destination) = quoted.addresses(bytes).expect("its addresses");
            let source = SocketAddr::new(ip::address(source, v6), u16::from_be_bytes(port));
            assert_eq!((error.quoted.source, error.quoted.protocol), (source, protocol));
            let destination = SocketAddr::new(ip::address(destination, v6), u16::from_be_bytes(to));
            assert_eq!(error.quoted.destination, destination);
        }
    }
}

/// Checks every prefix of `bytes`: fewer bytes give the same or less information.
fn check_cuts(bytes: &[u8]) {
    for length in 0..=bytes.len() {
        let cut = &bytes[..length];
        check(cut);
        // With a matching length field, so that user space continues.
        let mut fitting = cut.to_vec();
        match parse::link(cut, 0) {
            Ok((_, false)) if length >= 20 => fitting[2..4].copy_from_slice(&(length as u16).to_be_bytes()),
            Ok((_, true)) if length > 40 => fitting[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes()),
            _ => continue,
        }
        check(&fitting);
    }
}

/// An IPv6 extension header: its type, and its bytes after the next header field.
fn extension() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let kinds = vec![0, 43, 43, 44, 44, 44, 51, 60, 60, 135, 139, 140, 50, 59, 4, 41];
    (select(kinds), 0usize..4, vec(any::<u8>(), 40), 0u8..10).prop_map(|(kind, units, noise, dice)| {
        let mut bytes = noise[..if kind == 44 { 7 } else { 8 * units + 7 }].to_vec();
        match kind {
            // Atomic, first and later fragments, with any reserved bits.
            44 => {
                bytes[1] = if dice > 6 { bytes[1] } else { 0 };
                bytes[2] = [6, 7, 0, 1, 1, 0, 9, 8, bytes[2], bytes[2]][usize::from(dice)];
            }
            51 => bytes[0] = 2 * units as u8,
            _ => bytes[0] = units as u8,
        }
        if kind == 43 {
            bytes[2] = [0, 0, 0, 0, 0, 0, 1, 2, 1, 255][usize::from(dice)];
        }
        // A wrong length.
        if dice == 9 {
            bytes[0] = noise[39];
        }
        (kind, bytes)
    })
}

/// A payload: its protocol (for ICMP, that of IPv4), and bytes.
fn transport() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let quoted = (any::<bool>(), chain(), v4_of(select(vec![ip::TCP, ip::UDP, ip::ICMP, 50]), vec(any::<u8>(), 0..24)));
    let error = (select(vec![3u8, 11, 5, 1, 2, 4]), 0u8..5, quoted).prop_map(|(kind, code, (v6, chain, v4))| {
        let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
        message.extend(if v6 { chain } else { v4 });
        (ip::ICMP, message)
    });
    prop_oneof![
        3 => (select(vec![ip::TCP, ip::UDP]), prop_oneof![vec(any::<u8>(), 0..32), vec(any::<u8>(), 20..24)]),
        2 => (select(vec![0u8, 8, 13, 14, 128, 129]), vec(any::<u8>(), 0..12)).prop_map(|(kind, rest)| {
            (ip::ICMP, [&[kind], &rest[..]].concat())
        }),
        2 => error,
        1 => (select(vec![59u8, 47, 58, 1, 132]), vec(any::<u8>(), 0..12)),
    ]
}

const FORMS: [[u8; 16]; 4] = [
    [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1],
    [0; 16],
];

/// An IPv6 packet with extension headers before `rest`; its length is right, 0, or arbitrary.
fn v6_of(headers: &[(u8, Vec<u8>)], (last, rest): (u8, &[u8]), forms: (usize, usize), length: Option<u16>) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, headers.first().map_or(last, |first| first.0), 64];
    packet.extend(FORMS[forms.0]);
    packet.extend(FORMS[forms.1]);
    for (place, (_, bytes)) in headers.iter().enumerate() {
        packet.push(headers.get(place + 1).map_or(last, |next| next.0));
        packet.extend(bytes);
    }
    packet.extend(rest);
    let length = length.unwrap_or((packet.len() - 40) as u16);
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

/// Extension headers before the bytes of a segment.
fn chain() -> impl Strategy<Value = Vec<u8>> {
    let transport = (select(vec![ip::TCP, ip::UDP, ip::ICMPV6, 59]), vec(any::<u8>(), 0..28));
    (vec(extension(), 0..4), transport, 0usize..4).prop_map(|(headers, (last, mut rest), form)| {
        if last == ip::ICMPV6 {
            rest.iter_mut().take(1).for_each(|kind| *kind = 128);
        }
        v6_of(&headers, (last, &rest), (form, 1), None)
    })
}

/// IPv4 options, including source routes.
fn options() -> impl Strategy<Value = Vec<u8>> {
    let route = (select(vec![131u8, 137]), 0u8..6, vec(any::<u8>(), 0..9))
        .prop_map(|(kind, pointer, slots)| [&[kind, slots.len() as u8 + 3, pointer][..], &slots].concat());
    let noise = vec(any::<u8>(), 0..12);
    prop_oneof![3 => Just(Vec::new()), 2 => route, 1 => noise].prop_map(|mut options: Vec<u8>| {
        options.resize(options.len().next_multiple_of(4), 0);
        options
    })
}

/// An IPv4 packet.
fn v4_of(
    protocol: impl Strategy<Value = u8>,
    payload: impl Strategy<Value = Vec<u8>>,
) -> impl Strategy<Value = Vec<u8>> {
    let fragment = select(vec![0u16, 0, 0, 0x4000, 0x8000, 0x2000, 0x2001, 1, 0x1fff, 0x3fff]);
    (protocol, payload, options(), fragment, select(vec![None, None, None, Some(0), Some(24), Some(900)])).prop_map(
        |(protocol, payload, options, fragment, length)| {
            let total = length.unwrap_or((20 + options.len() + payload.len()) as u16);
            let mut packet = vec![0x45 + (options.len() / 4) as u8, 0];
            packet.extend(total.to_be_bytes());
            packet.extend([0, 7]);
            packet.extend(fragment.to_be_bytes());
            packet.extend([64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
            packet.extend(options);
            packet.extend(payload);
            packet
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..160), first in select(vec![None, Some(0x45), Some(0x46), Some(0x60)])) {
        let mut bytes = bytes;
        if let (Some(first), Some(byte)) = (first, bytes.first_mut()) {
            *byte = first;
        }
        check(&bytes);
    }

    #[test]
    fn damaged_packets(
        kind in 0usize..3, v6 in any::<bool>(), damage in vec((0usize..100, any::<u8>()), 0..4), padding in 0usize..9
    ) {
        let (a, b) = if v6 { ("[2001:db8::1]:7", "[2001:db8::2]:9") } else { ("192.0.2.1:7", "192.0.2.2:9") };
        let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
        let mut bytes = match kind {
            0 => Tcp::new().between(a, b).build().unwrap(),
            1 => (Udp::new().between(a, b) / vec![5; 12]).build().unwrap(),
            // An ICMP error that quotes a datagram.
            _ => {
                let mut error = (Udp::new().between(b, a) / vec![5; 12]).build().unwrap();
                let payload = [&[if v6 { 1 } else { 3 }, 3, 0, 0, 0, 0, 0, 0], &error[..]].concat();
                let header = if v6 { 40 } else { 20 };
                error.truncate(header);
                error.extend(payload);
                let (at, length) = if v6 { (4, error.len() - 40) } else { (2, error.len()) };
                error[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
                error[if v6 { 6 } else { 9 }] = if v6 { ip::ICMPV6 } else { ip::ICMP };
                error
            }
        };
        bytes.resize(bytes.len() + padding, 0);
        for (at, to) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = to;
            }
        }
        check_cuts(&bytes);
    }

    #[test]
    fn ipv6_chains(
        headers in vec(extension(), 0..11), transport in transport(), forms in (0usize..4, 0usize..4),
        length in select(vec![None, None, None, Some(0), Some(60), Some(9000)])
    ) {
        let (protocol, mut rest) = transport;
        let last = if protocol == ip::ICMP { ip::ICMPV6 } else { protocol };
        if last == ip::ICMPV6
            && let Some(kind) = rest.first_mut()
        {
            *kind = match *kind { 8 => 128, 0 => 129, 3 | 11 => 1, other => other };
        }
        check_cuts(&v6_of(&headers, (last, &rest), forms, length));
    }

    #[test]
    fn ipv4_options_and_fragments(packet in transport().prop_flat_map(|(protocol, bytes)| v4_of(Just(protocol), Just(bytes)))) {
        check_cuts(&packet);
    }

    /// The policy checks the same packet in an outgoing frame that the eBPF programs find.
    #[test]
    fn frames(
        tags in vec((select(vec![0x8100u16, 0x8100, 0x88a8, 0x9100]), any::<u16>()), 0..5),
        ethertype in select(vec![0x0800u16, 0x86dd, 0x0800, 0x86dd, 0x0806, 0x0026]),
        packet in prop_oneof![chain(), v4_of(Just(ip::TCP), vec(any::<u8>(), 0..24)), vec(any::<u8>(), 0..30)],
    ) {
        let mut frame = vec![2; 12];
        for (kind, tag) in &tags {
            frame.extend(kind.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend(&packet);
        for length in 0..=frame.len() {
            let frame = &frame[..length];
            let announced = 14 + 4 * tags.len();
            match (parse::link(frame, 14), framed(frame)) {
                // Every IP packet is found, at one offset.
                (Ok((start, v6)), Framed::Ip(packet)) => {
                    assert_eq!(packet, &frame[start..]);
                    assert_eq!(packet[0] >> 4, if v6 { 6 } else { 4 });
                }
                // Another IP version, or none: malformed for the eBPF programs.
                (Ok((start, v6)), Framed::Unreadable) => assert!(parse::network(&frame[start..], 0, v6).is_err()),
                (Ok(_), Framed::Other) => panic!("IP is taken for something else: {frame:02x?}"),
                // After a tag that Linux does not support.
                (Err(_), Framed::Ip(packet)) => {
                    assert!(tags.iter().any(|&(kind, _)| kind == 0x9100), "{frame:02x?}");
                    assert_eq!(frame.len() - packet.len(), announced);
                }
                (Err(_), Framed::Other) => {
                    let kind = frame.load::<2>(announced - 2).map(u16::from_be_bytes);
                    assert_eq!(kind, Some(ethertype));
                    assert!(tags.len() <= 2 && matches!(ethertype, 0x0806 | 0x0026), "{frame:02x?}");
                }
                (Err(_), Framed::Unreadable) => {
                    let is_short = frame.len() < announced + 1;
                    let is_wrong = packet.first().is_none_or(|first| !matches!(first >> 4, 4 | 6)
                        || (first >> 4 == 4) != (ethertype == 0x0800)) || frame.len() < announced + 2;
                    assert!(is_short || is_wrong || tags.len() > 2, "{frame:02x?}");
                }
            }
        }
    }
}

/// Packets that eBPF programs and user space once read differently.
#[test]
fn packets_that_parsers_read_differently_before() {
    let segment =
        Tcp::new().between("[2001:db8::1]:7".parse().unwrap(), "[2001:db8::2]:9".parse().unwrap()).build().unwrap();
    let tcp = (ip::TCP, &segment[40..]);
    let plain = |kind: u8| (kind, vec![0; 7]);
    let fragment = |offset: u16, more: bool| {
        let field = (offset | u16::from(more)).to_be_bytes();
        (44, vec![0, field[0], field[1], 0, 0, 0, 9])
    };
    let seen = |headers: &[(u8, Vec<u8>)]| {
        let packet = v6_of(headers, tcp, (0, 1), None);
        check_cuts(&packet);
        user(&packet)
    };
    assert!(matches!(seen(&vec![plain(60); 8]), Some(Seen { ends: Ends::Ports(7, 9), transport: 104, .. })));
    // User space read 16.
    assert_eq!(seen(&vec![plain(60); 9]), None);
    // User space continued after HIP and Shim6.
    for kind in [139, 140] {
        let seen = seen(&[plain(kind)]).expect("another protocol");
        assert_eq!((seen.protocol, seen.ends), (kind, Ends::None));
    }
    // The eBPF programs used the second fragment header, user space the first.
    for inner in [fragment(0, false), fragment(0, true), fragment(8, false)] {
        assert_eq!(seen(&[fragment(0, true), inner]), None);
    }
    let first = seen(&[fragment(0, false), fragment(0, true)]).expect("a first fragment");
    assert_eq!((first.fragment, first.ends), (Some((9, false)), Ends::Ports(7, 9)));
    // The eBPF programs used GRE, user space the header before it.
    let gre = v6_of(&[plain(60)], (47, &[]), (0, 1), None);
    assert!(user(&gre).is_some());
    check_cuts(&gre);
    assert_eq!(parse::network(&gre[..47], 0, true), Err(crafter_common::reason::Reason::Malformed));
    // An error that quotes a later fragment of a query: user space read its data as a header.
    let quoted = v6_of(&[fragment(8, false)], (ip::ICMPV6, &[128, 0, 0, 0, 0, 7, 0, 0]), (0, 1), None);
    let error = v6_of(&[], (ip::ICMPV6, &[&[1, 4, 0, 0, 0, 0, 0, 0], &quoted[..]].concat()), (1, 0), None);
    check_cuts(&error);
    assert_eq!(icmp_query(&error), None);
    // A reply in transit, and a reply to an IPv4-mapped address: the eBPF programs pass them.
    let answer = [129, 0, 0, 0, 0, 7, 0, 0];
    let to = |headers: &[(u8, Vec<u8>)], form| icmp_query(&v6_of(headers, (ip::ICMPV6, &answer), (0, form), None));
    assert_eq!(to(&[], 1), Some("[2001:db8::2]:7".parse().unwrap()));
    assert_eq!(to(&[(43, vec![0, 0, 1, 0, 0, 0, 0])], 1), None);
    assert_eq!(to(&[], 2), None);
    // Segments of the same kinds.
    let claimed = |headers: &[(u8, Vec<u8>)], form| received(&v6_of(headers, tcp, (0, form), None)).is_some();
    let routed = |left: u8| [(43, vec![0, 0, left, 0, 0, 0, 0])];
    assert!(claimed(&[], 1) && claimed(&routed(0), 1));
    assert!(!claimed(&routed(1), 1) && !claimed(&[], 2) && !claimed(&[], 3));
    // A segment truncated after the ports.
    assert_eq!(flow(&v6_of(&[], (ip::TCP, &segment[40..44]), (0, 1), None)), None);
}
