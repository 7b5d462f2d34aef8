//! ICMP extensions, MPLS, HTTP, DNS over TCP and fragments, compared with tshark and Scapy. Needs neither root nor
//! network.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use crafter::{
    capture::{Entry, Format, Writer},
    layer::{
        Cut, Dns, Ether, HttpHeader, HttpRequest, HttpResponse, Icmp, IcmpExtensionHeader, IcmpExtensionMpls,
        IcmpExtensionObject, Icmpv6DestUnreach, Icmpv6TimeExceeded, Ip, Ipv6, Kind, Mpls, MplsLabel, Packet, Tcp, Udp,
        value::hex,
    },
};

/// tshark's fields of frames: one line per frame, columns separated by `|`.
fn tshark(packets: &[Packet], columns: &[&str], options: &[&str]) -> Vec<Vec<String>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = Writer::new(file.reopen().unwrap(), Format::Pcap).unwrap();
    for packet in packets {
        let bytes = packet.build().unwrap();
        writer.write(&Entry::new(Duration::from_secs(1), Kind::Ether, &bytes)).unwrap();
    }
    drop(writer);
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file.path()).args(["-n", "-T", "fields", "-E", "separator=|", "-E", "occurrence=a"]);
    command.args(options);
    for column in columns {
        command.args(["-e", column]);
    }
    let output = command.output().expect("tshark is installed by `cargo xtask setup`");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<String>> = text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect();
    assert_eq!(lines.len(), packets.len());
    lines
}

/// Scapy's output for packets: one line per packet, the value of `expression` for the packet `p`.
fn scapy(packets: &[Packet], imports: &str, expression: &str) -> Vec<String> {
    let script = format!(
        "import sys\nfrom scapy.all import *\n{imports}\n\
         for line in sys.stdin:\n p = Ether(bytes.fromhex(line))\n print({expression})\n"
    );
    let mut child = Command::new("/usr/bin/python3")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines: Vec<String> = packets.iter().map(|packet| hex(&packet.build().unwrap())).collect();
    let writer = std::thread::spawn(move || stdin.write_all((lines.join("\n") + "\n").as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "python3-scapy is installed by `cargo xtask setup`: {output:?}");
    let lines: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), packets.len());
    lines
}

fn label(number: u32) -> MplsLabel {
    MplsLabel { label: number * 7919 % (1 << 20), cos: (number % 8) as u8, s: 0, ttl: (number % 255) as u8 + 1 }
}

/// An ICMP error with MPLS labels; `number` selects their count and the quoted packet.
fn error(number: u32) -> Packet {
    let mut stack: Vec<MplsLabel> = (0..number % 4 + 1).map(|at| label(number + at)).collect();
    stack.iter_mut().for_each(|label| label.s = 0);
    stack.last_mut().unwrap().s = 1;
    let load = vec![b'a'; (number * 37 % 300) as usize];
    let extensions = IcmpExtensionHeader::new() / IcmpExtensionMpls::new().stack(stack);
    let extensions = match number % 3 {
        0 => extensions / IcmpExtensionObject::new().classnum(2).classtype(8).data(number.to_be_bytes()),
        _ => extensions,
    };
    if number.is_multiple_of(2) {
        let quoted = Ip::to("198.51.100.9").src("192.0.2.1") / Udp::to(33_434).sport(50_000) / load;
        let icmp = Icmp::new().r#type([3_u8, 11, 12][(number / 2 % 3) as usize]);
        Ether::new() / Ip::to("192.0.2.1").src("203.0.113.7") / icmp / quoted / extensions
    } else {
        let head = Ether::new() / Ipv6::to("2001:db8::1").src("2001:db8::fe");
        let quoted = Ipv6::to("2001:db8::9").src("2001:db8::1") / Udp::to(33_434).sport(50_000) / load;
        match number / 2 % 2 {
            0 => head / Icmpv6TimeExceeded::new() / quoted / extensions,
            _ => head / Icmpv6DestUnreach::new() / quoted / extensions,
        }
    }
}

fn expected(labels: &[MplsLabel], value: impl Fn(&MplsLabel) -> u32) -> String {
    labels.iter().map(|label| value(label).to_string()).collect::<Vec<_>>().join(",")
}

#[test]
fn tshark_reads_mpls_labels_of_icmp_errors() {
    let packets: Vec<Packet> = (0..300).map(error).collect();
    let columns = [
        "icmp.mpls.label",
        "icmp.mpls.exp",
        "icmp.mpls.ttl",
        "icmp.ext.checksum.status",
        "icmp.checksum.status",
        "icmpv6.checksum.status",
        "icmp.length",
        "icmpv6.length",
        "_ws.malformed",
        "icmp.ext.class",
    ];
    // By default, tshark looks for extensions only after quotes of at most 128 bytes.
    let options = ["-o", "icmp.favor_icmp_mpls:TRUE"];
    for (packet, seen) in packets.iter().zip(tshark(&packets, &columns, &options)) {
        let labels = packet.mpls_stack();
        let is_v4 = packet.get::<Ip>().is_some();
        assert_eq!(seen[0], expected(labels, |label| label.label), "{packet}\n{seen:?}");
        assert_eq!(seen[1], expected(labels, |label| label.cos.into()), "{packet}\n{seen:?}");
        assert_eq!(seen[2], expected(labels, |label| label.ttl.into()), "{packet}\n{seen:?}");
        assert_eq!(seen[3], "1", "{packet}\n{seen:?}");
        assert_eq!(seen[if is_v4 { 4 } else { 5 }], "1", "{packet}\n{seen:?}");
        let read = packet.resolved().unwrap();
        let length =
            read.field(if is_v4 { "ICMP" } else { read.layers()[2].kind().name() }, "length").unwrap().unwrap();
        assert_eq!(seen[if is_v4 { 6 } else { 7 }], length.to_string(), "{packet}\n{seen:?}");
        assert_eq!(seen[8], "", "{packet}");
        let objects = if read.get::<IcmpExtensionObject>().is_some() { "1,2" } else { "1" };
        assert_eq!(seen[9], objects, "{packet}");
    }
}

#[test]
fn icmp_extensions_without_length_match_tshark() {
    let mut packet = error(4);
    packet.get_mut::<Icmp>().unwrap().length = Some(0);
    // A datagram of exactly 128 bytes, quoted completely.
    let quoted = Ip::to("198.51.100.9").src("192.0.2.1") / Udp::to(33_434).sport(50_000) / vec![b'a'; 100];
    let at = packet.layers().iter().position(|layer| matches!(layer.kind(), Kind::IcmpExtensionHeader)).unwrap();
    let layers = packet.layers_mut();
    layers.splice(3..at, quoted.layers().iter().cloned());
    let packets = [packet];
    // tshark omits a missing length; it does not print 0.
    let seen = tshark(&packets, &["icmp.mpls.label", "icmp.length"], &[]);
    let read = packets[0].resolved().unwrap();
    assert_eq!(seen[0], [expected(read.mpls_stack(), |label| label.label), String::new()]);
    assert!(!read.mpls_stack().is_empty());
}

#[test]
fn scapy_reads_mpls_labels_of_icmp_errors() {
    // Scapy looks for extensions only after 128 bytes, in packets longer than 144 bytes.
    let packets: Vec<Packet> = (0..300)
        .map(error)
        .filter(|packet| packet.resolved().unwrap().get::<Icmp>().is_some_and(|icmp| icmp.length == Some(32)))
        .filter(|packet| packet.build().unwrap().len() > 14 + 144 + 28)
        .collect();
    assert!(packets.len() > 20);
    // In Scapy, each label is the payload of the previous one.
    let walk = "def walk(m):\n while isinstance(m, MPLS):\n  yield '%d.%d.%d.%d' % (m.label, m.cos, m.s, m.ttl)\n  m = m.payload";
    let imports = format!("from scapy.contrib.icmp_extensions import *\nfrom scapy.contrib.mpls import MPLS\n{walk}");
    let expression = "','.join(walk(p[ICMPExtensionMPLS].stack[0])) if ICMPExtensionMPLS in p else p.command()";
    for (packet, seen) in packets.iter().zip(scapy(&packets, &imports, expression)) {
        let labels: Vec<String> = packet
            .mpls_stack()
            .iter()
            .map(|MplsLabel { label, cos, s, ttl }| format!("{label}.{cos}.{s}.{ttl}"))
            .collect();
        assert_eq!(seen, labels.join(","), "{packet}");
    }
}

#[test]
fn mpls_labels_precede_packets() {
    let packets: Vec<Packet> = (0..20)
        .map(|number| {
            let MplsLabel { label, cos, ttl, .. } = label(number + 17);
            let inner = Ip::to("192.0.2.1").src("192.0.2.2") / Udp::to(50_001).sport(50_000) / "x";
            Ether::to("02:00:00:00:00:02").src("02:00:00:00:00:01")
                / Mpls::new().label(label).cos(cos).ttl(ttl)
                / Mpls::new().label(number + 100).ttl(9)
                / inner
        })
        .collect();
    let columns = ["mpls.label", "mpls.exp", "mpls.ttl", "mpls.bottom", "udp.srcport", "_ws.malformed"];
    for (packet, seen) in packets.iter().zip(tshark(&packets, &columns, &[])) {
        let all = |value: fn(&Mpls) -> u32| {
            packet.all::<Mpls>().map(|mpls| value(mpls).to_string()).collect::<Vec<_>>().join(",")
        };
        let hex = |text: &str| -> String {
            let number = |text: &str| match text.strip_prefix("0x") {
                Some(digits) => u32::from_str_radix(digits, 16).unwrap().to_string(),
                None => text.to_owned(),
            };
            text.split(',').map(number).collect::<Vec<_>>().join(",")
        };
        assert_eq!(hex(&seen[0]), all(|mpls| mpls.label.unwrap()), "{seen:?}");
        assert_eq!(seen[1], all(|mpls| mpls.cos.unwrap_or(0).into()), "{seen:?}");
        assert_eq!(seen[2], all(|mpls| mpls.ttl.unwrap().into()), "{seen:?}");
        assert_eq!(seen[3..], ["0,1", "50000", ""], "{seen:?}");
    }
    let seen = scapy(&packets, "from scapy.contrib.mpls import MPLS", "p[MPLS].label, p[MPLS].s, p[UDP].sport");
    for (packet, seen) in packets.iter().zip(seen) {
        let label = packet.get::<Mpls>().unwrap().label.unwrap();
        assert_eq!(seen, format!("{label} 0 50000"));
    }
}

fn segment(sport: u16, dport: u16) -> Packet {
    Ether::new() / Ip::to("192.0.2.2").src("192.0.2.1") / Tcp::to(dport).sport(sport).flags("PA").seq(1).ack(1)
}

#[test]
fn http_and_dns_over_tcp_match_tshark_and_scapy() {
    let field = |name: &str, value: &str| HttpHeader::Field(name.into(), value.into());
    let packets = [
        segment(50_000, 80)
            / HttpRequest::new()
                .Method("POST")
                .Path("/a?b=c")
                .Headers([field("Host", "example.org"), field("Content-Length", "4")])
            / "body",
        segment(80, 50_001)
            / HttpResponse::new().Status_Code("404").Reason_Phrase("Not Found").Headers([field("Content-Length", "0")]),
        segment(50_002, 53) / Dns::query("example.org", 28).id(77),
    ];
    let columns = [
        "http.request.method",
        "http.request.uri",
        "http.host",
        "http.response.code",
        "http.response.phrase",
        "dns.length",
        "dns.id",
        "dns.qry.name",
        "_ws.malformed",
    ];
    let seen = tshark(&packets, &columns, &["-o", "tcp.analyze_sequence_numbers:FALSE"]);
    assert_eq!(seen[0], ["POST", "/a?b=c", "example.org", "", "", "", "", "", ""]);
    assert_eq!(seen[1], ["", "", "", "404", "Not Found", "", "", "", ""]);
    assert_eq!(seen[2], ["", "", "", "", "", "29", "0x004d", "example.org", ""]);
    let expression = "(p[HTTPRequest].Method.decode(), p[HTTPRequest].Path.decode(), p[Raw].load.decode()) if HTTPRequest in p else \
        p[HTTPResponse].Status_Code.decode() if HTTPResponse in p else (p[DNS].length, p[DNS].id, p[DNSQR].qname.decode())";
    let seen = scapy(&packets, "from scapy.layers.http import *", expression);
    assert_eq!(seen, ["('POST', '/a?b=c', 'body')", "404", "(29, 77, 'example.org.')"]);
    // Scapy computes the length field of DNS over TCP, too.
    let text = r#"IP(src="192.0.2.1", dst="192.0.2.2")/TCP(sport=5, dport=53, flags="PA")/DNS(id=7, qd=DNSQR(qname="example.org"))"#;
    let ours = text.parse::<Packet>().unwrap().build().unwrap();
    let script = format!("from scapy.all import *\nprint(bytes({text}).hex())");
    let output = Command::new("/usr/bin/python3").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), hex(&ours), "{output:?}");
}

#[test]
fn tshark_reassembles_fragments_and_sees_overlaps() {
    let packet = |v6: bool, id: u16| {
        let load: Vec<u8> = (0..200).collect();
        let head = if v6 {
            Ether::new() / Ipv6::to("2001:db8::2").src("2001:db8::1")
        } else {
            Ether::new() / Ip::to("192.0.2.2").src("192.0.2.1").id(id)
        };
        head / Udp::to(50_001).sport(50_000) / load
    };
    for v6 in [false, true] {
        let good = packet(v6, 1).fragment_at(&[Cut::new(20, 6), Cut::new(0, 7), Cut::new(7, 13)], 1).unwrap();
        let mut bad = packet(v6, 2).fragment_at(&[Cut::new(0, 12), Cut::new(10, 8), Cut::new(18, 8)], 2).unwrap();
        // Overlapping fragments with different bytes.
        if let Some(crafter::layer::AnyLayer::Raw(raw)) = bad[1].layers_mut().last_mut() {
            raw.load.as_mut().unwrap()[0] ^= 1;
        }
        let all: Vec<Packet> = good.iter().chain(&bad).cloned().collect();
        let columns = if v6 {
            ["ipv6.reassembled.length", "udp.srcport", "ipv6.fragment.overlap.conflict"]
        } else {
            ["ip.reassembled.length", "udp.srcport", "ip.fragment.overlap.conflict"]
        };
        let seen = tshark(&all, &columns, &["-o", "ip.check_checksum:TRUE", "-o", "ip.defragment:TRUE"]);
        assert_eq!(seen[2], ["208", "50000", ""], "{seen:?}");
        // tshark 4.4 prints booleans as True and False.
        assert!(["1", "True"].iter().any(|yes| seen[5][2].contains(yes)), "{seen:?}");
        let ours = crafter::layer::reassemble(all);
        assert_eq!(ours.len(), 1 + bad.len());
        assert_eq!(ours[0].build().unwrap(), packet(v6, 1).build().unwrap());
        assert_eq!(ours[1..], bad);
    }
}
