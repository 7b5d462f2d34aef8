use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::error::Error;
use crate::expr::Resolve;
use crate::layer::{Dns, Ip, Raw, Tcp, TcpOption, Udp};

fn one(text: &str) -> Packet {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn notation() {
    let text =
        r#"IP(dst="192.0.2.2", ttl=0x05)/TCP(dport=443, flags='SA', options=[("MSS",1460), ("NOP", None)],)/Raw("hi")"#;
    let packet = Ip::to("192.0.2.2").ttl(5)
        / Tcp::to(443).flags("SA").options([TcpOption::Mss(1460), TcpOption::Nop])
        / Raw::of("hi");
    assert_eq!(one(text), packet);
    assert_eq!(one(r#" IP ( ) / UDP / b"\x00\xff" "#), Ip::new() / Udp::new() / &[0, 0xff]);
    assert_eq!(
        one(r#"IP(ttl=None, flags="DF", proto="tcp")/"a\"\\\n\x41""#),
        Ip::new().flags("DF").proto(6) / "a\"\\\nA"
    );
    assert_eq!(one(r#"Raw("ä\xe4")"#).build().unwrap(), "ää".as_bytes());
    assert_eq!(one(r#"Raw(b"ä\xe4")"#).build().unwrap(), b"\xc3\xa4\xe4");
    let dns = one(r#"UDP(sport=5)/DNS(id=7, qd=DNSQR(qname="example.org", qtype="AAAA"), ad=True)"#);
    let question = &dns.get::<Dns>().unwrap().qd.as_ref().unwrap()[0];
    assert_eq!((question.name().as_str(), question.qtype), ("example.org.", 28));
}

#[test]
fn sets_iterate_over_their_product() {
    let set = PacketSet::parse(r#"IP(dst="192.0.2.6/30", ttl=(1,2))/TCP(dport=[80,(440,441)])"#).unwrap();
    assert_eq!(set.len(), 4 * 2 * 3);
    let ends = |packet: &Packet| {
        let (ip, tcp) = (packet.get::<Ip>().unwrap(), packet.get::<Tcp>().unwrap());
        (ip.dst.unwrap().octets()[3], ip.ttl.unwrap(), tcp.dport.unwrap())
    };
    let all: Vec<_> = set.packets(24).unwrap().map(|packet| ends(&packet)).collect();
    assert_eq!(all[..4], [(4, 1, 80), (4, 1, 440), (4, 1, 441), (4, 2, 80)]);
    assert_eq!(all[23], (7, 2, 441));
    assert_eq!(
        set.packets(23).unwrap_err().to_string(),
        "expression: it is a set of 24 packets, at most 23 are allowed"
    );
    assert!(set.single().is_err());
}

#[test]
fn large_sets_are_lazy() {
    let set =
        PacketSet::parse(r#"IPv6(dst="2001:db8::/16", fl=(0,1000))/TCP(dport=(0,65535), seq=(0,4294967295))"#).unwrap();
    assert_eq!(set.len(), u128::MAX, "saturates");
    assert_eq!(set.packets(u128::MAX).unwrap().take(3).count(), 3);
    let all = PacketSet::parse(r#"IPv6(dst="::/0")"#).unwrap();
    assert!(all.packets(1000).is_err());
    assert_eq!(PacketSet::parse(r#"IP(dst="0.0.0.0/0")"#).unwrap().len(), 1 << 32);
}

#[test]
fn errors_have_column_and_expectation() {
    for (text, column, said) in [
        ("", 1, "unexpected end; expected a layer"),
        ("IP()/", 6, "unexpected end; expected a layer"),
        ("IP()/TCP(dprt=80)", 10, "TCP has no field 'dprt'; did you mean dport?"),
        ("IP()/TPC()", 6, "there is no layer 'TPC'; did you mean TCP"),
        ("IP(ttl=256)", 8, "IP.ttl: 256 does not fit 8 bits, the largest is 255"),
        ("IP(ttl=(1,256))", 8, "IP.ttl: 256 does not fit 8 bits"),
        ("IP(ttl=(5,1))", 8, "a range is two numbers"),
        ("IP(ttl=[])", 8, "the list is empty"),
        ("IP(dst=\"192.0.2.0/33\")", 8, "'192.0.2.0/33' is not a prefix"),
        ("IP(dst=\"192.0.2.300\")", 8, "IP.dst: '192.0.2.300' is not an IPv4 address"),
        ("IP(dst=192.0.2.3)", 8, "an address needs quotes: \"192.0.2.3\""),
        ("IP(dst=[192.0.2.3/28])", 9, "an address needs quotes: \"192.0.2.3/28\""),
        ("IP(dst=300.0.2.3)", 8, "an address needs quotes: \"300.0.2.3\""),
        ("IPv6(dst=2001:db8::1)", 10, "an address needs quotes: \"2001:db8::1\""),
        ("IPv6(dst=fe80::1, hlim=1)", 10, "an address needs quotes: \"fe80::1\""),
        ("IPv6(dst=::1)", 10, "an address needs quotes: \"::1\""),
        ("Ether(dst=02:00:00:00:00:01)", 11, "an address needs quotes: \"02:00:00:00:00:01\""),
        ("IP(dst=3com.example.org)", 8, "a name needs quotes: \"3com.example.org\""),
        ("IP(dst=www.example.org)", 8, "there is no name 'www'; a text needs quotes: dst=\"www.example.org\""),
        ("IP(proto=tcp)", 10, "there is no name 'tcp'; a text needs quotes: proto=\"tcp\""),
        ("DNSQR(qname=a.example)", 13, "there is no name 'a'; a text needs quotes: qname=\"a.example\""),
        ("TCP(flags=S)", 11, "there is no name 'S'; a text needs quotes: flags=\"S\""),
        ("TCP(flags=\"SYN-ACK\")", 11, "TCP.flags: unknown flag 'Y'; flags are letters: \"SA\""),
        ("TCP(flags=\"SX\")", 11, "TCP.flags: unknown flag 'X'; flags are FSRPAUECN"),
        ("TCP(dport=http)", 11, "TCP.dport: 'http' is not a number"),
        ("TCP(dport=80-90)", 11, "TCP.dport: -10 does not fit: it is negative; a range is (80, 90)"),
        ("TCP(dport:80)", 10, "a value follows '=', not ':'"),
        ("IP(ttl=)", 8, "unexpected ')'; expected a value"),
        ("IP(ttl=1", 9, "unexpected end; expected ')'"),
        ("IP(ttl=1 id=2)", 10, "',' is missing before id"),
        ("IP(ttl=1, ttl=2)", 11, "ttl is given twice"),
        ("IP(1)", 4, "IP has more fields than one"),
        ("IP()TCP()", 5, "'/' is missing before TCP"),
        ("IP() \n TCP()", 3, "'/' is missing before TCP"),
        ("IP()\"x\"", 5, "'/' is missing before the text"),
        ("IP()//TCP()", 5, "'//' is not defined for a packet and a packet; one '/' separates layers"),
        ("Raw(\"abc)", 5, "the quote is not closed"),
        ("Raw(\"abc\", 'x)", 12, "the quote is not closed"),
        ("p = IP()", 3, "only `crafter shell` has variables"),
        ("sr1(IP())", 1, "there is no layer 'sr1'; it is a function of `crafter shell`"),
        ("IP().show()", 5, "there is no layer 'show'; it is a function of `crafter shell`"),
        ("TCP(dport=range(1, 5))", 11, "there is no layer 'range'; a range is (first, last), both included"),
        ("IP(dst=Net(\"192.0.2.0/24\"))", 8, "there is no layer 'Net'; a prefix is a text"),
        ("TCP(sport=RandShort())", 11, "there is no layer 'RandShort'; an unset source port is a free one"),
        ("import scapy", 1, "unexpected 'import'; nothing is imported"),
        ("foo()", 1, "there is no layer 'foo'; `crafter ls` lists the layers"),
        ("IP(ttl=1\u{301})", 9, "unexpected '\\u{301}'; expected ')'"),
        ("Raw(\"\\q\")", 7, "unexpected 'q'; expected an escape"),
        ("Raw(\"ä\", x=1)", 10, "Raw has no field 'x'"),
        ("TCP(options=[(\"MSS\",70000)])", 13, "TCP.options: 70000 is too large"),
        ("TCP(options=[(\"MMS\",1)])", 13, "TCP.options: 'MMS' is not a TCP option; did you mean MSS?"),
        ("TCP(seq=99999999999999999999)", 9, "unexpected '9'; expected a number below 2^64"),
    ] {
        let error = PacketSet::parse(text).unwrap_err();
        let Error::Text { place, reason, excerpt } = error else { panic!("{text}: {error}") };
        let number = excerpt.column() + excerpt.number - 1;
        assert!(number == column && reason.starts_with(said), "{text}: {place}: {reason}");
    }
    let error = PacketSet::parse("IP()/\n\tTCP(dprt=80)").unwrap_err().to_string();
    assert_eq!(error, "expression, line 2, column 6: TCP has no field 'dprt'; did you mean dport?");
    let deep = format!("TCP(options={})", "[".repeat(1_000_000));
    assert!(PacketSet::parse(&deep).unwrap_err().to_string().contains("brackets are nested more than 32 deep"));
}

#[test]
fn values_are_computed() {
    assert_eq!(one("IP(ttl=2*(3+1))/TCP(dport=80+1, flags=1<<1 | 0x10)"), Ip::new().ttl(8) / Tcp::to(81).flags("SA"));
    assert_eq!(one("IP(id=~0 & 0xffff)/(UDP()/\"abc\"[1:])"), Ip::new().id(0xffff) / (Udp::new() / "bc"));
    assert_eq!(PacketSet::parse("IP(ttl=[1+1, (2, 2+2)])").unwrap().len(), 4);
    assert_eq!(one(r#"IP()/Raw(IP(ttl=3)/UDP())"#).get::<Raw>().unwrap().load.as_ref().unwrap().len(), 28);
    for (text, column, said) in [
        ("IP(ttl=255+1)", 8, "IP.ttl: 256 does not fit 8 bits"),
        ("IP(ttl=1-2)", 8, "IP.ttl: -1 does not fit: it is negative"),
        ("IP(ttl=1//0)", 9, "division by 0"),
        ("IP()/5", 5, "'/' stacks layers: expected "),
        ("1+1", 1, "a number is not a packet"),
        ("IP(ttl=x)", 8, "IP.ttl: 'x' is not a number"),
    ] {
        let error = PacketSet::parse(text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("expression, column {column}: {said}")), "{text}: {error}");
    }
}

#[test]
fn list_of_lists_is_several_values() {
    let set = PacketSet::parse(r#"TCP(options=[[], [("MSS",1460)], ["NOP", "NOP"]], dport=(1,2))"#).unwrap();
    let options: Vec<_> =
        set.packets(6).unwrap().map(|packet| packet.get::<Tcp>().unwrap().options.clone().unwrap().len()).collect();
    assert_eq!(options, [0, 0, 1, 1, 2, 2]);
    assert_eq!(one("TCP(options=[])").get::<Tcp>().unwrap().options.as_deref(), Some(&[][..]));
    assert!(PacketSet::parse(r#"TCP(options=[[], ("MSS",1460)])"#).is_err());
}

#[test]
fn host_names_need_a_resolver() {
    let error = PacketSet::parse("IP(dst=\"localhost\")").unwrap_err().to_string();
    assert_eq!(error, "expression, column 8: IP.dst: 'localhost' is not an IPv4 address");
    struct Hosts;
    impl Resolve for Hosts {
        fn resolve(&self, name: &str) -> Result<Option<Vec<IpAddr>>, String> {
            match name {
                "localhost" => Ok(Some(vec![IpAddr::from([127, 0, 0, 1])])),
                _ => Err(format!("no host {name}")),
            }
        }
    }
    let set = PacketSet::parse_with("IP(dst=[\"localhost\", \"192.0.2.1\"])", &Hosts).unwrap();
    assert_eq!(set.to_string(), "IP(dst=[\"127.0.0.1\", \"192.0.2.1\"])");
}

#[test]
fn text_form_of_every_layer_parses() {
    for packet in crate::layer::samples::stacks() {
        assert_eq!(one(&packet.to_string()), packet);
        let bytes = packet.build().unwrap();
        let mut read = Packet::parse(packet.layers()[0].kind(), &bytes);
        assert_eq!(one(&read.to_string()), read, "all fields set");
        read.simplify().unwrap();
        assert_eq!(one(&read.to_string()).build().unwrap(), bytes, "{read}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(1000)))]

    #[test]
    fn any_text_is_parsed_or_rejected(text in "(IP|TCP|DNS|Raw|[(),=/\\[\\]\"'\\\\b ]|ttl|[0-9]|\\PC){0,40}") {
        if let Ok(set) = PacketSet::parse(&text) {
            prop_assert_eq!(&PacketSet::parse(&set.to_string()).unwrap(), &set);
            for packet in set.packets(u128::MAX).unwrap().take(3) {
                prop_assert_eq!(one(&packet.to_string()), packet);
            }
        }
    }

    #[test]
    fn text_form_of_any_packet_parses((kind, bytes) in crate::layer::samples::damaged()) {
        prop_assume!(!bytes.is_empty());
        let packet = Packet::parse(kind, &bytes);
        let text = packet.to_string();
        prop_assert_eq!(&one(&text), &packet, "{}", text);
        prop_assert_eq!(one(&text).build().unwrap(), bytes);
    }
}
