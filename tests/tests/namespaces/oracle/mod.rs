//! The kernel half against the oracle: random and damaged packets through `BPF_PROG_TEST_RUN`, each of them judged
//! a second time in plain Rust. Not one difference is allowed, in action, bytes, counters, copies or flow entries.
//!
//! `CRAFTER_TEST_PACKETS`: how many at ingress, and as many at egress (150,000 of each if unset).
//! `CRAFTER_TEST_SEED`: where they begin, a number or `random`.

use std::{env, time::Instant};

use crafter::{
    datapath::program::{Hook, LoadOptions},
    lab::NetNs,
};
use crafter_common::reason::Reason;
use crafter_tests::{
    bench::Bench,
    lane::Lane,
    leak::Parallel,
    random::{
        Rng,
        story::{Event, Story},
    },
};

/// Packets between two changes of owners.
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

/// Ways to load the programs: Ethernet or not, AF_XDP socket or not, and the mark.
const LANES: [(bool, bool, u32); 4] =
    [(true, true, 0x6372_6674), (true, false, 0x6372_6674), (false, false, 0x6372_6674), (true, false, 1)];

fn lane(which: usize) -> Lane {
    let (ethernet, socket, mark) = LANES[which];
    // More flows than a round makes: what an LRU map forgets is not the oracle's to guess.
    let options = LoadOptions { mark, owned_entries: 1024, flow_entries: 1 << 16, ..Bench::small() };
    Lane::new(&options, ethernet, socket)
}

#[test]
fn random_packets_are_judged_alike() {
    let _parallel = Parallel::begin();
    NetNs::new().expect("a namespace").run(differential).expect("enter it");
}

fn differential() {
    let (packets, seed) = (packets(), seed());
    println!("seed {seed}, {packets} packets at ingress and {packets} at egress");
    let began = Instant::now();
    let mut lanes: Vec<Lane> = (0..LANES.len()).map(lane).collect();
    let mut reasons = [0_u64; Reason::ALL.len()];
    let rounds = (2 * packets).div_ceil(ROUND);
    for round in 0..rounds {
        let which = [0, 0, 1, 1, 2, 3][round % 6];
        let mut rng = Rng::new(seed.wrapping_add((round as u64) << 20));
        let story = Story::new(&mut rng, ROUND.min(2 * packets - round * ROUND), LANES[which]);
        if let Err((at, why)) = story.run(&mut lanes[which], &mut reasons) {
            let told = story.shrunk(at, &mut lanes[which]);
            panic!("seed {seed}, round {round}, event {at}, lane {:?}: {why}\n{told}", LANES[which]);
        }
    }
    println!("0 differences in {} s", began.elapsed().as_secs_f32());
    for reason in Reason::ALL {
        println!("{:>12} {}", reasons[reason as usize], reason.name());
    }
    // What needs a full ring is in the named rows. A short run may miss what is rare.
    let full = [Reason::DeliveryFull, Reason::ObserveFull];
    let missed: Vec<_> = Reason::ALL.iter().filter(|r| reasons[**r as usize] == 0 && !full.contains(r)).collect();
    assert!(missed.is_empty() || packets < 50_000, "never met: {missed:?}");
}

/// With nothing owned, every packet passes, and not a byte of it changes: this needs no oracle to know.
#[test]
fn without_owners_everything_passes() {
    let _parallel = Parallel::begin();
    NetNs::new()
        .expect("a namespace")
        .run(|| {
            let mut rng = Rng::new(seed());
            let mut lane = lane(0);
            let mut story = Story::new(&mut rng, packets().min(50_000), LANES[0]);
            story.disown_all();
            for event in &story.events {
                let Event::Packet { hook, frame, mark } = event else { continue };
                lane.pass(*hook, frame, *mark).unwrap_or_else(|why| panic!("{event:?}: {why}"));
            }
        })
        .expect("enter it");
}

/// The benchmarks' program does nothing, whatever comes.
#[test]
fn the_empty_program_passes_everything() {
    let _parallel = Parallel::begin();
    NetNs::new()
        .expect("a namespace")
        .run(|| {
            let mut rng = Rng::new(seed());
            let mut lane = lane(0);
            let story = Story::new(&mut rng, 2_000, LANES[0]);
            for event in &story.events {
                let Event::Packet { frame, .. } = event else { continue };
                lane.pass(Hook::Empty, frame, 0).unwrap_or_else(|why| panic!("{event:?}: {why}"));
            }
        })
        .expect("enter it");
}
