//! Branch coverage of the kernel half's bytecode by the rows and by random packets. An interpreter in user space counts
//! the branches; its results must equal the kernel's.

use std::{collections::BTreeMap, path::Path, time::Duration};

use crafter::datapath::program::{Hook, LoadOptions};
use crafter_common::{
    DEFAULT_MARK,
    attached::{ACCEPT_LOCAL, CHECK_SOURCE, CHECK_STATION, ROUTE_LOCALNET},
    reason::Reason,
};
use crafter_tests::{
    bench::Bench,
    differential::{Differential, number},
    frame::{self, RST, Tcp},
    leak::Parallel,
    machine::{Conditions, HOOKS, Machine, Place, Taken},
    oracle::{Action, Oracle},
    random::{
        Rng,
        sequence::{Event, Sequence},
    },
};

use super::{
    bare, inside,
    rows::{
        self, LOCAL, OBSERVED, ON_ANY, PEER, Row, SECOND, at, bench, egress_rows, ingress_rows, ip, owning, reporting,
        world,
    },
    runs, sized_packets,
};

/// Counts of conditional jumps over all interpreters, by program and instruction.
#[derive(Clone, Default)]
struct Coverage(BTreeMap<(&'static str, usize), Taken>);

impl Coverage {
    fn add(&mut self, machine: &Machine) {
        for hook in HOOKS {
            for (&at, taken) in machine.program(hook).jumps() {
                let sum = self.0.entry((hook.program(), at)).or_default();
                sum.yes += taken.yes;
                sum.no += taken.no;
            }
        }
    }

    /// Branches taken and total number of branches; jumps with both branches taken and total number of jumps.
    fn count(&self, program: &str) -> [usize; 4] {
        let jumps = || self.0.iter().filter(|((name, _), _)| *name == program).map(|(_, taken)| taken);
        let branches = jumps().map(|taken| usize::from(taken.yes > 0) + usize::from(taken.no > 0)).sum();
        let both = jumps().filter(|taken| taken.yes > 0 && taken.no > 0).count();
        [branches, 2 * jumps().count(), both, jumps().count()]
    }
}

/// Runs a frame in the kernel and in the interpreter, and compares the results.
fn compare(machine: &mut Machine, bench: &mut Bench, hook: Hook, row: &Row) {
    let Row { name, frame, mark, .. } = row;
    let kernel = bench.run(hook, frame, *mark);
    let before = machine.counter(kernel.reason as u32);
    let conditions = Conditions { socket: bench.has_socket(), ..Conditions::NORMAL };
    let outcome = machine.run(hook, frame, *mark, conditions);
    assert_eq!(outcome.action, kernel.action, "{name}");
    assert_eq!(machine.counter(kernel.reason as u32), before + 1, "{name}");
    assert_eq!(outcome.records.len(), kernel.delivered.len(), "{name}");
    for (record, (header, packet)) in outcome.records.iter().zip(&kernel.delivered) {
        assert_eq!(&record[32..32 + packet.len()], packet, "{name}");
        assert_eq!(record[8..12], header.captured.to_le_bytes(), "{name}");
    }
}

/// Runs all rows; `log`: level of aya-log, whose code is part of the programs.
fn all_rows(coverage: &mut Coverage, log: u8) {
    for (hook, socket) in [(Hook::Xdp, true), (Hook::Xdp, false), (Hook::Ingress, false)] {
        let mut bench = bench(&Bench::small(), socket);
        let mut machine = Machine::new(14, 1792, DEFAULT_MARK, log);
        machine.copy_maps(&bench.views());
        for row in ingress_rows().into_iter().filter(|row| runs(hook, &row.frame)) {
            compare(&mut machine, &mut bench, hook, &row);
        }
        coverage.add(&machine);
    }
    for mut bench in [bench(&Bench::small(), false), reporting(&Bench::small())] {
        let mut machine = Machine::new(14, 1792, DEFAULT_MARK, log);
        machine.copy_maps(&bench.views());
        for row in egress_rows().into_iter().filter(|row| runs(Hook::Egress, &row.frame)) {
            compare(&mut machine, &mut bench, Hook::Egress, &row);
        }
        coverage.add(&machine);
    }
}

/// Conditions that a test cannot create in the kernel: a full ring, full maps, headers outside of the linear part, no
/// memory to pull them, an owner removed between two lookups. The verdict must not depend on whether delivery succeeds.
fn shortages(coverage: &mut Coverage, log: u8) {
    let full = Conditions { room: false, space: false, ..Conditions::NORMAL };
    let scattered = Conditions { linear: 20, ..Conditions::NORMAL };
    let helpless = Conditions { memory: false, ..scattered };
    let split = Conditions { linear: 60, socket: true, ..Conditions::NORMAL };
    let bench = reporting(&Bench::small());
    let views = bench.views();
    // The last: the shares of the lease are used up.
    let crowded = Conditions { socket: true, ..Conditions::NORMAL };
    let no_limit = (u32::MAX, u32::MAX);
    let shortages =
        [(full, no_limit), (scattered, no_limit), (helpless, no_limit), (split, no_limit), (crowded, (0, 0))];
    for (conditions, (frames, ring)) in shortages {
        for hook in [Hook::Xdp, Hook::Ingress] {
            let mut machine = Machine::new(14, 1792, DEFAULT_MARK, log);
            machine.copy_maps(&views);
            machine.limit(frames, ring);
            for row in ingress_rows() {
                let outcome = machine.run(hook, &row.frame, 0, conditions);
                assert!((conditions.room && ring > 0) || outcome.records.is_empty(), "{}", row.name);
                // A classifier passes a packet whose headers it cannot pull.
                let passed = number(hook, Action::Pass);
                let helpless = !conditions.memory && row.frame.len() > conditions.linear && hook == Hook::Ingress;
                assert!(!helpless || outcome.action == passed, "{}", row.name);
            }
            machine.clear_owners();
            for row in ingress_rows() {
                let outcome = machine.run(hook, &row.frame, 0, conditions);
                assert_eq!(outcome.action, number(hook, Action::Pass), "{}", row.name);
            }
            coverage.add(&machine);
        }
        let mut machine = Machine::new(14, 1792, DEFAULT_MARK, log);
        machine.copy_maps(&views);
        machine.limit(frames, ring);
        for row in egress_rows() {
            let outcome = machine.run(Hook::Egress, &row.frame, row.mark, conditions);
            let readable = conditions.memory || row.frame.len() <= conditions.linear;
            let dropped =
                readable && matches!(row.reason(false), Reason::RstSuppressed | Reason::UnreachableSuppressed);
            let action = number(Hook::Egress, if dropped { Action::Drop } else { Action::Pass });
            assert_eq!(outcome.action, action, "{}", row.name);
        }
        machine.clear_owners();
        for row in egress_rows() {
            let outcome = machine.run(Hook::Egress, &row.frame, row.mark, conditions);
            assert_eq!(outcome.action, number(Hook::Egress, Action::Pass), "{}", row.name);
        }
        coverage.add(&machine);
    }
}

/// Runs every row, truncated at every length, in the interpreter and in the oracle.
fn cut_rows(coverage: &mut Coverage) {
    let bench = reporting(&Bench::small());
    let views = bench.views();
    for socket in [true, false] {
        for hook in HOOKS {
            let mut machine = Machine::new(14, 1792, DEFAULT_MARK, 0);
            machine.copy_maps(&views);
            let mut oracle = Oracle { ethernet: true, mark: DEFAULT_MARK, linear: usize::MAX, ..Oracle::default() };
            oracle.socket = socket.then_some(1792);
            world(true).copy_to(&mut oracle);
            let rows = if hook == Hook::Egress { egress_rows() } else { ingress_rows() };
            for row in rows {
                for length in 0..=row.frame.len() {
                    let frame = &row.frame[..length];
                    let predicted = oracle.predict(hook, frame, row.mark);
                    let before = machine.counter(predicted.reason as u32);
                    let outcome = machine.run(hook, frame, row.mark, Conditions { socket, ..Conditions::NORMAL });
                    assert_eq!(outcome.action, number(hook, predicted.action), "{}, {length} bytes", row.name);
                    assert_eq!(machine.counter(predicted.reason as u32), before + 1, "{}, {length} bytes", row.name);
                }
            }
            coverage.add(&machine);
        }
    }
}

/// Later fragments long after their first, and after another lease has the port.
fn late_fragments(coverage: &mut Coverage, log: u8) {
    let bench = bench(&Bench::small(), false);
    let mut machine = Machine::new(14, 1792, DEFAULT_MARK, log);
    for hook in [Hook::Xdp, Hook::Ingress] {
        for change in [None, Some(Duration::from_secs(29)), Some(Duration::from_secs(31))] {
            machine.copy_maps(&bench.views());
            let rows: Vec<Row> = ingress_rows().into_iter().filter(|row| row.name.starts_with("its ")).collect();
            let firsts = ingress_rows().into_iter().filter(|row| row.name.starts_with("a first fragment"));
            firsts.for_each(|row| drop(machine.run(hook, &row.frame, 0, Conditions::NORMAL)));
            let action = match change {
                Some(time) => {
                    machine.advance(time);
                    if time < Duration::from_secs(30) { Action::Drop } else { Action::Pass }
                }
                None => {
                    let views = bench.views();
                    let owners = views.owned.iter().map(|entry| entry.expect("an owned port"));
                    let others = owners.map(|(key, mut value)| {
                        value[3] ^= 1;
                        (key, value)
                    });
                    machine.replace_owners(others);
                    Action::Pass
                }
            };
            for row in &rows {
                let outcome = machine.run(hook, &row.frame, 0, Conditions::NORMAL);
                assert_eq!(outcome.action, number(hook, action), "{} after {change:?}", row.name);
            }
        }
    }
    coverage.add(&machine);
}

/// Packets of every size class of the ring, received and sent, with and without room in the ring.
fn sizes(coverage: &mut Coverage, log: u8) {
    let bench = reporting(&Bench::small());
    let mut machine = Machine::new(14, 1792, DEFAULT_MARK, log);
    machine.copy_maps(&bench.views());
    for conditions in [Conditions::NORMAL, Conditions { room: false, ..Conditions::NORMAL }] {
        for packet in sized_packets(ON_ANY).into_iter().chain(sized_packets(OBSERVED)) {
            let frame = frame::framed(&packet);
            for hook in [Hook::Xdp, Hook::Ingress] {
                let outcome = machine.run(hook, &frame, 0, conditions);
                assert_eq!(outcome.records.len(), usize::from(conditions.room));
                assert!(outcome.records.iter().all(|record| record[32..32 + packet.len()] == packet));
            }
            // A RST with payload and a port-unreachable error quoting it, both longer than those of the kernel.
            let rst = Tcp::new(RST, 1, 2).with(&vec![7; packet.len() - 40]).ip(at(LOCAL[0], ON_ANY), at(PEER[0], 80));
            let datagram = frame::udp_ip(at(PEER[0], 80), at(LOCAL[0], ON_ANY), &vec![7; packet.len().min(65_000)]);
            let unreachable = frame::icmp(ip(LOCAL[0]), ip(PEER[0]), 3, 3, &datagram);
            for answer in [rst, unreachable] {
                let outcome = machine.run(Hook::Egress, &frame::framed(&answer), 0, conditions);
                assert_eq!(outcome.action, number(Hook::Egress, Action::Drop));
                assert_eq!(outcome.records.len(), usize::from(conditions.room));
            }
        }
    }
    // The longest chain of headers that is walked, quoted by another: the quoted ports are beyond the parser's limit.
    let long = |next: u8, payload: &[u8]| {
        (0..8).fold((next, payload.to_vec()), |(next, rest), _| (60, [&[next, 255], &[0; 2046][..], &rest].concat()))
    };
    let (local, peer) = (at(LOCAL[1], ON_ANY), at(PEER[1], 80));
    for (hook, from, to) in [(Hook::Xdp, local, peer), (Hook::Ingress, local, peer), (Hook::Egress, peer, local)] {
        let (next, quoted) = long(frame::UDP, &frame::udp(from, to, b""));
        let error = frame::icmp(to.ip(), from.ip(), 1, 4, &frame::v6(from.ip(), to.ip(), next, &quoted));
        let (next, outer) = long(frame::ICMPV6, &error[40..]);
        let frame = frame::framed(&frame::v6(to.ip(), from.ip(), next, &outer));
        let outcome = machine.run(hook, &frame, 0, Conditions::NORMAL);
        assert_eq!(outcome.action, number(hook, Action::Pass));
    }
    coverage.add(&machine);
}

/// Tags that the device has removed, which TEST_RUN does not accept, and interfaces with other checks. Sources and
/// stations that one interface refuses another accepts.
fn links(coverage: &mut Coverage, log: u8) {
    let bench = reporting(&Bench::small());
    let mut machine = Machine::new(14, 1792, DEFAULT_MARK, log);
    machine.copy_maps(&bench.views());
    let in_vlan = |row: &Row, conditions: Conditions| {
        conditions.vlan.is_some_and(|tci| tci & 0xfff != 0) && row.mark != DEFAULT_MARK
    };
    for vlan in [None, Some(0xe000), Some(5), Some(0x0800)] {
        let conditions = Conditions { vlan, ..Conditions::NORMAL };
        for (hook, rows) in [(Hook::Ingress, ingress_rows()), (Hook::Egress, egress_rows())] {
            for row in rows {
                let before = |machine: &Machine| Reason::ALL.map(|reason| machine.counter(reason as u32));
                let (old, _) = (before(&machine), machine.run(hook, &row.frame, row.mark, conditions));
                let rose =
                    Reason::ALL.into_iter().find(|reason| machine.counter(*reason as u32) > old[*reason as usize]);
                let reason = rose.expect("a reason");
                if !in_vlan(&row, conditions) {
                    // Fragments follow a first one that an earlier round has had.
                    let is_fragment = row.name.contains("fragment") || row.name.contains("its ");
                    assert!(is_fragment || reason == row.reason(false), "{}, {vlan:?}: {reason:?}", row.name);
                } else if matches!(row.expect, rows::Expect::Consumed) {
                    assert_eq!(reason, Reason::OtherLink, "{}, {vlan:?}", row.name);
                } else {
                    let suppressed = [Reason::RstSuppressed, Reason::UnreachableSuppressed];
                    assert!(!suppressed.contains(&reason), "{}, {vlan:?}: {reason:?}", row.name);
                }
            }
        }
    }
    for checks in [0, CHECK_SOURCE, CHECK_SOURCE | ACCEPT_LOCAL, CHECK_SOURCE | ROUTE_LOCALNET, CHECK_STATION] {
        machine.check(checks);
        for hook in [Hook::Xdp, Hook::Ingress] {
            for row in ingress_rows() {
                let outcome = machine.run(hook, &row.frame, 0, Conditions::NORMAL);
                let (is_station, name) = (row.reason(false) == Reason::OtherLink && row.start == 14, &row.name);
                let is_loopback = name.contains("from 127.");
                let is_own = LOCAL.iter().chain(&SECOND).any(|own| name.ends_with(&format!("from {own}")));
                let taken = match row.reason(false) {
                    Reason::OtherLink if is_station => checks & CHECK_STATION == 0,
                    Reason::MartianSource if checks & CHECK_SOURCE == 0 => true,
                    Reason::MartianSource if is_loopback => checks & ROUTE_LOCALNET != 0,
                    Reason::MartianSource if is_own => checks & ACCEPT_LOCAL != 0,
                    Reason::MartianSource => false,
                    _ => continue,
                };
                let action = number(hook, if taken { Action::Drop } else { Action::Pass });
                // An error about a packet to a special address has no owner.
                let has_owner = !name.contains("fragment") || name.contains("station");
                assert!(!has_owner || outcome.action == action, "{name}, checks {checks}, {hook:?}");
            }
        }
    }
    coverage.add(&machine);
}

/// Runs the rows without link-layer header.
fn bare_rows(coverage: &mut Coverage) {
    let mut bench = owning(Bench::new(&Bench::small(), 0, false), &world(false));
    let mut machine = Machine::new(0, 1792, DEFAULT_MARK, 0);
    machine.copy_maps(&bench.views());
    for (hook, rows) in [(Hook::Ingress, ingress_rows()), (Hook::Egress, egress_rows())] {
        for row in bare(rows).into_iter().filter(|row| runs(hook, &row.frame)) {
            compare(&mut machine, &mut bench, hook, &row);
        }
    }
    // XDP never runs on such devices; the program is the same.
    for row in bare(ingress_rows()) {
        machine.run(Hook::Xdp, &row.frame, 0, Conditions::NORMAL);
    }
    for hook in HOOKS {
        for frame in [&[0x45][..], &[0x15, 0, 0], &[]] {
            let outcome = machine.run(hook, frame, 0, Conditions::NORMAL);
            assert_eq!(outcome.action, number(hook, Action::Pass));
        }
    }
    coverage.add(&machine);
}

/// Runs random packets in the kernel, the oracle and the interpreter.
fn random(coverage: &mut Coverage, ethernet: bool, socket: bool) {
    let options = LoadOptions { owned_entries: 1024, flow_entries: 1 << 16, ..Bench::small() };
    let mut differential = Differential::new(&options, ethernet, socket);
    let mut machine = Machine::new(if ethernet { 14 } else { 0 }, 1792, DEFAULT_MARK, 0);
    let sequence = Sequence::new(&mut Rng::new(5), 20_000, (ethernet, socket, DEFAULT_MARK));
    for event in &sequence.events {
        match event {
            Event::Owners(world) => {
                differential.set_owners(world);
                differential.clear();
                machine.copy_maps(differential.views());
            }
            Event::Packet { hook, frame, mark } => {
                let predicted = differential.step(*hook, frame, *mark).expect("the prediction of the oracle");
                let before = machine.counter(predicted.reason as u32);
                let linear = differential.oracle.linear;
                let outcome = machine.run(*hook, frame, *mark, Conditions { socket, linear, ..Conditions::NORMAL });
                assert_eq!(outcome.action, number(*hook, predicted.action), "{event:?}");
                assert_eq!(machine.counter(predicted.reason as u32), before + 1, "{event:?}");
                assert_eq!(outcome.records.len(), usize::from(predicted.copied.is_some()), "{event:?}");
            }
        }
    }
    coverage.add(&machine);
}

/// Branches that cannot be taken: end of the file's path, part of the source line, and the reason.
const UNREACHABLE: &[(&str, &str, &str)] = &[
    ("uint_macros.rs", "", "aya-log's fields fit its record; a packet is longer than the offset of its IP header"),
    ("bool.rs", "", "aya-log's fields fit its record"),
    ("non_null.rs", "", "lookups in arrays always succeed; the verifier requires the check"),
    ("option.rs", "", "a copy of a lookup's check, made by the compiler where the result is known"),
    (
        "packet.rs",
        "if start + N > data_end",
        "addresses after a header that was checked already; the verifier requires the check",
    ),
    ("accept.rs", "if !is_station", "headers that were read already are longer; the verifier requires the check"),
    ("accept.rs", "while word < MAX_WORDS", "options within a header that was walked; the verifier requires the check"),
    ("maps.rs", "queue >= SOCKET_ENTRIES", "frames of tests arrive at queue 0"),
    ("packet.rs", "socket_frame", "an array has all its entries; the verifier requires the check"),
    ("parse.rs", "    if v6 {", "a copy made by the compiler where the version is known"),
    (
        "parse.rs",
        "matches!(kind, 3 | 4 | 11 | 12)",
        "the check of MAX_OFFSET for a quoted packet, moved here by the compiler",
    ),
    ("parse.rs", "let port_unreachable =", "the check of MAX_OFFSET for a quoted packet, moved here by the compiler"),
    ("port.rs", "match protocol", "a copy made by the compiler where the protocol is known"),
    ("parse.rs", "MAX_OFFSET", "eight extension headers are shorter; the verifier requires the bound"),
    ("range.rs", "", "the loop of memset, whose length is never zero"),
    ("deliver.rs", "if length <= offset", "a packet is longer than the offset of its IP header"),
    ("deliver.rs", "if last >= N", "the length is limited to N; the verifier requires the check"),
    ("deliver.rs", "length as usize > N", "no IP packet is longer than the largest class"),
    ("deliver.rs", "if copied", "the helper cannot fail within the packet's length"),
    ("main.rs", "debug!", "checks of aya-log's macro that the verifier requires"),
    ("egress.rs", "& RST == 0", "ports within 20 bytes that were checked already; the verifier requires the check"),
    ("maps.rs", "SOCKETS.redirect", "bpf_redirect_map finds the socket that the lookup has just found"),
    ("packet.rs", "maps::redirect", "bpf_redirect_map finds the socket that the lookup has just found"),
    ("packet.rs", "mark.len() > self.data_end", "the headers were read already; the verifier requires the check"),
    ("maps.rs", "let capacity =", "a copy of a lookup's check, made by the compiler where the result is known"),
    ("maps.rs", "if cost == 0", "the egress program delivers copies only, whose loss is not counted"),
];

#[test]
fn every_reachable_branch_is_taken() {
    let _parallel = Parallel::begin();
    let (named, all) = inside(|| {
        let mut coverage = Coverage::default();
        for log in [0, 5] {
            all_rows(&mut coverage, log);
            shortages(&mut coverage, log);
            sizes(&mut coverage, log);
            late_fragments(&mut coverage, log);
            links(&mut coverage, log);
        }
        bare_rows(&mut coverage);
        cut_rows(&mut coverage);
        let named = coverage.clone();
        random(&mut coverage, true, true);
        random(&mut coverage, true, false);
        random(&mut coverage, false, false);
        (named, coverage)
    });
    let machine = Machine::new(14, 0, 0, 0);
    for (what, coverage) in [("the rows", &named), ("the rows and random packets", &all)] {
        for hook in HOOKS {
            let [branches, of, both, jumps] = coverage.count(hook.program());
            println!(
                "{}: {what} take {branches} of {of} branches; both branches of {both} of {jumps} jumps",
                hook.program()
            );
        }
    }
    let mut missed: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for ((program, at), taken) in &all.0 {
        let hook = HOOKS.into_iter().find(|hook| hook.program() == *program).expect("a program");
        let place = machine.program(hook).place(*at).cloned().expect("debugging information");
        let near = machine.program(hook).near(*at).map(|near| format!("{}:{}", near.file, near.line));
        for (branch, count) in [("taken", taken.yes), ("not taken", taken.no)] {
            if count == 0 {
                missed.entry((place.clone(), near.clone(), *program, branch)).or_default().push(*at);
            }
        }
    }
    let mut unexplained = 0;
    for ((place, near, program, branch), jumps) in missed {
        let why = UNREACHABLE.iter().find(|(file, text, _)| place.file.ends_with(file) && line(&place).contains(text));
        unexplained += if why.is_none() { jumps.len() } else { 0 };
        let why = why.map_or("NOT EXPLAINED", |(_, _, why)| why);
        let near = near.unwrap_or_default();
        println!("{}:{} (near {near}) {program}: never {branch}, jumps {jumps:?}: {why}", place.file, place.line);
    }
    println!("{unexplained} branches not taken and not explained");
    assert_eq!(unexplained, 0, "add a row that takes the branch, or an explanation to UNREACHABLE");
}

/// A source line of this repository; empty if the file is not part of it.
fn line(place: &Place) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(&place.file);
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().nth(place.line as usize - 1).unwrap_or_default().to_owned()
}
