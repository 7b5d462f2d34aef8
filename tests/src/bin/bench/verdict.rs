//! What the verdict on an unowned segment costs, by BPF_PROG_TEST_RUN.

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
    table::{Reach, Row},
};

const REPEAT: u32 = 1_000_000;
const ROUNDS: usize = 9;
const XDP_PASS: u32 = 2;

pub fn measure() -> Result<Vec<Row>> {
    let (mut kernel, mut maps) = Kernel::load(&LoadOptions::default(), 14, 1792)?;
    // 40,000 belongs to nobody; 100 to somebody else's address, once all are owned.
    let unowned = segment([192, 0, 2, 2], 40_000);
    let elsewhere = segment([192, 0, 2, 3], 100);

    maps.own(1, Transport::Tcp, IpAddr::from(CLIENT_V4), 1, Terms::default())?;
    let (empty, one) = both(&mut kernel, &unowned)?;
    own(&mut maps)?;
    let (empty_many, many) = both(&mut kernel, &unowned)?;
    let (empty_other, other) = both(&mut kernel, &elsewhere)?;

    let row = |what: String, empty: f64, ours: f64, reach: Reach| Row {
        what,
        crafter: format!("{ours:.1} ns"),
        beside: format!("empty XDP program {empty:.1} ns"),
        value: ours - empty,
        unit: " ns",
        reach,
    };
    let limit = || Reach::AtMost(30.0);
    Ok(vec![
        row("verdict, unowned segment, 1 port owned".to_owned(), empty, one, limit()),
        row(format!("verdict, unowned segment, {OWNED} ports owned"), empty_many, many, limit()),
        row(format!("verdict, {OWNED} owned, this port on another address"), empty_other, other, Reach::None),
        Row {
            what: format!("verdict, {OWNED} ports beside 1 port"),
            crafter: format!("{many:.1} ns"),
            beside: format!("{one:.1} ns"),
            value: many / one,
            unit: "x",
            reach: Reach::AtMost(1.1),
        },
    ])
}

/// Nanoseconds a run of the empty program and of crafter's; the least of several rounds, taking turns:
/// what disturbs a round makes it longer, never shorter.
fn both(kernel: &mut Kernel, frame: &[u8]) -> Result<(f64, f64)> {
    let (mut empty, mut ours) = (f64::MAX, f64::MAX);
    for _ in 0..ROUNDS {
        empty = empty.min(nanos(kernel.xdp(Hook::Empty)?, frame)?);
        ours = ours.min(nanos(kernel.xdp(Hook::Xdp)?, frame)?);
    }
    Ok((empty, ours))
}

fn nanos(program: &mut Xdp, frame: &[u8]) -> Result<f64> {
    let options = TestRunOptions { data_in: Some(frame), repeat: REPEAT, ..TestRunOptions::new() };
    let start = Instant::now();
    let result = program.test_run(options)?;
    let took = start.elapsed();
    ensure!(result.return_value == XDP_PASS, "the segment was not passed");
    Ok(took.as_nanos() as f64 / f64::from(REPEAT))
}

/// A segment of 1,460 bytes to `port`.
fn segment(destination: [u8; 4], port: u16) -> Vec<u8> {
    let payload = vec![0x55; 1460];
    let tcp = frame::Tcp::new(0x10, 1, 1).with(&payload);
    frame::framed(&tcp.ip((SERVER_V4, 80).into(), (IpAddr::from(destination), port).into()))
}
