//! Packets for tests of this crate and of crates that include this file.

use crate::layer::*;
use proptest::prelude::*;

/// A valid packet with damaged bytes.
pub fn damaged() -> impl Strategy<Value = (Kind, Vec<u8>)> {
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

/// Packets that contain every layer.
pub fn stacks() -> Vec<Packet> {
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
    let described = DESCRIBED.iter().map(|text| text.parse::<Packet>().expect("a packet"));
    let structs = vec![
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
    ];
    structs.into_iter().chain(described).collect()
}

/// Packets with layers of the tables.
const DESCRIBED: [&str; 9] = [
    r#"IPv6(dst="2001:db8::2")/MIP6MH_BU(seq=7, options=[MIP6OptAltCoA(acoa="2001:db8::3"), MIP6OptMNID(id="x")])"#,
    r#"IPv6()/ICMPv6MLReport2(records=[ICMPv6MLDMultAddrRec(dst="ff02::5", sources=["::1"]), ICMPv6MLDMultAddrRec()])"#,
    r#"IPv6(dst="2001:db8::2")/ICMPv6NIQueryName(data="a.example")"#,
    r#"IPv6(dst="2001:db8::2")/ICMPv6NIReplyIPv6(data=[(5, "2001:db8::3")])"#,
    r#"IPv6()/ICMPv6ND_RA()/ICMPv6NDOptRouteInfo(plen=64, prefix="2001:db8::")/ICMPv6NDOptDNSSL(searchlist=["a.example"])/
        ICMPv6NDOptCaptivePortal(URI="http://a")/ICMPv6NDOptPREF64(prefix="64:ff9b::")"#,
    r#"IP(dst="192.0.2.2")/UDP(sport=53)/DNS(qr=1, an=[DNSRRDS(digest="x"), DNSRRSRV(target="a.")], ar=DNSRROPT(rdata=[EDNS0TLV()]))"#,
    r#"Dot3()/LLC()/STP()"#,
    r#"Ether()/Dot1AD()/Dot1AH(isid=7)/Ether()/IP()/UDP(sport=7, dport=7)/"x""#,
    r#"Ether()/EAPOL(type=1)"#,
];
