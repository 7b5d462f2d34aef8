//! Properties of described layers, and examples.

use super::*;
use crate::layer::{Ip, Ipv6, Packet, Tcp};

fn built(text: &str) -> Vec<u8> {
    text.parse::<Packet>().unwrap_or_else(|error| panic!("{text}: {error}")).build().unwrap()
}

/// What a layer writes with its defaults, it reads again, and its text gives the same packet.
#[test]
fn defaults_are_read_again() {
    for index in 0..COUNT {
        let kind = Kind::Described(Entry::at(index));
        let packet = Packet::from(kind.layer());
        let bytes = packet.build().unwrap();
        let read = Packet::parse(kind, &bytes);
        assert_eq!(read.build().unwrap(), bytes, "{}", kind.name());
        let is_read = read.layers().first().is_some_and(|layer| layer.kind() == kind);
        // These default values contradict each other, as in Scapy.
        let is_wrong = ["IPv6ExtHdrSegmentRoutingTLVPadN"].contains(&kind.name());
        assert!(is_read || is_wrong, "{}: {read}", kind.name());
        let text = read.to_string();
        let again: Packet = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(again, read, "{text}");
    }
}

#[test]
fn names_are_unique() {
    let mut names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn options_as_objects_are_aligned() {
    let hop = built(r#"IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=0x20000), RouterAlert(value=1)])"#);
    assert_eq!(hop, b"\x3b\x01\xc2\x04\0\x02\0\0\x05\x02\0\x01\x01\x02\0\0");
    let home = built(r#"IPv6ExtHdrDestOpt(options=HAO(hoa="2001:db8::1"))"#);
    assert_eq!(home[..8], *b"\x3b\x02\x01\x02\0\0\xc9\x10");
    let plain = built(r#"IPv6ExtHdrDestOpt(autopad=0, options=HAO(hoa="2001:db8::1"))"#);
    assert_eq!(plain[2..4], [0xc9, 16]);
    let read = Packet::parse(
        Kind::Ipv6Destination,
        &built(r#"IPv6ExtHdrDestOpt(autopad=0, options=[("HAO", "::1"), ("PadN", b"1234")])"#),
    );
    assert!(read.to_string().contains("autopad=0"), "{read}");
}

#[test]
fn binding_update() {
    let text =
        r#"IPv6(src="2001:db8::1", dst="2001:db8::2")/MIP6MH_BU(seq=7, options=[MIP6OptAltCoA(acoa="2001:db8::3")])"#;
    let bytes = built(text);
    assert_eq!((bytes[6], bytes[42], bytes.len()), (135, 5, 40 + 32));
    let read = Packet::from_ip(&bytes);
    assert_eq!(read.build().unwrap(), bytes);
    let shown = read.to_string();
    assert!(shown.contains(r#"MIP6OptAltCoA(otype=3, olen=16, acoa="2001:db8::3")"#), "{shown}");
    assert_eq!(shown.parse::<Packet>().unwrap(), read);
}

#[test]
fn records_of_dns_are_part_of_a_message() {
    let text = r#"DNS(qd=[], an=[DNSRRDS(rrname="a.", keytag=7, digest=b"xy"), DNSRR(rrname="b.", type="TXT", rdata=["one", "two"])],
        ar=DNSRROPT(rdata=[EDNS0TLV(optcode=3, optdata="id")]))"#;
    let packet: Packet = text.parse().unwrap();
    let bytes = packet.build().unwrap();
    assert_eq!(bytes[4..12], [0, 0, 0, 2, 0, 0, 0, 1]);
    let read = Packet::parse(Kind::Dns, &bytes);
    assert_eq!(read.build().unwrap(), bytes);
    assert!(read.to_string().contains(r#"rdata=["one", "two"]"#), "{read}");
    assert_eq!(read.to_string().parse::<Packet>().unwrap(), read);
}

#[test]
fn errors_name_the_field() {
    for (text, said) in [
        ("RouterAlert(valu=1)", "expression, column 13: RouterAlert has no field 'valu'; did you mean value?"),
        (
            "RouterAlert(value=65536)",
            "expression, column 19: RouterAlert.value: 65536 does not fit 16 bits, the largest is 65535",
        ),
        (
            r#"IP(options=[RouterAlert()])"#,
            "expression, column 12: IP.options: RouterAlert does not fit: an option such as IPOption_Router_Alert(alert=0) is needed",
        ),
        (r#"MIP6MH_BU(flags="X")"#, "expression, column 17: MIP6MH_BU.flags: unknown flag 'X'; flags are PRMKLHA"),
        (
            r#"MIP6MH_BU(options=[RplOption(Down=2)])"#,
            "expression, column 35: RplOption.Down: 2 does not fit 1 bits, the largest is 1",
        ),
    ] {
        assert_eq!(text.parse::<Packet>().unwrap_err().to_string(), said);
    }
}

/// A checksum with a home address, or a source route, is that at the destination.
#[test]
fn checksums_use_the_final_addresses() {
    use crate::view::checksum::{fold, pseudo_header, sum};
    let bytes =
        built(r#"IPv6(src="2001:db8::1", dst="2001:db8::2")/IPv6ExtHdrDestOpt(options=HAO(hoa="2001:db8::9"))/TCP()"#);
    let tcp = &bytes[bytes.len() - 20..];
    let pseudo = pseudo_header("2001:db8::9".parse().unwrap(), "2001:db8::2".parse().unwrap(), 6, tcp.len());
    assert_eq!(fold(pseudo + sum(tcp)), 0xffff);
    let route = crate::layer::IpOption::LooseRoute(4, vec!["192.0.2.9".parse().unwrap()]);
    let packet = Ip::to("192.0.2.2").src("192.0.2.1").options([route]) / Tcp::to(80);
    let bytes = packet.build().unwrap();
    let tcp = &bytes[28..];
    let pseudo = pseudo_header("192.0.2.1".parse().unwrap(), "192.0.2.9".parse().unwrap(), 6, tcp.len());
    assert_eq!(fold(pseudo + sum(tcp)), 0xffff);
}

#[test]
fn messages_go_to_their_groups() {
    let destination = |text: &str| {
        let bytes = built(text);
        (
            Ipv6::to(<[u8; 16]>::try_from(&bytes[24..40]).map(std::net::Ipv6Addr::from).unwrap())
                .dst
                .unwrap()
                .to_string(),
            bytes[7],
        )
    };
    assert_eq!(destination("IPv6()/ICMPv6ND_RS()"), ("ff02::2".to_owned(), 255));
    assert_eq!(destination("IPv6()/ICMPv6MLReport2()"), ("ff02::16".to_owned(), 1));
    assert_eq!(destination("IPv6()/UDP(dport=5353)"), ("ff02::fb".to_owned(), 64));
    assert_eq!(destination("IPv6()/UDP(dport=53)"), ("::1".to_owned(), 64));
}
