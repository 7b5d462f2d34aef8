//! Cost of the verdict on an unowned segment, measured by BPF_PROG_TEST_RUN.

use std::{net::IpAddr, time::Instant};

use anyhow::{Result, ensure};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use crafter::{
    datapath::{
        maps::Terms,
        program::{Hook, Kernel, LoadOptions},
    },
    lab::{CLIENT_V4, SERVER_V4},
    packet::Transport,
};
use crafter_tests::frame;

use crate::{
    download::{OWNED, own},
    table::{Row, Target},
};

const REPEAT: u32 = 1_000_000;
const ROUNDS: usize = 15;
const XDP_PASS: u32 = 2;

pub fn measure() -> Result<Vec<Row>> {
    // Ports 0 to 32,767 are owned on two addresses. Port 40,000 is unowned; port 100 is owned on other addresses only.
    let unowned = segment([192, 0, 2, 2], 40_000);
    let elsewhere = segment([192, 0, 2, 3], 100);
    let (few, mut few_maps) = Kernel::load(&LoadOptions::default(), 14, 1792)?;
    few_maps.own(1, Transport::Tcp, IpAddr::from(CLIENT_V4), 1, Terms::default())?;
    let (all, mut all_maps) = Kernel::load(&LoadOptions::default(), 14, 1792)?;
    own(&mut all_maps)?;

    // The minimum of alternating rounds: disturbances only make a round longer.
    let [mut empty, mut one, mut many, mut other] = [f64::MAX; 4];
    for _ in 0..ROUNDS {
        empty = empty.min(few.xdp(Hook::Empty, time(&unowned))??);
        one = one.min(few.xdp(Hook::Xdp, time(&unowned))??);
        many = many.min(all.xdp(Hook::Xdp, time(&unowned))??);
        other = other.min(all.xdp(Hook::Xdp, time(&elsewhere))??);
    }

    let row = |what: String, ours: f64, target: Target| Row {
        what,
        crafter: format!("{ours:.1} ns"),
        peer: format!("empty XDP program {empty:.1} ns"),
        value: ours - empty,
        unit: " ns",
        target,
    };
    let limit = || Target::AtMost(30.0);
    Ok(vec![
        row("verdict, unowned segment, 1 port owned".to_owned(), one, limit()),
        row(format!("verdict, unowned segment, {OWNED} ports owned"), many, limit()),
        row(format!("verdict, {OWNED} ports owned, this port on other addresses only"), other, Target::None),
        Row {
            what: format!("verdict, {OWNED} ports owned, compared with 1 port"),
            crafter: format!("{many:.1} ns"),
            peer: format!("{one:.1} ns"),
            value: many / one,
            unit: "x",
            target: Target::AtMost(1.1),
        },
    ])
}

fn time(frame: &[u8]) -> impl FnOnce(&mut Xdp) -> crafter::Result<Result<f64>> {
    move |program| Ok(nanos(program, frame))
}

/// Nanoseconds a run of `program` takes on `frame`.
pub fn nanos(program: &mut Xdp, frame: &[u8]) -> Result<f64> {
    let options = TestRunOptions { data_in: Some(frame), repeat: REPEAT, ..TestRunOptions::new() };
    let start = Instant::now();
    let result = program.test_run(options)?;
    let took = start.elapsed();
    ensure!(result.return_value == XDP_PASS, "the segment was not passed");
    Ok(took.as_nanos() as f64 / f64::from(REPEAT))
}

/// A segment with 1,460 bytes of payload to `port`.
fn segment(destination: [u8; 4], port: u16) -> Vec<u8> {
    let payload = vec![0x55; 1460];
    let tcp = frame::Tcp::new(0x10, 1, 1).with(&payload);
    frame::framed(&tcp.ip((SERVER_V4, 80).into(), (IpAddr::from(destination), port).into()))
}
