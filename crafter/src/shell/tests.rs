use std::{collections::BTreeMap, net::IpAddr};

use futures_util::FutureExt as _;
use proptest::prelude::*;

use super::*;
use crate::{
    Error, Result,
    expr::{Pair, object::Object},
    layer::{Icmp, Ip, Packet, Raw, Tcp, Udp},
    session::{Pace, SrOptions},
};

/// Sample packets of crafter-packet's tests.
#[allow(dead_code, reason = "some are used by those tests only")]
#[path = "../../packet/src/layer/samples.rs"]
mod samples;

/// A network in which all TCP ports of all hosts are open, and files in memory.
#[derive(Debug, Default)]
struct Fake {
    sent: Vec<Packet>,
    files: BTreeMap<String, Vec<u8>>,
    dead: bool,
}

/// A SYN-ACK with the largest sequence number; `None` for anything but TCP.
fn answer(packet: &Packet) -> Option<Packet> {
    let (ip, tcp) = (packet.get::<Ip>()?, packet.get::<Tcp>()?);
    let there = Ip::new().src(ip.dst?).dst(ip.src?);
    let tcp = Tcp::to(tcp.sport?).sport(tcp.dport?).flags("SA").seq(u32::MAX).ack(tcp.seq?.wrapping_add(1));
    (there / tcp).resolved().ok()
}

impl World for Fake {
    async fn resolve(&mut self, name: &str) -> Result<Option<Vec<IpAddr>>, String> {
        match name {
            "web.test" => Ok(Some(vec!["2001:db8::7".parse().unwrap(), "192.0.2.7".parse().unwrap()])),
            "v6.test" => Ok(Some(vec!["2001:db8::7".parse().unwrap()])),
            _ => Err(format!("'{name}' is not known to the test")),
        }
    }

    async fn send(&mut self, packets: Vec<Packet>, count: u64, _: Pace) -> Result<u64> {
        let count = packets.len() as u64 * count;
        self.sent.extend(packets);
        Ok(count)
    }

    async fn sr(&mut self, packets: Vec<Packet>, options: &SrOptions) -> Result<Exchange> {
        if self.dead {
            return Err(Error::NoRoute { destination: "192.0.2.1".parse().unwrap(), reason: "test".to_owned() });
        }
        let mut exchange = Exchange { note: Some(format!("waited {:?}", options.timeout)), ..Exchange::default() };
        for mut packet in packets {
            if let Some(ip) = packet.get_mut::<Ip>() {
                ip.src.get_or_insert("192.0.2.2".parse().unwrap());
            }
            let request = packet.resolved()?;
            self.sent.push(packet.clone());
            match answer(&request) {
                Some(reply) => exchange.answered.push(Pair {
                    request,
                    reply,
                    rtt: std::time::Duration::from_millis(3),
                    time: std::time::Duration::from_secs(1),
                }),
                None => exchange.unanswered.push(packet),
            }
        }
        Ok(exchange)
    }

    fn read(&mut self, path: &str) -> Result<Vec<u8>> {
        self.files.get(path).cloned().ok_or_else(|| Error::invalid(path, "there is no such file"))
    }

    fn write(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.files.insert(path.to_owned(), bytes.to_owned());
        Ok(())
    }

    fn now(&self) -> std::time::Duration {
        std::time::Duration::from_secs(1_700_000_000)
    }

    fn random(&mut self) -> Result<u64> {
        Ok(4 << 16 | 41_000)
    }
}

fn run(shell: &mut Shell<Fake>, text: &str) -> Result<Vec<String>, Failure> {
    let mut said = Vec::new();
    let output = |output: Output<'_>| match output {
        Output::Value(value) => said.push(value.to_string()),
        Output::Notice(text) => said.push(format!("notice: {text}")),
    };
    shell.run(text, output).now_or_never().expect("the fake network does not wait")?;
    Ok(said)
}

#[track_caller]
fn says(text: &str, expected: &[&str]) {
    let mut shell = Shell::new(Fake::default());
    match run(&mut shell, text) {
        Ok(said) => assert_eq!(said, expected, "{text}"),
        Err(failure) => panic!("{text}: {failure}"),
    }
}

#[track_caller]
fn fails(text: &str, line: usize, column: usize, part: &str) {
    let failure = run(&mut Shell::new(Fake::default()), text).expect_err(text);
    let reason = failure.reason();
    assert_eq!((failure.line, failure.column()), (line, column), "{text}: {failure}");
    assert!(reason.contains(part), "{text}: {reason}");
}

#[test]
fn everyday_lines_of_scapy() {
    says("print(\"a\", 1 + 1, TCP)", &["a 2 TCP"]);
    says("print()", &[]);
    says(
        "p = IP(dst=\"192.0.2.1\")/TCP(); p.haslayer(\"TCP\"), p.haslayer(\"UDP\"), haslayer(p, TCP)",
        &["(True, False, True)"],
    );
    says("len(UDP()/(\"A\"*1400)), len(b\"ab\"*3), [1, 2]*2", &["(1408, 6, [1, 2, 1, 2])"]);
    says("send(IP(dst=\"192.0.2.1\")/ICMP(), count=3, inter=0.5, verbose=0)", &["3"]);
    says("sr1(IP(dst=\"192.0.2.1\")/TCP(sport=5000), timeout=1, verbose=False).sport", &["80"]);
    // Without an end: until Ctrl-C.
    let mut shell = Shell::new(Fake::default());
    let said = run(&mut shell, "send(IP(dst=\"192.0.2.1\")/ICMP(), loop=1, verbose=0)").unwrap();
    assert!(said[0].parse::<u64>().unwrap() > 1 << 40);
    fails("send(IP(), iface=\"eth7\")", 1, 12, "`crafter shell --interface eth7` starts one for eth7");
    fails("send(IP(), inter=-1)", 1, 12, "inter must be seconds from 0 to 86400");
    fails("send(IP(), inter=1, rate=1)", 1, 12, "rate and inter exclude each other");
    fails("IP().haslayer(\"TPC\")", 1, 15, "did you mean TCP");
    fails("\"A\"*100000000", 1, 4, "it would be longer than 16777216");
}

#[test]
fn handshake_of_the_tutorial() {
    let mut shell = Shell::new(Fake::default());
    let text = r#"
        ip = IP(dst="192.0.2.1")    # the peer
        synack = sr1(ip/TCP(sport=5000, dport=80, flags="S", seq=7))
        synack[TCP].flags
        send(ip/TCP(sport=5000, dport=80, flags="A", seq=synack.ack, ack=synack.seq + 1))
        get = ip/TCP(sport=5000, dport=80, flags="PA", seq=synack.ack, ack=synack.seq + 1)/"GET / HTTP/1.0\r\n\r\n"
        ans, unans = sr(get, timeout=0.5)
        ans[0][1].dport; len(unans)
    "#;
    assert_eq!(run(&mut shell, text).unwrap(), [r#""SA""#, "1", "notice: waited 500ms", "5000", "0"]);
    let sent = &shell.world.sent;
    let tcp: Vec<_> = sent.iter().map(|packet| packet.get::<Tcp>().unwrap()).map(|tcp| (tcp.seq, tcp.ack)).collect();
    // The peer's sequence number was 2^32 - 1.
    assert_eq!(tcp, [(Some(7), None), (Some(8), Some(0)), (Some(8), Some(0))]);
    assert_eq!(sent[2].get::<Raw>().unwrap().load.as_deref(), Some(&b"GET / HTTP/1.0\r\n\r\n"[..]));
}

#[test]
fn arithmetic_is_as_in_python() {
    for (text, value) in [
        ("1 + 2 * 3", "7"),
        ("(1 + 2) * 3 - -4", "13"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("1 << 4 | 1", "17"),
        ("6 & 3 ^ 1", "3"),
        ("~0 & 0xff", "255"),
        ("2 - 1 - 1", "0"),
        ("1 + 1 == 2", "True"),
        ("3 > 2 + 2", "False"),
        ("0.5 + 1", "1.5"),
        ("\"a\" + \"b\"", "\"ab\""),
        ("b\"\\x01\" + b\"a\"", "b\"\\x01a\""),
        ("[1, (2,)] + [3]", "[1, (2,), 3]"),
        ("[1, 2, 3][1:][-1]", "3"),
        ("b\"abc\"[0]", "97"),
        ("2 in [1, 2]", "True"),
        ("int(\"7\") + True", "8"),
        ("hex(255)", "\"0xff\""),
        ("hex(-255)", "\"-0xff\""),
        ("18446744073709551615 * 2", "36893488147419103230"),
    ] {
        says(text, &[value]);
    }
    fails("1 // 0", 1, 3, "division by 0");
    fails("1 / 2", 1, 3, "'//' divides numbers");
    fails("x = 1 << 126\ny = x * 4", 2, 7, "too large");
    fails("1 + \"a\"", 1, 3, "'+' is not defined for a number and a text");
}

#[test]
fn expressions_on_packets() {
    let begin = r#"p = IP(dst="192.0.2.1", ttl=3)/TCP(dport=80, flags="SA", seq=4294967295)/"hi"; "#;
    for (text, said) in [
        ("p.ttl", "3"),
        ("p[IP].dst", "\"192.0.2.1\""),
        ("p[TCP].dport + 1", "81"),
        ("p.chksum", ""),
        ("p.id", "1"),
        ("p[TCP]", r#"TCP(dport=80, seq=4294967295, flags="SA")/Raw(load=b"hi")"#),
        ("p[TCP].payload", r#"Raw(load=b"hi")"#),
        ("p[Raw].load", "b\"hi\""),
        ("p.flags", "\"\""),
        ("p[TCP].flags", "\"SA\""),
        ("p[TCP].flags & 2", "2"),
        ("p[TCP].flags == \"SA\"", "True"),
        ("p[TCP].flags == 18", "True"),
        ("\"A\" in p[TCP].flags", "True"),
        ("p.seq + 1", "0"),
        ("int(p.seq) + 1", "4294967296"),
        ("p.seq - 10", "4294967285"),
        ("TCP in p", "True"),
        ("p.haslayer(UDP)", "False"),
        ("len(p)", "42"),
        ("raw(p[Raw])", "b\"hi\""),
        ("p.summary()", "IP / TCP 192.0.2.1:http SA / Raw"),
        ("IP(raw(p))[TCP].dport", "80"),
        ("TCP", "TCP"),
        ("IP/UDP", "IP()/UDP()"),
        ("IP()/p[TCP]/b\"x\"", r#"IP()/TCP(dport=80, seq=4294967295, flags="SA")/Raw(load=b"hi")/Raw(load=b"x")"#),
        ("(IP()/IP(ttl=9))[IP:2].ttl", "9"),
        ("DNSQR(qname=\"a.test\").qname", "\"a.test.\""),
        ("answers(IP(src=\"192.0.2.1\")/UDP(sport=7,dport=9), IP(dst=\"192.0.2.1\")/UDP(sport=9,dport=7))", "True"),
    ] {
        let mut shell = Shell::new(Fake::default());
        let output = run(&mut shell, &format!("{begin}{text}")).unwrap_or_else(|e| panic!("{text}: {e}")).join("\n");
        if text == "p.summary()" {
            assert!(output.starts_with("IP / TCP"), "{output}");
        } else {
            assert_eq!(output, said, "{text}");
        }
    }
}

#[test]
fn values_are_printed_as_in_the_text_form() {
    for text in [
        "1",
        "-5",
        "\"a\\\"b\"",
        "b\"\\x00\"",
        "[1, (2, 3), [], None]",
        r#"IP(dst="192.0.2.0/28")/TCP(dport=[80, (440, 443)], flags="S")"#,
        r#"IPv6(dst="::/0", hlim=(1, 5))"#,
        r#"IP()/TCP(options=[[], [("MSS", 1460)]])"#,
        r#"IP()/UDP()/DNS(qd=[DNSQR(qname="example.org.", qtype="A", qclass=1)])"#,
    ] {
        says(text, &[text]);
    }
}

#[test]
fn fields_are_set_and_unset() {
    let cases: [(&str, &[&str]); 7] = [
        ("p = IP(ttl=3)/TCP(); q = p; p.ttl = 5; p.ttl; q.ttl", &["5", "3"]),
        ("p = IP()/TCP(); p[TCP].flags = \"FA\"; p", &[r#"IP()/TCP(flags="FA")"#]),
        ("p = IP(ttl=5); del p.ttl; p", &["IP()"]),
        ("p = IP(dst=\"192.0.2.1\"); p.ttl = [1, (3, 4)]; len(p); p[1].ttl; p.dst", &["3", "3"]),
        ("p = IP()/IP(); p[IP:2].ttl = 7; p", &["IP()/IP(ttl=7)"]),
        ("p = UDP()/DNS(); p.qd = DNSQR(qname=\"a.test\"); p.qd[0].qname", &["\"a.test.\""]),
        ("x = 1; del x; vars()", &[]),
    ];
    for (text, expected) in cases {
        match run(&mut Shell::new(Fake::default()), text) {
            Ok(said) => assert_eq!(said, expected, "{text}"),
            // A field of a set has several values.
            Err(failure) => {
                assert!(text.contains("p.dst") && failure.reason().contains("set of 3"), "{text}: {failure}")
            }
        }
    }
}

#[test]
fn sets_use_variables() {
    says("ports = [80, 443]; IP()/TCP(dport=ports)", &["IP()/TCP(dport=[80, 443])"]);
    says("r = (1, 5); len(IP(ttl=r))", &["5"]);
    says("a = [[\"NOP\"], []]; p = TCP(options=a); p[1]", &["TCP(options=[])"]);
    says(
        "x = IP(ttl=(1,2)); y = x/TCP(dport=[1,2]); y; y[3]",
        &["IP(ttl=(1, 2))/TCP(dport=[1, 2])", "IP(ttl=2)/TCP(dport=2)"],
    );
}

#[test]
fn host_names_are_resolved_in_ip_addresses_only() {
    says("IP(dst=\"web.test\")", &["IP(dst=\"192.0.2.7\")"]);
    says("IPv6(src=\"web.test\")", &["IPv6(src=\"2001:db8::7\")"]);
    fails("IP(dst=\"v6.test\")", 1, 8, "IP.dst: 'v6.test' has no IPv4 address");
    fails("IP(dst=\"no.test\")", 1, 8, "IP.dst: 'no.test' is not known");
    fails("ARP(psrc=\"web.test\")", 1, 10, "'web.test' is not an IPv4 address");
    fails("p = IP()\np.dst = \"no.test\"", 2, 9, "'no.test' is not known");
}

#[test]
fn underscore_is_the_last_value_and_exit_ends() {
    says("1 + 1; _ * 2; show(IP()/UDP())[0:3]; _", &["2", "4", "\"###\"", "\"###\""]);
    let mut shell = Shell::new(Fake::default());
    assert_eq!(run(&mut shell, "1; exit; 2").unwrap(), ["1"]);
    assert!(shell.is_leaving());
}

#[test]
fn results_of_sr_are_pairs() {
    let mut shell = Shell::new(Fake::default());
    let text = r#"
        r = sr([IP(dst="192.0.2.1")/TCP(dport=[80, 443]), IP(dst="192.0.2.1")/ICMP()], timeout=1)
        r
        r[0][0].rtt * 1000; r[0][1].reply.sport; r[0].len(); r[0][0].reply.time
        a, q = r[0][0][1], r[1][0]; a.summary(); q
    "#;
    let said = run(&mut shell, text).unwrap();
    assert_eq!(said[..3], ["notice: waited 1s", "(<2 answered: 2 TCP>, <1 unanswered: 1 ICMP>)", "3.0"]);
    assert_eq!(said[3..6], ["443", "2", "1.0"]);
    assert_eq!(said[7], "IP(src=\"192.0.2.2\", dst=\"192.0.2.1\")/ICMP()");
    let json = shell.variable("r").unwrap().to_json().unwrap();
    assert_eq!(json[0][0]["reply"]["layers"][1]["fields"]["sport"], 80);
    assert_eq!(shell.world.sent[2].get::<Icmp>(), Some(&Icmp::new()));
}

#[test]
fn failed_statement_changes_no_variable() {
    let mut shell = Shell::new(Fake { dead: true, ..Fake::default() });
    let failure = run(&mut shell, "x = 1; y = 2\nx = sr1(IP(dst=\"192.0.2.1\"))").unwrap_err();
    assert_eq!((failure.line, failure.column(), failure.is_of_text()), (2, 5, false));
    assert!(matches!(failure.error, Error::NoRoute { .. }), "{failure}");
    assert_eq!(shell.variable("x"), Some(&Object::Number(1)));
    // All statements are parsed before the first is run.
    run(&mut shell, "x = 5; y = (").unwrap_err();
    assert_eq!(shell.variable("x"), Some(&Object::Number(1)));
    run(&mut shell, "z = 5; z = foo").unwrap_err();
    assert_eq!(shell.variable("z"), Some(&Object::Number(5)));
}

#[test]
fn captures_are_written_and_read() {
    let mut shell = Shell::new(Fake::default());
    let text = r#"wrpcap("f.pcap", IP(dst="192.0.2.1")/UDP(dport=(1,3))); c = rdpcap("f.pcap"); c; c[1].dport"#;
    assert_eq!(run(&mut shell, text).unwrap(), ["<3 packets: 3 UDP>", "2"]);
    // Received packets keep their time; others get the time of writing.
    let text = r#"r = sr1(IP(dst="192.0.2.1")/TCP()); wrpcap("g", [r, IP()]); c = rdpcap("g"); c[0].time; c[1].time; r == c[0]"#;
    assert_eq!(run(&mut shell, text).unwrap(), ["1.0", "1700000000.0", "True"]);
    shell.world.files.get_mut("f.pcap").unwrap().truncate(100);
    let said = run(&mut shell, "len(rdpcap(\"f.pcap\"))").unwrap();
    assert!(said[0].starts_with("notice: f.pcap: truncated") && said[1] == "1", "{said:?}");
    assert!(run(&mut shell, "wrpcap(\"g\", [IP(), Ether()]); len(rdpcap(\"g\"))").unwrap() == ["2"]);
    assert!(run(&mut shell, "wrpcap(\"g.pcap\", [IP(), Ether()])").is_err());
    assert!(run(&mut shell, "rdpcap(\"h\")").unwrap_err().to_string().contains("no such file"));
}

#[test]
fn functions_return_values_and_reports() {
    says("RandShort(); RandInt()", &["41005", "303144"]);
    says("fuzz(IP(ttl=7)/TCP(), seed=5) == fuzz(IP(ttl=7)/TCP(), 5); fuzz(IP(ttl=7)).ttl", &["True", "7"]);
    says("send(IP(dst=\"192.0.2.1\", ttl=(1,3)), count=2)", &["6"]);
    says("p = IP(len=9, chksum=1); recompute(p)", &["IP()"]);
    for (text, part) in [
        ("ls()", "TCP"),
        ("ls(TCP)", "dport"),
        ("ls(IP(ttl=77))", "77"),
        ("help()", "sr1(packet"),
        ("help(sr1)", "first reply"),
        ("hexdump(b\"abc\")", "61 62 63"),
        ("x = 7; vars()", "x = 7"),
        ("IP().show()", "###[ IP ]###"),
    ] {
        let said = run(&mut Shell::new(Fake::default()), text).unwrap();
        assert!(said[0].contains(part), "{text}: {said:?}");
    }
}

#[test]
fn errors_have_line_and_column() {
    for (text, line, column, part) in [
        ("foo", 1, 1, "there is no variable, function or layer 'foo'"),
        ("x = 1\ny = sr2(IP())", 2, 5, "no variable, function or layer 'sr2'; did you mean sr"),
        ("IP(ttl=tll)", 1, 8, "there is no variable, function or layer 'tll'"),
        ("IP(ttl=200 + 56)", 1, 8, "IP.ttl: 256 does not fit 8 bits"),
        ("IP(ttl=-1)", 1, 8, "IP.ttl: -1 does not fit"),
        ("p = IP(); p.ttl = 256", 1, 19, "IP.ttl: 256 does not fit 8 bits"),
        ("p = IP(); p.tll", 1, 12, "IP has no field 'tll'; did you mean ttl"),
        ("p = IP(); p[TCP]", 1, 12, "the packet has no such layer TCP: it is IP"),
        ("IP() 5", 1, 6, "an operator, or the end"),
        ("IP(", 1, 4, "')'"),
        ("x = ", 1, 5, "a value"),
        ("1 +", 1, 4, "a value"),
        ("IP()/", 1, 6, "a layer"),
        ("TCP = 5", 1, 1, "TCP is a layer: choose another name for the variable"),
        ("sr = 5", 1, 1, "sr is a function"),
        ("5 = 5", 1, 1, "only variables and fields can be assigned"),
        ("a, b = 1, 2, 3", 1, 8, "3 values cannot be assigned to 2 variables"),
        ("sr1(IP(), tmeout=1)", 1, 11, "sr1() has no argument 'tmeout'; did you mean timeout"),
        ("sr1()", 1, 1, "needs packet"),
        ("sr1(IP(), timeout=0)", 1, 11, "timeout must be seconds"),
        ("sr1(IP(ttl=(1,2)))", 1, 5, "expected one packet, got a set of 2"),
        ("send([])", 1, 6, "packets contains no packet"),
        ("sniff()", 1, 1, "set count or timeout"),
        ("sniff(count=1)", 1, 1, "not available"),
        ("[1][5]", 1, 4, "there is no element 5: there are 1"),
        ("x = \"abc\ny = 1", 1, 5, "the quote is not closed on its line"),
        ("5.foo", 1, 2, "unexpected '.'"),
        ("\"a\".foo()", 1, 4, "no variable, function or layer 'foo'"),
        ("len(5)", 1, 5, "a number has no length"),
        ("del x", 1, 5, "no variable"),
        ("IP(dst=\"192.0.2.0/28\").dst", 1, 23, "a set of 16"),
    ] {
        fails(text, line, column, part);
    }
}

#[test]
fn sizes_are_limited() {
    let mut text = "a = [1]\n".to_owned();
    text.push_str(&"a = [a, a]\n".repeat(40));
    fails(&text, 24, 5, "elements, nested ones included");
    fails(&format!("a = [1]\n{}", "a = [a]\n".repeat(100)), 65, 5, "lists are nested more than");
    fails(&format!("p = IP()\n{}", "p = p/p\n".repeat(40)), 18, 6, "at most 65536 layers");
    fails(&format!("t = \"x\"\n{}", "t = t + t\n".repeat(40)), 26, 7, "longer than");
    says(&format!("1{}", " + 1".repeat(100_000)), &["100001"]);
    says(&format!("{}1", "-".repeat(100_000)), &["1"]);
    fails(&format!("x{}", ".x".repeat(100_000)), 1, 1, "there is no variable");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(1000)))]

    #[test]
    fn no_input_panics(
        text in "(IP|TCP|p|sr1|show|len|ls|fuzz|raw|hex|ttl|None|del |in|[(),=/.:+*%&|^~<>!;#\\[\\]\"'\\\\b \n-]|[0-9]|\\PC){0,60}",
    ) {
        let mut shell = Shell::new(Fake::default());
        let _ = run(&mut shell, "p = IP(ttl=[1,2])/TCP()/\"x\"");
        let _ = run(&mut shell, &text);
    }

    #[test]
    fn no_word_sequence_panics(
        words in prop::collection::vec(prop::sample::select(vec![
            "p", "q", "IP(", "TCP(", ")", "[", "]", "(", ",", ".", "=", "/", "+", "-", "*", "//", "%", "<<", ">>", "&", "~",
            "ttl", "dport", "payload", "flags", "7", "65536", "-1", "\"x\"", "b\"y\"", "None", "sr(", "sr1(", "show(",
            "len(", "raw(", "summary(", "hexdump(", "recompute(", ":", "in", "IP", "TCP", "==", "options", "0.5",
        ]), 0..14),
    ) {
        let mut shell = Shell::new(Fake::default());
        let _ = run(&mut shell, "p = IP(dst=\"192.0.2.1\")/TCP()/\"x\"; q = [p, IP(ttl=(1,3))]");
        let _ = run(&mut shell, &words.concat());
        let _ = shell.names().complete(&words.concat());
    }

    #[test]
    fn printed_packets_parse_to_themselves((kind, bytes) in samples::damaged()) {
        prop_assume!(!bytes.is_empty());
        let packet = Packet::parse(kind, &bytes);
        let mut shell = Shell::new(Fake::default());
        prop_assert_eq!(run(&mut shell, &packet.to_string()).unwrap(), [packet.to_string()]);
        let value = shell.variable("_").unwrap().clone();
        prop_assert_eq!(value, Object::from(packet));
    }
}

#[test]
fn unanswered_sr1_is_none() {
    let mut shell = Shell::new(Fake::default());
    assert_eq!(run(&mut shell, "x = sr1(IP(dst=\"192.0.2.1\")/UDP(dport=7)); x; x == None").unwrap(), ["True"]);
    assert!(shell.world.sent[0].get::<Udp>().is_some());
}
