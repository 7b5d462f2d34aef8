//! Sending distinct frames, built in advance, on one core, compared with trafgen.

use std::{
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use crafter::{
    datapath::{
        frames::{FrameSender, Outlet},
        interface,
    },
    lab::{CLIENT_V4, INTERFACE, Lab, LabOptions, SERVER_V4},
    layer::{Ether, Ip, Tcp},
};
use crafter_tests::foreign::{drop_all, received};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::table::{Row, Target, median};

const FRAMES: u32 = 1_000_000;
const ROUNDS: usize = 5;
/// The CPU that both use.
const CORE: usize = 0;

pub fn measure() -> Result<Vec<Row>> {
    let lab = Lab::new(&LabOptions { web: false, dns: false, ..LabOptions::default() })?;
    let _drop: OwnedFd = lab.server().run(|| drop_all(INTERFACE))??;
    let frames = frames()?;
    let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    let length = frames[0].len();
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("syn.cfg");
    // Distinct, too: the sequences of identifications and source ports have different lengths.
    let text = format!(
        "{{ eth(da=02:00:00:00:00:99, sa=02:00:00:00:00:01), ipv4(id=dinc(0, 64999), saddr={CLIENT_V4}, \
         daddr={SERVER_V4}, ttl=64), tcp(sport=dinc(1000, 60000), dport=80, syn) }}\n"
    );
    std::fs::write(&config, text)?;

    let [mut trafgens, mut direct, mut queued] = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        let trafgen = || -> Result<f64> {
            let mut command = lab.client().command("trafgen");
            command.args(["--cpus", "1", "--no-sock-mem", "-o", INTERFACE, "-n", &FRAMES.to_string(), "-i"]);
            let output = command.arg(&config).output().context("trafgen (`cargo xtask setup` installs it)")?;
            seconds(&String::from_utf8_lossy(&[output.stdout, output.stderr].concat()))
        };
        trafgens.push(counted(&lab, trafgen)?);
        direct.push(counted(&lab, || lab.client().run(|| send(&frames, Outlet::Direct))?)?);
        queued.push(counted(&lab, || lab.client().run(|| send(&frames, Outlet::Queued { mark: 0 }))?)?);
    }
    let [trafgen, direct, queued] = [trafgens, direct, queued].map(median);
    let row = |path: &str, ours: f64, target: Target| Row {
        what: format!("send of {FRAMES} distinct frames of {length} bytes, one core, {path}"),
        crafter: format!("{:.2} M/s", ours / 1e6),
        peer: format!("trafgen {:.2} M/s", trafgen / 1e6),
        value: ours / trafgen,
        unit: "x",
        target,
    };
    Ok(vec![
        row("bypassing the queueing discipline", direct, Target::AtLeast(1.0)),
        row("through the queueing discipline", queued, Target::None),
    ])
}

/// Distinct SYNs: neither source port nor identification alone has enough values.
fn frames() -> Result<Vec<Vec<u8>>> {
    let mut packet = Ether::new().dst("02:00:00:00:00:99").src("02:00:00:00:00:01")
        / Ip::to(SERVER_V4.to_string().as_str()).src(CLIENT_V4.to_string().as_str())
        / Tcp::to(80).flags("S");
    let mut frames = Vec::with_capacity(FRAMES as usize);
    for i in 0..FRAMES {
        if let Some(ip) = packet.get_mut::<Ip>() {
            ip.id = Some((i / 50_000) as u16);
        }
        if let Some(tcp) = packet.get_mut::<Tcp>() {
            tcp.sport = Some((1000 + i % 50_000) as u16);
        }
        frames.push(packet.build()?);
    }
    Ok(frames)
}

/// Frames per second, from the time that `send` returns; all frames must arrive.
fn counted(lab: &Lab, send: impl FnOnce() -> Result<f64>) -> Result<f64> {
    let arrived = || lab.server().run(|| received(INTERFACE));
    let before = arrived()??;
    let took = send()?;
    let mut count = 0;
    for _ in 0..200 {
        count = arrived()?? - before;
        if count >= u64::from(FRAMES) {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    // The kernels of both ends may send a few neighbour solicitations.
    ensure!((u64::from(FRAMES)..u64::from(FRAMES) + 10).contains(&count), "{count} of {FRAMES} frames arrived");
    Ok(f64::from(FRAMES) / took)
}

/// Seconds that sending takes.
fn send(frames: &[&[u8]], outlet: Outlet) -> Result<f64> {
    let mut core = CpuSet::new();
    core.set(CORE)?;
    // Applies only to this thread, which ends after the measurement.
    sched_setaffinity(Pid::from_raw(0), &core)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut sender = FrameSender::open(&runtime.block_on(interface::interface(INTERFACE))?, outlet)?;
    let start = Instant::now();
    let taken = sender.send(frames)?;
    let took = start.elapsed().as_secs_f64();
    ensure!(taken == frames.len(), "the kernel refused {} frames", sender.refused());
    Ok(took)
}

/// Parses trafgen's output `0 sec, 710934 usec on CPU0 (1000000 packets)`.
fn seconds(output: &str) -> Result<f64> {
    let line =
        output.lines().find(|line| line.contains(" usec on CPU")).with_context(|| format!("trafgen: {output}"))?;
    let number = |at| line.split_whitespace().nth(at).and_then(|word| word.parse::<f64>().ok());
    let (seconds, micros) = number(0).zip(number(2)).with_context(|| format!("trafgen: {line}"))?;
    Ok(seconds + micros / 1e6)
}
