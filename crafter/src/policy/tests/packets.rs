//! Packets and frames, each with a refused and an allowed case.

use super::*;

#[test]
fn destinations() {
    let policy =
        rule("allow = ['10.0.0.0/8', '2001:db8:1::/48', { prefix = '203.0.113.0/24', ports = [80, '8000-8099'] }]");
    twins(&policy, "11.0.0.1:80", Verdict::NotAllowed, "10.255.255.255:80");
    twins(&policy, "[2001:db8:2::1]:80", Verdict::NotAllowed, "[2001:db8:1::1]:80");
    twins(&policy, "203.0.113.9:81", Verdict::NotAllowed, "203.0.113.9:80");
    twins(&policy, "203.0.113.9:8100", Verdict::NotAllowed, "203.0.113.9:8099");
    let policy = rule("deny = ['10.0.0.0/8', { prefix = 'any', ports = [25] }]");
    twins(&policy, "10.0.0.1:80", Verdict::Denied, "11.0.0.1:80");
    twins(&policy, "11.0.0.1:25", Verdict::Denied, "11.0.0.1:26");
    twins(&policy, "[2001:db8:2::1]:25", Verdict::Denied, "[2001:db8:2::1]:80");
    // In either order of the keys, and with either prefix inside the other.
    for keys in [
        "allow = ['10.1.0.0/16']\ndeny = ['10.0.0.0/8']",
        "deny = ['10.0.0.0/8']\nallow = ['10.1.0.0/16', 'any']",
        "allow = ['10.1.2.3']\ndeny = [{ prefix = '10.1.0.0/16', ports = ['1-100'] }]",
    ] {
        assert_eq!(sent(&rule(keys), |_| {}, &tcp("192.0.2.1:50000", "10.1.2.3:80")), Verdict::Denied, "{keys}");
    }
    let policy = rule("allow = ['10.0.0.0/8']\ndeny = ['10.1.0.0/16']");
    twins(&policy, "10.1.0.1:80", Verdict::Denied, "10.2.0.1:80");
}

#[test]
fn multicast_and_broadcast() {
    twins(&rule(""), "224.0.0.251:5353", Verdict::Multicast, "223.0.0.1:5353");
    twins(&rule(""), "[ff02::fb]:5353", Verdict::Multicast, "[2001:db8:5::1]:5353");
    twins(&rule("broadcast = true"), "239.1.1.1:1", Verdict::Multicast, "255.255.255.255:1");
    for broadcast in ["255.255.255.255:1", "192.0.2.255:1", "0.0.0.0:1", "127.255.255.255:1"] {
        twins(&rule("multicast = true"), broadcast, Verdict::Broadcast, "239.1.1.1:1");
        twins(&rule("broadcast = true\ndeny = ['1.1.1.1']"), "1.1.1.1:1", Verdict::Denied, broadcast);
    }
}

#[test]
fn sources() {
    let to = "203.0.113.1:80";
    let from = |keys: &str, source: &str| sent(&rule(keys), |_| {}, &tcp(source, to));
    assert_eq!(from("", "192.0.2.9:50000"), Verdict::ForeignSource);
    assert_eq!(from("", "192.0.2.1:50000"), Verdict::Allowed);
    assert_eq!(from("foreign_sources = true", "192.0.2.9:50000"), Verdict::Allowed);
    assert_eq!(from("foreign_sources = ['192.0.2.8/29']", "192.0.2.9:50000"), Verdict::Allowed);
    assert_eq!(from("foreign_sources = ['192.0.2.8/29']", "192.0.2.17:50000"), Verdict::ForeignSource);
    // The host's address, but not allowed for this user.
    assert_eq!(from("addresses = ['192.0.2.0/24']", "198.51.100.1:50000"), Verdict::ForeignSource);
    // Ports of an address that is not this host's cannot be leased; ports of its own can.
    assert_eq!(from("foreign_sources = true", "192.0.2.9:50010"), Verdict::Allowed);
    assert_eq!(from("foreign_sources = true", "192.0.2.1:50010"), Verdict::SourcePort);
    assert_eq!(from("", "192.0.2.1:50010"), Verdict::SourcePort);
    assert_eq!(from("", "192.0.2.1:50009"), Verdict::Allowed);
    // A lease on one address.
    let one = |requested: &mut RequestedLease| requested.address = Some("198.51.100.1".parse().unwrap());
    assert_eq!(sent(&rule(""), one, &tcp("192.0.2.1:50000", to)), Verdict::ForeignSource);
    assert_eq!(sent(&rule(""), one, &tcp("198.51.100.1:50000", to)), Verdict::Allowed);
}

/// An IPv4 packet from 192.0.2.1 to 203.0.113.1.
fn ip(options: &[u8], protocol: u8, offset: u16, payload: &[u8]) -> Vec<u8> {
    let total = (20 + options.len() + payload.len()) as u16;
    let mut packet = vec![0x45 + (options.len() / 4) as u8, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 7]);
    packet.extend(offset.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 192, 0, 2, 1, 203, 0, 113, 1]);
    packet.extend(options);
    packet.extend(payload);
    packet
}

const TCP: [u8; 8] = [0xc3, 0x50, 0, 80, 0, 0, 0, 0];

fn read(packet: &[u8]) -> PacketInfo {
    PacketInfo::read(packet).expect("a packet that can be read")
}

#[test]
fn protocols() {
    let any = rule("protocols = ['any']");
    let gre = read(&ip(&[], 47, 0, &TCP));
    assert_eq!(sent(&rule(""), |_| {}, &gre), Verdict::Protocol);
    assert_eq!(sent(&any, |_| {}, &gre), Verdict::Allowed);
    let udp =
        Udp::new().between("192.0.2.1:50000".parse().unwrap(), "203.0.113.1:53".parse().unwrap()).build().unwrap();
    assert_eq!(sent(&rule("protocols = ['tcp']"), |_| {}, &read(&udp)), Verdict::Protocol);
    // The lease owns the port for TCP only.
    assert_eq!(sent(&any, |_| {}, &read(&udp)), Verdict::SourcePort);
    assert_eq!(sent(&rule(""), |requested| requested.transport = Some(Transport::Udp), &read(&udp)), Verdict::Allowed);
    let icmp = |requested: &mut RequestedLease| requested.transport = Some(Transport::Icmp);
    let echo = |id: u8| read(&ip(&[], 1, 0, &[8, 0, 0, 0, 0xc3, id, 0, 1]));
    assert_eq!(echo(0x50).ports, PacketPorts::Query { identifier: 50_000 });
    assert_eq!(sent(&rule(""), icmp, &echo(0x50)), Verdict::Allowed);
    assert_eq!(sent(&rule(""), icmp, &echo(0x60)), Verdict::SourcePort);
    // Destination ports do not apply to ICMP queries.
    assert_eq!(sent(&rule("deny = [{ prefix = 'any', ports = [0] }]"), icmp, &echo(0x50)), Verdict::Allowed);
    assert_eq!(sent(&rule("allow = [{ prefix = 'any', ports = [0] }]"), icmp, &echo(0x50)), Verdict::NotAllowed);
    // An ICMP redirect.
    let redirect = read(&ip(&[], 1, 0, &[5, 1, 0, 0, 10, 0, 0, 1]));
    assert_eq!(sent(&rule(""), icmp, &redirect), Verdict::Protocol);
    assert_eq!(sent(&any, icmp, &redirect), Verdict::Allowed);
}

#[test]
fn fragments() {
    let later = read(&ip(&[], 6, 3, &TCP));
    assert_eq!((later.transport, later.ports), (Some(Transport::Tcp), PacketPorts::Fragment));
    assert_eq!(sent(&rule(""), |_| {}, &later), Verdict::Allowed);
    assert_eq!(sent(&rule("allow = [{ prefix = 'any', ports = [80] }]"), |_| {}, &later), Verdict::NotAllowed);
    assert_eq!(sent(&rule("deny = [{ prefix = 'any', ports = [25] }]"), |_| {}, &later), Verdict::Denied);
    let first = read(&ip(&[], 6, 0x2000, &TCP));
    assert_eq!(first.ports, PacketPorts::Both { source: 50_000, destination: 80 });
    // The ports must be in the first fragment.
    assert_eq!(PacketInfo::read(&ip(&[], 6, 0x2000, &TCP[..3])), None);
    let icmp = |requested: &mut RequestedLease| requested.transport = Some(Transport::Icmp);
    let ping = [read(&ip(&[], 1, 0x2000, &[8, 0, 0, 0, 0xc3, 0x50, 0, 1])), read(&ip(&[], 1, 3, &TCP))];
    for fragment in ping {
        assert_eq!(sent(&rule("deny = [{ prefix = 'any', ports = [25] }]"), icmp, &fragment), Verdict::Allowed);
    }
}

/// Each row is refused by default; with the keys, the same packet is allowed.
#[test]
fn what_no_packet_may_carry_needs_a_key() {
    let v6 = |source: &str, destination: &str| {
        let mut packet = ip6(&[], &TCP);
        for (at, address) in [(8, source), (24, destination)] {
            packet[at..at + 16].copy_from_slice(&address.parse::<std::net::Ipv6Addr>().unwrap().octets());
        }
        read(&packet)
    };
    let v4 = |options: &[u8]| read(&ip(options, 6, 0, &TCP));
    let (own, far) = ("2001:db8::1", "2001:db8:1::1");
    let home: &[u8] = &[2, 1, 0, 201, 16, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 1, 0];
    let (any, all) = ("protocols = ['any']", "foreign_sources = true");
    let both = "protocols = ['any']\nforeign_sources = true";
    let rows = [
        ("loopback source", Verdict::ForeignSource, v6("::1", far), all),
        ("mapped source", Verdict::ForeignSource, v6("::ffff:192.0.2.1", far), all),
        ("mapped destination", Verdict::ForeignSource, v6(own, "::ffff:203.0.113.1"), all),
        ("IPv4 loopback source", Verdict::ForeignSource, tcp("127.0.0.1:50000", "203.0.113.1:80"), all),
        ("home address", Verdict::Option, read(&ip6(&[(60, home)], &TCP)), both),
        ("router alert", Verdict::Option, read(&ip6(&[(0, &[0, 5, 2, 0, 0, 1, 0])], &TCP)), any),
        ("CALIPSO", Verdict::Option, read(&ip6(&[(0, &[0, 7, 2, 0, 0, 1, 0])], &TCP)), any),
        ("option beyond its header", Verdict::Option, read(&ip6(&[(0, &[0, 1, 9, 0, 0, 0, 0])], &TCP)), any),
        ("IPv4 router alert", Verdict::Option, v4(&[148, 4, 0, 0]), any),
        ("CIPSO", Verdict::Option, v4(&[134, 6, 0, 0, 0, 1, 0, 0]), any),
        ("IPv4 security", Verdict::Option, v4(&[130, 4, 0, 0]), any),
        ("unknown IPv4 option after a harmless one", Verdict::Option, v4(&[1, 1, 94, 2]), any),
        ("metadata service", Verdict::LinkLocal, tcp("192.0.2.1:50000", "169.254.169.254:80"), "link_local = true"),
        ("link-local", Verdict::LinkLocal, v6(own, "fe80::1"), "link_local = true"),
    ];
    let mut host = host();
    host.addresses.extend(["127.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
    let ask = |keys: &str, packet: &PacketInfo| {
        let (policy, mut usage) = (rule(keys), Usage::default());
        let grant = policy.grant(&alice(), &requested(), &host, &usage).expect("a lease");
        policy.packet(&grant, packet, &mut usage, Instant::now()).verdict
    };
    for (name, verdict, packet, keys) in rows {
        assert_eq!(ask("", &packet), verdict, "{name}");
        assert_eq!(ask(keys, &packet), Verdict::Allowed, "{name}");
    }
    // A home address is a source, also where special options are allowed.
    assert_eq!(ask(any, &read(&ip6(&[(60, home)], &TCP))), Verdict::ForeignSource);
    // This host may send to itself from a loopback address.
    for destination in ["127.0.0.1:80", "192.0.2.1:80"] {
        assert_eq!(ask("", &tcp("127.0.0.1:50000", destination)), Verdict::Allowed, "{destination}");
    }
    // Timestamps, record route and padding are harmless.
    for packet in [
        v4(&[68, 8, 5, 0, 0, 0, 0, 0]),
        v4(&[7, 7, 4, 0, 0, 0, 0, 0]),
        read(&ip6(&[(0, &[0, 1, 4, 0, 0, 0, 0])], &TCP)),
    ] {
        assert_eq!(ask("", &packet), Verdict::Allowed);
    }
}

/// Addresses and networks that change between the grant and the packet.
#[test]
fn renewed_grants_judge_by_the_addresses_of_now() {
    let policy = rule("");
    let mut usage = Usage::default();
    let grant = policy.grant(&alice(), &requested(), &host(), &usage).unwrap();
    let mut ask = |grant: &Grant, source: &str, destination: &str| {
        policy.packet(grant, &tcp(source, destination), &mut usage, Instant::now()).verdict
    };
    let now = Host {
        addresses: vec!["198.51.100.1".parse().unwrap(), "203.0.113.7".parse().unwrap()],
        broadcasts: vec!["203.0.113.255".parse().unwrap()],
        mtu: 1500,
    };
    let renewed = policy.renew(&grant, &now);
    for (name, source, destination, before, after) in [
        ("removed address", "192.0.2.1:50000", "192.0.2.9:80", Verdict::Allowed, Verdict::ForeignSource),
        ("added address", "203.0.113.7:50000", "192.0.2.9:80", Verdict::ForeignSource, Verdict::Allowed),
        (
            "broadcast of an added network",
            "198.51.100.1:50000",
            "203.0.113.255:80",
            Verdict::Allowed,
            Verdict::Broadcast,
        ),
        (
            "broadcast of a removed network",
            "198.51.100.1:50000",
            "192.0.2.255:80",
            Verdict::Broadcast,
            Verdict::Allowed,
        ),
    ] {
        assert_eq!(ask(&grant, source, destination), before, "{name}");
        assert_eq!(ask(&renewed, source, destination), after, "{name}");
    }
    // A lease on one address gets no other, and a rule's addresses still apply.
    let one = RequestedLease { address: Some("192.0.2.1".parse().unwrap()), ..requested() };
    let grant = policy.grant(&alice(), &one, &host(), &Usage::default()).unwrap();
    assert_eq!(policy.renew(&grant, &now).sources(), [] as [IpAddr; 0]);
    let limited = rule("addresses = ['198.51.100.0/24']");
    let grant = limited.grant(&alice(), &requested(), &host(), &Usage::default()).unwrap();
    assert_eq!(limited.renew(&grant, &now).sources(), [now.addresses[0]]);
}

#[test]
fn source_routes() {
    let routes: [&[u8]; 4] = [
        &[131, 7, 4, 10, 0, 0, 1, 0],
        &[137, 7, 4, 10, 0, 0, 1, 0],
        &[1, 131, 7, 4, 10, 0, 0, 1],
        // After an option with an invalid length.
        &[7, 0, 131, 3],
    ];
    for options in routes {
        let packet = read(&ip(options, 6, 0, &TCP));
        assert_eq!(sent(&rule(""), |_| {}, &packet), Verdict::SourceRoute, "{options:?}");
        assert_eq!(sent(&rule("protocols = ['any']"), |_| {}, &packet), Verdict::Allowed);
    }
    // Record route; end of options.
    for options in [[7u8, 7, 4, 0, 0, 0, 0, 0], [0, 131, 7, 4, 0, 0, 0, 0]] {
        assert_eq!(sent(&rule(""), |_| {}, &read(&ip(&options, 6, 0, &TCP))), Verdict::Allowed);
    }
    let v6 = |next: u8, header: &[u8]| {
        let mut packet = vec![0x60, 0, 0, 0, 0, (header.len() + 8) as u8, next, 64];
        packet.extend("2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet.extend("2001:db8::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet.extend(header);
        packet.extend(TCP);
        read(&packet)
    };
    assert_eq!(sent(&rule(""), |_| {}, &v6(43, &[6, 0, 4, 1, 0, 0, 0, 0])), Verdict::SourceRoute);
    assert_eq!(
        sent(&rule(""), |_| {}, &v6(0, &[43, 0, 1, 4, 0, 0, 0, 0, 6, 0, 4, 1, 0, 0, 0, 0])),
        Verdict::SourceRoute
    );
    assert_eq!(sent(&rule(""), |_| {}, &v6(60, &[6, 0, 1, 4, 0, 0, 0, 0])), Verdict::Allowed);
}

/// An IPv6 packet from 2001:db8::1 to 2001:db8::2 with extension headers: the type of each, and its bytes after the
/// next-header field.
fn ip6(headers: &[(u8, &[u8])], rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (place, (_, header)) in headers.iter().enumerate() {
        bytes.push(headers.get(place + 1).map_or(6, |next| next.0));
        bytes.extend(*header);
    }
    bytes.extend(rest);
    let mut packet = vec![0x60, 0, 0, 0, 0, bytes.len() as u8, headers.first().map_or(6, |first| first.0), 64];
    packet.extend("2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend("2001:db8::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend(bytes);
    packet
}

#[test]
fn addresses_of_a_source_route_are_checked() {
    let through = |a: [u8; 4], b: [u8; 4]| read(&ip(&[&[131, 11, 4][..], &a, &b, &[0]].concat(), 6, 0, &TCP));
    let ask = |keys: &str, packet: &PacketInfo| sent(&rule(&format!("protocols = ['any']\n{keys}")), |_| {}, packet);
    let (out, inside) = ([203, 0, 113, 9], [10, 0, 0, 5]);
    // The last address is the final destination; that of the header is allowed in all of these.
    for packet in [through(out, inside), through(inside, out), through(inside, inside)] {
        assert_eq!(ask("deny = ['10.0.0.0/8']", &packet), Verdict::Denied);
        assert_eq!(ask("deny = [{ prefix = '10.0.0.0/8', ports = [80] }]", &packet), Verdict::Denied);
        assert_eq!(ask("deny = [{ prefix = '10.0.0.0/8', ports = [81] }]", &packet), Verdict::Allowed);
        assert_eq!(ask("allow = ['203.0.113.0/24']", &packet), Verdict::NotAllowed);
        assert_eq!(ask("allow = ['203.0.113.0/24', '10.0.0.0/8']", &packet), Verdict::Allowed);
    }
    assert_eq!(ask("deny = ['10.0.0.0/8']\nallow = ['203.0.113.0/24']", &through(out, out)), Verdict::Allowed);
    assert_eq!(ask("", &through(out, [224, 0, 0, 1])), Verdict::Multicast);
    assert_eq!(ask("multicast = true", &through(out, [224, 0, 0, 1])), Verdict::Allowed);
    assert_eq!(ask("", &through(out, [255; 4])), Verdict::Broadcast);
    // An unreadable route could lead anywhere.
    let unreadable = read(&ip(&[131, 7, 5, 10, 0, 0, 1, 0], 6, 0, &TCP));
    assert_eq!(unreadable.route, Route::Unreadable);
    assert_eq!(ask("deny = ['10.0.0.0/8']", &unreadable), Verdict::SourceRoute);
    assert_eq!(ask("allow = ['203.0.113.0/24']", &unreadable), Verdict::SourceRoute);
    assert_eq!(ask("", &unreadable), Verdict::Allowed);
    // Segment routing (RFC 8754) with one segment left, and with none.
    let segments = |left: u8| {
        let last = "2001:db8:1::5".parse::<std::net::Ipv6Addr>().unwrap().octets();
        read(&ip6(&[(43, &[&[2, 4, left, 0, 0, 0, 0], &last[..]].concat())], &TCP))
    };
    assert_eq!(ask("deny = ['2001:db8:1::/48']", &segments(1)), Verdict::Denied);
    assert_eq!(ask("allow = ['2001:db8::/64']", &segments(1)), Verdict::NotAllowed);
    assert_eq!(ask("deny = ['2001:db8:1::/48']", &segments(0)), Verdict::Allowed);
    assert_eq!(sent(&rule(""), |_| {}, &segments(0)), Verdict::SourceRoute);
}

#[test]
fn ports_after_unreadable_headers_are_denied() {
    let options: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
    let eight = vec![(60, options); 8];
    assert_eq!(read(&ip6(&eight, &TCP)).ports, PacketPorts::Both { source: 50_000, destination: 80 });
    assert_eq!(PacketInfo::read(&ip6(&[&eight[..], &[(60, options)]].concat(), &TCP)), None);
    // HIP and Shim6 are protocols of their own.
    for kind in [139, 140] {
        let packet = read(&ip6(&[(kind, options)], &TCP));
        assert_eq!((packet.transport, packet.ports), (None, PacketPorts::None));
        assert_eq!(sent(&rule(""), |_| {}, &packet), Verdict::Protocol);
        assert_eq!(sent(&rule("protocols = ['any']"), |_| {}, &packet), Verdict::Allowed);
        // A port that may follow the header counts as denied.
        let deny = rule("protocols = ['any']\ndeny = [{ prefix = 'any', ports = [80] }]");
        assert_eq!(sent(&deny, |_| {}, &packet), Verdict::Denied);
    }
    // A fragment of a fragment: its ports depend on which header the receiver uses.
    let first: &[u8] = &[0, 0, 1, 0, 0, 0, 7];
    assert_eq!(read(&ip6(&[(44, first)], &TCP)).ports, PacketPorts::Both { source: 50_000, destination: 80 });
    for inner in [first, &[0, 0, 0, 0, 0, 0, 7], &[0, 0, 8, 0, 0, 0, 7]] {
        assert_eq!(PacketInfo::read(&ip6(&[(44, first), (44, inner)], &TCP)), None);
    }
}

#[test]
fn sizes_and_rates() {
    let mut packet = tcp("192.0.2.1:50000", "203.0.113.1:80");
    packet.length = 1501;
    assert_eq!(sent(&rule(""), |_| {}, &packet), Verdict::TooLong);
    packet.length = 1500;
    assert_eq!(sent(&rule(""), |_| {}, &packet), Verdict::Allowed);
    let (policy, mut usage, now) = (rule("packets_per_second = 10\nburst = 3"), Usage::default(), Instant::now());
    let grant = policy.grant(&alice(), &requested(), &host(), &usage).unwrap();
    // A packet refused for another reason counts towards the rate, too, and beyond the rate no packet is checked.
    let bad = tcp("192.0.2.1:1", "203.0.113.1:80");
    assert_eq!(policy.packet(&grant, &bad, &mut usage, now).verdict, Verdict::SourcePort);
    assert!(policy.charge(&grant, &mut usage, now).is_allowed());
    let verdicts: Vec<Verdict> = (0..3).map(|_| policy.packet(&grant, &packet, &mut usage, now).verdict).collect();
    assert_eq!(verdicts, [Verdict::Allowed, Verdict::Rate, Verdict::Rate]);
    assert_eq!(policy.packet(&grant, &bad, &mut usage, now).verdict, Verdict::Rate);
    assert_eq!(policy.charge(&grant, &mut usage, now).verdict, Verdict::Rate);
    assert!(policy.packet(&grant, &packet, &mut usage, now + Duration::from_millis(100)).is_allowed());
    assert!(!policy.packet(&grant, &packet, &mut usage, now + Duration::from_millis(100)).is_allowed());
}

#[test]
fn frames() {
    let raw = |requested: &mut RequestedLease| requested.raw_ethernet = true;
    let ask = |keys: &str, change: fn(&mut RequestedLease), frame: &[u8]| {
        let (policy, mut requested, mut usage) = (rule(keys), requested(), Usage::default());
        change(&mut requested);
        let grant = policy.grant(&alice(), &requested, &host(), &usage).unwrap();
        policy.frame(&grant, frame, &mut usage, Instant::now()).verdict
    };
    let frame = |to: u8, kinds: &[u8], rest: &[u8]| [&[to; 6], &[2, 0, 0, 0, 0, 1][..], kinds, rest].concat();
    let (on, packet) = ("raw_ethernet = true", ip(&[], 6, 0, &TCP));
    let arp = frame(0x02, &[8, 6], &[0; 28]);
    assert_eq!(ask("", |_| {}, &arp), Verdict::RawEthernet);
    assert_eq!(ask(on, |_| {}, &arp), Verdict::RawEthernet, "the lease is not for frames");
    assert_eq!(ask(on, raw, &arp), Verdict::Allowed);
    assert_eq!(ask(on, raw, &frame(0xff, &[8, 6], &[0; 28])), Verdict::Broadcast);
    assert_eq!(ask("raw_ethernet = true\nbroadcast = true", raw, &frame(0xff, &[8, 6], &[0; 28])), Verdict::Allowed);
    assert_eq!(ask(on, raw, &frame(0x33, &[8, 6], &[0; 28])), Verdict::Multicast);
    assert_eq!(ask("raw_ethernet = true\nmulticast = true", raw, &frame(0x33, &[8, 6], &[0; 28])), Verdict::Allowed);
    for kinds in [&[8, 0][..], &[0x81, 0, 0, 5, 8, 0], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 5, 8, 0]] {
        let frame = frame(2, kinds, &packet);
        assert_eq!(ask(on, raw, &frame), Verdict::Allowed);
        assert_eq!(ask("raw_ethernet = true\ndeny = ['any']", raw, &frame), Verdict::Denied, "{kinds:?}");
    }
    // A tag that Linux does not support, and more tags than the reader accepts.
    let old = frame(2, &[0x91, 0, 0, 5, 8, 0], &packet);
    assert_eq!(ask(on, raw, &old), Verdict::Allowed);
    assert_eq!(ask("raw_ethernet = true\ndeny = ['any']", raw, &old), Verdict::Denied);
    for outer in [&[0x81, 0][..], &[0x88, 0xa8], &[0x91, 0]] {
        let kinds = [outer, &[0, 5, 0x81, 0, 0, 5, 0x81, 0, 0, 5, 8, 0]].concat();
        assert_eq!(ask(on, raw, &frame(2, &kinds, &packet)), Verdict::Unreadable, "{outer:?}");
    }
    // Another IP version than the EtherType says, and no EtherType after the tag.
    assert_eq!(ask(on, raw, &frame(2, &[0x86, 0xdd], &packet)), Verdict::Unreadable);
    assert_eq!(ask(on, raw, &frame(2, &[0x81, 0, 0, 5, 8], &[])), Verdict::Unreadable);
    assert_eq!(ask(on, raw, &frame(2, &[8, 6], &[0; 1505])), Verdict::TooLong);
    assert_eq!(ask(on, raw, &arp[..11]), Verdict::Unreadable);
    assert_eq!(ask(on, raw, &frame(2, &[8, 0], &packet[..19])), Verdict::Unreadable);
}

#[test]
fn new_policy_applies_to_existing_leases() {
    let (old, mut usage, now) = (rule(""), Usage::default(), Instant::now());
    let grant = old.grant(&alice(), &requested(), &host(), &usage).unwrap();
    let packet = tcp("192.0.2.1:50000", "203.0.113.1:80");
    let mut ask = |new: &Policy| (new.review(&grant).verdict, new.packet(&grant, &packet, &mut usage, now).verdict);
    assert_eq!(ask(&old), (Verdict::Allowed, Verdict::Allowed));
    // The rule has another number now.
    let moved = load("[[rule]]\nuser = 'mallory'\nrefuse = true\n[[rule]]\nuser = 'alice'\n");
    assert_eq!(ask(&moved), (Verdict::Allowed, Verdict::Allowed));
    assert_eq!(ask(&rule("deny = ['203.0.113.1']")), (Verdict::Allowed, Verdict::Denied));
    assert_eq!(ask(&rule("ports = [80]")), (Verdict::Port, Verdict::Port));
    assert_eq!(ask(&rule("interfaces = ['eth1']")), (Verdict::Interface, Verdict::Interface));
    assert_eq!(ask(&rule("refuse = true")), (Verdict::Refused, Verdict::Refused));
    assert_eq!(ask(&rule("addresses = ['203.0.113.0/24']")), (Verdict::Address, Verdict::Address));
    assert_eq!(ask(&load("[[rule]]\nuser = 'mallory'")), (Verdict::NoRule, Verdict::NoRule));
    assert_eq!(ask(&load("")), (Verdict::NoRule, Verdict::NoRule));
}
