//! The lab as a library: network, servers, tap, clean-up. Needs root to create network namespaces.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use crafter::lab::{
    self, BIG_TXT_BYTES, CLIENT_V4, CLIENT_V6, INTERFACE, LONG_TXT_BYTES, Lab, LabOptions, SERVER_V4, SERVER_V6,
};
use crafter_tests::guarded::GuardedLab;
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};

use crate::canary::Canary;

fn lab() -> GuardedLab {
    GuardedLab::new(&LabOptions::default())
}

/// Sends `request` from the client namespace and reads until the server closes.
fn http(lab: &Lab, server: IpAddr, request: &str) -> std::io::Result<Vec<u8>> {
    lab.client()
        .run(|| {
            let mut stream = TcpStream::connect((server, 80))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        })
        .unwrap()
}

fn get(lab: &Lab, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
    String::from_utf8_lossy(&http(lab, SERVER_V4.into(), &request).unwrap()).into_owned()
}

#[test]
fn curl_downloads_the_same_bytes_over_ipv4_and_ipv6() {
    let lab = lab();
    for url in ["http://192.0.2.1/bytes/1M", "http://[2001:db8::1]/bytes/1M", "http://192.0.2.1/bytes/1M?chunked=1"] {
        let output = lab.command("curl").args(["-sS", "--max-time", "20", "-g", url]).output().expect("curl runs");
        assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
        let expected: Vec<u8> = lab::Content::new(1 << 20).flatten().collect();
        assert!(output.stdout == expected, "{url}: {} bytes differ from the lab's content", output.stdout.len());
    }
    let expected = lab::sha256(1 << 20);
    assert!(get(&lab, "/sha256/1M").ends_with(&format!("\r\n\r\n{expected}\n")));
}

#[test]
fn web_server_answers_http_requests() {
    let lab = lab();
    assert!(get(&lab, "/").contains("<h1>It works</h1>"));
    assert!(get(&lab, "/status/404").starts_with("HTTP/1.1 404 Not Found\r\n"));
    assert!(get(&lab, "/status/503").starts_with("HTTP/1.1 503 "));
    for bad in ["/bytes/x", "/status/99", "/status/100", "/slow?ms=99999999", "/sha256/"] {
        assert!(get(&lab, bad).starts_with("HTTP/1.1 400 "), "{bad}");
    }
    assert!(get(&lab, "/nowhere").starts_with("HTTP/1.1 404 "));
    let start = Instant::now();
    assert!(get(&lab, "/slow?ms=150").ends_with("waited 150 ms\n"));
    assert!(start.elapsed() >= Duration::from_millis(150));
    // Two requests on one connection; the second asks to close.
    let two =
        "GET /bytes/5 HTTP/1.1\r\nHost: lab\r\n\r\nGET /status/204 HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n";
    let answer = String::from_utf8_lossy(&http(&lab, SERVER_V6.into(), two).unwrap()).into_owned();
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 2, "{answer}");
    let post = "POST / HTTP/1.1\r\nHost: lab\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert!(http(&lab, SERVER_V4.into(), post).unwrap().starts_with(b"HTTP/1.1 405 "));
}

#[test]
fn web_server_closes_and_resets_on_request() {
    let lab = lab();
    assert_eq!(http(&lab, SERVER_V4.into(), "GET /close HTTP/1.1\r\nHost: lab\r\n\r\n").unwrap(), b"");
    let error = http(&lab, SERVER_V4.into(), "GET /reset HTTP/1.1\r\nHost: lab\r\n\r\n").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(lab.tap().count().unwrap(), 0, "a RST sent by the server is not counted");
}

#[test]
fn tap_counts_received_resets() {
    let lab = lab();
    assert_eq!(lab.tap().segments().unwrap(), []);
    // A connection to a closed port of the client: its kernel answers with a RST.
    for client in [IpAddr::from(CLIENT_V4), CLIENT_V6.into()] {
        let refused = lab.server().run(|| TcpStream::connect((client, 4444))).unwrap().unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    let segments = lab.tap().segments().unwrap();
    let sources: Vec<_> = segments.iter().map(|rst| (rst.source, rst.port, rst.ack, rst.seq)).collect();
    assert_eq!(sources, [(CLIENT_V4.into(), 4444, true, 0), (CLIENT_V6.into(), 4444, true, 0)]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(segments.iter().all(|rst| (now - 10.0..=now).contains(&rst.time)), "{segments:?} at {now}");
    assert_eq!(segments[0].destination, IpAddr::from(SERVER_V4));

    let json = get(&lab, "/rsts");
    let (_, body) = json.split_once("\r\n\r\n").unwrap();
    let list: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!((&list[0]["source"], &list[0]["port"]), (&"192.0.2.2".into(), &4444.into()), "{list}");
    assert_eq!(list.as_array().unwrap().len(), 2);
    get(&lab, "/rsts/clear");
    assert_eq!(lab.tap().count().unwrap(), 0);
}

/// Asks the lab's DNS server over a kernel UDP socket, without EDNS unless `size` is given.
fn ask(lab: &Lab, server: IpAddr, name: &str, kind: RecordType, size: Option<u16>) -> Message {
    let query = query(name, kind, size);
    let answer = lab.client().run(|| {
        let any: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.connect((server, 53)).unwrap();
        socket.send(&query).unwrap();
        let mut answer = vec![0; 65_535];
        let length = socket.recv(&mut answer).unwrap();
        answer.truncate(length);
        answer
    });
    Message::from_vec(&answer.unwrap()).unwrap()
}

fn query(name: &str, kind: RecordType, size: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(size) = size {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn answers(message: &Message) -> Vec<String> {
    let mut answers: Vec<_> = message.answers.iter().map(|record| record.data.to_string()).collect();
    answers.sort_unstable();
    answers
}

#[test]
fn dns_answers_over_udp() {
    use RecordType::{A, AAAA, CNAME, MX, NS, PTR, SOA, TXT};
    let lab = lab();
    let rows: &[(&str, RecordType, &[&str])] = &[
        ("web.lab.test.", A, &["192.0.2.1"]),
        ("web.lab.test.", AAAA, &["2001:db8::1"]),
        ("client.lab.test.", A, &["192.0.2.2"]),
        ("lab.test.", MX, &["10 mail.lab.test.", "20 web.lab.test."]),
        ("lab.test.", NS, &["ns.lab.test."]),
        ("lab.test.", TXT, &["v=spf1 a mx -all"]),
        ("www.lab.test.", CNAME, &["web.lab.test."]),
        ("www.lab.test.", A, &["192.0.2.1", "web.lab.test."]),
        ("1.2.0.192.in-addr.arpa.", PTR, &["web.lab.test."]),
        ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.", PTR, &["web.lab.test."]),
    ];
    for server in [IpAddr::from(SERVER_V4), SERVER_V6.into()] {
        for (name, kind, expected) in rows {
            let answer = ask(&lab, server, name, *kind, None);
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{name} {kind}");
            assert!(answer.metadata.authoritative, "{name} {kind}");
            assert_eq!(answers(&answer), *expected, "{name} {kind}");
        }
    }
    assert_eq!(ask(&lab, SERVER_V4.into(), "lab.test.", SOA, None).answers.len(), 1);
    for (name, code) in [("nowhere.lab.test.", ResponseCode::NXDomain), ("example.com.", ResponseCode::Refused)] {
        assert_eq!(ask(&lab, SERVER_V4.into(), name, A, None).metadata.response_code, code, "{name}");
    }
    let nothing = ask(&lab, SERVER_V4.into(), "text.lab.test.", A, None);
    assert_eq!((nothing.metadata.response_code, nothing.answers.len()), (ResponseCode::NoError, 0));
}

fn text_bytes(message: &Message) -> usize {
    let length = |data: &RData| match data {
        RData::TXT(text) => text.txt_data.iter().map(|part| part.len()).sum(),
        _ => 0,
    };
    message.answers.iter().map(|record| length(&record.data)).sum()
}

#[test]
fn large_dns_answers_are_truncated_or_fragmented() {
    let lab = lab();
    let ask = |name, size| ask(&lab, SERVER_V4.into(), name, RecordType::TXT, size);
    for (name, size) in [("long.lab.test.", Some(1232)), ("big.lab.test.", Some(1232)), ("big.lab.test.", None)] {
        let answer = ask(name, size);
        assert!(answer.metadata.truncation && answer.answers.is_empty(), "{name} {size:?}: {answer}");
    }
    for (name, bytes) in [("long.lab.test.", LONG_TXT_BYTES), ("big.lab.test.", BIG_TXT_BYTES)] {
        let answer = ask(name, Some(4096));
        assert!(!answer.metadata.truncation, "{name}");
        assert_eq!(text_bytes(&answer), bytes, "{name}");
    }
    // The whole answer over TCP, as after a truncated answer (RFC 7766).
    let query = query("big.lab.test.", RecordType::TXT, None);
    let answer = lab.client().run(|| {
        let mut stream = TcpStream::connect((SERVER_V6, 53)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], &query[..]].concat()).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer).unwrap();
        answer
    });
    assert_eq!(text_bytes(&Message::from_vec(&answer.unwrap()).unwrap()), BIG_TXT_BYTES);
}

/// The value of an ethtool flag of `lab0` in the calling thread's namespace.
fn ethtool(command: u32) -> u32 {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut value = [command, 7];
    // SAFETY: ifreq is plain data, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    INTERFACE.bytes().zip(&mut request.ifr_name).for_each(|(from, to)| *to = from as libc::c_char);
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: SIOCETHTOOL gets an ifreq that points to the two words of an ethtool_value.
    assert_eq!(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) }, 0);
    value[1]
}

#[test]
fn options_configure_the_link() {
    let options = LabOptions { mtu: 1280, offloads: false, web: false, dns: false };
    let lab = Lab::new(&options).unwrap();
    // ETHTOOL_GTSO, ETHTOOL_GGSO, ETHTOOL_GGRO.
    let flags = || [ethtool(0x1e), ethtool(0x23), ethtool(0x2b)];
    for namespace in [lab.client(), lab.server()] {
        assert_eq!(namespace.run(flags).unwrap(), [0, 0, 0]);
    }
    // Port 80 is free for another server, and a segment carries MTU - 40 - 12 (timestamps) bytes.
    let segment = lab.server().run(|| {
        let listener = TcpListener::bind(SocketAddr::from((SERVER_V4, 80))).unwrap();
        let client = lab.client().run(|| TcpStream::connect((SERVER_V4, 80)).unwrap()).unwrap();
        listener.accept().unwrap();
        nix::sys::socket::getsockopt(&client, nix::sys::socket::sockopt::TcpMaxSeg).unwrap()
    });
    assert_eq!(segment.unwrap(), 1280 - 40 - 12);

    let lab = Lab::new(&LabOptions { web: false, dns: false, ..LabOptions::default() }).unwrap();
    assert_eq!(lab.client().run(|| ethtool(0x1e)).unwrap(), 1, "TSO is on by default");
    for mtu in [1279, 65_536] {
        let error = Lab::new(&LabOptions { mtu, ..LabOptions::default() }).unwrap_err();
        assert_eq!(crafter_tests::exit::code(&error), crafter_tests::exit::USAGE, "{error}");
    }
}

#[test]
fn lab_leaves_nothing_behind() {
    let lab = lab();
    let canaries = [Canary::new(lab.client()), Canary::new(lab.server())];
    // Connections that are still open when the lab is dropped.
    let idle = lab.client().run(|| TcpStream::connect((SERVER_V4, 80)).unwrap()).unwrap();
    let mut child = lab.command("sleep").arg("100").spawn().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    drop(idle);
    assert!(canaries.iter().all(Canary::exists));
    drop(lab);
    Canary::assert_destroyed(&canaries, Duration::from_secs(2));
}
