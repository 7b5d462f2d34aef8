//! Thousands of requests in flight to the kernel's own TCP, UDP and ICMP: every reply is matched or accounted for, and
//! the counters of the kernel half agree. Some tests check the wire with a capture in the server's namespace.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crafter::packet::Flags;
use crafter::{
    datapath::{
        maps::Terms,
        program::{Attach, LoadOptions},
    },
    driver::Options,
    error::Error,
    lab::{INTERFACE, Lab, SERVER_V4},
    layer::{Arp, Icmp, Ip, Packet, Tcp},
    session::{Exchanged, Outcome, Pace, Session, SessionOptions, SrOptions},
};
use crafter_common::reason::Reason;
use crafter_tests::{
    capture::{CONTROL, Capture, rsts},
    leak::{Parallel, assert_detached},
    packets,
    peer::{Dnsmasq, Nginx},
    slow::slowness,
    testbed::{self, CONTROL_PORT, ENDS, lab},
    within,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

fn options(attach: Attach) -> SessionOptions {
    SessionOptions { open: Options { attach, load: LoadOptions::default() }, ..SessionOptions::default() }
}

/// Runs `work` with a session in the lab's client and checks that nothing stays attached.
fn session<T: Send>(lab: &Lab, options: SessionOptions, work: impl AsyncFnOnce(&Session) -> T + Send) -> T {
    let result = within(lab.client(), async || {
        let session = Session::new(options);
        let result = work(&session).await;
        session.close().await;
        result
    });
    assert_detached(lab.client(), INTERFACE);
    result
}

async fn sr(session: &Session, text: &str) -> Exchanged {
    session.sr(packets(text), &SrOptions::default()).await.expect(text)
}

/// Asserts that each request was answered once and that every packet is accounted for.
#[track_caller]
fn assert_accounted(exchanged: &Exchanged, requests: usize) {
    let account = exchanged.account;
    let all = requests as u64;
    assert_eq!((account.requests, account.sent, account.answered), (all, all, all), "{account}");
    // On an emulated CPU the peer may retransmit before its first answer is processed.
    let again = if slowness() > 1 { account.duplicate } else { 0 };
    assert_eq!((account.received, account.matched), (all + again, all), "{account}");
    assert!(account.agrees(), "{account}");
    assert_eq!((account.kernel.delivered, account.kernel.crafted), (all + again, all), "{account}");
    assert!(exchanged.unanswered.is_empty() && exchanged.unmatched.is_empty());
    let answered: HashSet<usize> = exchanged.answered.iter().map(|pair| pair.number).collect();
    assert_eq!(answered.len(), requests, "a request was answered twice");
}

#[test]
fn each_mode_matches_ten_thousand_requests_in_flight() {
    let _parallel = Parallel::begin();
    let lab = lab();
    for attach in [Attach::Native, Attach::Generic, Attach::Tc] {
        for (_, server) in ENDS {
            let ip = if server.is_ipv4() { "IP" } else { "IPv6" };
            let syns = format!(r#"{ip}(dst="{server}")/TCP(dport=(1,10000), flags="S", seq=7)"#);
            let exchanged = session(&lab, options(attach), async |session| sr(session, &syns).await);
            assert_accounted(&exchanged, 10_000);
            for pair in &exchanged.answered {
                let reset = pair.reply.packet.get::<Tcp>().expect("a segment");
                assert_eq!(reset.sport, pair.request.get::<Tcp>().expect("a SYN").dport);
                assert_eq!((reset.ack, reset.flags), (Some(8), Some(Flags::RST | Flags::ACK)));
            }
        }
    }
}

#[test]
fn scan_of_every_port_is_fully_answered() {
    let _parallel = Parallel::begin();
    let lab = lab();
    // Prevents a retransmitted SYN-ACK on a busy machine.
    testbed::run(lab.server().command("sysctl").args(["-q", "-w", "net.ipv4.tcp_synack_retries=0"]));
    let nginx = Nginx::start(lab.server());
    let exchanged = session(&lab, options(Attach::Auto), async |session| {
        sr(session, r#"IP(dst="192.0.2.1")/TCP(dport=(1,65535), flags="S")"#).await
    });
    drop(nginx);
    assert_accounted(&exchanged, 65_535);
    let open = exchanged.answered.iter().filter_map(|pair| {
        let answer = pair.reply.packet.get::<Tcp>()?;
        (answer.flags? == Flags::SYN | Flags::ACK).then_some(answer.sport?)
    });
    assert_eq!(open.collect::<Vec<_>>(), [80], "only port 80 of nginx is open");
}

/// Sends from 2,000 ports at once; no RST is sent while they are owned, and the kernel has them back afterwards.
#[test]
fn no_rst_is_sent_from_2000_source_ports() {
    let _parallel = Parallel::begin();
    // Each port needs a descriptor; the default limit is 1,024.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("a higher limit");
    let lab = lab();
    let (client, server) = ENDS[0];
    // Prevents a SYN-ACK that is retransmitted after the session and reset by the kernel.
    testbed::run(lab.server().command("sysctl").args(["-q", "-w", "net.ipv4.tcp_synack_retries=0"]));
    let _nginx = Nginx::start(lab.server());
    let observing = SessionOptions { terms: Terms { observe: true, ..Terms::default() }, ..options(Attach::Auto) };
    for (options, observed) in [(options(Attach::Auto), false), (observing, true)] {
        // Started by this thread, because tcpdump exits with the thread that started it. The filter selects RSTs only:
        // tcpdump would lose some of the thousands of SYNs.
        let capture = Capture::start(lab.server(), INTERFACE, Some("tcp[13] & 4 != 0"));
        // Positive control: a SYN from an unowned port, and the kernel's RST.
        let control = CONTROL_PORT + u16::from(observed);
        testbed::unowned_syn(&lab, ENDS[0], control);
        testbed::wait_for_rst(&lab, SocketAddr::new(client, control));
        // Different ports in each round: nginx may retransmit to half-open ports of the round before, which the kernel
        // then resets.
        let (first, last) = if observed { (22_001, 24_000) } else { (20_001, 22_000) };
        let syns = format!(r#"IP(dst="{server}")/TCP(sport=({first},{last}), dport=80, flags="S")"#);
        let (exchanged, packets) = session(&lab, options, async |session| {
            let exchanged = sr(session, &syns).await;
            // Ends the capture while the ports are owned: afterwards the kernel resets retransmissions of nginx.
            (exchanged, capture.finish())
        });
        let escaped = packets.iter().filter(|packet| packet.is_rst() && (first..=last).contains(&packet.source.port()));
        assert_eq!(escaped.count(), 0, "RSTs sent while the ports are owned");
        assert!(rsts(&packets, SocketAddr::new(client, control)) > 0, "no RST from the unowned port");
        let account = exchanged.account;
        assert_eq!((account.sent, account.answered), (2000, 2000), "{account}");
        assert!(account.agrees(), "{account}");
        assert_eq!(account.suppressed > 0, observed, "suppressed RSTs are expected in observe mode only: {account}");
    }
    testbed::assert_refuses(&lab, SocketAddr::new(client, 20_001));
}

/// A suppressed RST is reported to the observer; with policy `pass` there is none.
#[test]
fn suppressed_rst_is_reported() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    for (suppress, resets) in [(true, 1), (false, 0)] {
        let terms = Terms { observe: true, suppress, ..Terms::default() };
        let events = session(&lab, SessionOptions { terms, ..options(Attach::Auto) }, async |session| {
            let mut events = Vec::new();
            let syn = packets(r#"IP(dst="192.0.2.1")/TCP(dport=80, flags="S")"#);
            let options = SrOptions { timeout: Duration::from_millis(300), multi: true, ..SrOptions::default() };
            let exchanged =
                session.sr_with(syn, &options, &mut |event| events.push((event.outcome, event.bytes.to_vec()))).await;
            assert_eq!(exchanged.expect("an exchange").account.suppressed, resets);
            events
        });
        let suppressed: Vec<Packet> = events
            .iter()
            .filter(|(what, _)| matches!(what, Outcome::Suppressed { reason: Reason::RstSuppressed }))
            .map(|(_, bytes)| Packet::from_ip(bytes))
            .collect();
        assert_eq!(suppressed.len() as u64, resets, "{events:?}");
        for packet in suppressed {
            assert_eq!(packet.get::<Tcp>().and_then(|tcp| tcp.dport), Some(80));
        }
    }
}

#[test]
fn icmp_errors_and_echo_replies_are_matched() {
    let _parallel = Parallel::begin();
    let lab = lab();
    // Disables the kernel's rate limits of ICMP errors, so that every request is answered.
    for limit in ["net.ipv4.icmp_ratelimit=0", "net.ipv4.icmp_msgs_per_sec=100000", "net.ipv4.icmp_msgs_burst=100000"] {
        testbed::run(lab.server().command("sysctl").args(["-qw", limit]));
    }
    session(&lab, options(Attach::Auto), async |session| {
        let exchanged = sr(session, r#"IP(dst="192.0.2.1")/UDP(dport=(20000,20999))/"hello""#).await;
        assert_accounted(&exchanged, 1000);
        for pair in &exchanged.answered {
            let error = pair.reply.packet.get::<Icmp>().expect("an ICMP error");
            assert_eq!((error.r#type, error.code), (Some(3), Some(3)));
        }
        for (_, server) in ENDS {
            let pings = if server.is_ipv4() {
                format!(r#"IP(dst="{server}")/ICMP(seq=(1,1000))/"ping""#)
            } else {
                format!(r#"IPv6(dst="{server}")/ICMPv6EchoRequest(seq=(1,1000))/"ping""#)
            };
            assert_accounted(&sr(session, &pings).await, 1000);
            // With a given identifier, and larger than the MTU, so that the reply is reassembled.
            let sized = pings.replace("seq=(1,1000)", "id=77, seq=(1,3)");
            assert_accounted(&sr(session, &sized).await, 3);
        }
    });
}

/// Answers to 200 queries from one port are matched by id and question.
#[test]
fn dns_answers_are_matched_by_id_and_question() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let _dnsmasq = Dnsmasq::start(lab.server());
    session(&lab, options(Attach::Auto), async |session| {
        let ask = r#"IP(dst="192.0.2.1")/UDP(dport=53)/DNS(id=(1,200), rd=1, qd=DNSQR(qname="lab.test"))"#;
        let exchanged = sr(session, ask).await;
        // More queries at once would overflow dnsmasq's socket buffer.
        assert_eq!(exchanged.account.answered, 200, "{}", exchanged.account);
        assert!(exchanged.account.agrees(), "{}", exchanged.account);
    });
}

#[test]
fn unanswered_requests_are_retried_and_returned() {
    let _parallel = Parallel::begin();
    let lab = lab();
    testbed::run(lab.server().command("iptables").args(["-A", "INPUT", "-p", "tcp", "--dport", "5000", "-j", "DROP"]));
    session(&lab, options(Attach::Auto), async |session| {
        let options = SrOptions { timeout: Duration::from_secs(1), retry: 2, ..SrOptions::default() };
        let began = Instant::now();
        let syns = packets(r#"IP(dst="192.0.2.1")/TCP(dport=[4999,5000,5001], flags="S")"#);
        let exchanged = session.sr(syns, &options).await.expect("an exchange");
        assert!(began.elapsed() >= Duration::from_secs(3), "three attempts of one second each");
        let account = exchanged.account;
        assert_eq!((account.requests, account.sent, account.answered, account.unanswered), (3, 5, 2, 1), "{account}");
        assert!(account.agrees(), "{account}");
        assert_eq!(exchanged.unanswered[0].get::<Tcp>().and_then(|tcp| tcp.dport), Some(5000));
        // Missing neighbours are resolved in parallel and counted as unroutable.
        let began = Instant::now();
        let pings = packets(r#"IP(dst=["192.0.2.1", "192.0.2.77", "192.0.2.78"])/ICMP()"#);
        let account = session.sr(pings, &options).await.expect("an exchange").account;
        assert_eq!((account.requests, account.sent, account.unroutable), (3, 1, 2), "{account}");
        assert!(began.elapsed() < Duration::from_secs(6), "neighbours were not resolved in parallel");
        let missing = session.sr(packets(r#"IP(dst="192.0.2.77")/ICMP()"#), &options).await;
        assert!(matches!(missing, Err(Error::NoNeighbour { .. })), "{missing:?}");
    });
}

#[test]
fn send_is_paced_and_needs_no_lease() {
    let _parallel = Parallel::begin();
    let lab = lab();
    session(&lab, options(Attach::Auto), async |session| {
        let began = Instant::now();
        let datagrams = packets(r#"IP(dst="192.0.2.1")/UDP(dport=(1,100))"#);
        let account = session.send(datagrams, Pace { rate: Some(500.0) }).await.expect("sent");
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(198), "100 packets at 500 per second take at least 198 ms, not {took:?}");
        assert_eq!((account.sent, account.requests), (100, 100), "{account}");
        // Sending without receiving is allowed from a port that another program holds.
        let taken = std::net::UdpSocket::bind("192.0.2.2:7000").expect("a socket");
        let datagram = packets(r#"IP(dst="192.0.2.1")/UDP(sport=7000, dport=9)"#);
        session.send(datagram.clone(), Pace::default()).await.expect("sent");
        let refused = session.sr(datagram, &SrOptions::default()).await;
        assert!(matches!(refused, Err(Error::PortTaken { .. })), "{refused:?}");
        drop(taken);
    });
}

/// Sends faster than the link: packets wait for room in the queue, and none is lost.
#[test]
fn full_transmit_queue_loses_no_packet() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let slow = ["qdisc", "add", "dev", INTERFACE, "root", "tbf", "rate", "1mbit", "burst", "4kb", "limit", "8kb"];
    testbed::run(lab.client().command("tc").args(slow));
    let exchanged = session(&lab, options(Attach::Auto), async |session| {
        sr(session, r#"IP(dst="192.0.2.1")/TCP(dport=(1,2000), flags="S")"#).await
    });
    let account = exchanged.account;
    assert_eq!((account.sent, account.not_sent, account.answered), (2000, 0, 2000), "{account}");
    assert!(account.kernel.turned_away > 0, "the queue was never full: {account}");
    assert!(account.agrees(), "{account}");
}

/// A handshake in several calls: the session keeps the port between them.
#[test]
fn session_keeps_the_port_between_calls() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let capture = Capture::start(lab.server(), INTERFACE, Some(CONTROL));
    let (client, server) = ENDS[0];
    let port = session(&lab, options(Attach::Auto), async |session| {
        let options = SrOptions::default();
        let syn = Ip::to(SERVER_V4) / Tcp::to(80).flags("S").seq(1000);
        let reply = session.sr1(syn, &options).await.expect("sent").expect("a SYN-ACK");
        let syn_ack = reply.packet.get::<Tcp>().expect("TCP").clone();
        assert_eq!(syn_ack.flags, Some(Flags::SYN | Flags::ACK));
        let (port, seq) = (syn_ack.dport.expect("a port"), syn_ack.seq.expect("a number").wrapping_add(1));
        let segment = |flags: &str| Tcp::to(80).sport(port).flags(flags).seq(1001).ack(seq);
        let ack = Ip::to(SERVER_V4) / segment("A");
        session.send([ack], Pace::default()).await.expect("sent");
        let get = Ip::to(SERVER_V4) / segment("PA") / "GET /small HTTP/1.0\r\n\r\n";
        let multi = SrOptions { timeout: Duration::from_millis(500), multi: true, ..SrOptions::default() };
        let exchanged = session.sr([get], &multi).await.expect("sent");
        let page: Vec<u8> = exchanged.answered.iter().flat_map(|pair| pair.reply.bytes.clone()).collect();
        let response = String::from_utf8_lossy(&page).into_owned();
        assert!(response.contains("HTTP/1.1 "), "{response}");
        port
    });
    let packets = capture.finish();
    let _ = server;
    // After the session the port is unowned: the kernel resets retransmissions of nginx.
    assert!(rsts(&packets, SocketAddr::new(client, port)) <= 3);
}

#[test]
fn ethernet_frames_are_matched_and_invalid_packets_refused() {
    let _parallel = Parallel::begin();
    let lab = lab();
    session(&lab, options(Attach::Auto), async |session| {
        let options = SrOptions { timeout: Duration::from_millis(500), ..SrOptions::default() };
        // A frame gets a lease like a packet.
        let framed = packets(r#"Ether()/IP(dst="192.0.2.1")/TCP(dport=9, flags="S")"#);
        assert_accounted(&session.sr(framed, &options).await.expect("an exchange"), 1);
        let invalid = async |text: &str, part: &str| {
            let error = session.sr(packets(text), &options).await.expect_err(text);
            assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains(part), "{text}: {error}");
        };
        invalid("TCP(dport=80)", "it begins with TCP").await;
        invalid(r#"Ether()/"payload""#, "name the interface").await;
        let large = format!(r#"IP(dst="192.0.2.1", flags="DF")/UDP(dport=9)/"{}""#, "x".repeat(1473));
        invalid(&large, "1501 bytes do not fit the MTU").await;
        let large = format!(r#"IP(dst="192.0.2.1")/TCP(dport=9)/"{}""#, "x".repeat(1461));
        invalid(&large, "1501 bytes do not fit the MTU").await;
        let error =
            session.sr(packets(r#"IP(dst="203.0.113.300")/ICMP()"#.replace("300", "3").as_str()), &options).await;
        // The lab's default route leads to the server, which drops the packet or answers with an ICMP error.
        assert!(error.is_ok(), "{error:?}");
    });
}

/// 192.0.2.2 is the client's own address, to which the kernel sends over `lo`.
#[test]
fn frames_to_this_host_do_not_refuse_the_others() {
    let _parallel = Parallel::begin();
    let lab = lab();
    session(&lab, options(Attach::Auto), async |session| {
        let options = SrOptions { timeout: Duration::from_millis(500), ..SrOptions::default() };
        for text in [
            r#"ARP(pdst="192.0.2.0/30")"#,
            r#"Ether(dst="ff:ff:ff:ff:ff:ff")/ARP(pdst="192.0.2.0/30")"#,
            r#"Ether()/IP(dst=["192.0.2.2","192.0.2.1"])/ICMP()"#,
        ] {
            let result = session.sr(packets(text), &options).await.unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((result.answered.len(), result.account.answered), (1, 1), "{text}: {}", result.account);
            // Nobody has 192.0.2.0 and 192.0.2.3, for which frames leave.
            assert_eq!(result.account.unroutable, 1, "{text}: {}", result.account);
        }
        // Alone, it is an error.
        let error = session.sr(packets(r#"ARP(pdst="192.0.2.2")"#), &options).await.expect_err("no frame");
        assert!(error.to_string().contains("over lo, where packets have no Ethernet header"), "{error}");
    });
}

/// ARP has no ports: the answer is delivered to the kernel, too, and received through a tap.
#[test]
fn arp_request_is_answered() {
    let _parallel = Parallel::begin();
    let lab = lab();
    session(&lab, options(Attach::Auto), async |session| {
        let reply = session
            .sr1("ARP(pdst=\"192.0.2.1\")".parse().expect("a packet"), &SrOptions::default())
            .await
            .expect("sent")
            .expect("an answer");
        let arp = reply.packet.get::<Arp>().expect("ARP");
        assert_eq!((arp.op, arp.psrc.map(IpAddr::V4)), (Some(2), Some(SERVER_V4.into())));
    });
}
