//! A TCP handshake, crafted and by the kernel.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use crafter::{
    Crafter, LeaseRequest, Options, StreamOptions,
    engine::Cursor,
    lab::{INTERFACE, Lab, LabOptions, SERVER_V4},
};

use nix::sys::socket::{Backlog, listen};

use crate::table::{Row, Target, median};

/// One port for each measurement: the server answers a SYN to a connection in TIME-WAIT with an ACK.
const PORTS: [u16; 3] = [8000, 8001, 8002];
const HANDSHAKES: usize = 2000;

/// Listens on these ports of the server until the process exits; connections are accepted and closed at once.
pub fn listen_on(lab: &Lab, ports: &[u16]) -> Result<()> {
    for &port in ports {
        let listener = lab.server().run(|| TcpListener::bind((SERVER_V4, port)))??;
        // A SYN is dropped without an answer if the accept queue is full.
        listen(&listener, Backlog::new(4096)?)?;
        thread::spawn(move || listener.incoming().for_each(drop));
    }
    Ok(())
}

pub fn measure() -> Result<Vec<Row>> {
    let lab = Lab::new(&LabOptions { web: false, dns: false, ..LabOptions::default() })?;
    listen_on(&lab, &PORTS)?;
    let remotes = PORTS.map(|port| SocketAddr::from((SERVER_V4, port)));

    let kernel = lab.client().run(|| kernel(remotes[0]))??;
    let (stream, segments) = lab.client().run(|| -> Result<_> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let crafter = Crafter::open(INTERFACE, Options::default()).await?;
            Ok((streams(&crafter, remotes[1]).await?, segment_by_segment(&crafter, remotes[2]).await?))
        })
    })??;

    let row = |what: &str, value: f64| Row {
        what: what.to_owned(),
        crafter: format!("{value:.1} us"),
        peer: format!("kernel connect() {kernel:.1} us"),
        value: value / kernel,
        unit: "x",
        target: Target::AtMost(5.0),
    };
    Ok(vec![row("handshake, crafted stream, median", stream), row("handshake, segment by segment, median", segments)])
}

/// Median time of connect() in microseconds, with nothing attached.
fn kernel(remote: SocketAddr) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..HANDSHAKES {
        let start = Instant::now();
        let stream = TcpStream::connect(remote)?;
        times.push(micros(start.elapsed()));
        drop(stream);
    }
    Ok(median(times))
}

/// Median time of connecting a stream, in microseconds: buffers, SYN, SYN-ACK, ACK.
async fn streams(crafter: &Crafter, remote: SocketAddr) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..HANDSHAKES {
        let lease = crafter.lease(LeaseRequest::tcp()).await?;
        let start = Instant::now();
        let stream = lease.connect(remote, StreamOptions::default()).await?;
        times.push(micros(start.elapsed()));
        drop(stream);
    }
    Ok(median(times))
}

/// Median time of a handshake segment by segment, in microseconds.
async fn segment_by_segment(crafter: &Crafter, remote: SocketAddr) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..HANDSHAKES {
        let lease = crafter.lease(LeaseRequest::tcp()).await?;
        let mut cursor = Cursor::new(lease.local(remote.ip()).await?, remote);
        let start = Instant::now();
        lease.send(&cursor.syn().build()?).await?;
        let reply = lease.recv_timeout(Duration::from_secs(2)).await?.context("no SYN-ACK")?;
        cursor.handle(&reply.ip);
        if !cursor.is_established() {
            bail!("the reply is not a SYN-ACK");
        }
        lease.send(&cursor.ack().build()?).await?;
        times.push(micros(start.elapsed()));
        lease.send(&cursor.rst().build()?).await?;
    }
    Ok(median(times))
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
