//! Download of 100 MB from nginx: over a crafted stream compared with curl, and by curl with crafter attached.

use std::{
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::XdpMode;
use crafter::{
    Crafter, LeaseRequest, Options, StreamOptions,
    datapath::{
        interface::interface,
        maps::Terms,
        program::{Attach, Hook, Kernel, LoadOptions},
    },
    lab::{CLIENT_V4, INTERFACE, Lab, LabOptions, SERVER_V4},
    packet::Transport,
};
use crafter_tests::peer::Nginx;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::table::{Row, Target, median};

const ROUNDS: usize = 7;
/// More rounds, because the expected difference of a few percent is less than the variation of single runs.
const BYSTANDER_ROUNDS: usize = 15;
/// (port, address) pairs owned during the bystander benchmark.
pub const OWNED: u32 = 65_536;
/// Downloads per curl run.
const REPEAT: usize = 4;

pub fn measure() -> Result<Vec<Row>> {
    let lab = Lab::new(&LabOptions { web: false, dns: false, offloads: false, ..LabOptions::default() })?;
    let nginx = Nginx::with_big(lab.server());
    let page = nginx.big.as_ref().context("nginx has no big page")?;
    let (mut curls, mut streams) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        curls.push(page.length as f64 / curl(&lab, page.path, 1)? / 1e6);
        let seconds = lab.client().run(|| stream(page.path, page.length))??;
        streams.push(page.length as f64 / seconds / 1e6);
    }
    let (curl, stream) = (median(curls), median(streams));
    Ok(vec![Row {
        what: format!("download of {} MB, crafted stream, offloads off", page.length / 1_000_000),
        crafter: format!("{stream:.0} MB/s"),
        peer: format!("curl {curl:.0} MB/s"),
        value: stream / curl,
        unit: "x",
        target: Target::AtLeast(0.5),
    }])
}

/// Time in seconds of one download over a crafted stream, with hooks of this process.
pub fn stream(path: &str, length: u64) -> Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let crafter = Crafter::open(INTERFACE, Options::default()).await?;
        ensure!(crafter.report().sockets > 0, "{}: {:?}", crafter.report(), crafter.report().notes);
        fetch(crafter, path, length).await
    })
}

/// Time in seconds of one download over a crafted stream, from SYN to end of stream.
pub async fn fetch(crafter: Crafter, path: &str, length: u64) -> Result<f64> {
    let lease = crafter.lease(LeaseRequest::tcp().coalesce(true)).await?;
    let mut buffer = vec![0; 256 << 10];
    let mut received = 0;
    let start = Instant::now();
    let mut stream = lease.connect(SocketAddr::from((SERVER_V4, 80)), StreamOptions::default()).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            count => received += count as u64,
        }
    }
    let took = start.elapsed().as_secs_f64();
    ensure!(received > length, "received only {received} of {length} bytes");
    stream.shutdown().await?;
    Ok(took)
}

/// Time in seconds of `repeat` downloads by curl on one connection.
fn curl(lab: &Lab, path: &str, repeat: usize) -> Result<f64> {
    let url = format!("http://{SERVER_V4}{path}");
    let mut command: Command = lab.client().command("curl");
    command.args(["--silent", "--show-error", "--fail", "--write-out", "%{time_total} "]).stdout(Stdio::piped());
    for _ in 0..repeat {
        command.args(["--output", "/dev/null", &url]);
    }
    let output = command.output().context("curl (`cargo xtask setup` installs it)")?;
    ensure!(output.status.success(), "curl ended with {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace().map(|seconds| Ok(seconds.parse::<f64>()?)).sum()
}

/// Throughput of a program that does not use crafter while crafter is attached.
pub fn bystander() -> Result<Vec<Row>> {
    let lab = Lab::new(&LabOptions { web: false, dns: false, ..LabOptions::default() })?;
    let nginx = Nginx::with_big(lab.server());
    let page = nginx.big.as_ref().context("nginx has no big page")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    // Alternates between the two, so that disturbances affect both.
    for round in 0..2 * BYSTANDER_ROUNDS {
        let crafter = round % 2 == 1;
        let kernel = lab.client().run(|| runtime.block_on(attach(crafter)))??;
        // A warm-up run after attaching.
        curl(&lab, page.path, 1)?;
        let rate = (page.length * REPEAT as u64) as f64 / curl(&lab, page.path, REPEAT)? / 1e6;
        if crafter {
            with.push(rate)
        } else {
            without.push(rate)
        }
        drop(kernel);
    }
    let (with, without) = (median(with), median(without));
    Ok(vec![Row {
        what: format!("curl, with {OWNED} ports owned by crafter"),
        crafter: format!("{with:.0} MB/s"),
        peer: format!("empty XDP program {without:.0} MB/s"),
        value: with / without,
        unit: "x",
        target: Target::AtLeast(0.97),
    }])
}

/// Attaches crafter with [`OWNED`] ports, or an empty XDP program.
async fn attach(crafter: bool) -> Result<Kernel> {
    let interface = interface(INTERFACE).await?;
    let (mut kernel, mut maps) = Kernel::load(&LoadOptions::default(), 14, 1792)?;
    if crafter {
        own(&mut maps)?;
        kernel.attach(&interface, Attach::Native)?;
    } else {
        kernel.xdp(Hook::Empty, |program| Ok(program.attach_to_if_index(interface.ifindex, XdpMode::Driver)))??;
    }
    Ok(kernel)
}

/// Owns [`OWNED`] pairs: ports 0 to 32,767 on two addresses, below the ephemeral ports that curl uses.
pub fn own(maps: &mut crafter::datapath::maps::OwnerMaps) -> Result<()> {
    let other = IpAddr::from([192, 0, 2, 77]);
    for address in [IpAddr::from(CLIENT_V4), other] {
        for port in 0..(OWNED / 2) as u16 {
            maps.own(1, Transport::Tcp, address, port, Terms::default())?;
        }
    }
    Ok(())
}
