use std::net::Ipv4Addr;

use super::*;
use crate::{
    layer::{Icmp, Ip, Kind, Tcp, Udp},
    session::Outcome,
};
use crafter_common::reason::Reason;

const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);

fn router(ttl: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, ttl)
}

fn error(from: Ipv4Addr, r#type: u8, code: u8, probe: &Packet) -> Packet {
    Ip::to(HERE).src(from) / Icmp::new().r#type(r#type).code(code) / probe.clone()
}

/// The reply to a probe, given its TTL, the number of earlier probes with it, and the time in milliseconds.
type Path<'a> = &'a mut dyn FnMut(u8, usize, &Packet, u128) -> Option<Packet>;

struct Traced {
    hops: Vec<Hop>,
    ending: Ending,
    /// TTL and time of each probe, in milliseconds.
    probes: Vec<(u8, u128)>,
    rsts: usize,
    took: Duration,
}

/// Runs a trace over a path with a round-trip time of 5 ms per hop.
fn trace(change: impl FnOnce(&mut TraceOptions), path: Path<'_>) -> Traced {
    let mut options = TraceOptions::new(THERE.into());
    change(&mut options);
    let mut trace = Trace::new(options).unwrap();
    let start = Instant::now();
    let mut now = start;
    let (mut hops, mut probes, mut rsts) = (Vec::new(), Vec::new(), 0);
    let mut steps = 0;
    let mut in_flight: Vec<(Instant, usize, Duration, Vec<u8>)> = Vec::new();
    for _ in 0..100_000 {
        hops.extend(std::iter::from_fn(|| trace.poll_hop()));
        match trace.next(now) {
            Step::Send(packet) => {
                let bytes = packet.build().unwrap();
                let packet = Packet::from_ip(&bytes);
                let ttl = packet.get::<Ip>().unwrap().ttl.unwrap();
                let before = probes.iter().filter(|(probed, _)| *probed == ttl).count();
                probes.push((ttl, (now - start).as_millis()));
                let outcome = Outcome::Sent { request: steps, attempt: 0 };
                trace.handle(&event(&bytes, outcome), now);
                if let Some(answer) = path(ttl, before, &packet, (now - start).as_millis()) {
                    let rtt = Duration::from_millis(5) * ttl.into();
                    in_flight.push((now + rtt, steps, rtt, answer.build().unwrap()));
                }
                steps += 1;
            }
            Step::SendUnanswered(_) => {
                rsts += 1;
                steps += 1;
            }
            Step::Wait(until) => {
                assert!(until > now, "it waits for a time in the past");
                in_flight.sort_by_key(|answer| answer.0);
                match in_flight.first() {
                    Some(&(at, request, rtt, _)) if at <= until => {
                        now = at.max(now);
                        let bytes = in_flight.remove(0).3;
                        let outcome = Outcome::Matched { request, reason: Reason::Redirected, rtt };
                        trace.handle(&event(&bytes, outcome), now);
                    }
                    _ => now = until,
                }
            }
            Step::Done => {
                hops.extend(std::iter::from_fn(|| trace.poll_hop()));
                return Traced { hops, ending: trace.ending(), probes, rsts, took: now - start };
            }
        }
    }
    panic!("the trace does not end");
}

fn event(bytes: &[u8], outcome: Outcome) -> Event<'_> {
    Event {
        time: Duration::ZERO,
        interface: "x",
        first: Kind::of_ip(bytes),
        bytes,
        request: None,
        reply: None,
        outcome,
    }
}

/// A path of routers with a closed port of the destination at its end.
fn usual(length: u8) -> impl FnMut(u8, usize, &Packet, u128) -> Option<Packet> {
    move |ttl, _, probe, _| {
        Some(if ttl < length { error(router(ttl), 11, 0, probe) } else { error(THERE, 3, 3, probe) })
    }
}

#[test]
fn trace_finds_all_hops_and_probes_few_beyond() {
    let traced = trace(|_| {}, &mut usual(4));
    assert_eq!(traced.ending, Ending::Reached);
    assert_eq!(traced.hops.iter().map(|hop| hop.ttl).collect::<Vec<_>>(), [1, 2, 3, 4]);
    for hop in &traced.hops {
        assert_eq!(hop.answers.len(), 3);
        for answer in hop.answers.iter().flatten() {
            let from = if hop.ttl < 4 { router(hop.ttl) } else { THERE };
            assert_eq!((answer.answer.from, answer.rtt), (from.into(), Duration::from_millis(5) * hop.ttl.into()));
            assert_eq!(answer.annotation(), "");
        }
        assert!(hop.answers.iter().all(Option::is_some));
    }
    // The probes of the fourth hop are sent after 30 ms, their replies arrive after 50 ms; meanwhile the next one is
    // probed.
    assert_eq!(traced.probes.iter().map(|(ttl, _)| *ttl).max(), Some(5));
    assert_eq!(traced.took.as_millis(), 50);
}

/// A destination whose burst of ICMP errors is used up answers one probe per second (`inet_peer_xrlim_allow()`),
/// whichever is first. Its hop must get that reply, not a later hop.
#[test]
fn a_rate_limited_destination_is_found_at_its_hop() {
    for phase in (0..1000).step_by(10) {
        let mut used = 0;
        let traced = trace(|_| {}, &mut |ttl, _, probe, at| {
            if ttl < 4 {
                return Some(error(router(ttl), 11, 0, probe));
            }
            let due = (at + phase) / 1000;
            let answers = due > used;
            if answers {
                used = due;
            }
            answers.then(|| error(THERE, 3, 3, probe))
        });
        assert_eq!((traced.ending, traced.hops.len()), (Ending::Reached, 4), "phase {phase} ms: {:?}", traced.hops);
    }
}

#[test]
fn silent_router_does_not_delay_other_hops() {
    let mut path = usual(4);
    let traced =
        trace(|_| {}, &mut |ttl, before, probe, at| if ttl == 2 { None } else { path(ttl, before, probe, at) });
    assert_eq!(traced.hops[1].answers, [const { None::<HopAnswer> }; 3]);
    assert_eq!((traced.hops.len(), traced.ending), (4, Ending::Reached));
    assert_eq!(traced.probes.iter().filter(|(ttl, _)| *ttl == 2).count(), 9);
    assert!((4150..4250).contains(&traced.took.as_millis()), "{:?}", traced.took);
}

/// One token per second, as in Linux (`inet_peer_xrlim_allow()`), and an empty bucket at the start.
#[test]
fn all_replies_of_a_rate_limited_router_are_collected() {
    let mut path = usual(3);
    let (mut tokens, mut last) = (0, 0);
    let traced = trace(|_| {}, &mut |ttl, before, probe, at| {
        if ttl == 2 {
            tokens += at - last;
            last = at;
            if tokens < 1000 {
                return None;
            }
            tokens -= 1000;
        }
        path(ttl, before, probe, at)
    });
    assert!(traced.hops[1].answers.iter().all(Option::is_some), "{:?}", traced.hops[1]);
    assert_eq!((traced.hops.len(), traced.ending), (3, Ending::Reached));
    assert!(traced.took.as_millis() < 3400, "{:?}", traced.took);
}

#[test]
fn trace_without_replies_ends_after_all_retries() {
    let traced = trace(|options| (options.max, options.retries) = (5, 1), &mut |_, _, _, _| None);
    assert_eq!((traced.hops.len(), traced.ending), (5, Ending::NotReached));
    assert_eq!(traced.probes.len(), 5 * 3 * 2);
    assert!((2050..2150).contains(&traced.took.as_millis()), "{:?}", traced.took);
    // One hop at a time.
    let traced = trace(|options| (options.max, options.parallel, options.retries) = (3, 1, 0), &mut |_, _, _, _| None);
    assert!((3000..3100).contains(&traced.took.as_millis()), "{:?}", traced.took);
}

#[test]
fn path_ends_where_all_replies_say_unreachable() {
    let mut path = usual(9);
    let traced = trace(|_| {}, &mut |ttl, before, probe, at| match ttl {
        1 | 2 => path(ttl, before, probe, at),
        _ => Some(error(router(3), 3, 0, probe)),
    });
    assert_eq!((traced.hops.len(), traced.ending), (3, Ending::Unreachable(IcmpError::Network)));
    assert_eq!(traced.hops[2].answers[0].as_ref().unwrap().annotation(), "!N");
    // One of several paths ends: the others go on.
    let traced = trace(|_| {}, &mut |ttl, before, probe, at| match (ttl, before) {
        (2, 1) => Some(error(router(77), 3, 1, probe)),
        _ => path(ttl, before, probe, at),
    });
    assert_eq!((traced.hops.len(), traced.ending), (9, Ending::Reached));
    let second = &traced.hops[1].answers;
    assert_eq!(second[1].as_ref().unwrap().answer.from, IpAddr::from(router(77)));
    assert_eq!(second[1].as_ref().unwrap().annotation(), "!H");
}

#[test]
fn syn_ack_ends_the_trace_and_is_reset() {
    let mut path = usual(9);
    let mut ports = Vec::new();
    let traced = trace(|options| options.method = Method::Tcp(80), &mut |ttl, before, probe, at| {
        let syn = probe.get::<Tcp>().unwrap();
        ports.push(syn.seq);
        match ttl {
            1 => path(ttl, before, probe, at),
            _ => {
                let ack = syn.seq.unwrap().wrapping_add(1);
                Some(Ip::to(HERE).src(THERE) / Tcp::to(5000).sport(80).flags("SA").ack(ack))
            }
        }
    });
    assert_eq!((traced.hops.len(), traced.ending), (2, Ending::Reached));
    assert!(traced.rsts >= 3, "each SYN-ACK is reset: {}", traced.rsts);
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), traced.probes.len(), "a sequence number each");
}

#[test]
fn each_datagram_has_its_own_port() {
    let mut ports = Vec::new();
    let mut path = usual(30);
    let traced = trace(|_| {}, &mut |ttl, before, probe, at| {
        ports.push(probe.get::<Udp>().unwrap().dport.unwrap());
        path(ttl, before, probe, at)
    });
    assert_eq!(ports, (33_434..).take(traced.probes.len()).collect::<Vec<u16>>());
}

#[test]
fn contradicting_options_are_rejected() {
    for change in [
        (|options| options.first = 31) as fn(&mut TraceOptions),
        |options| options.first = 0,
        |options| options.probes = 0,
        |options| options.parallel = 0,
    ] {
        let mut options = TraceOptions::new(THERE.into());
        change(&mut options);
        assert!(Trace::new(options).is_err());
    }
}
