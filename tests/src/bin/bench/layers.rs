//! Building and parsing packets on one core, compared with Scapy.

use std::{hint::black_box, process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};
use crafter::layer::{Ether, Ip, Kind, Packet, Tcp, TcpOption, value::hex};

use crate::table::{Row, Target, median};

const ROUNDS: usize = 5;
const COUNT: u32 = 2_000_000;

/// Builds and parses the same packet; prints seconds per packet built, seconds per packet parsed, and the bytes of one.
const SCAPY: &str = "
import time
from scapy.layers.l2 import Ether
from scapy.layers.inet import IP, TCP
p = (Ether(dst='02:00:00:00:00:99', src='02:00:00:00:00:01') / IP(src='192.0.2.1', dst='192.0.2.2')
     / TCP(dport=80, options=[('MSS', 1460), ('SAckOK', b''), ('Timestamp', (1, 0)), ('NOP', None), ('WScale', 7)]))
COUNT = 2000
def timed(work):
    start = time.perf_counter()
    for i in range(COUNT):
        work(i)
    return (time.perf_counter() - start) / COUNT
def build(i):
    p[TCP].sport = i
    return bytes(p)
b = build(1999)
print(timed(build), timed(lambda i: Ether(b)), b.hex())
";

pub fn measure() -> Result<Vec<Row>> {
    let options =
        [TcpOption::Mss(1460), TcpOption::SackOk, TcpOption::Timestamp(1, 0), TcpOption::Nop, TcpOption::WScale(7)];
    let mut packet = Ether::new().dst("02:00:00:00:00:99").src("02:00:00:00:00:01")
        / Ip::to("192.0.2.2").src("192.0.2.1")
        / Tcp::to(80).options(options);
    let mut bytes = Vec::with_capacity(2048);
    let mut build = |port: u16| {
        if let Some(tcp) = packet.get_mut::<Tcp>() {
            tcp.sport = Some(port);
        }
        packet.build_into(&mut bytes).map(|()| black_box(&bytes).clone())
    };
    let same = build(1999)?;
    let digits = hex(&same).to_string();

    let [mut build_scapy, mut parse_scapy, mut builds, mut parses] = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        let (built, parsed, theirs) = scapy()?;
        ensure!(theirs == digits, "Scapy built different bytes: {theirs}");
        build_scapy.push(1.0 / built);
        parse_scapy.push(1.0 / parsed);
        builds.push(rate(|i| {
            if let Some(tcp) = packet.get_mut::<Tcp>() {
                tcp.sport = Some(i as u16);
            }
            packet.build_into(black_box(&mut bytes)).is_ok()
        })?);
        let mut read = Packet::new();
        parses.push(rate(|_| {
            read.parse_into(Kind::Ether, black_box(&same));
            black_box(&read).get::<Tcp>().is_some()
        })?);
    }
    let row = |what: &str, ours: Vec<f64>, scapy: Vec<f64>, target: Target| {
        let (ours, scapy) = (median(ours), median(scapy));
        let what = format!("{what} Ethernet/IP/TCP with the options of a SYN, one core");
        let crafter = format!("{:.2} M/s", ours / 1e6);
        [
            Row {
                what: what.clone(),
                crafter: crafter.clone(),
                peer: format!("Scapy {:.4} M/s", scapy / 1e6),
                value: ours / scapy,
                unit: "x",
                target,
            },
            Row {
                what: format!("{} rate, one core", what.split(' ').next().unwrap_or_default()),
                crafter,
                peer: "-".to_owned(),
                value: ours / 1e6,
                unit: " M/s",
                target: Target::AtLeast(5.0),
            },
        ]
    };
    let build = row("build", builds, build_scapy, Target::AtLeast(500.0));
    let parse = row("parse", parses, parse_scapy, Target::None);
    Ok(build.into_iter().chain(parse).collect())
}

/// Calls of `work` per second; every call must succeed.
fn rate(mut work: impl FnMut(u32) -> bool) -> Result<f64> {
    let start = Instant::now();
    let done = (0..COUNT).filter(|i| work(*i)).count();
    let took = start.elapsed().as_secs_f64();
    ensure!(done == COUNT as usize, "only {done} of {COUNT} succeeded");
    Ok(f64::from(COUNT) / took)
}

/// Seconds per packet built, seconds per packet parsed, and the bytes of a packet in hexadecimal.
fn scapy() -> Result<(f64, f64, String)> {
    let output = Command::new("/usr/bin/python3").args(["-c", SCAPY]).output().context("/usr/bin/python3")?;
    ensure!(output.status.success(), "Scapy: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let mut words = text.split_whitespace();
    let mut next = || words.next().with_context(|| format!("unexpected output of Scapy: {text}"));
    Ok((next()?.parse()?, next()?.parse()?, next()?.to_owned()))
}
