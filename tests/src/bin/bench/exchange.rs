//! Requests with their matched answers, one SYN and a SYN to every port of a host, compared with connect() and Scapy.

use std::{
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use crafter::{
    expr::PacketSet,
    lab::{Lab, LabOptions, SERVER_V4},
    layer::{Ip, Tcp},
    session::{Pace, Session, SessionOptions, SrOptions},
};

use crate::handshake::listen_on;
use crate::table::{Row, Target, median};

/// One port for each measurement, as in `handshake`.
const PORTS: [u16; 3] = [8000, 8001, 8002];
const SYNS: usize = 2000;
/// Number of ports scanned, and rounds.
const ALL: u64 = 65_535;
const ROUNDS: usize = 3;
/// Number of ports scanned by Scapy, which would take minutes for all.
const SCAPY_PORTS: u32 = 200;

/// Prints the median time of 50 `sr1(SYN)` in seconds, the time of `sr` of closed ports, and how many of these
/// answered.
const SCAPY: &str = "
import sys, time
from scapy.all import IP, TCP, sr, sr1, conf
conf.verb = 0
server, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
times = []
for i in range(50):
    start = time.perf_counter()
    reply = sr1(IP(dst=server)/TCP(sport=20000+i, dport=port, flags='S'), timeout=2)
    times.append(time.perf_counter() - start)
    assert reply is not None and reply[TCP].flags == 'SA'
times.sort()
start = time.perf_counter()
answered, _ = sr(IP(dst=server)/TCP(sport=21000, dport=(1, count), flags='S'), timeout=2)
took = time.perf_counter() - start
print(times[len(times) // 2], took, len(answered))
";

pub fn measure() -> Result<Vec<Row>> {
    let lab = Lab::new(&LabOptions { web: false, dns: false, ..LabOptions::default() })?;
    listen_on(&lab, &PORTS)?;
    let kernel = lab.client().run(|| kernel(SocketAddr::from((SERVER_V4, PORTS[0]))))??;
    let (scapy_one, scapy_many, answered) = scapy(&lab)?;
    let (one, all) = lab.client().run(|| -> Result<_> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let session = Session::new(SessionOptions::default());
            let measured = (syns(&session, PORTS[2]).await?, every_port(&session).await?);
            session.close().await;
            Ok(measured)
        })
    })??;
    let row = |what: &str, peer: String, value: f64, unit, target| Row {
        what: what.to_owned(),
        crafter: format!("{:.1} us", one * 1e6),
        peer,
        value,
        unit,
        target,
    };
    let connect = format!("kernel connect() {:.1} us", kernel * 1e6);
    let theirs = format!("Scapy {:.0} us", scapy_one * 1e6);
    Ok(vec![
        row("sr1(SYN) in process, median", connect, one / kernel, "x", Target::AtMost(5.0)),
        row("sr1(SYN) in process, median", theirs, one / scapy_one, "x", Target::None),
        Row {
            what: format!("sr of {ALL} ports of a host, each answered, all accounted for"),
            crafter: format!("{:.0} ports/s", ALL as f64 / all),
            peer: format!("Scapy, {SCAPY_PORTS} ports: {:.0} answered/s, {answered} in total", answered / scapy_many),
            value: all,
            unit: " s",
            target: Target::AtMost(3.0),
        },
    ])
}

/// Median time of connect() in seconds, with nothing attached.
fn kernel(remote: SocketAddr) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..SYNS {
        let start = Instant::now();
        let stream = TcpStream::connect(remote)?;
        times.push(start.elapsed().as_secs_f64());
        drop(stream);
    }
    Ok(median(times))
}

/// Median time of `sr1` of a SYN to a listening port, in seconds, each from a new port.
pub async fn syns(session: &Session, port: u16) -> Result<f64> {
    let options = SrOptions::default();
    let mut times = Vec::new();
    for _ in 0..SYNS {
        let syn = Ip::to(SERVER_V4) / Tcp::to(port).flags("S");
        let start = Instant::now();
        let reply = session.sr1(syn, &options).await?.context("no answer")?;
        times.push(start.elapsed().as_secs_f64());
        let syn_ack = reply.packet.get::<Tcp>().context("no segment")?;
        ensure!(syn_ack.flags.is_some_and(|flags| flags.0 & 0x12 == 0x12), "no SYN-ACK: {}", reply.packet);
        let reset = Ip::to(SERVER_V4) / Tcp::to(port).sport(syn_ack.dport.unwrap_or(0)).flags("R").seq(1);
        session.send([reset], Pace::default()).await?;
    }
    Ok(median(times))
}

/// Median time of `sr` to every port of the server, in seconds; listening ports answer with SYN-ACK.
async fn every_port(session: &Session) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let text = format!(r#"IP(dst="{SERVER_V4}")/TCP(dport=(1,{ALL}), flags="S")"#);
        let start = Instant::now();
        let set = PacketSet::parse(&text)?;
        let exchanged = session.sr(set.packets(ALL.into())?, &SrOptions::default()).await?;
        times.push(start.elapsed().as_secs_f64());
        let account = exchanged.account;
        // Listening ports retransmit their SYN-ACK in a later round; these are counted as unmatched.
        ensure!(account.answered == ALL && account.agrees(), "{account}");
    }
    Ok(median(times))
}

/// Time in seconds of one SYN, time in seconds of the scan, and number of answered ports.
fn scapy(lab: &Lab) -> Result<(f64, f64, f64)> {
    let mut command = lab.client().command("/usr/bin/python3");
    command.args(["-c", SCAPY, &SERVER_V4.to_string(), &PORTS[1].to_string(), &SCAPY_PORTS.to_string()]);
    let output = command.output().context("/usr/bin/python3")?;
    ensure!(output.status.success(), "Scapy: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [one, many, answered] = numbers[..] else { anyhow::bail!("unexpected output of Scapy: {text}") };
    Ok((one, many, answered))
}
