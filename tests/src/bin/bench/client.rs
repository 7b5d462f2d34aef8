//! The unprivileged client of a benchmark, run as a process of its own: `bench client WORK ...`. It prints its results.

use std::{
    io::Read as _,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use crafter::{
    Crafter, LeaseRequest,
    driver::Received,
    lab::{CLIENT_V4, INTERFACE, SERVER_V4},
    protocol::{
        Control, socket_path,
        wire::{LeaseCall, ReleaseCall},
    },
    session::{Session, SessionOptions},
};
use crafter_tests::{frame, service::lease_call};

use crate::{download, exchange, latency, table::median};

/// Runs the client.
pub fn run(arguments: &[String]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let number = |at: usize| -> Result<u64> { Ok(arguments.get(at).context("a number is missing")?.parse()?) };
    runtime.block_on(async {
        let control = Arc::new(Control::connect(&socket_path()).await?);
        match arguments.first().map(String::as_str) {
            Some("sr1") => {
                let session = Session::new(SessionOptions { service: Some(control), ..SessionOptions::default() });
                println!("{}", exchange::syns(&session, number(1)? as u16).await?);
                session.close().await;
            }
            Some("get") => {
                let crafter = Crafter::via_service(control, INTERFACE).await?;
                let path = arguments.get(1).context("a path is missing")?;
                println!("{}", download::fetch(crafter, path, number(2)?).await?);
            }
            Some("lease") => println!("{}", leases(&control, number(1)?).await?),
            Some("send") => println!("{}", send(control, number(1)?).await?),
            Some("receive") => receive(control, number(1)? as u16, number(2)?).await?,
            Some("info") => latency::observe(&control, Duration::from_millis(number(1)?)).await?,
            Some("disturb") => latency::disturb(arguments.get(1).context("what to do is missing")?)?,
            Some("hold") => hold(&control, number(1)?, number(2)?, number(3)?).await?,
            other => bail!("{other:?} is not a known client job"),
        }
        Ok(())
    })
}

/// Median time of acquiring and releasing a lease, in seconds.
async fn leases(control: &Control, rounds: u64) -> Result<f64> {
    // Keeps the interface attached during the measurement.
    let _first = control.call_for_descriptors(&tcp()).await?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        let (leased, _socket) = control.call_for_descriptors(&tcp()).await?;
        control.call(&ReleaseCall { lease: leased.lease }).await?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(median(times))
}

fn tcp() -> LeaseCall {
    lease_call("tcp", None, None)
}

/// Sends `count` datagrams through one lease; returns packets per second accepted by the socket.
async fn send(control: Arc<Control>, count: u64) -> Result<f64> {
    let crafter = Crafter::via_service(control, INTERFACE).await?;
    let lease = crafter.lease(LeaseRequest::udp()).await?;
    let packet = frame::udp_ip((CLIENT_V4, lease.port()).into(), (SERVER_V4, 9).into(), &[0x55; 18]);
    let start = Instant::now();
    let mut left = count;
    while left > 0 {
        let batch = left.min(64);
        lease.send_all(std::iter::repeat_n(&packet[..], batch as usize)).await?;
        left -= batch;
    }
    let took = start.elapsed().as_secs_f64();
    Ok(crafter.stats().sent as f64 / took)
}

/// Prints `ready`, then packets per second received on `port` within `millis` milliseconds, and packets lost.
async fn receive(control: Arc<Control>, port: u16, millis: u64) -> Result<()> {
    let crafter = Crafter::via_service(control, INTERFACE).await?;
    let lease = crafter.lease(LeaseRequest::udp().port(port)).await?;
    println!("ready");
    let (mut count, mut start) = (0_u64, None);
    let is_over = |start: Option<Instant>| start.is_some_and(|start| start.elapsed() >= Duration::from_millis(millis));
    while !is_over(start) {
        let Some(Received { .. }) = lease.recv_timeout(Duration::from_secs(2)).await? else { break };
        start.get_or_insert_with(Instant::now);
        count += 1;
        while count % 256 != 0 && lease.try_recv().is_some() {
            count += 1;
        }
    }
    let took = start.context("no packet arrived")?.elapsed().as_secs_f64();
    println!("{} {}", count as f64 / took, crafter.stats().lost);
    Ok(())
}

/// Holds `leases` leases of `ports` ports each, from port `base` on, until its input ends.
async fn hold(control: &Control, leases: u64, ports: u64, base: u64) -> Result<()> {
    let mut held = Vec::new();
    for number in 0..leases {
        let first = base + number * ports;
        ensure!(first + ports <= 65_536, "not enough ports above the base port");
        let call = LeaseCall {
            port: Some(first),
            last_port: Some(first + ports - 1),
            address: Some(IpAddr::from(CLIENT_V4).to_string()),
            ..tcp()
        };
        held.push(control.call_for_descriptors(&call).await?);
    }
    println!("ready");
    let _ = std::io::stdin().read(&mut [0])?;
    Ok(())
}
