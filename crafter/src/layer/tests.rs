//! What holds for all layers.

use proptest::prelude::*;

use super::*;

/// Bytes that look like something, so that parsing goes on.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let telling = prop_oneof![
        4 => any::<u8>(),
        4 => Just(0_u8),
        1 => prop::sample::select(vec![1_u8, 4, 5, 6, 17, 41, 43, 44, 47, 53, 58, 60, 0x45, 0x46, 0x60, 0x81, 128, 135]),
    ];
    prop::collection::vec(telling, 0..160)
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL)
}

/// A valid stack with some bytes of it damaged.
pub(crate) fn damaged() -> impl Strategy<Value = (Kind, Vec<u8>)> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (prop::sample::select(stacks()), changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(packet, changes, cut, whole)| {
            let mut bytes = packet.build().unwrap();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if !whole {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            (packet.layers()[0].kind(), bytes)
        },
    )
}

/// One of everything.
pub(crate) fn stacks() -> Vec<Packet> {
    let options = [
        TcpOption::Mss(1460),
        TcpOption::SackOk,
        TcpOption::Timestamp(1, 0),
        TcpOption::Nop,
        TcpOption::WScale(7),
        TcpOption::Sack([(1, 2)].into_iter().collect()),
    ];
    let ip = || Ip::to("192.0.2.2").src("192.0.2.1");
    let ipv6 = || Ipv6::to("2001:db8::2").src("2001:db8::1");
    let tcp = || Tcp::to(80).sport(40_000).options(options.clone());
    let dns = || {
        let record = Record::address("www.example.org", 60, "192.0.2.7".parse().unwrap()).unwrap();
        Dns::query("www.example.org", 1).qr(1).an([record])
    };
    vec![
        Ether::new() / ip() / tcp() / "data",
        Ether::new() / Dot1AD::new() / Dot1Q::new().vlan(7) / ipv6() / tcp() / "data" / Padding::of([0; 5]),
        Ether::new() / Arp::who_has("192.0.2.2") / Padding::of([0; 18]),
        ip().options([IpOption::RouterAlert(0), IpOption::RecordRoute(4, vec!["0.0.0.0".parse().unwrap(); 3])])
            / Udp::to(7).sport(7)
            / "echo",
        ip() / Udp::new().sport(5000) / dns(),
        ip() / Udp::new().sport(5000) / Vxlan::new().vni(7) / Ether::new() / ip() / tcp() / "x",
        ip() / Gre::new().key(1).chksum_present(1) / ipv6() / Udp::to(9).sport(9) / "x",
        ip() / Icmp::echo(1, 2) / "ping",
        ip() / Icmp::new().r#type(3).code(4).nexthopmtu(1400) / ip() / tcp(),
        ip() / Icmp::new().r#type(11) / ip() / TcpError::new(),
        ip() / Icmp::new().r#type(13).id(1).ts_ori(7_u32),
        ipv6()
            / Ipv6HopByHop::new().options([Ipv6Option::RouterAlert(0)])
            / Ipv6Routing::new().addresses(["2001:db8::3".parse().unwrap()])
            / Ipv6Destination::new()
            / Ipv6Fragment::new().m(1)
            / Udp::to(7).sport(7)
            / "x",
        ipv6() / Icmpv6TimeExceeded::new() / ipv6() / Udp::to(7).sport(7) / "x",
        ipv6() / Icmpv6EchoRequest::new().id(7) / "ping",
        ipv6() / NdNeighborSolicitation::who_has("2001:db8::3") / NdSourceLinkLayer::new(),
        ipv6()
            / NdRouterAdvertisement::new()
            / NdPrefix::new()
            / NdMtu::new()
            / NdRdnss::new().dns(["::1".parse().unwrap()]),
        ip() / Tcp::to(53).sport(5000).flags("PA") / dns(),
        ip() / Tcp::to(8080).sport(5000).flags("PA")
            / HttpRequest::new().Path("/x").Headers([HttpHeader::Field("Host".into(), "a".into())])
            / "body",
        ipv6() / Tcp::to(5000).sport(8080).flags("PA") / HttpResponse::new(),
        Ether::new() / Mpls::new().label(7_u32) / Mpls::new() / ip() / Udp::to(7).sport(7) / "x",
        ip() / Icmp::new().r#type(11)
            / ip()
            / Udp::to(7).sport(7)
            / "quoted"
            / Padding::of([0; 94])
            / IcmpExtensionHeader::new()
            / IcmpExtensionMpls::new().stack([MplsLabel { label: 16, cos: 1, s: 1, ttl: 2 }])
            / IcmpExtensionObject::new().classnum(2).data([1, 2, 3, 4]),
        ipv6()
            / Icmpv6DestUnreach::new()
            / ipv6()
            / Udp::to(7).sport(7)
            / Padding::of([0; 80])
            / IcmpExtensionHeader::new()
            / IcmpExtensionMpls::new().stack([MplsLabel { label: 16, cos: 1, s: 1, ttl: 2 }]),
        ipv6() / NdRedirect::new() / NdTargetLinkLayer::new() / NdRedirected::new().pkt(vec![1; 48]),
    ]
}

fn keeps(first: Kind, bytes: &[u8]) -> Result<(), TestCaseError> {
    let packet = Packet::parse(first, bytes);
    prop_assert_eq!(&packet.build().unwrap(), bytes, "{}", packet);
    let _ = (packet.summary(), packet.show().unwrap(), packet.hexdump().unwrap(), packet.to_json().unwrap());
    let _ = packet.answers(&packet);
    let mut again = packet.clone();
    again.recompute();
    // What was computed may be too large for its field, but nothing else goes wrong.
    let _ = again.build();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(1000)))]

    #[test]
    fn any_bytes_are_kept(first in kind(), bytes in bytes()) {
        keeps(first, &bytes)?;
    }

    #[test]
    fn damaged_packets_are_kept((first, bytes) in damaged()) {
        keeps(first, &bytes)?;
        let mut packet = Packet::parse(first, &bytes);
        packet.simplify().unwrap();
        prop_assert_eq!(packet.build().unwrap(), bytes);
    }

    #[test]
    fn any_layer_goes_on_any_other(kinds in prop::collection::vec(kind(), 1..8)) {
        let mut packet = Packet::new();
        for kind in &kinds {
            packet.push(kind.layer());
        }
        let bytes = packet.build().unwrap();
        prop_assert_eq!(Packet::parse(kinds[0], &bytes).build().unwrap(), bytes);
    }
}

#[test]
fn a_parsed_packet_has_the_layers_it_was_built_of() {
    for packet in stacks() {
        let bytes = packet.build().unwrap();
        let mut read = Packet::parse(packet.layers()[0].kind(), &bytes);
        let kinds = |packet: &Packet| packet.layers().iter().map(AnyLayer::kind).collect::<Vec<_>>();
        assert_eq!(kinds(&read), kinds(&packet), "{packet}");
        read.recompute();
        assert_eq!(read.build().unwrap(), bytes, "{packet}");
        for layer in read.layers_mut() {
            for index in 0..layer.info().fields.len() {
                if let Some(value) = layer.value(index) {
                    assert_eq!(layer.set_value(index, &value), Ok(()), "{layer} field {index}");
                }
            }
        }
        assert_eq!(read.build().unwrap(), bytes, "{packet}");
    }
}

#[test]
fn one_field_edited() {
    let bytes = stacks()[0].build().unwrap();
    let mut packet = Packet::from_ethernet(&bytes);
    packet.get_mut::<Tcp>().unwrap().dport = Some(81);
    let edited = packet.build().unwrap();
    let differ: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != edited[*at]).collect();
    assert_eq!(differ, [14 + 20 + 3], "the checksum, too, is kept");
    packet.recompute();
    let edited = packet.build().unwrap();
    assert_eq!(crate::packet::checksum::verify(&edited[14..], false), crate::packet::Checksum::Valid);
}

#[test]
fn fields_by_name() {
    let mut packet = stacks()[0].clone();
    packet.set_field("TCP", "dport", &Value::Uint(443)).unwrap();
    assert_eq!(packet.field("TCP", "dport").unwrap(), Some(Value::Uint(443)));
    assert_eq!(packet.field("IP", "len").unwrap(), None);
    packet.set_field("IP", "proto", &Value::Text("udp".into())).unwrap();
    assert_eq!(packet.get::<Ip>().unwrap().proto, Some(17));
    for (layer, field, value, said) in [
        ("TCP", "dprt", Value::None, "TCP: TCP has no field 'dprt'; did you mean dport?"),
        ("TPC", "dport", Value::None, "layer: there is no layer 'TPC'; did you mean TCP"),
        ("IP", "ttl", Value::Uint(256), "IP.ttl: 256 does not fit 8 bits, the largest is 255"),
        ("IP", "dst", Value::Text("x".into()), "IP.dst: 'x' is not an IPv4 address"),
        ("TCP", "flags", Value::Text("X".into()), "TCP.flags: 'X' is no flag; there are FSRPAUECN"),
        ("UDP", "len", Value::None, "UDP: the packet has no such layer"),
    ] {
        let error = packet.set_field(layer, field, &value).unwrap_err().to_string();
        assert!(error.starts_with(said), "{error}");
    }
}

#[test]
fn every_field_is_described() {
    for kind in Kind::ALL {
        let info = kind.layer().info();
        assert!(!info.doc.is_empty() && !info.source.is_empty(), "{}", info.name);
        for field in info.fields {
            assert!(field.doc.len() > 2, "{}.{}", info.name, field.name);
            if let Some(default) = field.default {
                let mut layer = kind.layer();
                let (index, _) = info.field(field.name).unwrap();
                assert_eq!(layer.set_value(index, &default()), Ok(()), "{}.{}", info.name, field.name);
            }
        }
    }
}
