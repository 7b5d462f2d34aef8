//! Matching of replies and their keys, for all protocols.

use proptest::prelude::*;

use super::*;

/// Asserts that the reply answers the request, both as crafted and as parsed.
#[track_caller]
fn answered(request: &Packet, reply: &Packet) {
    let sent = request.resolved().unwrap();
    let received = reply.resolved().unwrap();
    for request in [request, &sent] {
        assert!(received.answers(request), "{received}\ndoes not answer\n{request}");
        assert_eq!(received.reply_key(), request.request_key(), "{received}\n{request}");
        let expected_source = request.expected_source();
        assert!(expected_source.is_none() || expected_source == received.reply_source(), "{received}\n{request}");
    }
}

#[track_caller]
fn not_answered(request: &Packet, reply: &Packet) {
    let received = reply.resolved().unwrap();
    assert!(!received.answers(request), "{received}\nanswers\n{request}");
}

fn v4() -> (Ip, Ip) {
    (Ip::to("198.51.100.9").src("192.0.2.1").id(77), Ip::to("192.0.2.1").src("198.51.100.9"))
}

fn v6() -> (Ipv6, Ipv6) {
    (Ipv6::to("2001:db8::9").src("2001:db8::1"), Ipv6::to("2001:db8::1").src("2001:db8::9"))
}

#[test]
fn icmp_requests() {
    let (there, back) = v4();
    for (asked, answer) in [(8, 0), (13, 14), (15, 16), (17, 18)] {
        let message = |number: u8, id: u16, seq: u16| Icmp::new().r#type(number).id(id).seq(seq);
        let request = there.clone() / message(asked, 5, 6);
        answered(&request, &(back.clone() / message(answer, 5, 6) / "x"));
        not_answered(&request, &(back.clone() / message(answer, 5, 7)));
        not_answered(&request, &(back.clone() / message(answer, 4, 6)));
        not_answered(&request, &(back.clone() / message(if answer == 0 { 14 } else { 0 }, 5, 6)));
        not_answered(&request, &(back.clone().src("198.51.100.8") / message(answer, 5, 6)));
    }
    let solicitation = Ip::to("224.0.0.2").src("192.0.2.1") / Icmp::new().r#type(10);
    answered(&solicitation, &(Ip::to("224.0.0.1").src("192.0.2.254") / Icmp::new().r#type(9).unused(0x0102_0708)));
    // Extended echo: the state in the reply is not in the request.
    let probe = there / Icmp::new().r#type(42).unused(0x0005_0601);
    answered(&probe, &(back.clone() / Icmp::new().r#type(43).unused(0x0005_0664)));
    not_answered(&probe, &(back / Icmp::new().r#type(43).unused(0x0005_0764)));
}

/// Requests of every protocol, each with one that differs in the first 8 bytes of a quote.
fn quoted_v4() -> Vec<(Packet, Packet)> {
    let (there, _) = v4();
    let ip = || there.clone();
    vec![
        (ip() / Tcp::to(80).sport(5000).seq(9) / "data", ip() / Tcp::to(80).sport(5000).seq(8)),
        (ip() / Tcp::to(80).sport(5000).seq(9), ip() / Tcp::to(81).sport(5000).seq(9)),
        (ip() / Udp::to(33_434).sport(5000) / "x", ip() / Udp::to(33_435).sport(5000)),
        (ip() / Udp::new().sport(5000) / Dns::query("a.example", 1).id(7), ip() / Udp::to(54).sport(5000)),
        (ip() / Icmp::echo(1, 2) / "ping", ip() / Icmp::echo(1, 3)),
        (ip() / Icmp::new().r#type(13).id(1).seq(2), ip() / Icmp::new().r#type(17).id(1).seq(2)),
        (ip() / Gre::new() / Ip::to("10.0.0.1") / Udp::to(7), ip().proto(4) / Gre::new()),
        (ip() / Ip::to("10.0.0.1") / Udp::to(7), ip() / Udp::to(7)),
        (ip().proto(132) / b"\x13\x88\x00\x50\0\0\0\x01", ip().proto(132) / b"\x13\x89\x00\x50\0\0\0\x01"),
        (ip().proto(89).into(), ip().proto(88).into()),
        (ip().options([IpOption::RouterAlert(0)]) / Udp::to(7).sport(9), ip() / Udp::to(7).sport(8)),
        (ip() / Udp::to(7).sport(9), Ip::to("198.51.100.8").src("192.0.2.1").id(77) / Udp::to(7).sport(9)),
    ]
}

#[test]
fn icmp_errors_answer_any_quote() {
    let error = |number: u8, quote: &[u8]| Ip::to("192.0.2.1").src("203.0.113.7") / Icmp::new().r#type(number) / quote;
    for (request, other) in quoted_v4() {
        // A router has decremented the time to live and may have changed DSCP and ECN.
        let mut forwarded = request.clone();
        let ip = forwarded.get_mut::<Ip>().unwrap();
        (ip.ttl, ip.tos) = (Some(1), Some(0x28));
        let header = usize::from(request.build().unwrap()[0] & 15) * 4;
        for number in [3, 4, 5, 11, 12] {
            for bytes in [request.build().unwrap(), forwarded.build().unwrap()] {
                answered(&request, &error(number, &bytes));
                answered(&request, &error(number, &bytes[..bytes.len().min(header + 8)]));
            }
            let bytes = other.build().unwrap();
            not_answered(&request, &error(number, &bytes));
            not_answered(&request, &error(number, &bytes[..bytes.len().min(28)]));
        }
    }
}

#[test]
fn icmpv6_errors_answer_any_quote() {
    let (there, _) = v6();
    let ip = || there.clone();
    let via = |left: u8| Ipv6Routing::new().addresses(["2001:db8::a".parse().unwrap()]).segleft(left);
    let pairs: Vec<(Packet, Packet)> = vec![
        (ip() / Tcp::to(80).sport(5000).seq(9) / "data", ip() / Tcp::to(80).sport(5001).seq(9)),
        (ip() / Udp::to(33_434).sport(5000) / "x", ip() / Udp::to(33_434).sport(5001)),
        (ip() / Icmpv6EchoRequest::new().id(5).seq(6), ip() / Icmpv6EchoRequest::new().id(5).seq(7)),
        (ip() / Ipv6HopByHop::new() / Ipv6Destination::new() / Udp::to(7).sport(9), ip() / Udp::to(7).sport(8)),
        (ip() / Ipv6Fragment::new().id(7).m(1) / Udp::to(7).sport(9) / "12345678", ip() / Udp::to(7).sport(8)),
        (ip() / Gre::new() / Ip::new(), ip() / Udp::to(7).sport(8)),
        (ip().nh(132) / b"\x13\x88\x00\x50\0\0\0\x01", ip().nh(132) / b"\x13\x88\x00\x51\0\0\0\x01"),
        (ip() / Udp::to(7).sport(9), Ipv6::to("2001:db8::8").src("2001:db8::1") / Udp::to(7).sport(9)),
        (ip() / via(1) / Udp::to(7).sport(9), ip() / via(1) / Udp::to(7).sport(8)),
        (ip() / NdNeighborSolicitation::who_has("2001:db8::9"), ip() / NdNeighborSolicitation::who_has("2001:db8::8")),
    ];
    let errors: [AnyLayer; 4] = [
        Icmpv6DestUnreach::new().into(),
        Icmpv6PacketTooBig::new().into(),
        Icmpv6TimeExceeded::new().into(),
        Icmpv6ParamProblem::new().into(),
    ];
    for (request, other) in pairs {
        let mut forwarded = request.clone();
        forwarded.get_mut::<Ipv6>().unwrap().hlim = Some(0);
        let around = |quote: Packet, error: &AnyLayer| {
            Ipv6::to("2001:db8::1").src("2001:db8::fe") / Ipv6Destination::new() / error.clone() / quote
        };
        for error in &errors {
            answered(&request, &around(forwarded.clone(), error));
            not_answered(&request, &around(other.clone(), error));
        }
    }
    // After the first segment of a route, the final destination is the last address.
    let request = ip() / via(1) / Udp::to(7).sport(9);
    let underway = Ipv6::to("2001:db8::a").src("2001:db8::1")
        / Ipv6Routing::new().addresses([there.dst.unwrap()]).segleft(0)
        / Udp::to(7).sport(9);
    answered(&request, &(Ipv6::to("2001:db8::1").src("2001:db8::fe") / Icmpv6TimeExceeded::new() / underway));
    answered(&request, &(Ipv6::to("2001:db8::1").src("2001:db8::a") / Udp::to(9).sport(7)));
    not_answered(&request, &(Ipv6::to("2001:db8::1").src("2001:db8::9") / Udp::to(9).sport(7)));
}

#[test]
fn ipv4_source_route_is_answered_by_last_address() {
    let (there, _) = v4();
    let route = |pointer: u8| IpOption::LooseRoute(pointer, vec!["203.0.113.1".parse().unwrap()]);
    let request = there.clone().options([route(4)]) / Tcp::to(80).sport(5000).seq(9);
    let reply = Tcp::to(5000).sport(80).flags("SA").ack(10);
    answered(&request, &(Ip::to("192.0.2.1").src("203.0.113.1") / reply.clone()));
    not_answered(&request, &(Ip::to("192.0.2.1").src("198.51.100.9") / reply));
    let underway = there.dst("203.0.113.1").options([route(8)]) / Tcp::to(80).sport(5000).seq(9);
    answered(&request, &(Ip::to("192.0.2.1").src("203.0.113.7") / Icmp::new().r#type(11) / underway));
}

#[test]
fn tcp() {
    let (there, back) = v4();
    let request = |flags: &str, load: usize| {
        let packet = there.clone() / Tcp::to(80).sport(9).seq(u32::MAX).ack(500).flags(flags);
        if load > 0 { packet / vec![b'a'; load] } else { packet }
    };
    let reply = |flags: &str, seq: u32, ack: u32| back.clone() / Tcp::to(9).sport(80).flags(flags).seq(seq).ack(ack);
    // Answers to SYN acknowledge exactly its end; sequence numbers wrap.
    for flags in ["SA", "RA", "R", "S"] {
        answered(&request("S", 0), &reply(flags, 7, 0));
    }
    for flags in ["SA", "RA"] {
        not_answered(&request("S", 0), &reply(flags, 7, u32::MAX));
        not_answered(&request("S", 0), &reply(flags, 7, 1));
        answered(&request("S", 4), &reply(flags, 7, 4));
        answered(&request("S", 4), &reply(flags, 7, 0));
    }
    // Answers to SYN-ACK, ACK and FIN-ACK without a connection: RST with the acknowledged number.
    for flags in ["A", "SA", "FA", "PA"] {
        answered(&request(flags, 3), &reply("R", 500, 0));
        not_answered(&request(flags, 3), &reply("R", 501, 0));
        answered(&request(flags, 3), &reply("RA", 500, 12_345));
    }
    // Answers to probes without ACK: RST that acknowledges the probe.
    for (flags, length) in [("", 0), ("F", 1), ("FPU", 1)] {
        answered(&request(flags, 0), &reply("RA", 0, u32::MAX.wrapping_add(length)));
    }
    // Answers to data and FIN acknowledge a part of it or more, not older data.
    for (flags, load) in [("PA", 100), ("FA", 0), ("FA", 100)] {
        answered(&request(flags, load), &reply("A", 500, 0));
        answered(&request(flags, load), &reply("PA", 500, 99));
        answered(&request(flags, load), &reply("FA", 500, 5000));
        not_answered(&request(flags, load), &reply("A", 500, u32::MAX));
        not_answered(&request(flags, load), &reply("A", 500, 3 << 30));
    }
    // Answers to an acknowledgment: data from the peer.
    answered(&request("A", 0), &reply("PA", 500, u32::MAX));
    // A payload with its own layer counts too.
    let query = request("PA", 0) / Dns::query("example.org", 1);
    not_answered(&query, &reply("A", 500, u32::MAX));
}

#[test]
fn dns() {
    let (there, back) = v4();
    let request = there / Udp::new().sport(999) / Dns::query("example.org", 1).id(7);
    let record = || Record::address("example.org", 60, "192.0.2.7".parse().unwrap()).unwrap();
    let reply = |dns: Dns| back.clone() / Udp::to(999).sport(53) / dns.qr(1);
    answered(&request, &reply(Dns::query("Example.ORG", 1).id(7).an([record()])));
    answered(&request, &reply(Dns::new().qd([]).id(7).rcode(1)));
    not_answered(&request, &reply(Dns::query("example.org", 28).id(7)));
    not_answered(&request, &reply(Dns::query("example.org", 1).id(8)));
    not_answered(&request, &(back.clone() / Udp::to(999).sport(53) / Dns::query("example.org", 1).id(7)));
    // Multicast DNS: a response without a question, to the group.
    let request = Ip::to("224.0.0.251").src("192.0.2.1") / Udp::to(5353).sport(5353) / Dns::query("example.org", 1);
    let response = |dns: Dns| Ip::to("224.0.0.251").src("192.0.2.3") / Udp::to(5353).sport(5353) / dns.qr(1);
    answered(&request, &response(Dns::new().qd([]).an([record()])));
    let other = Record::address("other.local", 60, "192.0.2.7".parse().unwrap()).unwrap();
    not_answered(&request, &response(Dns::new().qd([]).an([other])));
}

#[test]
fn group_requests_are_answered_by_any_address() {
    let frame = |packet: Packet| Ether::new() / packet;
    let echo = |to: &str| frame(Ip::to(to).src("192.0.2.1") / Icmp::echo(1, 2));
    for to in ["255.255.255.255", "224.0.0.1"] {
        assert_eq!(echo(to).expected_source(), None);
        answered(&echo(to), &frame(Ip::to("192.0.2.1").src("192.0.2.77") / Icmp::echo(1, 2).r#type(0)));
        not_answered(&echo(to), &frame(Ip::to("192.0.2.2").src("192.0.2.77") / Icmp::echo(1, 2).r#type(0)));
    }
    not_answered(&echo("192.0.2.5"), &frame(Ip::to("192.0.2.1").src("192.0.2.77") / Icmp::echo(1, 2).r#type(0)));
    let echo = Ipv6::to("ff02::1").src("fe80::1") / Icmpv6EchoRequest::new().id(1).seq(2);
    answered(&echo, &(Ipv6::to("fe80::1").src("fe80::2") / Icmpv6EchoReply::new().id(1).seq(2)));
    // DHCP: the response goes to the offered address or to broadcast.
    let discover = Ip::to("255.255.255.255").src("0.0.0.0") / Udp::to(67).sport(68) / "discover";
    for to in ["255.255.255.255", "192.0.2.50"] {
        answered(&discover, &(Ip::to(to).src("192.0.2.254") / Udp::to(68).sport(67) / "offer"));
    }
    let who_has = Ether::new() / Arp::who_has("192.0.2.2").psrc("192.0.2.1");
    answered(&who_has, &(Ether::new() / Arp::new().op(2).psrc("192.0.2.2").pdst("192.0.2.1") / Padding::of([0; 18])));
    not_answered(&who_has, &(Ether::new() / Arp::new().op(2).psrc("192.0.2.3").pdst("192.0.2.1")));
    let reverse = Ether::new() / Arp::new().op(3).hwdst("02:00:00:00:00:09");
    answered(&reverse, &(Ether::new() / Arp::new().op(4).hwdst("02:00:00:00:00:09").pdst("192.0.2.9")));
    let inverse = Ether::new() / Arp::new().op(8).hwdst("02:00:00:00:00:09");
    answered(&inverse, &(Ether::new() / Arp::new().op(9).hwsrc("02:00:00:00:00:09").psrc("192.0.2.9")));
    let solicit = |from: &str| Ipv6::to("ff02::1:ff00:2").src(from) / NdNeighborSolicitation::who_has("fe80::2");
    let advertise = |to: &str, target: &str| Ipv6::to(to).src("fe80::2") / NdNeighborAdvertisement::new().tgt(target);
    answered(&solicit("fe80::1"), &advertise("fe80::1", "fe80::2"));
    answered(&solicit("::"), &advertise("ff02::1", "fe80::2"));
    not_answered(&solicit("fe80::1"), &advertise("fe80::1", "fe80::3"));
    let routers = Ipv6::to("ff02::2").src("fe80::1") / NdRouterSolicitation::new();
    answered(&routers, &(Ipv6::to("ff02::1").src("fe80::fe") / NdRouterAdvertisement::new()));
}

#[test]
fn tunnels_and_protocols_without_layer() {
    let (there, back) = v4();
    let inner = |packet: &Packet| Ether::new() / packet.clone();
    let asks = Ip::to("10.0.0.2").src("10.0.0.1") / Icmp::echo(1, 2);
    let tells = Ip::to("10.0.0.1").src("10.0.0.2") / Icmp::echo(1, 2).r#type(0);
    let request = there.clone() / Udp::new().sport(50_000) / Vxlan::new().vni(7) / inner(&asks);
    answered(&request, &(back.clone() / Udp::new().sport(61_000) / Vxlan::new().vni(7) / inner(&tells)));
    not_answered(&request, &(back.clone() / Udp::new().sport(61_000) / Vxlan::new().vni(8) / inner(&tells)));
    answered(&(there.clone() / Gre::new().key(1) / asks.clone()), &(back.clone() / Gre::new().key(1) / tells.clone()));
    answered(&(there.clone() / asks.clone()), &(back.clone() / tells));
    not_answered(&(there.clone() / asks.clone()), &(back.clone() / asks));
    answered(&(there.clone().proto(132) / "abcd"), &(back.clone().proto(132) / "efgh"));
    not_answered(&(there.proto(132) / "abcd"), &(back.proto(133) / "efgh"));
    let frame = |number: u16| Ether::new().r#type(number) / "abcd";
    answered(&frame(0x88b5), &frame(0x88b5));
    not_answered(&frame(0x88b5), &frame(0x88b6));
}

fn numbers() -> impl Strategy<Value = ([u8; 2], u16, u16, u32)> {
    (any::<[u8; 2]>(), 1..=u16::MAX, 1..=u16::MAX, any::<u32>())
}

proptest! {
    /// A reply to one of many requests answers only that one and has its key.
    #[test]
    fn reply_key_finds_its_request(all in prop::collection::hash_set(numbers(), 1..20), v6 in any::<bool>()) {
        let head = |[a, b]: [u8; 2], back: bool| -> Packet {
            let (here, there) = ((192, 0, 2, 1), (10, 0, a, b));
            let (from, to) = if back { (there, here) } else { (here, there) };
            let v4 = |(a, b, c, d)| std::net::Ipv4Addr::new(a, b, c, d);
            if v6 {
                Ipv6::to(v4(to).to_ipv6_compatible()).src(v4(from).to_ipv6_compatible()).into()
            } else {
                Ip::to(v4(to)).src(v4(from)).into()
            }
        };
        let mut pairs = Vec::new();
        for (host, a, b, number) in all {
            let syn = Tcp::to(a).sport(b).seq(number);
            let [there, back] = [head(host, false), head(host, true)];
            pairs.push((there.clone() / syn.clone(), back.clone() / Tcp::to(b).sport(a).flags("SA").ack(number.wrapping_add(1))));
            if [53, 5353, 5355, 4789].iter().all(|port| a != *port && b != *port) {
                pairs.push((there.clone() / Udp::to(a).sport(b), back.clone() / Udp::to(b).sport(a)));
            }
            if v6 {
                let echo = there.clone() / Icmpv6EchoRequest::new().id(a).seq(b);
                pairs.push((echo, back / Icmpv6EchoReply::new().id(a).seq(b)));
                let expired = head([9, 9], true) / Icmpv6TimeExceeded::new() / (there.clone() / syn.seq(number ^ 1));
                pairs.push((there / Tcp::to(a).sport(b).seq(number ^ 1), expired));
            } else {
                pairs.push((there.clone() / Icmp::echo(a, b), back / Icmp::echo(a, b).r#type(0)));
                let expired = head([9, 9], true) / Icmp::new().r#type(11) / (there.clone() / syn.seq(number ^ 1));
                pairs.push((there / Tcp::to(a).sport(b).seq(number ^ 1), expired));
            }
        }
        let mut table: std::collections::HashMap<MatchKey, Vec<&Packet>> = std::collections::HashMap::new();
        for (request, _) in &pairs {
            table.entry(request.request_key()).or_default().push(request);
        }
        for (request, reply) in &pairs {
            let received = reply.resolved().unwrap();
            let found: Vec<_> = table[&received.reply_key()].iter().filter(|asked| received.answers(asked)).collect();
            prop_assert_eq!(found, vec![&request]);
            prop_assert_eq!(request.expected_source(), received.reply_source());
            let all: Vec<_> = pairs.iter().filter(|(asked, _)| received.answers(asked)).collect();
            prop_assert_eq!(all.len(), 1);
        }
    }
}
