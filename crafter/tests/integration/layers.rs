//! `crafter build`, `show` and `ls`; their bytes are compared with tshark and Scapy. Needs neither root nor network.

use std::{
    collections::HashMap,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use crate::cli::schema::valid;

use crafter::{
    capture::{Entry, Writer},
    layer::{
        Arp, Dns, Dot1Q, Ether, Gre, Icmp, Icmpv6EchoRequest, Icmpv6PacketTooBig, Ip, IpOption, Ipv6, Ipv6Destination,
        Ipv6Fragment, Ipv6HopByHop, Ipv6Option, Ipv6Routing, Kind, LayerType as _, Mac, NdMtu, NdNeighborSolicitation,
        NdPrefix, NdRdnss, NdRouterAdvertisement, NdSourceLinkLayer, Packet, Padding, Record, Tcp, TcpOption, Udp,
        Vxlan,
    },
};

fn crafter(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_crafter")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn crafter_reading(input: &[u8], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crafter"));
    let mut child =
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The input fits into a pipe.
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[track_caller]
fn succeeded(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    std::str::from_utf8(&output.stdout).unwrap()
}

#[track_caller]
fn failed(output: &Output, said: &str) {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), format!("crafter: {said}\n"));
}

#[test]
fn build_and_show() {
    let text = r#"IP(dst="192.0.2.1", ttl=(1,2))/UDP(sport=5, dport=[7,9])/"x""#;
    let output = crafter(&["build", text]);
    let hex = succeeded(&output);
    assert_eq!(hex.lines().count(), 4);
    assert!(hex.lines().all(|line| line.starts_with("4500001d0001")), "{hex}");
    let shown = crafter_reading(hex.as_bytes(), &["show", "-", "--as", "expr"]);
    let again: Vec<&str> = succeeded(&shown).lines().collect();
    assert_eq!(again[3], r#"IP(ttl=2, dst="192.0.2.1")/UDP(sport=5, dport=9)/Raw(load=b"x")"#);
    let rebuilt = crafter(&["build", again[3]]);
    assert_eq!(succeeded(&rebuilt).lines().next(), hex.lines().last());
    let raw = crafter(&["build", "--raw", again[3]]);
    assert_eq!(raw.stdout.len(), 29);
    let json = crafter(&["--json", "show", hex.lines().next().unwrap()]);
    let json: Vec<_> = succeeded(&json).lines().map(|line| valid("show", line)).collect();
    assert_eq!(json[0]["layers"][1]["fields"]["dport"], 7);
    assert_eq!((json.len(), &json[1]["broken"]), (2, &serde_json::Value::Null));
    let built = crafter(&["--json", "build", again[3]]);
    assert_eq!(valid("build", succeeded(&built))["packets"][0]["bytes"], hex.lines().last().unwrap());
}

#[test]
fn captures() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.pcap");
    let name = path.to_str().unwrap();
    succeeded(&crafter(&["build", "--pcap", name, r#"Ether()/IP(dst="192.0.2.1")/ICMP(id=1, seq=(1,3))"#]));
    let shown = crafter(&["show", name, "--as", "summary"]);
    let lines: Vec<&str> = succeeded(&shown).lines().collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[2], "Ether / IP 0.0.0.0 > 192.0.2.1 / ICMP echo-request id 1 seq 3");

    let mut bytes = std::fs::read(&path).unwrap();
    bytes.truncate(bytes.len() - 1);
    std::fs::write(&path, &bytes).unwrap();
    let cut = crafter(&["show", name, "--as", "summary"]);
    failed(&cut, &format!("{name}: truncated at byte 140, within packet 3"));
    assert_eq!(String::from_utf8_lossy(&cut.stdout).lines().count(), 2);
    let cut = crafter_reading(&bytes, &["show", "-", "--json"]);
    assert_eq!(cut.status.code(), Some(2));
    let json: Vec<_> = String::from_utf8_lossy(&cut.stdout).lines().map(|line| valid("show", line)).collect();
    assert_eq!((json.len(), &json[2]["packets"]), (3, &2.into()));
    assert_eq!(json[2]["broken"], "truncated at byte 140, within packet 3");
}

#[test]
fn packets_without_a_link_type_are_not_written() {
    failed(
        &crafter(&["build", "--pcap", "-", "TCP()"]),
        "capture: packets that begin with TCP have no link type: Ether, IP or IPv6 is needed",
    );
}

#[test]
fn layers_and_fields_are_listed() {
    assert_eq!(
        valid("ls", succeeded(&crafter(&["ls", "--json"])))["layers"].as_array().unwrap().len(),
        Kind::ALL.len()
    );
    let json = valid("ls", succeeded(&crafter(&["ls", "IP", "--json"])));
    assert_eq!(json["fields"][8]["names"]["6"], "tcp");
}

/// A reproducible sequence of random numbers (xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let length = self.below(most + 1);
        (0..length).map(|_| self.below(256) as u8).collect()
    }

    /// A port without a dissector.
    fn port(&mut self) -> u16 {
        50_000 + self.below(10_000) as u16
    }

    fn ip(&mut self) -> Ip {
        let mut ip = Ip::to(std::net::Ipv4Addr::new(192, 0, 2, self.below(200) as u8 + 1))
            .src(std::net::Ipv4Addr::new(198, 51, 100, self.below(200) as u8 + 1))
            .ttl(self.below(255) as u8 + 1)
            .id(self.below(65_536) as u16)
            .tos(self.below(256) as u8);
        if self.below(3) == 0 {
            ip = ip.flags("DF");
        }
        match self.below(5) {
            0 => ip.options([IpOption::RouterAlert(0)]),
            1 => ip.options([
                IpOption::Nop,
                IpOption::RecordRoute(4, vec![[0, 0, 0, 0].into(); self.below(8) as usize + 1]),
            ]),
            2 => ip.options([IpOption::Timestamp(5, 0, vec![0; 3]), IpOption::Eol]),
            _ => ip,
        }
    }

    fn ipv6(&mut self) -> Packet {
        let address = |last: u64| std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last as u16 + 1);
        let ip = Ipv6::to(address(self.below(1000)))
            .src(address(self.below(1000)))
            .hlim(self.below(255) as u8 + 1)
            .fl(self.below(1 << 20) as u32)
            .tc(self.below(256) as u8);
        match self.below(6) {
            0 => ip / Ipv6HopByHop::new().options([Ipv6Option::RouterAlert(0)]),
            1 => ip / Ipv6Destination::new().options([Ipv6Option::PadN(vec![0; self.below(9) as usize])]),
            2 => ip / Ipv6Routing::new().r#type(4).addresses([address(5), address(6)]),
            3 => ip / Ipv6HopByHop::new() / Ipv6Destination::new() / Ipv6Fragment::new().id(self.below(1 << 32) as u32),
            _ => ip.into(),
        }
    }

    fn tcp(&mut self) -> Packet {
        let mut options = Vec::new();
        for option in [
            TcpOption::Mss(self.below(65_536) as u16),
            TcpOption::WScale(self.below(15) as u8),
            TcpOption::SackOk,
            TcpOption::Timestamp(self.below(1 << 32) as u32, self.below(1 << 32) as u32),
            TcpOption::Nop,
            TcpOption::Sack([(1, 2)].into_iter().collect()),
            TcpOption::Uto(self.below(65_536) as u16),
        ] {
            if self.below(2) == 0 {
                options.push(option);
            }
        }
        let tcp =
            Tcp::to(self.port()).sport(self.port()).seq(self.below(1 << 32) as u32).ack(self.below(1 << 32) as u32);
        let flags = crafter::packet::Flags(self.below(64) as u16);
        tcp.flags(flags).window(self.below(65_536) as u16).options(options) / self.bytes(40)
    }

    fn above_ip(&mut self, depth: u64) -> Packet {
        match self.below(if depth > 0 { 6 } else { 3 }) {
            0 => Udp::to(self.port()).sport(self.port()) / self.bytes(40),
            1 => Udp::new().sport(self.port()) / self.dns(),
            2 | 3 => self.tcp(),
            4 => Udp::new().sport(self.port()) / Vxlan::new().vni(self.below(1 << 24) as u32) / self.frame(depth - 1),
            _ => {
                let gre = if self.below(2) == 0 {
                    Gre::new()
                } else {
                    Gre::new().key(self.below(1 << 32) as u32).chksum_present(1)
                };
                gre / self.packet(depth - 1)
            }
        }
    }

    fn dns(&mut self) -> Packet {
        let name = format!("host{}.example.org", self.below(1000));
        let record = Record::address(&name, self.below(10_000) as u32, [192, 0, 2, 1].into()).unwrap();
        let dns = Dns::query(&name, 1).id(self.below(65_536) as u16);
        if self.below(2) == 0 { dns.into() } else { dns.qr(1).ra(1).an([record]).into() }
    }

    fn packet(&mut self, depth: u64) -> Packet {
        match self.below(7) {
            0..=2 => self.ip() / self.above_ip(depth),
            3 | 4 => self.ipv6() / self.above_ip(depth),
            5 => match self.below(4) {
                0 => self.ip() / Icmp::echo(self.below(65_536) as u16, self.below(65_536) as u16) / self.bytes(30),
                1 => {
                    self.ip()
                        / Icmp::new().r#type(3).code(3)
                        / self.ip()
                        / Udp::to(self.port()).sport(self.port())
                        / "x"
                }
                2 => self.ip() / Icmp::new().r#type(5).gw("192.0.2.9") / self.ip() / Udp::to(9).sport(self.port()),
                _ => self.ip() / Icmp::new().r#type(13).id(1).seq(2).ts_ori(self.below(1 << 32) as u32),
            },
            _ => match self.below(4) {
                0 => self.ipv6() / Icmpv6EchoRequest::new().id(self.below(65_536) as u16) / self.bytes(30),
                1 => {
                    self.ipv6()
                        / Icmpv6PacketTooBig::new()
                        / Ipv6::to("2001:db8::9")
                        / Udp::to(self.port()).sport(self.port())
                        / "x"
                }
                2 => {
                    Ipv6::to("ff02::1:ff00:1").src("fe80::1").hlim(255)
                        / NdNeighborSolicitation::who_has("fe80::2")
                        / NdSourceLinkLayer::new()
                }
                _ => {
                    Ipv6::to("ff02::1").src("fe80::1").hlim(255)
                        / NdRouterAdvertisement::new()
                        / NdPrefix::new().prefix("2001:db8::")
                        / NdMtu::new().mtu(1500_u32)
                        / NdRdnss::new().dns(["2001:db8::53".parse().unwrap()])
                }
            },
        }
    }

    fn frame(&mut self, depth: u64) -> Packet {
        let ether = Ether::to(Mac([2, 0, 0, 0, 0, self.below(256) as u8])).src("02:00:00:00:01:01");
        match self.below(8) {
            0 => ether / Arp::who_has(std::net::Ipv4Addr::new(192, 0, 2, self.below(256) as u8)) / Padding::of([0; 18]),
            1 => ether / Dot1Q::new().vlan(self.below(4095) as u16).prio(self.below(8) as u8) / self.packet(depth),
            _ => ether / self.packet(depth),
        }
    }
}

/// 3000 reproducible frames, and a capture of them.
fn frames(path: &Path) -> Vec<Packet> {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let packets: Vec<Packet> = (0..3000).map(|_| dice.frame(2)).collect();
    let mut writer = Writer::create(path).unwrap();
    for packet in &packets {
        writer.write(&Entry::new(Duration::from_secs(1), Kind::Ether, &packet.build().unwrap())).unwrap();
    }
    writer.finish().unwrap();
    packets
}

/// The compared fields: tshark's name, crafter's layer and field.
const SAME: [(&str, Kind, &str); 14] = [
    ("ip.ttl", Ip::KIND, "ttl"),
    ("ip.id", Ip::KIND, "id"),
    ("ip.dst", Ip::KIND, "dst"),
    ("ipv6.hlim", Ipv6::KIND, "hlim"),
    ("ipv6.flow", Ipv6::KIND, "fl"),
    ("tcp.srcport", Tcp::KIND, "sport"),
    ("tcp.dstport", Tcp::KIND, "dport"),
    ("tcp.seq_raw", Tcp::KIND, "seq"),
    ("tcp.ack_raw", Tcp::KIND, "ack"),
    ("tcp.window_size_value", Tcp::KIND, "window"),
    ("udp.srcport", Udp::KIND, "sport"),
    ("dns.id", Dns::KIND, "id"),
    ("vlan.id", Dot1Q::KIND, "vlan"),
    ("vxlan.vni", Vxlan::KIND, "vni"),
];

#[test]
fn tshark_reads_the_same_fields_without_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("frames.pcap");
    let packets = frames(&path);
    let wrong = ["_ws.malformed", "_ws.expert.severity"];
    let statuses = [
        "ip.checksum.status",
        "tcp.checksum.status",
        "udp.checksum.status",
        "icmp.checksum.status",
        "icmpv6.checksum.status",
    ];
    let columns: Vec<&str> = wrong.into_iter().chain(statuses).chain(SAME.iter().map(|(name, ..)| *name)).collect();
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(&path).args([
        "-n",
        "-T",
        "fields",
        "-E",
        "separator=|",
        "-E",
        "occurrence=a",
        "-E",
        "aggregator=,",
    ]);
    for check in ["ip", "tcp", "udp"] {
        tshark.arg("-o").arg(format!("{check}.check_checksum:TRUE"));
    }
    // Segments belong to no connection, and fragments to no datagram.
    tshark.args(["-o", "tcp.analyze_sequence_numbers:FALSE", "-o", "tcp.desegment_tcp_streams:FALSE"]);
    tshark.args(["-o", "tcp.try_heuristic_first:FALSE", "-o", "udp.try_heuristic_first:FALSE"]);
    columns.iter().for_each(|column| {
        tshark.args(["-e", column]);
    });
    let output = tshark.output().expect("tshark is installed by `cargo xtask setup`");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), packets.len());
    let mut compared: HashMap<&str, usize> = HashMap::new();
    for (line, packet) in text.lines().zip(&packets) {
        let seen: HashMap<&str, &str> = columns.iter().copied().zip(line.split('|')).collect();
        assert_eq!(seen["_ws.malformed"], "", "{packet}\n{line}");
        for status in statuses {
            // 0: bad, 1: good, 2: not verified, as in an ICMP quote.
            assert!(!seen[status].split(',').any(|status| status == "0"), "{status}: {packet}\n{line}");
            *compared.entry(status).or_default() += seen[status].split(',').filter(|status| *status == "1").count();
        }
        let read = packet.resolved().unwrap();
        for (name, kind, field) in SAME {
            let values: Vec<String> = read
                .layers()
                .iter()
                .filter(|layer| layer.kind() == kind)
                .map(|layer| {
                    let info = crafter::layer::Layer::info(layer);
                    let value = crafter::layer::Layer::value(layer, info.field(field).unwrap().0).unwrap();
                    value.to_json().as_str().map_or_else(|| value.to_string(), str::to_owned)
                })
                .collect();
            let normalize = |text: &str| match text.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).unwrap().to_string(),
                None => text.to_owned(),
            };
            let seen: Vec<String> = seen[name].split(',').filter(|text| !text.is_empty()).map(normalize).collect();
            assert_eq!(seen, values, "{name}: {packet}\n{line}");
            *compared.entry(name).or_default() += values.len();
        }
    }
    // Each field occurred often enough.
    for (name, count) in &compared {
        assert!(*count >= 10, "{name} was seen {count} times");
    }
    assert_eq!(compared.len(), SAME.len() + statuses.len());
}

#[test]
fn scapy_builds_the_same_bytes() {
    let texts = [
        r#"Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")/IP(src="192.0.2.1", dst="192.0.2.2", ttl=7)/TCP(sport=5, dport=80, flags="SA", seq=1, options=[("MSS",1460),("SAckOK",b""),("Timestamp",(1,2)),("NOP",None),("WScale",7)])/Raw("hi")"#,
        r#"Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")/Dot1Q(vlan=7, prio=3)/IP(src="192.0.2.1", dst="192.0.2.2", flags="DF", id=9)/UDP(sport=5, dport=7)/Raw(b"\x00\xff")"#,
        r#"IP(src="192.0.2.1", dst="192.0.2.2")/ICMP(id=1, seq=2)/Raw("ping")"#,
        r#"IP(src="192.0.2.1", dst="192.0.2.2")/ICMP(type=11)/IP(src="192.0.2.2", dst="192.0.2.9")/UDP(sport=1, dport=2)"#,
        r#"IPv6(src="2001:db8::1", dst="2001:db8::2", tc=5, fl=77)/TCP(sport=5, dport=80, flags="FPU")"#,
        r#"IPv6(src="2001:db8::1", dst="2001:db8::2")/IPv6ExtHdrFragment(id=7, m=1)/UDP(sport=5, dport=7)/Raw("x")"#,
        r#"IPv6(src="2001:db8::1", dst="2001:db8::2")/ICMPv6EchoRequest(id=7, seq=8)"#,
        r#"IPv6(src="fe80::1", dst="ff02::1")/ICMPv6ND_NS(tgt="fe80::2")/ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:00:01")"#,
        r#"IPv6(src="fe80::1", dst="ff02::1")/ICMPv6ND_RA()/ICMPv6NDOptPrefixInfo(prefix="2001:db8::")/ICMPv6NDOptMTU(mtu=1400)"#,
        r#"IP(src="192.0.2.1", dst="192.0.2.2")/UDP(sport=5, dport=53)/DNS(id=7, qd=DNSQR(qname="example.org"))"#,
        r#"IP(src="192.0.2.1", dst="192.0.2.2")/GRE(key_present=1, key=7)/IP(src="192.0.2.1", dst="192.0.2.2")"#,
        r#"IP(src="192.0.2.1", dst="192.0.2.2")/UDP()/VXLAN(vni=5, flags=8)/Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")/IP(src="192.0.2.1", dst="192.0.2.2")"#,
        r#"Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")/ARP(psrc="192.0.2.1", pdst="192.0.2.2", hwsrc="02:00:00:00:00:01", op="is-at")"#,
        r#"IP(src="192.0.2.1", dst="192.0.2.2", len=7, ihl=9, chksum=1, proto=250, version=5)/TCP(dataofs=3, chksum=2, reserved=5)"#,
    ];
    let script = "import sys\nfrom scapy.all import *\nfrom scapy.layers.vxlan import VXLAN\nfor line in sys.stdin: print(bytes(eval(line)).hex())\n";
    let mut python = Command::new("/usr/bin/python3");
    let mut child = python
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all((texts.join("\n") + "\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "python3-scapy is installed by `cargo xtask setup`: {output:?}");
    let scapy = String::from_utf8(output.stdout).unwrap();
    assert_eq!(scapy.lines().count(), texts.len());
    for (text, theirs) in texts.iter().zip(scapy.lines()) {
        let ours = crafter::layer::value::hex(&text.parse::<Packet>().unwrap().build().unwrap());
        assert_eq!(ours, theirs, "{text}");
    }
}
