//! Verdicts by `BPF_PROG_TEST_RUN`: named rows of frames, built byte by byte, with the expected reason, flow entry and
//! delivered packet, and the branch coverage of these rows.

mod coverage;
mod fragments;
mod rows;

use std::collections::{BTreeSet, HashMap};

use crafter::{
    datapath::program::{Hook, LoadOptions},
    lab::NetNs,
    packet::Transport,
};
use crafter_common::{DEFAULT_MARK, reason::Reason};
use crafter_tests::{
    bench::{ANY, Bench, terms},
    differential::Differential,
    frame::{self, ACK, PSH, RST, SYN, TCP, Tcp, V4},
    leak::Parallel,
    oracle::{Flow, FlowId},
};
use rows::{
    BOTH, FREE, LOCAL, OBSERVED, ON_ANY, PEER, Row, SECOND, at, bench, datagram, egress_rows, flow_id, ingress_rows,
    ip, owning, reporting, segment, world,
};

/// Runs `work` in a new namespace with its own `lo`.
fn inside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    NetNs::new().expect("a namespace").run(work).expect("enter the namespace")
}

#[test]
fn named_rows_reach_every_reason() {
    let _parallel = Parallel::begin();
    inside(|| {
        let mut failures = Vec::new();
        let mut reached = BTreeSet::new();
        // Fragments leave entries in maps, so each configuration has its own programs and maps.
        for (name, hook, socket) in [
            ("XDP with a socket", Hook::Xdp, true),
            ("XDP with the ring", Hook::Xdp, false),
            ("tc", Hook::Ingress, false),
        ] {
            let mut bench = bench(&Bench::small(), socket);
            failures.extend(run_rows(name, &mut bench, hook, &ingress_rows()));
            finish(&bench, &mut reached);
        }
        for (name, mut bench) in
            [("egress", bench(&Bench::small(), false)), ("egress, reporting", reporting(&Bench::small()))]
        {
            failures.extend(run_rows(name, &mut bench, Hook::Egress, &egress_rows()));
            finish(&bench, &mut reached);
        }
        // The same packets without link-layer header, as on tun.
        for (name, hook, rows) in [("tun in", Hook::Ingress, ingress_rows()), ("tun out", Hook::Egress, egress_rows())]
        {
            let mut bench = owning(Bench::new(&Bench::small(), 0, false), &world(false));
            failures.extend(run_rows(name, &mut bench, hook, &bare(rows)));
            finish(&bench, &mut reached);
        }
        for (hook, name) in [(Hook::Xdp, "XDP"), (Hook::Ingress, "tc")] {
            failures.extend(full(hook, &mut reached).into_iter().map(|why| format!("{name}, ring full: {why}")));
        }
        assert!(failures.is_empty(), "{} rows failed:\n{}", failures.len(), failures.join("\n"));
        let missed: Vec<_> = Reason::ALL.iter().filter(|reason| !reached.contains(&(**reason as u32))).collect();
        assert!(missed.is_empty(), "never reached: {missed:?}");
    });
}

/// Every reason is expected by some row, except the two of a full ring, which [`full`] covers.
#[test]
fn every_reason_has_a_row() {
    let _parallel = Parallel::begin();
    let rows = [ingress_rows(), egress_rows()].concat();
    for reason in Reason::ALL {
        let count = rows.iter().filter(|row| row.reason(true) == reason || row.reason(false) == reason).count();
        println!("{count:4} rows: {}", reason.name());
        assert!(count > 0 || [Reason::DeliveryFull, Reason::ObserveFull].contains(&reason), "{reason:?} has no row");
    }
    let mut names: Vec<_> = ingress_rows().into_iter().map(|row| row.name).collect();
    let count = names.len();
    names.sort();
    if let Some(two) = names.windows(2).find(|two| two[0] == two[1]) {
        println!("duplicate name: {}", two[0]);
    }
    names.dedup();
    println!("{count} rows at ingress, {} at egress", egress_rows().len());
    assert_eq!(names.len(), count, "two rows have the same name");
}

/// Whether TEST_RUN accepts the frame at this hook.
fn runs(hook: Hook, frame: &[u8]) -> bool {
    frame.len() >= Differential::shortest(hook, frame)
}

/// Rows without their Ethernet header, if it is for this station and the version of the IP header equals that of the
/// ethertype.
fn bare(rows: Vec<Row>) -> Vec<Row> {
    let fits = |row: &Row| match (row.start, &row.frame[12..]) {
        _ if row.frame[..6] != frame::STATION => false,
        (14, [0x08, 0x00, first, ..]) => first >> 4 == 4,
        (14, [0x86, 0xdd, first, ..]) => first >> 4 == 6,
        _ => false,
    };
    let rows = rows.into_iter().filter(fits);
    rows.map(|row| Row { frame: row.frame[14..].to_vec(), start: 0, ..row }).collect()
}

/// Runs all rows in order and checks reason, action, bytes, the owner's copy, and the changes of flow entries.
fn run_rows(name: &str, bench: &mut Bench, hook: Hook, rows: &[Row]) -> Vec<String> {
    let mut failures = Vec::new();
    let mut before = counts(bench);
    for row in rows.iter().filter(|row| runs(hook, &row.frame)) {
        let reason = row.reason(bench.has_socket());
        if let Err(why) = bench.expect(hook, &row.frame, row.mark, reason, row.start) {
            failures.push(format!("{name}: {}: {why}", row.name));
        }
        let after = counts(bench);
        let mut wanted = before;
        if let Some((id, flow)) = row.updates {
            let entry = wanted.entry(id).or_default();
            entry.rx = (entry.rx.0 + flow.rx.0, entry.rx.1 + flow.rx.1);
            entry.tx = (entry.tx.0 + flow.tx.0, entry.tx.1 + flow.tx.1);
            entry.suppressed += flow.suppressed;
            if flow.rx.0 > 0 {
                entry.last = flow.last;
            }
        }
        for (id, flow) in &after {
            if wanted.get(id) != Some(flow) {
                failures.push(format!("{name}: {}: {id:?} is {flow:?}, not {:?}", row.name, wanted.get(id)));
            }
        }
        if let Some(id) = wanted.keys().find(|id| !after.contains_key(*id)) {
            failures.push(format!("{name}: {}: no flow {id:?}", row.name));
        }
        before = after;
    }
    failures
}

/// All flow entries.
fn counts(bench: &Bench) -> HashMap<FlowId, Flow> {
    let flows = bench.maps.flows().into_iter().map(|flow| {
        let protocol = match flow.protocol {
            "tcp" => frame::TCP,
            "udp" => frame::UDP,
            _ => frame::ICMP,
        };
        let id = flow_id(protocol, flow.local, flow.remote);
        let counts = Flow {
            rx: (flow.rx_packets, flow.rx_bytes),
            tx: (flow.tx_packets, flow.tx_bytes),
            suppressed: flow.suppressed,
            last: (flow.last_seq, flow.last_ack, flow.last_flags),
        };
        (id, counts)
    });
    flows.collect()
}

/// Every row, truncated at every length, has the result that the oracle predicts.
#[test]
fn truncated_rows_match_the_oracle() {
    let _parallel = Parallel::begin();
    inside(|| {
        let mut ran = 0;
        for (hook, ethernet, socket) in [
            (Hook::Xdp, true, true),
            (Hook::Xdp, true, false),
            (Hook::Ingress, true, false),
            (Hook::Egress, true, false),
            (Hook::Ingress, false, false),
            (Hook::Egress, false, false),
        ] {
            let options = LoadOptions { flow_entries: 1 << 16, ..Bench::small() };
            let mut differential = Differential::new(&options, ethernet, socket);
            differential.set_owners(&world(hook == Hook::Egress));
            let rows = if hook == Hook::Egress { egress_rows() } else { ingress_rows() };
            for row in if ethernet { rows } else { bare(rows) } {
                for length in 14..=row.frame.len() {
                    let frame = &row.frame[..length];
                    if runs(hook, frame) {
                        let predicted = differential.step(hook, frame, row.mark);
                        let predicted = predicted.unwrap_or_else(|why| panic!("{}, {length} bytes: {why}", row.name));
                        assert!(length < row.frame.len() || predicted.reason == row.reason(socket), "{}", row.name);
                        ran += 1;
                    }
                }
            }
            differential.compare_maps().expect("flows and fragments");
        }
        println!("{ran} complete and truncated rows");
    });
}

/// Checks that every packet was counted exactly once.
fn finish(bench: &Bench, reached: &mut BTreeSet<u32>) {
    assert!(bench.ran > 0);
    assert_eq!(bench.counters().0.iter().sum::<u64>(), bench.ran, "sum of the counters");
    reached.extend(&bench.reached);
}

/// Fills a ring of one page that is not drained: packets are delivered until there is no room.
fn full(hook: Hook, reached: &mut BTreeSet<u32>) -> Vec<String> {
    let mut failures = Vec::new();
    for (port, room, none) in
        [(ON_ANY, Reason::Copied, Reason::DeliveryFull), (OBSERVED, Reason::Observed, Reason::ObserveFull)]
    {
        let mut bench = bench(&LoadOptions { ring_bytes: 4096, ..Bench::small() }, false);
        bench.drain = false;
        let frame = frame::framed(&segment(at(LOCAL[0], port)));
        let reasons: Vec<Reason> = (0..32).map(|_| bench.run(hook, &frame, 0).reason).collect();
        let fits = reasons.iter().take_while(|reason| **reason == room).count();
        if !(1..32).contains(&fits) || reasons[fits..].iter().any(|reason| *reason != none) {
            failures.push(format!("port {port}: {reasons:?}"));
        }
        failures.extend(bench.expect(hook, &frame, 0, none, 14).err());
        // Other ports are not affected.
        let free = frame::framed(&segment(at(LOCAL[0], FREE)));
        failures.extend(bench.expect(hook, &free, 0, Reason::NotOwned, 14).err());
        finish(&bench, reached);
    }
    failures
}

/// The shortest frame in bytes that TEST_RUN accepts for the frames of these tests: an Ethernet header, for classifiers
/// and one more byte.
fn shortest(hook: Hook) -> usize {
    if hook == Hook::Xdp { 14 } else { 15 }
}

/// Packets truncated at every length are never redirected, copied or dropped before the transport header is complete,
/// and always after.
#[test]
fn truncated_packets_are_delivered_from_the_transport_header_on() {
    let _parallel = Parallel::begin();
    inside(|| {
        let peers = [at(PEER[0], 80), at(PEER[1], 80)];
        let locals = [at(LOCAL[0], ON_ANY), at(LOCAL[1], ON_ANY)];
        let tcp = |v: usize| Tcp::new(SYN | ACK, 1, 2).bytes(peers[v], locals[v]);
        let options = V4 { options: vec![1; 40], ..V4::default() };
        let (next, extended) = frame::extended(&[0, 60, 51], TCP, &tcp(1));
        let error = |v: usize| {
            let quoted = Tcp::new(SYN, 1, 0).ip(locals[v], peers[v]);
            frame::icmp(peers[v].ip(), locals[v].ip(), [3, 1][v], [3, 4][v], &quoted[..quoted.len() - 12])
        };
        // Name, packet, and number of bytes at its end that are not needed.
        let samples = [
            ("TCP over IPv4", segment(locals[0]), 0),
            ("TCP over IPv6", segment(locals[1]), 0),
            ("UDP over IPv4", datagram(locals[0]), 6),
            ("UDP over IPv6", datagram(locals[1]), 6),
            ("IPv4 with options", options.packet(peers[0].ip(), locals[0].ip(), TCP, &tcp(0)), 0),
            ("IPv6 with extension headers", frame::v6(peers[1].ip(), locals[1].ip(), next, &extended), 0),
            // Of the quoted transport header only the ports are needed.
            ("an ICMP error", error(0), 4),
            ("an ICMPv6 error", error(1), 4),
        ];
        for (hook, tags) in
            [(Hook::Xdp, vec![]), (Hook::Xdp, vec![(0x88a8, 0x2000), (0x8100, 0)]), (Hook::Ingress, vec![(0x8100, 0)])]
        {
            let mut bench = bench(&Bench::small(), false);
            for (name, packet, spare) in &samples {
                let frame = frame::tagged(&tags, packet);
                let needed = frame.len() - spare;
                for length in shortest(hook)..=frame.len() {
                    let got = bench.run(hook, &frame[..length], 0);
                    let what = format!("{name} at {hook:?}, {length} of {needed} bytes: {:?}", got.reason);
                    if length < needed {
                        let expected = [Reason::NotIp, Reason::Malformed, Reason::IcmpNotOwned];
                        assert!(expected.contains(&got.reason), "{what}");
                        assert_eq!(got.frame, &frame[..length], "{what}");
                        assert!(got.delivered.is_empty(), "{what}");
                    } else {
                        assert_eq!(got.reason, Reason::Copied, "{what}");
                    }
                }
            }
            assert_eq!(bench.counters().0.iter().sum::<u64>(), bench.ran);
        }
        // A truncated RST is not suppressed at egress.
        let mut bench = bench(&Bench::small(), false);
        for v in 0..2 {
            let frame = frame::tagged(&[(0x8100, 0)], &Tcp::new(RST, 1, 0).ip(locals[v], peers[v]));
            for length in shortest(Hook::Egress)..frame.len() {
                assert_eq!(bench.run(Hook::Egress, &frame[..length], 0).reason, Reason::EgressOther, "{length} bytes");
            }
            assert_eq!(bench.run(Hook::Egress, &frame, 0).reason, Reason::RstSuppressed);
        }
    });
}

#[test]
fn disowned_port_is_not_delivered() {
    let _parallel = Parallel::begin();
    inside(|| {
        let mut bench = bench(&Bench::small(), false);
        let frame = frame::framed(&segment(at(LOCAL[0], BOTH)));
        let rst = frame::framed(&Tcp::new(RST, 1, 0).ip(at(LOCAL[0], BOTH), at(PEER[0], 80)));
        assert_eq!(bench.run(Hook::Xdp, &frame, 0).reason, Reason::Observed);
        // The entry of this address is removed; the one of any address still applies.
        bench.maps.disown(BOTH.into(), Transport::Tcp, ip(LOCAL[0]), BOTH).unwrap();
        assert_eq!(bench.run(Hook::Xdp, &frame, 0).reason, Reason::Copied);
        assert_eq!(bench.run(Hook::Egress, &rst, 0).reason, Reason::RstSuppressed);
        bench.maps.disown(BOTH.into(), Transport::Tcp, ANY, BOTH).unwrap();
        // The entry of the other IP version must not apply to this one.
        assert_eq!(bench.run(Hook::Xdp, &frame, 0).reason, Reason::NotOwned);
        assert_eq!(bench.run(Hook::Egress, &rst, 0).reason, Reason::RstNotOwned);
        let v6 = frame::framed(&segment(at(LOCAL[1], BOTH)));
        assert_eq!(bench.run(Hook::Xdp, &v6, 0).reason, Reason::Observed);
        // Ports on any address do not include an address that this host has lost.
        let any = frame::framed(&segment(at(SECOND[0], ON_ANY)));
        assert_eq!(bench.run(Hook::Xdp, &any, 0).reason, Reason::Copied);
        bench.maps.set_local(&[ip(LOCAL[0])]).unwrap();
        assert_eq!(bench.run(Hook::Xdp, &any, 0).reason, Reason::NotOwned);
    });
}

#[test]
fn flow_entries_count_packets_and_record_the_last_segment() {
    let _parallel = Parallel::begin();
    inside(|| {
        for hook in [Hook::Xdp, Hook::Ingress] {
            let mut bench = bench(&Bench::small(), false);
            for (local, peer) in [(at(LOCAL[0], ON_ANY), at(PEER[0], 80)), (at(LOCAL[1], ON_ANY), at(PEER[1], 80))] {
                let first = Tcp::new(SYN | ACK, 100, 51).ip(peer, local);
                let second = Tcp::new(PSH | ACK, 101, 52).with(b"hello").ip(peer, local);
                let sent = Tcp::new(ACK, 52, 106).ip(local, peer);
                let rst = Tcp::new(RST, 52, 0).ip(local, peer);
                bench.run(hook, &frame::framed(&first), 0);
                bench.run(hook, &frame::framed(&second), 0);
                bench.run(Hook::Egress, &frame::framed(&sent), DEFAULT_MARK);
                bench.run(Hook::Egress, &frame::framed(&rst), 0);
                // Another peer has another flow, and an unowned port has none.
                bench.run(hook, &frame::framed(&segment(at(&local.ip().to_string(), FREE))), 0);
                let flows = bench.maps.flows();
                let flow = flows.iter().find(|flow| flow.local == local && flow.remote == peer).expect("the flow");
                assert_eq!((flow.rx_packets, flow.rx_bytes), (2, (first.len() + second.len()) as u64));
                assert_eq!((flow.tx_packets, flow.tx_bytes), (1, sent.len() as u64));
                assert_eq!((flow.last_seq, flow.last_ack, flow.last_flags), (101, 52, PSH | ACK));
                assert_eq!((flow.suppressed, flow.protocol), (1, "tcp"));
                assert!(flow.first_seen_ns > 0 && flow.first_seen_ns <= flow.last_seen_ns);
            }
            assert_eq!(bench.maps.flows().len(), 2);
        }
    });
}

#[test]
fn load_options_take_effect() {
    let _parallel = Parallel::begin();
    inside(|| {
        let mut bench = bench(&LoadOptions { mark: 0x77, ..Bench::small() }, false);
        let rst = frame::framed(&Tcp::new(RST, 1, 0).ip(at(LOCAL[0], ON_ANY), at(PEER[0], 80)));
        assert_eq!(bench.run(Hook::Egress, &rst, 0x77).reason, Reason::Crafted);
        assert_eq!(bench.run(Hook::Egress, &rst, DEFAULT_MARK).reason, Reason::RstSuppressed);

        // Without link-layer header, as on tun.
        let mut bare = Bench::new(&Bench::small(), 0, false);
        bare.maps.set_local(&LOCAL.map(ip)).unwrap();
        bare.own(Transport::Tcp, ANY, ON_ANY, terms(false, true));
        for local in LOCAL {
            bare.expect(Hook::Ingress, &segment(at(local, ON_ANY)), 0, Reason::Copied, 0).unwrap();
            bare.expect(Hook::Ingress, &segment(at(local, FREE)), 0, Reason::NotOwned, 0).unwrap();
            let peer = PEER[usize::from(local == LOCAL[1])];
            let rst = Tcp::new(RST, 1, 0).ip(at(local, ON_ANY), at(peer, 80));
            bare.expect(Hook::Egress, &rst, 0, Reason::RstSuppressed, 0).unwrap();
        }

        // Frames longer than an AF_XDP frame are delivered through the ring.
        let mut sockets = self::bench(&Bench::small(), true);
        let big = Tcp::new(ACK, 1, 2).with(&[7; 3000]).ip(at(PEER[0], 80), at(LOCAL[0], ON_ANY));
        sockets.expect(Hook::Xdp, &frame::framed(&big), 0, Reason::Copied, 14).unwrap();
    });
}

/// Packets at the limits of the ring's size classes, and of maximum length, are delivered completely.
#[test]
fn packets_of_every_size_class_are_delivered_completely() {
    let _parallel = Parallel::begin();
    inside(|| {
        let mut xdp = bench(&LoadOptions { ring_bytes: 1 << 18, ..Bench::small() }, false);
        for packet in sized_packets(ON_ANY) {
            xdp.expect(Hook::Xdp, &frame::framed(&packet), 0, Reason::Copied, 14).unwrap();
            // TEST_RUN limits packets of classifiers to about one page.
            if packet.len() <= 3000 {
                xdp.expect(Hook::Ingress, &frame::framed(&packet), 0, Reason::Copied, 14).unwrap();
            }
        }
    });
}

/// Segments to a port, with IP packet lengths at every limit.
fn sized_packets(port: u16) -> Vec<Vec<u8>> {
    let lengths = [40, 255, 256, 257, 2047, 2048, 2049, 3000, 16_383, 16_384, 16_385, 65_535];
    let segment = |length: usize| {
        let tcp = Tcp::new(ACK, 1, 2).with(&vec![7; length - 40]);
        tcp.ip(at(PEER[0], 80), at(LOCAL[0], port))
    };
    lengths.into_iter().map(segment).collect()
}

/// 65,536 owned ports fit into the map, and lookups find them.
#[test]
fn sixty_five_thousand_owned_ports_are_found() {
    let _parallel = Parallel::begin();
    inside(|| {
        let mut bench = Bench::new(&LoadOptions { owned_entries: 131_072, ..Bench::small() }, 14, false);
        for port in 1..=u16::MAX {
            bench.own(Transport::Tcp, ip(LOCAL[0]), port, terms(false, true));
        }
        bench.own(Transport::Tcp, ip(LOCAL[1]), 1, terms(false, true));
        for port in [1, 63, 64, 1023, 1024, 32_768, 65_535] {
            let frame = frame::framed(&segment(at(LOCAL[0], port)));
            bench.expect(Hook::Xdp, &frame, 0, Reason::Copied, 14).unwrap();
            let second = frame::framed(&segment(at(SECOND[0], port)));
            bench.expect(Hook::Xdp, &second, 0, Reason::NotOwned, 14).unwrap();
            let udp = frame::framed(&datagram(at(LOCAL[0], port)));
            bench.expect(Hook::Xdp, &udp, 0, Reason::NotOwned, 14).unwrap();
        }
    });
}
