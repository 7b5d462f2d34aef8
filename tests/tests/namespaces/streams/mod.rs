//! Streams to the kernel's TCP over impaired networks: each row transfers data in both directions at the same time, and
//! every byte arrives, or both ends get the expected error.
//!
//! `CRAFTER_TEST_ROW` runs the rows whose names contain it, with more output.

mod rendezvous;
mod rows;
mod server;

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crafter::{Crafter, Error, LeaseRequest, Stream, StreamOptions, lab::INTERFACE, layer::TcpOption};
use crafter_packet::testing::Segment;
use crafter_tests::{
    impair::{ImpairedNetwork, Sent},
    leak::{BpfObjects, Serial, attached},
    manual::{REPLY_TIMEOUT, sha256},
    peer::wait_for,
    slow::slowness,
    testbed::{ENDS, options, run},
    within,
};
use rendezvous::Rendezvous;
use rows::{Ending, Row, rows};
use server::{Received, listen, serve, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Rows that run in parallel: they wait most of the time.
const WORKERS: usize = 6;
/// Timeout of a row; longer on an emulated CPU.
fn row_timeout() -> Duration {
    Duration::from_secs(240) * slowness().min(2)
}

/// Timeout of one end's wait for the other.
fn peer_timeout() -> Duration {
    row_timeout() * 5 / 8
}

const PORT: u16 = 7000;

/// What the client read, and how its stream ended.
#[derive(Debug)]
struct ClientResult {
    length: usize,
    sum: [u8; 32],
    error: Option<io::Error>,
    closed: Option<Result<(), Error>>,
}

#[test]
fn each_row_transfers_every_byte_or_fails_cleanly() {
    let _serial = Serial::begin();
    let wanted = std::env::var("CRAFTER_TEST_ROW").ok();
    let rows: Vec<Row> =
        rows().into_iter().filter(|row| wanted.as_ref().is_none_or(|wanted| row.name.contains(wanted))).collect();
    assert!(!rows.is_empty(), "no row has {wanted:?} in its name");
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    let failed: Vec<&str> = std::thread::scope(|scope| {
        let work = || {
            let mut failed = Vec::new();
            while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                // Catches the panic, so that the other rows run and are reported.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run_row(row))).is_err() {
                    // Printed at once, in case another row hangs.
                    let _ = writeln!(io::stderr().lock(), "{}: FAILED", row.name);
                    failed.push(row.name);
                }
            }
            failed
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
    });
    println!("{} rows in {:?}", rows.len(), began.elapsed());
    assert!(failed.is_empty(), "{failed:?}");
    assert!(BpfObjects::of(std::process::id()).is_empty(), "hooks are left");
}

fn run_row(row: &Row) {
    let began = Instant::now();
    let bad = ImpairedNetwork::new(row.network, row.mtu);
    prepare(row, &bad);
    let (up, down) = (text(row.up, row.network.seed), text(row.down, row.network.seed + 1));
    let sums = [sha256(&up), sha256(&down)];
    let remote = SocketAddr::new(ENDS[usize::from(row.v6)].1, PORT);
    let moment = Arc::new(Rendezvous::default());
    let listener = bad.server.run(|| listen(row, remote)).expect("enter the server");
    let server = {
        let (row, moment, down) = (row.clone(), Arc::clone(&moment), down.clone());
        std::thread::spawn(move || {
            (row.ending != Ending::CutBeforeConnect).then(|| serve(&row, &listener, down, &moment))
        })
    };
    let (result, stats) = within(&bad.client, async || {
        let crafter = Crafter::open(INTERFACE, options(row.attach)).await.expect("open the interface");
        let played = tokio::time::timeout(row_timeout(), client(row, &crafter, &bad, remote, &up, &moment)).await;
        let (result, stats) =
            played.unwrap_or_else(|_| panic!("{}: not finished within {:?}", row.name, row_timeout()));
        let lost = crafter.stats();
        assert_eq!((lost.lost, lost.overflow), (0, 0), "{}: {lost:?}", row.name);
        (result, stats)
    });
    // If the client did not connect, the server is still accepting.
    wait_for("the server's exit", row_timeout(), || server.is_finished().then_some(()));
    let received = server.join().expect("the server");
    let seen = bad.sent();
    // Processes forked by other rows hold copies of the hooks' descriptors until their exec.
    wait_for("the removal of all hooks", REPLY_TIMEOUT, || attached(&bad.client, INTERFACE).is_empty().then_some(()));
    check_result(row, &result, received.as_ref(), sums, [&up, &down]);
    check_network(row, &seen);
    let kilobytes = (result.length + received.as_ref().map_or(0, |received| received.length)) / 1000;
    println!(
        "{:45} {:5.1} s {kilobytes:6} kB, lost {:4} of {:5}, retransmitted {:4}, zero windows {:3}/{:3}, probes {:2}/{:2}",
        row.name,
        began.elapsed().as_secs_f64(),
        seen[0].lost + seen[1].lost,
        seen[0].packets + seen[1].packets,
        stats.retransmissions,
        seen[0].zero_windows,
        seen[1].zero_windows,
        seen[0].probes,
        seen[1].probes,
    );
    if std::env::var_os("CRAFTER_TEST_ROW").is_some() {
        println!("{stats:?}\n{seen:?}");
    }
}

/// Applies the server's settings, and lowers the minimum retransmission timeout of its route: the default of 200 ms
/// would dominate the duration of rows with losses.
fn prepare(row: &Row, bad: &ImpairedNetwork) {
    for (name, value) in row.sysctls {
        run(bad.server.command("sysctl").args(["-qw", &format!("net.ipv4.{name}={value}")]));
    }
    let ip = |arguments: &str| run(bad.server.command("ip").args(arguments.split(' ')));
    ip(&format!("route change 192.0.2.0/24 dev {INTERFACE} proto kernel scope link src 192.0.2.1 rto_min 20ms"));
    if row.mtu >= 1280 {
        ip(&format!("-6 route change 2001:db8::/64 dev {INTERFACE} proto kernel metric 256 rto_min 20ms"));
    }
}

async fn client(
    row: &Row,
    crafter: &Crafter,
    bad: &ImpairedNetwork,
    remote: SocketAddr,
    up: &[u8],
    moment: &Arc<Rendezvous>,
) -> (ClientResult, crafter::engine::StreamStats) {
    let lease = crafter.lease(LeaseRequest::tcp()).await.expect("a lease");
    // Resolves the neighbour before the network is cut.
    lease.local(remote.ip()).await.expect("a route");
    let mut options = StreamOptions {
        connect_timeout: Some(Duration::from_secs(40)),
        rx_buffer: row.rx_buffer,
        tx_buffer: row.tx_buffer,
        timestamps: row.timestamps,
        ..StreamOptions::default()
    };
    match row.ending {
        Ending::Cut => options.idle_timeout = Some(Duration::from_secs(3)),
        Ending::CutBeforeConnect => {
            options.connect_timeout = Some(Duration::from_secs(4));
            bad.cut();
            let refused = lease.connect(remote, options).await.map(drop).expect_err("nothing gets through");
            let result = ClientResult { length: 0, sum: [0; 32], error: None, closed: Some(Err(refused)) };
            return (result, Default::default());
        }
        _ => {}
    }
    let stream = lease.connect(remote, options).await.expect("a connection");
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        let part = if matches!(row.ending, Ending::ClientDrops | Ending::Cut) { up.len() / 2 } else { up.len() };
        writer.write_all(&up[..part]).await?;
        match row.ending {
            Ending::ClientFirst => writer.shutdown().await?,
            // A write after this may fail, too.
            Ending::Cut => {
                // Else the handshake's ACK may be lost, and the server waits for a connection until the row's end.
                let met = wait(moment, peer_timeout()).await;
                assert!(met, "{}: the server did not accept", row.name);
                bad.cut();
            }
            _ => {}
        }
        Ok::<(), io::Error>(())
    };
    let (wrote, mut result) = tokio::join!(write, read(row, &mut reader));
    let mut stream: Stream = reader.unsplit(writer);
    result.error = result.error.or(wrote.err());
    let stats = stream.stats();
    match row.ending {
        Ending::ClientDrops => {
            drop(stream);
            return (result, stats);
        }
        Ending::Both => {
            let met = wait(moment, peer_timeout()).await;
            assert!(met, "{}: the server did not reach the end: {result:?}", row.name);
            stream.shutdown().await.expect("shut down");
            assert_eq!(stream.read(&mut [0; 1]).await.expect("the end of the stream"), 0);
        }
        // A failure was already reported by reading or writing.
        Ending::ServerFirst | Ending::ClientFirst => drop(stream.shutdown().await),
        _ => {}
    }
    result.closed = Some(stream.closed().await);
    (result, stream.stats())
}

/// Waits for the server; returns whether it arrived.
async fn wait(moment: &Arc<Rendezvous>, timeout: Duration) -> bool {
    let moment = Arc::clone(moment);
    tokio::task::spawn_blocking(move || moment.wait(timeout)).await.expect("a thread")
}

/// Reads to the end of the stream, or as many bytes as the row requires.
async fn read(row: &Row, reader: &mut (impl AsyncReadExt + Unpin)) -> ClientResult {
    let (mut all, mut stall) = (Vec::new(), row.client_stall);
    let most = match row.ending {
        Ending::Both => row.down,
        Ending::ClientDrops => row.down / 2,
        _ => usize::MAX,
    };
    let mut buffer = vec![0; 1 << 16];
    let mut error = None;
    while all.len() < most {
        if let Some((_, pause)) = stall.take_if(|(after, _)| all.len() >= *after) {
            tokio::time::sleep(pause).await;
        }
        let room = (most - all.len()).min(buffer.len());
        match reader.read(&mut buffer[..room]).await {
            Ok(0) => break,
            Ok(count) => all.extend(&buffer[..count]),
            Err(e) => {
                error = Some(e);
                break;
            }
        }
    }
    ClientResult { length: all.len(), sum: sha256(&all), error, closed: None }
}

/// Checks that the transferred bytes are correct, and complete unless the row expects an error, with the right error.
fn check_result(row: &Row, result: &ClientResult, received: Option<&Received>, sums: [[u8; 32]; 2], texts: [&[u8]; 2]) {
    let name = row.name;
    let prefix = |text: &[u8], length: usize| sha256(&text[..length]);
    assert!(
        result.length <= texts[1].len() && result.sum == prefix(texts[1], result.length) || result.length == 0,
        "{name}: wrong bytes at the client"
    );
    if let Some(received) = received {
        assert!(
            received.length <= texts[0].len() && received.sum == prefix(texts[0], received.length),
            "{name}: wrong bytes at the server"
        );
    }
    let kind = |error: Option<&io::Error>| error.map(io::Error::kind);
    match row.ending {
        Ending::ServerFirst | Ending::ClientFirst | Ending::Both => {
            let received = received.expect("a server");
            if row.may_give_up() && matches!(result.closed, Some(Err(Error::TimedOut { .. }))) {
                println!(
                    "{name}: timed out, {} of {} bytes up and {} of {} down",
                    received.length, row.up, result.length, row.down
                );
                return;
            }
            assert!(
                result.error.is_none() && received.error.is_none(),
                "{name}: {:?}, {:?}",
                result.error,
                received.error
            );
            assert_eq!((received.length, result.length), (row.up, row.down), "{name}");
            assert_eq!([received.sum, result.sum], sums, "{name}");
            assert!(matches!(result.closed, Some(Ok(()))), "{name}: {:?}", result.closed);
        }
        Ending::ServerResets => {
            assert_eq!(kind(result.error.as_ref()), Some(io::ErrorKind::ConnectionReset), "{name}");
            assert!(matches!(result.closed, Some(Err(Error::Reset { .. }))), "{name}: {:?}", result.closed);
        }
        Ending::ClientDrops => {
            let received = received.expect("a server");
            assert_eq!(kind(received.error.as_ref()), Some(io::ErrorKind::ConnectionReset), "{name}");
        }
        Ending::Cut => {
            assert_eq!(kind(result.error.as_ref()), Some(io::ErrorKind::TimedOut), "{name}");
            assert!(matches!(result.closed, Some(Err(Error::TimedOut { .. }))), "{name}: {:?}", result.closed);
        }
        Ending::CutBeforeConnect => assert!(
            matches!(result.closed, Some(Err(Error::TimedOut { waiting_for: "SYN-ACK", .. }))),
            "{name}: {:?}",
            result.closed
        ),
    }
}

/// Checks that the network had the impairments of the row, and that the expected segments were sent.
fn check_network(row: &Row, seen: &[Sent; 2]) {
    let name = row.name;
    let [ours, theirs] = seen;
    if row.ending == Ending::CutBeforeConnect {
        return assert!(ours.packets >= 3 && theirs.packets == 0, "{name}: {seen:?}");
    }
    let packets = ours.packets + theirs.packets;
    if row.network.loss >= 0.05 && packets > 300 {
        let share = (ours.lost + theirs.lost) as f64 / packets as f64;
        assert!((share / row.network.loss - 1.0).abs() < 0.8, "{name}: {share} lost");
    }
    assert_eq!(row.network.corrupt > 0.0, ours.corrupted + theirs.corrupted > 0, "{name}");
    let longest = if row.down >= 100_000 && row.rx_buffer.is_none() { theirs.longest } else { 0 };
    assert!(longest == 0 || longest == row.mtu, "{name}: longest packet {longest} bytes, MTU {}", row.mtu);
    assert!(ours.longest <= row.mtu, "{name}");
    if row.up >= 100_000 && row.server_buffer.is_none() && row.tx_buffer.is_none() {
        assert_eq!(ours.longest, row.mtu, "{name}");
    }
    let (syn, syn_ack) = (ours.syn.as_ref().expect("our SYN"), theirs.syn.as_ref().expect("its SYN-ACK"));
    let off = |what: &str| row.sysctls.contains(&(what, "0"));
    assert!(syn.options.contains(&TcpOption::SackOk), "{name}: {syn}");
    assert_eq!(syn_ack.options.contains(&TcpOption::SackOk), !off("tcp_sack"), "{name}: {syn_ack}");
    let stamped = row.timestamps && !off("tcp_timestamps");
    for seen in seen {
        assert_eq!(seen.without_timestamp > 0, !stamped, "{name}: {seen:?}");
    }
    let offers = |segment: &Segment| segment.options.iter().any(|option| matches!(option, TcpOption::Timestamp(..)));
    assert_eq!([offers(syn), offers(syn_ack)], [row.timestamps, stamped], "{name}: {syn}, {syn_ack}");
    assert_eq!(syn_ack.window_scale().is_some(), !off("tcp_window_scaling"), "{name}: {syn_ack}");
    if row.network.loss >= 0.05 && row.down >= 300_000 && row.rx_buffer.is_none() {
        assert_eq!(ours.sacks > 0, !off("tcp_sack"), "{name}");
    }
    if let Some((_, pause)) = row.server_stall {
        // A lost segment and its retransmission may take the whole pause.
        assert!(theirs.zero_windows > 0 || row.network.loss > 0.0, "{name}: the server never announced a zero window");
        // The first probe is sent after one second.
        let probes = pause >= Duration::from_secs(2) && row.network.loss == 0.0;
        assert!(ours.probes > 0 || !probes, "{name}: no zero-window probe was sent");
    }
    if row.client_stall.is_some() {
        assert!(ours.zero_windows > 0, "{name}: {seen:?}");
    }
    if row.ending == Ending::Both && row.network.loss == 0.0 {
        let crossed = ours.fin_in < theirs.fin_out && theirs.fin_in < ours.fin_out;
        assert!(
            crossed && ours.fin_in.is_some() && theirs.fin_in.is_some(),
            "{name}: the FINs did not cross: {seen:?}"
        );
    }
}
