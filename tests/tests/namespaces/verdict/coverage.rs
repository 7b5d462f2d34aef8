//! Which branches of the kernel half's bytecode the rows take, and which random packets take besides: run by a
//! machine in user space beside the kernel, whose results must be the same.

use std::{collections::BTreeMap, path::Path};

use crafter::datapath::program::{Hook, LoadOptions};
use crafter_common::{DEFAULT_MARK, reason::Reason};
use crafter_tests::{
    bench::Bench,
    frame::{self, RST, Tcp},
    lane::{Lane, number},
    leak::Parallel,
    machine::{HOOKS, Machine, Place, Taken, Weather},
    oracle::{Action, Oracle},
    random::{
        Rng,
        story::{Event, Story},
    },
};

use super::{
    bare, inside,
    rows::{LOCAL, OBSERVED, ON_ANY, PEER, Row, at, bench, egress_rows, ingress_rows, ip, owning, reporting, world},
    runs, sized_packets,
};

/// Jumps of all machines, by program and instruction.
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

    /// Ways taken, and ways that there are; jumps taken both ways, and jumps.
    fn count(&self, program: &str) -> [usize; 4] {
        let jumps = || self.0.iter().filter(|((name, _), _)| *name == program).map(|(_, taken)| taken);
        let ways = jumps().map(|taken| usize::from(taken.yes > 0) + usize::from(taken.no > 0)).sum();
        let both = jumps().filter(|taken| taken.yes > 0 && taken.no > 0).count();
        [ways, 2 * jumps().count(), both, jumps().count()]
    }
}

/// One frame through the kernel and through the machine.
fn beside(machine: &mut Machine, bench: &mut Bench, hook: Hook, row: &Row) {
    let Row { name, frame, mark, .. } = row;
    let kernel = bench.run(hook, frame, *mark);
    let before = machine.counter(kernel.reason as u32);
    let weather = Weather { socket: bench.has_socket(), ..Weather::FAIR };
    let outcome = machine.run(hook, frame, *mark, weather);
    assert_eq!(outcome.action, kernel.action, "{name}");
    assert_eq!(machine.counter(kernel.reason as u32), before + 1, "{name}");
    assert_eq!(outcome.records.len(), kernel.delivered.len(), "{name}");
    for (record, (header, packet)) in outcome.records.iter().zip(&kernel.delivered) {
        assert_eq!(&record[24..24 + packet.len()], packet, "{name}");
        assert_eq!(record[8..12], header.captured.to_le_bytes(), "{name}");
    }
}

/// All rows; `log`: with aya-log at its loudest, which is part of the programs.
fn rows(coverage: &mut Coverage, log: u8) {
    for (hook, socket) in [(Hook::Xdp, true), (Hook::Xdp, false), (Hook::Ingress, false)] {
        let mut bench = bench(&Bench::small(), socket);
        let mut machine = Machine::new(14, 1792, DEFAULT_MARK, log);
        machine.settle(&bench.views());
        for row in ingress_rows().into_iter().filter(|row| runs(hook, &row.frame)) {
            beside(&mut machine, &mut bench, hook, &row);
        }
        coverage.add(&machine);
    }
    for mut bench in [bench(&Bench::small(), false), reporting(&Bench::small())] {
        let mut machine = Machine::new(14, 1792, DEFAULT_MARK, log);
        machine.settle(&bench.views());
        for row in egress_rows().into_iter().filter(|row| runs(Hook::Egress, &row.frame)) {
            beside(&mut machine, &mut bench, Hook::Egress, &row);
        }
        coverage.add(&machine);
    }
}

/// What the kernel cannot be asked for in a test: no room in the ring, full maps, headers outside of the linear part,
/// no memory to bring them in, an owner that goes between two look-ups. What is not delivered is decided as before.
fn bad_weather(coverage: &mut Coverage, log: u8) {
    let full = Weather { room: false, space: false, ..Weather::FAIR };
    let scattered = Weather { linear: 20, ..Weather::FAIR };
    let helpless = Weather { memory: false, ..scattered };
    let split = Weather { linear: 60, socket: true, ..Weather::FAIR };
    let bench = reporting(&Bench::small());
    let views = bench.views();
    for weather in [full, scattered, helpless, split] {
        for hook in [Hook::Xdp, Hook::Ingress] {
            let mut machine = Machine::new(14, 1792, DEFAULT_MARK, log);
            machine.settle(&views);
            for row in ingress_rows() {
                let outcome = machine.run(hook, &row.frame, 0, weather);
                assert!(weather.room || outcome.records.is_empty(), "{}", row.name);
                // What a classifier could not pull is passed.
                let passed = number(hook, Action::Pass);
                let helpless = !weather.memory && row.frame.len() > weather.linear && hook == Hook::Ingress;
                assert!(!helpless || outcome.action == passed, "{}", row.name);
            }
            machine.forget_owners();
            for row in ingress_rows() {
                let outcome = machine.run(hook, &row.frame, 0, weather);
                // But for later fragments, whose owner is remembered.
                let fragment = row.name.contains("its ") || row.name.contains("fragment");
                assert!(fragment || outcome.action == number(hook, Action::Pass), "{}", row.name);
            }
            coverage.add(&machine);
        }
        let mut machine = Machine::new(14, 1792, DEFAULT_MARK, log);
        machine.settle(&views);
        for row in egress_rows() {
            let outcome = machine.run(Hook::Egress, &row.frame, row.mark, weather);
            let seen = weather.memory || row.frame.len() <= weather.linear;
            let dropped = seen && matches!(row.reason(false), Reason::RstSuppressed | Reason::UnreachableSuppressed);
            let action = number(Hook::Egress, if dropped { Action::Drop } else { Action::Pass });
            assert_eq!(outcome.action, action, "{}", row.name);
        }
        machine.forget_owners();
        for row in egress_rows() {
            let outcome = machine.run(Hook::Egress, &row.frame, row.mark, weather);
            assert_eq!(outcome.action, number(Hook::Egress, Action::Pass), "{}", row.name);
        }
        coverage.add(&machine);
    }
}

/// Every row cut at every byte, down to nothing, through the machine and past the oracle.
fn cut_rows(coverage: &mut Coverage) {
    let bench = reporting(&Bench::small());
    let views = bench.views();
    for socket in [true, false] {
        for hook in HOOKS {
            let mut machine = Machine::new(14, 1792, DEFAULT_MARK, 0);
            machine.settle(&views);
            let mut oracle = Oracle { ethernet: true, mark: DEFAULT_MARK, linear: usize::MAX, ..Oracle::default() };
            oracle.socket = socket.then_some(1792);
            world(true).tell(&mut oracle);
            let rows = if hook == Hook::Egress { egress_rows() } else { ingress_rows() };
            for row in rows {
                for length in 0..=row.frame.len() {
                    let frame = &row.frame[..length];
                    let judged = oracle.judge(hook, frame, row.mark);
                    let before = machine.counter(judged.reason as u32);
                    let outcome = machine.run(hook, frame, row.mark, Weather { socket, ..Weather::FAIR });
                    assert_eq!(outcome.action, number(hook, judged.action), "{}, {length} bytes", row.name);
                    assert_eq!(machine.counter(judged.reason as u32), before + 1, "{}, {length} bytes", row.name);
                }
            }
            coverage.add(&machine);
        }
    }
}

/// Packets of every size class of the ring, in and out, with room and without.
fn sizes(coverage: &mut Coverage, log: u8) {
    let bench = reporting(&Bench::small());
    let mut machine = Machine::new(14, 1792, DEFAULT_MARK, log);
    machine.settle(&bench.views());
    for weather in [Weather::FAIR, Weather { room: false, ..Weather::FAIR }] {
        for packet in sized_packets(ON_ANY).into_iter().chain(sized_packets(OBSERVED)) {
            let frame = frame::framed(&packet);
            for hook in [Hook::Xdp, Hook::Ingress] {
                let outcome = machine.run(hook, &frame, 0, weather);
                assert_eq!(outcome.records.len(), usize::from(weather.room));
                assert!(outcome.records.iter().all(|record| record[24..24 + packet.len()] == packet));
            }
            // A RST that drags data along, and a port-unreachable about it: longer than the kernel's own.
            let rst = Tcp::new(RST, 1, 2).with(&vec![7; packet.len() - 40]).ip(at(LOCAL[0], ON_ANY), at(PEER[0], 80));
            let datagram = frame::udp_ip(at(PEER[0], 80), at(LOCAL[0], ON_ANY), &vec![7; packet.len().min(65_000)]);
            let unreachable = frame::icmp(ip(LOCAL[0]), ip(PEER[0]), 3, 3, &datagram);
            for answer in [rst, unreachable] {
                let outcome = machine.run(Hook::Egress, &frame::framed(&answer), 0, weather);
                assert_eq!(outcome.action, number(Hook::Egress, Action::Drop));
                assert_eq!(outcome.records.len(), usize::from(weather.room));
            }
        }
    }
    // The longest chain that is walked, around another: the quoted ports lie beyond what the parser looks at.
    let long = |next: u8, payload: &[u8]| {
        (0..8).fold((next, payload.to_vec()), |(next, rest), _| (60, [&[next, 255], &[0; 2046][..], &rest].concat()))
    };
    let (local, peer) = (at(LOCAL[1], ON_ANY), at(PEER[1], 80));
    for (hook, from, to) in [(Hook::Xdp, local, peer), (Hook::Ingress, local, peer), (Hook::Egress, peer, local)] {
        let (next, quoted) = long(frame::UDP, &frame::udp(from, to, b""));
        let error = frame::icmp(to.ip(), from.ip(), 1, 4, &frame::v6(from.ip(), to.ip(), next, &quoted));
        let (next, outer) = long(frame::ICMPV6, &error[40..]);
        let frame = frame::framed(&frame::v6(to.ip(), from.ip(), next, &outer));
        let outcome = machine.run(hook, &frame, 0, Weather::FAIR);
        assert_eq!(outcome.action, number(hook, Action::Pass));
    }
    coverage.add(&machine);
}

/// Rows where there is no link-layer header.
fn bare_rows(coverage: &mut Coverage) {
    let mut bench = owning(Bench::new(&Bench::small(), 0, false), &world(false));
    let mut machine = Machine::new(0, 1792, DEFAULT_MARK, 0);
    machine.settle(&bench.views());
    for (hook, rows) in [(Hook::Ingress, ingress_rows()), (Hook::Egress, egress_rows())] {
        for row in bare(rows).into_iter().filter(|row| runs(hook, &row.frame)) {
            beside(&mut machine, &mut bench, hook, &row);
        }
    }
    // XDP knows such devices only in theory; the program is the same.
    for row in bare(ingress_rows()) {
        machine.run(Hook::Xdp, &row.frame, 0, Weather::FAIR);
    }
    for hook in HOOKS {
        for frame in [&[0x45][..], &[0x15, 0, 0], &[]] {
            let outcome = machine.run(hook, frame, 0, Weather::FAIR);
            assert_eq!(outcome.action, number(hook, Action::Pass));
        }
    }
    coverage.add(&machine);
}

/// Random packets through kernel, oracle and machine.
fn random(coverage: &mut Coverage, ethernet: bool, socket: bool) {
    let options = LoadOptions { owned_entries: 1024, flow_entries: 1 << 16, ..Bench::small() };
    let mut lane = Lane::new(&options, ethernet, socket);
    let mut machine = Machine::new(if ethernet { 14 } else { 0 }, 1792, DEFAULT_MARK, 0);
    let story = Story::new(&mut Rng::new(5), 20_000, (ethernet, socket, DEFAULT_MARK));
    for event in &story.events {
        match event {
            Event::Owners(world) => {
                lane.settle(world);
                lane.forget();
                machine.settle(lane.views());
            }
            Event::Packet { hook, frame, mark } => {
                let judged = lane.step(*hook, frame, *mark).expect("what the oracle says");
                let before = machine.counter(judged.reason as u32);
                let linear = lane.oracle.linear;
                let outcome = machine.run(*hook, frame, *mark, Weather { socket, linear, ..Weather::FAIR });
                assert_eq!(outcome.action, number(*hook, judged.action), "{event:?}");
                assert_eq!(machine.counter(judged.reason as u32), before + 1, "{event:?}");
                assert_eq!(outcome.records.len(), usize::from(judged.copied.is_some()), "{event:?}");
            }
        }
    }
    coverage.add(&machine);
}

/// Why a way cannot be taken: a file, what its line holds, and the reason.
const UNREACHABLE: &[(&str, &str, &str)] = &[
    ("uint_macros.rs", "", "aya-log's fields fit its record; a packet is longer than what stands before its IP header"),
    ("bool.rs", "", "aya-log's fields fit its record"),
    ("non_null.rs", "", "arrays and per-CPU arrays have all their entries; the verifier wants to see it checked"),
    ("option.rs", "", "a copy of the check in look-ups, made by the compiler where the answer is known"),
    (
        "packet.rs",
        "if start + N > data_end",
        "addresses read again behind a header that was there: the verifier wants it checked",
    ),
    ("maps.rs", "queue >= SOCKET_ENTRIES", "frames of tests arrive at queue 0"),
    ("packet.rs", "socket_frame", "an array has all its entries; the verifier wants to see it checked"),
    ("parse.rs", "    if v6 {", "a copy where the version is known"),
    ("parse.rs", "matches!(kind, 3 | 4 | 11 | 12)", "MAX_OFFSET for what is quoted, moved here by the compiler"),
    ("parse.rs", "let port_unreachable =", "MAX_OFFSET for what is quoted, moved here by the compiler"),
    ("port.rs", "match protocol", "a copy where the protocol is known"),
    ("parse.rs", "MAX_OFFSET", "eight extension headers end before: the bound is for the verifier"),
    ("range.rs", "", "the loop of memset, which is never asked for nothing"),
    ("deliver.rs", "if length <= offset", "a packet is longer than what stands before its IP header"),
    ("deliver.rs", "if last >= N", "the length was cut to N: the check is for the verifier"),
    ("deliver.rs", "length as usize > N", "IP packets are no longer than the largest class"),
    ("deliver.rs", "if copied", "the helper copies what the packet's length says is there"),
    ("main.rs", "debug!", "checks of aya-log's macro, of what its author knows and the verifier does not"),
    ("egress.rs", "& RST == 0", "ports read again behind twenty bytes that were there: the verifier wants it checked"),
    ("ingress.rs", "if packet.redirect()", "bpf_redirect_map knows the socket that the look-up has just found"),
];

#[test]
fn branches_of_the_kernel_half() {
    let _parallel = Parallel::begin();
    let (named, all) = inside(|| {
        let mut coverage = Coverage::default();
        for log in [0, 5] {
            rows(&mut coverage, log);
            bad_weather(&mut coverage, log);
            sizes(&mut coverage, log);
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
            let [ways, of, both, jumps] = coverage.count(hook.program());
            println!(
                "{}: {what} take {ways} of {of} ways; branches taken both ways: {both} of {jumps}",
                hook.program()
            );
        }
    }
    let mut missed: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for ((program, at), taken) in &all.0 {
        let hook = HOOKS.into_iter().find(|hook| hook.program() == *program).expect("a program");
        let place = machine.program(hook).place(*at).cloned().expect("debugging information");
        let near = machine.program(hook).near(*at).map(|near| format!("{}:{}", near.file, near.line));
        for (way, count) in [("taken", taken.yes), ("not taken", taken.no)] {
            if count == 0 {
                missed.entry((place.clone(), near.clone(), *program, way)).or_default().push(*at);
            }
        }
    }
    let mut unexplained = 0;
    for ((place, near, program, way), jumps) in missed {
        let why = UNREACHABLE.iter().find(|(file, text, _)| place.file.ends_with(file) && line(&place).contains(text));
        unexplained += if why.is_none() { jumps.len() } else { 0 };
        let why = why.map_or("NOT EXPLAINED", |(_, _, why)| why);
        let near = near.unwrap_or_default();
        println!("{}:{} (by {near}) {program}: never {way}, jumps {jumps:?}: {why}", place.file, place.line);
    }
    println!("{unexplained} ways not taken and not explained");
    assert_eq!(unexplained, 0, "a row is missing, or an explanation");
}

/// A line of crafter's own source.
fn line(place: &Place) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(&place.file);
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().nth(place.line as usize - 1).unwrap_or_default().to_owned()
}
