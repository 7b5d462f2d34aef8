//! A connection that is half-open after a SYN-ACK is reset by crafter before its lease ends, so that the kernel resets
//! nothing. Captures in the server's namespace show who sent which RST. Positive control: a connection left open on
//! purpose, which the kernel resets when the server retransmits its SYN-ACK.

use std::{
    cell::Cell,
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, TcpListener},
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use crafter::{
    datapath::maps::Terms,
    lab::{INTERFACE, Lab, NetNs, SERVER_V4},
    layer::{Ip, Packet, Tcp},
    packet::{Flags, TcpView},
    session::{Event, Outcome, Pace, Script, Session, SessionOptions, SrOptions, Step},
};
use crafter_tests::{
    capture::{self, CONTROL, Capture, from, rsts},
    leak::Parallel,
    packets,
    peer::{Nginx, wait_for},
    service::{NOBODY, Service},
    slow,
    testbed::{self, ENDS, lab},
    wire, within,
};
use nix::sys::signal::Signal;

/// Linux retransmits a SYN-ACK after 1 s; a RST of the kernel would have been sent by then.
const REPEATED: Duration = Duration::from_secs(3);

fn syn(server: IpAddr, more: &str) -> String {
    let ip = if server.is_ipv4() { "IP" } else { "IPv6" };
    format!(r#"{ip}(dst="{server}")/TCP({more}, flags="S", seq=7)"#)
}

fn leave_open() -> SessionOptions {
    SessionOptions { leave_open: true, ..SessionOptions::default() }
}

/// Captures the server's packets while `work` runs, and during the three seconds after it.
fn watched<T>(server: &NetNs, work: impl FnOnce() -> T) -> (T, Vec<capture::Packet>, Vec<capture::Packet>) {
    watched_for(server, CONTROL, work)
}

/// Like [`watched`] with another filter: tcpdump may lose packets if thousands arrive at once on a busy machine.
fn watched_for<T>(
    server: &NetNs,
    filter: &str,
    work: impl FnOnce() -> T,
) -> (T, Vec<capture::Packet>, Vec<capture::Packet>) {
    let meanwhile = Capture::start(server, INTERFACE, Some(filter));
    let result = work();
    let after = Capture::start(server, INTERFACE, Some(filter));
    let meanwhile = meanwhile.finish();
    sleep(REPEATED);
    (result, meanwhile, after.finish())
}

/// Asserts that `local` sent exactly one RST, with the sequence number that the server expects, and nothing after it.
/// On a busy machine the server retransmits its SYN-ACK before.
#[track_caller]
fn assert_reset(local: SocketAddr, meanwhile: &[capture::Packet], after: &[capture::Packet]) {
    let resets: Vec<_> = from(meanwhile, local).into_iter().filter(|packet| packet.is_rst()).collect();
    assert_eq!(resets.len(), 1, "{meanwhile:?}");
    assert_eq!((resets[0].flags, resets[0].seq, resets[0].checksum), (Some(4), 8, Some(true)), "{resets:?}");
    let at = meanwhile.iter().position(|packet| packet.source == local && packet.is_rst()).expect("the RST");
    let syn_acks = |packets: &[capture::Packet]| packets.iter().filter(|packet| packet.destination == local).count();
    assert!(syn_acks(&meanwhile[..at]) >= 1, "{meanwhile:?}");
    assert_eq!((syn_acks(&meanwhile[at..]), syn_acks(after)), (0, 0), "{meanwhile:?}\n{after:?}");
    assert!(from(after, local).is_empty(), "{after:?}");
}

/// Positive control: the server retransmits its SYN-ACK, and the client's kernel sends a RST.
#[track_caller]
fn assert_left_open(local: SocketAddr, meanwhile: &[capture::Packet], after: &[capture::Packet]) {
    // On a busy machine the server retransmits it while other requests are in progress.
    let all: Vec<capture::Packet> = [meanwhile, after].concat();
    let reset = all.iter().position(|packet| packet.source == local && packet.is_rst());
    let before = &all[..reset.unwrap_or_else(|| panic!("no RST of the kernel: {all:?}"))];
    let syn_acks = before.iter().filter(|packet| packet.destination == local && packet.is_syn()).count();
    assert!(syn_acks >= 2, "{all:?}");
}

/// Exchanges these packets in a session of its own; returns the number of connections that it reset.
fn exchanged(lab: &Lab, options: SessionOptions, texts: &[String]) -> u64 {
    within(lab.client(), async || {
        let session = Session::new(options);
        for text in texts {
            let exchanged = session.sr(packets(text), &SrOptions::default()).await.expect(text);
            assert_eq!(exchanged.account.unanswered, 0, "{}", exchanged.account);
            assert_eq!(exchanged.account.half_open_reset, 0, "a reset before the session ends");
        }
        session.close().await
    })
}

#[test]
fn half_open_connections_are_reset_by_crafter_only() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let (ports, control) = ([50_001_u16, 50_002], 50_003);
    let (resets, meanwhile, after) = watched(lab.server(), || {
        // As a packet and as a frame, over both IP versions.
        let asked = ENDS.map(|(_, server)| {
            [
                syn(server, &format!("sport={}, dport=80", ports[0])),
                format!("Ether()/{}", syn(server, &format!("sport={}, dport=80", ports[1]))),
            ]
        });
        let resets = exchanged(&lab, SessionOptions::default(), asked.as_flattened());
        let control = ENDS.map(|(_, server)| syn(server, &format!("sport={control}, dport=80")));
        assert_eq!(exchanged(&lab, leave_open(), &control), 0);
        resets
    });
    assert_eq!(resets, 4);
    for (client, _) in ENDS {
        for port in ports {
            assert_reset(SocketAddr::new(client, port), &meanwhile, &after);
        }
        assert_left_open(SocketAddr::new(client, control), &meanwhile, &after);
    }
}

/// Resets the open ports of a large scan at the session's rate, not at the lower rate of the exchange.
#[test]
fn open_ports_of_a_scan_are_reset_at_a_pace() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let listen = |port| TcpListener::bind((SERVER_V4, port)).expect("a port");
    let open: BTreeSet<u16> = (10_000..12_000).step_by(10).collect();
    let _listeners: Vec<_> = lab.server().run(|| open.iter().map(|&port| listen(port)).collect()).expect("the server");
    let local = SocketAddr::new(ENDS[0].0, 50_000);
    let resets_only = format!("src host {} and tcp[13] & 4 != 0", ENDS[0].0);
    let ((resets, events), meanwhile, after) = watched_for(lab.server(), &resets_only, || {
        within(lab.client(), async || {
            let session = Session::new(SessionOptions::default());
            let syns = packets(&syn(ENDS[0].1, "sport=50000, dport=(10000,11999)"));
            let exchanged = session.sr(syns, &SrOptions::default()).await.expect("an exchange");
            assert_eq!(exchanged.account.answered, 2000, "{}", exchanged.account);
            let (began, mut events) = (Instant::now(), Vec::new());
            let observer = &mut |event: &Event<'_>| events.push((event.outcome, event.bytes.to_vec()));
            let resets = session.reset_half_open(Pace { rate: Some(1.0) }, observer).await;
            let took = began.elapsed();
            // The pace allows a burst of a tenth of a second: at most 100 leave at once.
            assert!(took >= Duration::from_millis(95), "200 resets at 1,000 per second took only {took:?}");
            assert_eq!(session.close().await, 0, "nothing is left to reset");
            (resets, events)
        })
    });
    assert_eq!((resets, events.len()), (200, 200));
    for (what, bytes) in events {
        let reset = Packet::from_ip(&bytes);
        assert_eq!((what, reset.get::<Tcp>().and_then(|tcp| tcp.flags)), (Outcome::Reset, Some(Flags::RST)));
    }
    let sent = from(&meanwhile, local).into_iter().filter(|packet| packet.is_rst());
    let mut ports: Vec<u16> = sent.map(|packet| packet.destination.port()).collect();
    ports.sort_unstable();
    assert_eq!(ports, open.into_iter().collect::<Vec<_>>());
    assert!(from(&after, local).is_empty(), "{after:?}");
}

/// Connections are not reset between two exchanges, nor at the end if the user acknowledged or reset them.
#[test]
fn connections_continued_or_reset_by_the_user_are_not_reset() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let [acknowledged, reset] = [50_001_u16, 50_002];
    let (resets, meanwhile, after) = watched(lab.server(), || {
        within(lab.client(), async || {
            let session = Session::new(SessionOptions::default());
            let options = SrOptions::default();
            let mut peer_seqs = [0; 2];
            for (port, peer_seq) in [acknowledged, reset].into_iter().zip(&mut peer_seqs) {
                let syn = packets(&syn(ENDS[0].1, &format!("sport={port}, dport=80"))).remove(0);
                let reply = session.sr1(syn, &options).await.expect("sent").expect("a SYN-ACK");
                *peer_seq = reply.packet.get::<Tcp>().and_then(|tcp| tcp.seq).expect("a number").wrapping_add(1);
            }
            // Waits until the server retransmits both SYN-ACKs.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let segment = |port: u16, flags: &str, ack: u32| {
                Ip::to(SERVER_V4) / Tcp::to(80).sport(port).flags(flags).seq(8).ack(ack)
            };
            let get = segment(acknowledged, "PA", peer_seqs[0]) / "GET /small HTTP/1.0\r\n\r\n";
            let next = 8 + get.build().expect("a packet").len() as u32 - 40;
            let multi = SrOptions { multi: true, timeout: Duration::from_millis(300), ..options };
            // Acknowledges the whole page and the FIN; the server would retransmit the rest to a port that the kernel
            // owns by then.
            let (mut request, mut expected_seq, mut page, mut is_over) = (get, peer_seqs[0], Vec::new(), false);
            for _ in 0..20 {
                let exchanged = session.sr([request], &multi).await.expect("an exchange");
                let replies = exchanged.answered.into_iter().map(|pair| pair.reply).chain(exchanged.unmatched);
                for reply in replies {
                    let segment = TcpView::parse(&reply.bytes).expect("a segment");
                    if segment.destination_port == acknowledged && segment.seq == expected_seq {
                        page.extend(segment.payload());
                        is_over |= segment.flags.contains(Flags::FIN);
                        expected_seq = expected_seq.wrapping_add(segment.payload().len() as u32 + u32::from(is_over));
                    }
                }
                request = Ip::to(SERVER_V4) / Tcp::to(80).sport(acknowledged).flags("A").seq(next).ack(expected_seq);
                if is_over {
                    session.send([request], Pace::default()).await.expect("sent");
                    break;
                }
            }
            assert!(is_over && String::from_utf8_lossy(&page).contains("HTTP/1.1 200"), "{page:?}");
            // Waits for a SYN-ACK that may be in flight.
            tokio::time::sleep(Duration::from_millis(100)).await;
            session.send([segment(reset, "R", 0)], Pace::default()).await.expect("sent");
            session.close().await
        })
    });
    assert_eq!(resets, 0);
    let client = ENDS[0].0;
    let crafted: Vec<_> = from(&meanwhile, SocketAddr::new(client, reset)).into_iter().filter(|p| p.is_rst()).collect();
    assert_eq!((crafted.len(), crafted[0].seq), (1, 8));
    assert!(from(&after, SocketAddr::new(client, reset)).is_empty(), "{after:?}");
    let acknowledged = SocketAddr::new(client, acknowledged);
    assert_eq!(rsts(&meanwhile, acknowledged) + rsts(&after, acknowledged), 0, "{meanwhile:?}\n{after:?}");
}

/// Sends SYNs, each from a newly chosen port, of which a session keeps 256.
struct Syns<'a> {
    left: usize,
    answered: &'a Cell<usize>,
    until: Instant,
}

impl Script for Syns<'_> {
    fn next(&mut self, now: Instant) -> Step {
        if self.left > 0 {
            self.left -= 1;
            return Step::Send(Ip::to(SERVER_V4) / Tcp::to(80).flags("S").seq(7));
        }
        if now < self.until && self.answered.get() < 300 { Step::Wait(self.until) } else { Step::Done }
    }

    fn handle(&mut self, event: &Event<'_>, _: Instant) {
        let is_answer = matches!(event.outcome, Outcome::Matched { .. });
        self.answered.set(self.answered.get() + usize::from(is_answer));
    }

    fn fresh_ports(&self) -> bool {
        true
    }
}

#[test]
fn early_released_port_is_reset_first() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let (resets, meanwhile, after) = watched(lab.server(), || {
        within(lab.client(), async || {
            let session = Session::new(SessionOptions::default());
            let answered = Cell::new(0);
            let mut syns = Syns { left: 300, answered: &answered, until: Instant::now() + Duration::from_secs(5) };
            let account = session.run(&mut syns).await.expect("sent");
            assert_eq!((answered.get(), account.requests), (300, 300), "{account}");
            assert!(account.agrees(), "{account}");
            (account.half_open_reset, session.close().await)
        })
    });
    assert_eq!(resets, (300 - 256, 256));
    // A port that was released may be chosen again.
    let ports = |selects: fn(&capture::Packet) -> bool| {
        let ours = meanwhile.iter().filter(|packet| packet.source.ip() == ENDS[0].0 && selects(packet));
        let mut ports: Vec<u16> = ours.map(|packet| packet.source.port()).collect();
        ports.sort_unstable();
        ports
    };
    let reset = ports(capture::Packet::is_rst);
    assert_eq!((reset.len(), reset), (300, ports(capture::Packet::is_syn)), "each SYN is reset once");
    assert_eq!(meanwhile.iter().filter(|packet| packet.is_rst()).count(), 300);
    assert!(after.iter().all(|packet| packet.source.ip() != ENDS[0].0), "{after:?}");
}

/// A dropped session resets its connections, too. A connection that the kernel reset, or whose source is not this host,
/// is not reset.
#[test]
fn dropped_session_resets_only_its_own_connections() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let [dropped, passed] = [50_001_u16, 50_002];
    let other: IpAddr = [192, 0, 2, 77].into();
    // Routes the server's answers to this address to the client, which does not have it.
    let mac = lab.client().run(|| wire::mac(INTERFACE)).expect("the client");
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let neighbour = ["neigh", "replace", "192.0.2.77", "lladdr", &mac, "dev", INTERFACE];
    testbed::run(lab.server().command("ip").args(neighbour));
    let ((), meanwhile, after) = watched(lab.server(), || {
        within(lab.client(), async || {
            let session = Session::new(SessionOptions::default());
            let asked = packets(&syn(ENDS[0].1, &format!("sport={dropped}, dport=80"))).remove(0);
            session.sr1(asked, &SrOptions::default()).await.expect("sent").expect("a SYN-ACK");
            drop(session);

            let terms = Terms { observe: true, suppress: false, ..Terms::default() };
            let session = Session::new(SessionOptions { terms, ..SessionOptions::default() });
            let asked = packets(&syn(ENDS[0].1, &format!("sport={passed}, dport=80"))).remove(0);
            session.sr1(asked, &SrOptions::default()).await.expect("sent").expect("a SYN-ACK");
            assert_eq!(session.close().await, 0, "the kernel has reset it already");

            let session = Session::new(SessionOptions::default());
            let spoofed = format!(r#"IP(src="{other}", dst="{SERVER_V4}")/TCP(sport=50003, dport=80, flags="S")"#);
            let short = SrOptions { timeout: Duration::from_millis(300), ..SrOptions::default() };
            session.sr1(packets(&spoofed).remove(0), &short).await.expect("sent");
            assert_eq!(session.close().await, 0, "nothing was leased");
        })
    });
    let client = ENDS[0].0;
    assert_reset(SocketAddr::new(client, dropped), &meanwhile, &after);
    assert_eq!(rsts(&meanwhile, SocketAddr::new(client, passed)), 1, "the kernel's RST: {meanwhile:?}");
    let spoofed = SocketAddr::new(other, 50_003);
    let answers = meanwhile.iter().filter(|packet| packet.destination == spoofed && packet.is_syn()).count();
    assert!(answers >= 1, "the server did not answer: {meanwhile:?}");
    assert_eq!(rsts(&meanwhile, spoofed) + rsts(&after, spoofed), 0, "{meanwhile:?}");
}

/// An unprivileged client of the service: the RST is sent through its lease, as the policy allows.
#[test]
fn half_open_connections_are_reset_through_the_service() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let service = Service::start(lab.client(), "[[rule]]\nuser = 65534\npackets_per_second = \"unlimited\"\n");
    let (_, meanwhile, after) = watched(lab.server(), || {
        for (_, server) in ENDS {
            let of = |port: u16| syn(server, &format!("sport={port}, dport=80"));
            let run = |arguments: &[&str]| -> serde_json::Value {
                serde_json::from_str(&service.succeed(NOBODY, arguments)).expect("JSON")
            };
            let answer = run(&["--json", "sr1", &of(50_001)]);
            assert_eq!(answer["account"]["half_open_reset"], 1, "{answer}");
            assert_eq!(answer["verdict"]["state"], "open", "{answer}");
            let answer = run(&["--json", "sr1", "--leave-open", &of(50_002)]);
            assert_eq!(answer["account"]["half_open_reset"], 0, "{answer}");
        }
    });
    for (client, _) in ENDS {
        assert_reset(SocketAddr::new(client, 50_001), &meanwhile, &after);
        assert_left_open(SocketAddr::new(client, 50_002), &meanwhile, &after);
    }
}

/// Resets sent while a session closes are reported to the observer, so that captures include them.
#[test]
fn resets_on_close_are_observed() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let (resets, observed) = within(lab.client(), async || {
        let session = Session::new(SessionOptions::default());
        let asked = packets(&syn(ENDS[0].1, "sport=50001, dport=80")).remove(0);
        session.sr1(asked, &SrOptions::default()).await.expect("sent").expect("a SYN-ACK");
        let mut observed = Vec::new();
        let resets = session.close_with(&mut |event| observed.push((event.outcome, event.bytes.to_vec()))).await;
        (resets, observed)
    });
    assert_eq!((resets, observed.len()), (1, 1));
    let (what, bytes) = &observed[0];
    let reset = TcpView::parse(bytes).expect("a segment");
    assert_eq!((*what, reset.flags, reset.seq), (Outcome::Reset, Flags::RST, 8));
}

/// The service exits or hangs while resets are sent at the limit of its rate: the command reports it and exits in time.
#[test]
fn service_stop_during_resets_is_reported() {
    let _parallel = Parallel::begin();
    const RATE: u64 = 100;
    let policy = format!("[[rule]]\nuser = 65534\npackets_per_second = {RATE}\nburst = 1\n");
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGSTOP] {
        // A separate lab for each signal: the kernel later resets what is still half-open.
        let lab = lab();
        let listen = |port| TcpListener::bind((SERVER_V4, port)).expect("a port");
        let _listeners: Vec<_> =
            lab.server().run(|| (10_000..10_300).map(listen).collect::<Vec<_>>()).expect("the server");
        let mut service = Service::start(lab.client(), &policy);
        let mut command = service.command(NOBODY, &["sr", &syn(ENDS[0].1, "sport=50000, dport=(10000,10299)")]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("crafter");
        // 300 RSTs take three seconds at this rate.
        wait_for("the first resets", Duration::from_secs(20), || {
            (lab.tap().count().expect("RSTs at the server") >= 20).then_some(())
        });
        let began = Instant::now();
        service.signal(signal);
        let output = child.wait_with_output().expect("wait for crafter");
        let took = began.elapsed();
        service.signal(Signal::SIGCONT);
        service.kill();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{signal}: {message}");
        // The resets may take 5 s, the query for their result 2 s, releasing the leases 2 s.
        let longest = if signal == Signal::SIGSTOP { 9 } else { 4 };
        assert!(took < slow::allow(Duration::from_secs(longest + 2)), "{signal}: {took:?}: {message}");
        let expected = match signal {
            Signal::SIGSTOP => "no reply from the crafter service within 2s: the last resets may not have been sent",
            _ => "half-open connections are not reset: lost connection to the crafter service at ",
        };
        assert!(message.contains(expected), "{signal}: {message}");
        assert!(!message.contains("queue is full"), "{signal}: {message}");
        assert!(message.contains(";; reset "), "{signal}: no resets before the stop: {message}");
    }
}
