//! A whole crafted conversation, in a lab of its own: `cargo xtask demo`, or `crafter lab run -- demo`.
//!
//! First the failure: a crafted SYN without an owned port, and the kernel's RST. Then with an owned port: a DNS query,
//! a handshake and a GET by hand, segment by segment, and 100 MB over a stream. The last chapter counts the RSTs that
//! the server received and the programs that are still attached.

use std::{
    env,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use crafter::{
    Crafter, Lease, LeaseRequest, Options, StreamOptions,
    datapath::{
        interface::{Interface, interface},
        route,
        tx::Sender,
    },
    engine::Cursor,
    lab::{self, Lab, LabOptions, SignalForwarding},
    layer::{Packet, Udp},
    packet::{Checksum, TcpView, UdpView},
};
use crafter_common::reason::Reason;
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Environment variable that is set in a lab.
const LAB_VARIABLE: &str = "CRAFTER_LAB_INTERFACE";

/// Timeout of each reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let ended = match env::var_os(LAB_VARIABLE) {
        Some(_) => story().map(|()| ExitCode::SUCCESS),
        None => in_lab(),
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs this program again, in a lab.
fn in_lab() -> Result<ExitCode> {
    // Before the lab starts threads.
    let signals = SignalForwarding::block()?;
    let lab = Lab::new(&LabOptions::default())?;
    let program = env::current_exe().context("cannot find this program")?;
    let ending = lab::run(&lab, &[program.into_os_string()], Some(&signals))?;
    eprintln!("lab: RST segments that reached the server: {}", ending.rsts);
    Ok(ending.code.into())
}

/// Addresses of the lab's servers.
struct Servers {
    interface: String,
    web: SocketAddr,
    web6: SocketAddr,
    dns: SocketAddr,
}

impl Servers {
    fn from_environment() -> Result<Self> {
        let get =
            |name: &str| env::var(name).with_context(|| format!("{name} is not set: run `crafter lab run -- demo`"));
        let web = |name: &str| -> Result<SocketAddr> {
            let url = get(name)?;
            let host = url.trim_start_matches("http://").trim_matches(['[', ']']);
            Ok(SocketAddr::new(host.parse().with_context(|| format!("{name}={url}"))?, 80))
        };
        Ok(Self {
            interface: get(LAB_VARIABLE)?,
            web: web("CRAFTER_LAB_WEB")?,
            web6: web("CRAFTER_LAB_WEB6")?,
            dns: SocketAddr::new(get("CRAFTER_LAB_DNS")?.parse()?, 53),
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn story() -> Result<()> {
    let servers = Servers::from_environment()?;

    chapter("1. Without crafter: a crafted SYN, and a kernel that does not know the connection");
    let interface = interface(&servers.interface).await?;
    control(&servers, &interface).await?;

    chapter("2. With crafter: the port is owned");
    let crafter = Crafter::open(&servers.interface, Options::default()).await?;
    println!("   attached: {}", crafter.report());
    for note in &crafter.report().notes {
        println!("   note: {note}");
    }

    chapter("3. A DNS query by hand: IP / UDP / DNS, one datagram in each direction");
    dns(&crafter, servers.dns).await?;

    chapter("4. A handshake and a GET by hand, segment by segment");
    manual(&crafter, servers.web).await?;

    for (number, (name, web)) in [("IPv4", servers.web), ("IPv6", servers.web6)].into_iter().enumerate() {
        chapter(&format!("{}. 100 MB over a crafted stream, {name}", number + 5));
        download(&crafter, web).await?;
    }

    chapter("7. What remains");
    let counters = crafter.counters()?;
    println!("   kernel half: {} packets in, {} out, of them", counters.ingress(), counters.egress());
    for reason in Reason::ALL {
        if counters.get(reason) > 0 {
            println!("      {:>9}  {}", counters.get(reason), reason.name());
        }
    }
    drop(crafter);
    let rsts = rsts(servers.web)?.len();
    let attached = attached(&servers.interface).await?;
    println!("   RSTs received by the server since chapter 1: {rsts}");
    println!("   attachments left behind: {attached}");
    ensure!(rsts == 0, "the server received RSTs");
    ensure!(attached == 0, "something is still attached to {}", servers.interface);
    println!(
        "\nEvery byte was received, both sides closed, no firewall rule was set, and nothing remains on the host."
    );
    Ok(())
}

/// Shows the failure: the kernel answers the SYN-ACK with a RST, because no socket has the connection.
async fn control(servers: &Servers, interface: &Interface) -> Result<()> {
    let route = route::resolve(servers.web.ip(), Some(&interface.name), None).await?;
    let local = SocketAddr::new(route.source, 40_000);
    let syn = Cursor::new(local, servers.web).syn().build()?;
    let mut sender = Sender::open(interface, 0)?;
    sender.push(&route, &syn)?;
    sender.flush()?;
    println!("   > {}", TcpView::parse(&syn)?);
    let deadline = Instant::now() + REPLY_TIMEOUT;
    loop {
        if let Some(rst) = rsts(servers.web)?.into_iter().find(|rst| rst["port"] == local.port()) {
            println!("   the server received the kernel's RST: {rst}");
            break;
        }
        ensure!(Instant::now() < deadline, "the kernel sent no RST for port {}, which is not owned", local.port());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    kernel_get(servers.web, "/rsts/clear").map(drop)
}

async fn dns(crafter: &Crafter, server: SocketAddr) -> Result<()> {
    let lease = crafter.lease(LeaseRequest::udp()).await?;
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii("web.lab.test.")?, RecordType::A));
    let datagram = (Udp::new().between(lease.local(server.ip()).await?, server) / query.to_vec()?).build()?;
    println!("   > {}", UdpView::parse(&datagram)?);
    lease.send(&datagram).await?;
    let reply = lease.recv_timeout(REPLY_TIMEOUT).await?.context("the DNS server did not answer")?;
    ensure!(reply.checksum != Checksum::Invalid, "the reply has a wrong checksum");
    let datagram = UdpView::parse(&reply.ip)?;
    println!("   < {datagram}");
    let answer = Message::from_vec(datagram.payload())?;
    ensure!(answer.metadata.id == query.metadata.id && !answer.answers.is_empty(), "not a reply to the query");
    for record in &answer.answers {
        println!("     {record}");
    }
    Ok(())
}

/// A handshake and a GET by hand: every segment is acknowledged, and both sides close.
async fn manual(crafter: &Crafter, server: SocketAddr) -> Result<()> {
    let lease = crafter.lease(LeaseRequest::tcp()).await?;
    let mut cursor = Cursor::new(lease.local(server.ip()).await?, server);
    let mut body = Vec::new();

    send(&lease, &cursor.syn()).await?;
    receive(&lease, &mut cursor, &mut body).await?;
    send(&lease, &cursor.ack()).await?;

    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", server.ip());
    for segment in cursor.data(request.as_bytes()) {
        send(&lease, &segment).await?;
    }
    while !cursor.peer_closed() {
        receive(&lease, &mut cursor, &mut body).await?;
        if cursor.needs_ack() {
            send(&lease, &cursor.ack()).await?;
        }
    }
    send(&lease, &cursor.fin()).await?;
    while !cursor.is_closed() {
        receive(&lease, &mut cursor, &mut body).await?;
    }
    ensure!(!cursor.is_reset(), "the server reset the connection");

    let body = String::from_utf8_lossy(&body);
    println!("   closed on both sides; the page:");
    for line in body.lines() {
        println!("      | {line}");
    }
    ensure!(body.starts_with("HTTP/1.1 200"), "the response is not HTTP 200");
    Ok(())
}

async fn send(lease: &Lease, segment: &Packet) -> Result<()> {
    let bytes = segment.build()?;
    println!("   > {}", TcpView::parse(&bytes)?);
    Ok(lease.send(&bytes).await?)
}

async fn receive(lease: &Lease, cursor: &mut Cursor, body: &mut Vec<u8>) -> Result<()> {
    let received = lease.recv_timeout(REPLY_TIMEOUT).await?.context("the server did not answer")?;
    ensure!(received.checksum != Checksum::Invalid, "a segment has a wrong checksum");
    println!("   < {}", TcpView::parse(&received.ip)?);
    cursor.handle(&received.ip);
    body.extend(cursor.take_data());
    Ok(())
}

async fn download(crafter: &Crafter, server: SocketAddr) -> Result<()> {
    let expected = kernel_get(server, "/sha256/100M")?;
    let lease = crafter.lease(LeaseRequest::tcp()).await?;
    let started = Instant::now();
    let mut stream = lease.connect(server, StreamOptions::default()).await?;
    let request = b"GET /bytes/100M HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await?;

    let mut buffer = vec![0; 256 << 10];
    let mut head = Vec::new();
    let (mut hash, mut length) = (Sha256::new(), 0);
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            break;
        }
        let mut bytes = &buffer[..count];
        if length == 0 {
            head.extend_from_slice(bytes);
            let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            bytes = &head[end + 4..];
        }
        hash.update(bytes);
        length += bytes.len();
    }
    stream.shutdown().await?;
    stream.closed().await?;
    let took = started.elapsed();

    let stats = stream.stats();
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("   {length} bytes in {took:.2?}, {:.0} MB/s with hashing", length as f64 / took.as_secs_f64() / 1e6);
    println!(
        "   handshake {:.0?}, {} segments in, {} out, {} retransmitted, state {:?}",
        stats.handshake.unwrap_or_default(),
        stats.segments_received,
        stats.segments_sent,
        stats.retransmissions,
        stream.state()
    );
    println!("   sha256 {digest}");
    if digest != expected.trim() {
        bail!("the server's sha256 is {expected}");
    }
    println!("   the same as the server's");
    Ok(())
}

/// Returns the RSTs that the server's tap has recorded since it was last cleared.
fn rsts(server: SocketAddr) -> Result<Vec<serde_json::Value>> {
    Ok(serde_json::from_str(&kernel_get(server, "/rsts")?)?)
}

/// Performs a GET over the kernel's TCP, as another program on the same host.
fn kernel_get(server: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, REPLY_TIMEOUT)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("the server sent no response")?;
    Ok(body.to_owned())
}

/// Number of programs attached to the interface: XDP, and classifiers at ingress and egress.
async fn attached(name: &str) -> Result<usize> {
    use aya::programs::{SchedClassifier, TcAttachType};
    let xdp = usize::from(interface(name).await?.xdp.is_some());
    let tcx = [TcAttachType::Ingress, TcAttachType::Egress]
        .into_iter()
        .filter_map(|direction| SchedClassifier::query_tcx(name, direction).ok())
        .map(|(_, programs)| programs.len())
        .sum::<usize>();
    Ok(xdp + tcx)
}

fn chapter(title: &str) {
    println!("\n{title}");
}
