//! A SYN-ACK that nobody acknowledged is reset by crafter before its lease ends, and the kernel resets nothing: tcpdump
//! in the server's namespace is the judge. The control is a connection that is left open, which the kernel resets when
//! the server sends its SYN-ACK again.

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
    expr::PacketSet,
    lab::{INTERFACE, Lab, NetNs, SERVER_V4},
    layer::{Ip, Packet, Tcp},
    packet::{Flags, TcpView},
    session::{Event, Outcome, Pace, Script, Session, SessionOptions, SrOptions, Step},
};
use crafter_tests::{
    judge::{self, CONTROL, Capture, from, rsts},
    leak::Parallel,
    peer::{Nginx, wait_for},
    service::{NOBODY, Service},
    slow,
    stage::{self, ENDS, lab},
    wire, within,
};
use nix::sys::signal::Signal;

/// Linux repeats a SYN-ACK after 1 s; a kernel that answered it would have done so by now.
const REPEATED: Duration = Duration::from_secs(3);

fn packets(text: &str) -> Vec<Packet> {
    PacketSet::parse(text).expect(text).packets(1 << 20).expect(text).collect()
}

fn syn(server: IpAddr, more: &str) -> String {
    let ip = if server.is_ipv4() { "IP" } else { "IPv6" };
    format!(r#"{ip}(dst="{server}")/TCP({more}, flags="S", seq=7)"#)
}

fn leave_open() -> SessionOptions {
    SessionOptions { leave_open: true, ..SessionOptions::default() }
}

/// What is on the wire of the server while `work` runs, and in the three seconds after it.
fn watched<T>(server: &NetNs, work: impl FnOnce() -> T) -> (T, Vec<judge::Packet>, Vec<judge::Packet>) {
    watched_for(server, CONTROL, work)
}

/// As [`watched`], for the packets of a filter: of thousands at once tcpdump loses some on a busy machine.
fn watched_for<T>(
    server: &NetNs,
    filter: &str,
    work: impl FnOnce() -> T,
) -> (T, Vec<judge::Packet>, Vec<judge::Packet>) {
    let meanwhile = Capture::start(server, INTERFACE, Some(filter));
    let result = work();
    let after = Capture::start(server, INTERFACE, Some(filter));
    let meanwhile = meanwhile.finish();
    sleep(REPEATED);
    (result, meanwhile, after.finish())
}

/// From `local` one RST, with the number that the SYN-ACK expects, and nothing behind it. On a busy machine the server
/// sends its SYN-ACK again before it.
#[track_caller]
fn assert_reset(local: SocketAddr, meanwhile: &[judge::Packet], after: &[judge::Packet]) {
    let resets: Vec<_> = from(meanwhile, local).into_iter().filter(|packet| packet.is_rst()).collect();
    assert_eq!(resets.len(), 1, "{meanwhile:?}");
    assert_eq!((resets[0].flags, resets[0].seq, resets[0].checksum), (Some(4), 8, Some(true)), "{resets:?}");
    let at = meanwhile.iter().position(|packet| packet.source == local && packet.is_rst()).expect("the RST");
    let syn_acks = |packets: &[judge::Packet]| packets.iter().filter(|packet| packet.destination == local).count();
    assert!(syn_acks(&meanwhile[..at]) >= 1, "{meanwhile:?}");
    assert_eq!((syn_acks(&meanwhile[at..]), syn_acks(after)), (0, 0), "{meanwhile:?}\n{after:?}");
    assert!(from(after, local).is_empty(), "{after:?}");
}

/// The control: the server repeats its SYN-ACK, and the client's kernel resets.
#[track_caller]
fn assert_left_open(local: SocketAddr, meanwhile: &[judge::Packet], after: &[judge::Packet]) {
    // On a busy machine the server repeats it while others are still at work.
    let all: Vec<judge::Packet> = [meanwhile, after].concat();
    let reset = all.iter().position(|packet| packet.source == local && packet.is_rst());
    let before = &all[..reset.unwrap_or_else(|| panic!("no RST of the kernel: {all:?}"))];
    let syn_acks = before.iter().filter(|packet| packet.destination == local && packet.is_syn()).count();
    assert!(syn_acks >= 2, "{all:?}");
}

/// Sends these packets in a session of its own; how many connections it reset.
fn exchanged(lab: &Lab, options: SessionOptions, texts: &[String]) -> u64 {
    within(lab.client(), async || {
        let session = Session::new(options);
        for text in texts {
            let exchanged = session.sr(packets(text), &SrOptions::default()).await.expect(text);
            assert_eq!(exchanged.account.unanswered, 0, "{}", exchanged.account);
            assert_eq!(exchanged.account.half_open_reset, 0, "before the session ends");
        }
        session.close().await
    })
}

#[test]
fn the_only_rst_is_crafters_and_leaves_before_the_session_ends() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let (ports, control) = ([50_001_u16, 50_002], 50_003);
    let (resets, meanwhile, after) = watched(lab.server(), || {
        // As a packet and as a frame, over either IP version.
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

/// Of thousands of ports some are open; the RSTs keep to a pace, but not to one that is for a few SYNs.
#[test]
fn of_many_ports_those_that_are_open() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let listen = |port| TcpListener::bind((SERVER_V4, port)).expect("a port");
    let open: BTreeSet<u16> = (10_000..12_000).step_by(10).collect();
    let _listeners: Vec<_> = lab.server().run(|| open.iter().map(|&port| listen(port)).collect()).expect("the server");
    let local = SocketAddr::new(ENDS[0].0, 50_000);
    let resets_only = format!("src host {} and tcp[13] & 4 != 0", ENDS[0].0);
    let ((resets, told), meanwhile, after) = watched_for(lab.server(), &resets_only, || {
        within(lab.client(), async || {
            let session = Session::new(SessionOptions::default());
            let syns = packets(&syn(ENDS[0].1, "sport=50000, dport=(10000,11999)"));
            let exchanged = session.sr(syns, &SrOptions::default()).await.expect("an exchange");
            assert_eq!(exchanged.account.answered, 2000, "{}", exchanged.account);
            let (began, mut told) = (Instant::now(), Vec::new());
            let observer = &mut |event: &Event<'_>| told.push((event.outcome, event.bytes.to_vec()));
            let resets = session.reset_half_open(Pace { rate: Some(1.0) }, observer).await;
            let took = began.elapsed();
            // A tenth of a second may be made up for: 100 at most leave without a wait.
            assert!(took >= Duration::from_millis(95), "200 at 1000 a second: {took:?}");
            assert_eq!(session.close().await, 0, "all are reset already");
            (resets, told)
        })
    });
    assert_eq!((resets, told.len()), (200, 200));
    for (what, bytes) in told {
        let reset = Packet::from_ip(&bytes);
        assert_eq!((what, reset.get::<Tcp>().and_then(|tcp| tcp.flags)), (Outcome::Reset, Some(Flags::RST)));
    }
    let sent = from(&meanwhile, local).into_iter().filter(|packet| packet.is_rst());
    let mut ports: Vec<u16> = sent.map(|packet| packet.destination.port()).collect();
    ports.sort_unstable();
    assert_eq!(ports, open.into_iter().collect::<Vec<_>>());
    assert!(from(&after, local).is_empty(), "{after:?}");
}

/// Between two exchanges nothing is reset, and nothing at the end that was acknowledged, or reset, by hand.
#[test]
fn what_the_user_goes_on_with_is_not_reset() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let [acknowledged, reset] = [50_001_u16, 50_002];
    let (resets, meanwhile, after) = watched(lab.server(), || {
        within(lab.client(), async || {
            let session = Session::new(SessionOptions::default());
            let options = SrOptions::default();
            let mut theirs = [0; 2];
            for (port, theirs) in [acknowledged, reset].into_iter().zip(&mut theirs) {
                let syn = packets(&syn(ENDS[0].1, &format!("sport={port}, dport=80"))).remove(0);
                let reply = session.sr1(syn, &options).await.expect("sent").expect("a SYN-ACK");
                *theirs = reply.packet.get::<Tcp>().and_then(|tcp| tcp.seq).expect("a number").wrapping_add(1);
            }
            // The server sends both SYN-ACKs again.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let segment = |port: u16, flags: &str, ack: u32| {
                Ip::to(SERVER_V4) / Tcp::to(80).sport(port).flags(flags).seq(8).ack(ack)
            };
            let get = segment(acknowledged, "PA", theirs[0]) / "GET /small HTTP/1.0\r\n\r\n";
            let next = 8 + get.build().expect("a packet").len() as u32 - 40;
            let multi = SrOptions { multi: true, timeout: Duration::from_millis(300), ..options };
            // All of the page is acknowledged, and the FIN: what is not, the server sends again, to a port that is the
            // kernel's by then.
            let (mut request, mut behind, mut page, mut is_over) = (get, theirs[0], Vec::new(), false);
            for _ in 0..20 {
                let exchanged = session.sr([request], &multi).await.expect("an exchange");
                let replies = exchanged.answered.into_iter().map(|pair| pair.reply).chain(exchanged.unmatched);
                for reply in replies {
                    let segment = TcpView::parse(&reply.bytes).expect("a segment");
                    if segment.destination_port == acknowledged && segment.seq == behind {
                        page.extend(segment.payload());
                        is_over |= segment.flags.contains(Flags::FIN);
                        behind = behind.wrapping_add(segment.payload().len() as u32 + u32::from(is_over));
                    }
                }
                request = Ip::to(SERVER_V4) / Tcp::to(80).sport(acknowledged).flags("A").seq(next).ack(behind);
                if is_over {
                    session.send([request], Pace::default()).await.expect("sent");
                    break;
                }
            }
            assert!(is_over && String::from_utf8_lossy(&page).contains("HTTP/1.1 200"), "{page:?}");
            // A SYN-ACK that was in flight.
            tokio::time::sleep(Duration::from_millis(100)).await;
            session.send([segment(reset, "R", 0)], Pace::default()).await.expect("sent");
            session.close().await
        })
    });
    assert_eq!(resets, 0);
    let client = ENDS[0].0;
    let by_hand: Vec<_> = from(&meanwhile, SocketAddr::new(client, reset)).into_iter().filter(|p| p.is_rst()).collect();
    assert_eq!((by_hand.len(), by_hand[0].seq), (1, 8));
    assert!(from(&after, SocketAddr::new(client, reset)).is_empty(), "{after:?}");
    let acknowledged = SocketAddr::new(client, acknowledged);
    assert_eq!(rsts(&meanwhile, acknowledged) + rsts(&after, acknowledged), 0, "{meanwhile:?}\n{after:?}");
}

/// A SYN from a port of its own each; of the ports chosen a session keeps 256.
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
fn a_port_that_is_given_back_early_is_reset_before() {
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
    let ours = meanwhile.iter().filter(|packet| packet.source.ip() == ENDS[0].0 && packet.is_rst());
    let mut ports: Vec<u16> = ours.map(|packet| packet.source.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 300, "each once");
    assert_eq!(meanwhile.iter().filter(|packet| packet.is_rst()).count(), 300);
    assert!(after.iter().all(|packet| packet.source.ip() != ENDS[0].0), "{after:?}");
}

/// Dropped, not closed; and a connection that is not this host's is left alone, as is one that the kernel resets.
#[test]
fn dropped_sessions_and_what_is_not_crafters() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let [dropped, passed] = [50_001_u16, 50_002];
    let other: IpAddr = [192, 0, 2, 77].into();
    // The answers to it come to the client, which has no such address.
    let mac = lab.client().run(|| wire::mac(INTERFACE)).expect("the client");
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let neighbour = ["neigh", "replace", "192.0.2.77", "lladdr", &mac, "dev", INTERFACE];
    stage::run(lab.server().command("ip").args(neighbour));
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
            assert_eq!(session.close().await, 0, "the kernel has reset it");

            let session = Session::new(SessionOptions::default());
            let spoofed = format!(r#"IP(src="{other}", dst="{SERVER_V4}")/TCP(sport=50003, dport=80, flags="S")"#);
            let short = SrOptions { timeout: Duration::from_millis(300), ..SrOptions::default() };
            session.sr1(packets(&spoofed).remove(0), &short).await.expect("sent");
            assert_eq!(session.close().await, 0, "nothing was leased");
        })
    });
    let client = ENDS[0].0;
    assert_reset(SocketAddr::new(client, dropped), &meanwhile, &after);
    assert_eq!(rsts(&meanwhile, SocketAddr::new(client, passed)), 1, "the kernel's: {meanwhile:?}");
    let spoofed = SocketAddr::new(other, 50_003);
    let answers = meanwhile.iter().filter(|packet| packet.destination == spoofed && packet.is_syn()).count();
    assert!(answers >= 1, "the server answered: {meanwhile:?}");
    assert_eq!(rsts(&meanwhile, spoofed) + rsts(&after, spoofed), 0, "{meanwhile:?}");
}

/// By an unprivileged client of the service: its lease carries the RST, as its policy allows.
#[test]
fn through_the_service() {
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

/// A session that is closed with half-open connections tells of their RSTs too, so that a capture has them.
#[test]
fn the_resets_of_closing_are_observed() {
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

/// The service ends, or hangs, while the resets leave at its limit of the rate: the command says so, and ends in time.
#[test]
fn the_service_stops_during_the_resets() {
    let _parallel = Parallel::begin();
    const RATE: u64 = 100;
    let policy = format!("[[rule]]\nuser = 65534\npackets_per_second = {RATE}\nburst = 1\n");
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGSTOP] {
        // Of its own: what one leaves half open, the kernel resets later.
        let lab = lab();
        let listen = |port| TcpListener::bind((SERVER_V4, port)).expect("a port");
        let _listeners: Vec<_> =
            lab.server().run(|| (10_000..10_300).map(listen).collect::<Vec<_>>()).expect("the server");
        let mut service = Service::start(lab.client(), &policy);
        let mut command = service.command(NOBODY, &["sr", &syn(ENDS[0].1, "sport=50000, dport=(10000,10299)")]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("crafter");
        // 300 RSTs take three seconds.
        wait_for("the first resets", Duration::from_secs(20), || {
            (lab.tap().count().expect("RSTs at the server") >= 20).then_some(())
        });
        let began = Instant::now();
        service.signal(signal);
        let output = child.wait_with_output().expect("its end");
        let took = began.elapsed();
        service.signal(Signal::SIGCONT);
        service.kill();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{signal}: {said}");
        // The resets take 5 s at most, asking what became of them 2 s, and giving the leases back 2 s.
        let longest = if signal == Signal::SIGSTOP { 9 } else { 4 };
        assert!(took < slow::allow(Duration::from_secs(longest + 2)), "{signal}: {took:?}: {said}");
        let expected = match signal {
            Signal::SIGSTOP => "no reply from the crafter service within 2s: the last resets may not have been sent",
            _ => "half-open connections are not reset: lost connection to the crafter service at ",
        };
        assert!(said.contains(expected), "{signal}: {said}");
        assert!(!said.contains("queue is full"), "{signal}: {said}");
        assert!(said.contains(";; reset "), "{signal}: those before: {said}");
    }
}
