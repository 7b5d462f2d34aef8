//! Differential test of the kernel half against the oracle: random and damaged packets through `BPF_PROG_TEST_RUN`,
//! with each result predicted by a model in plain Rust. Action, bytes, counters, copies and flow entries must be equal.
//!
//! `CRAFTER_TEST_PACKETS`: number of packets at ingress, and at egress (150,000 each if unset). `CRAFTER_TEST_SEED`:
//! the initial seed, a number or `random`.

use std::{env, time::Instant};

use crafter::{
    datapath::program::{Hook, LoadOptions},
    lab::NetNs,
};
use crafter_common::reason::Reason;
use crafter_tests::{
    bench::Bench,
    differential::Differential,
    leak::Parallel,
    random::{
        Rng,
        sequence::{Event, Sequence},
    },
};

/// Packets per sequence.
const ROUND: usize = 4_000;

fn packets() -> usize {
    env::var("CRAFTER_TEST_PACKETS").map_or(150_000, |text| text.parse().expect("CRAFTER_TEST_PACKETS is a number"))
}

fn seed() -> u64 {
    match env::var("CRAFTER_TEST_SEED").as_deref() {
        Err(_) => 20_261_122,
        Ok("random") => {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
            since.as_nanos() as u64
        }
        Ok(text) => text.parse().expect("CRAFTER_TEST_SEED is a number or `random`"),
    }
}

/// Load options of the programs: Ethernet header or not, AF_XDP socket or not, and the mark.
const CONFIGURATIONS: [(bool, bool, u32); 4] =
    [(true, true, 0x6372_6674), (true, false, 0x6372_6674), (false, false, 0x6372_6674), (true, false, 1)];

fn differential(which: usize) -> Differential {
    let (ethernet, socket, mark) = CONFIGURATIONS[which];
    // Enough room for all flows of a round, because the oracle does not model eviction from the LRU map.
    let options = LoadOptions { mark, owned_entries: 1024, flow_entries: 1 << 16, ..Bench::small() };
    Differential::new(&options, ethernet, socket)
}

#[test]
fn random_packets_match_the_oracle() {
    let _parallel = Parallel::begin();
    NetNs::new().expect("a namespace").run(compare).expect("enter the namespace");
}

fn compare() {
    let (packets, seed) = (packets(), seed());
    println!("seed {seed}, {packets} packets at ingress and {packets} at egress");
    let began = Instant::now();
    let mut differentials: Vec<Differential> = (0..CONFIGURATIONS.len()).map(differential).collect();
    let mut reasons = [0_u64; Reason::ALL.len()];
    let rounds = (2 * packets).div_ceil(ROUND);
    for round in 0..rounds {
        let which = [0, 0, 1, 1, 2, 3][round % 6];
        let mut rng = Rng::new(seed.wrapping_add((round as u64) << 20));
        let sequence = Sequence::new(&mut rng, ROUND.min(2 * packets - round * ROUND), CONFIGURATIONS[which]);
        if let Err((at, why)) = sequence.run(&mut differentials[which], &mut reasons) {
            let report = sequence.minimized(at, &mut differentials[which]);
            panic!(
                "seed {seed}, round {round}, event {at}, configuration {:?}: {why}\n{report}",
                CONFIGURATIONS[which]
            );
        }
    }
    println!("0 differences in {} s", began.elapsed().as_secs_f32());
    for reason in Reason::ALL {
        println!("{:>12} {}", reasons[reason as usize], reason.name());
    }
    // The named rows cover the reasons that need a full ring. A short run may miss rare reasons.
    let full = [Reason::DeliveryFull, Reason::ObserveFull];
    let missed: Vec<_> = Reason::ALL.iter().filter(|r| reasons[**r as usize] == 0 && !full.contains(r)).collect();
    assert!(missed.is_empty() || packets < 50_000, "these reasons never occurred: {missed:?}");
}

/// Runs `count` random packets without owners through the programs; every packet must pass unchanged at the hook that
/// `hook` selects.
fn assert_all_pass(count: usize, hook: fn(Hook) -> Hook) {
    let work = || {
        let mut differential = differential(0);
        let mut sequence = Sequence::new(&mut Rng::new(seed()), count, CONFIGURATIONS[0]);
        sequence.disown_all();
        for event in &sequence.events {
            let Event::Packet { hook: own, frame, mark } = event else { continue };
            differential.pass(hook(*own), frame, *mark).unwrap_or_else(|why| panic!("{event:?}: {why}"));
        }
    };
    NetNs::new().expect("a namespace").run(work).expect("enter the namespace");
}

/// This test does not depend on the oracle.
#[test]
fn unowned_packets_pass_unchanged() {
    let _parallel = Parallel::begin();
    assert_all_pass(packets().min(50_000), |hook| hook);
}

/// The empty program is the baseline of the benchmarks.
#[test]
fn empty_program_passes_every_packet() {
    let _parallel = Parallel::begin();
    assert_all_pass(2_000, |_| Hook::Empty);
}
