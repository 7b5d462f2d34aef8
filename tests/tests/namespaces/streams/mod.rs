//! Streams against the kernel's TCP over bad networks: in each row both directions carry bytes at the same time, and
//! each byte arrives, or both ends are told why not.
//!
//! `CRAFTER_TEST_ROW` runs the rows whose names contain it, and shows more of them.

mod meeting;
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
    by_hand::{PATIENCE, sha256},
    impair::{BadNetwork, Seen},
    leak::{BpfObjects, Serial, attached},
    peer::wait_for,
    slow::slowness,
    stage::{ENDS, options, run},
    within,
};
use meeting::Meeting;
use rows::{Ending, Row, rows};
use server::{Got, listen, serve, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Rows at the same time: they mostly wait.
const WORKERS: usize = 6;
/// No row takes longer; on an emulated processor a little more.
fn longest() -> Duration {
    Duration::from_secs(240) * slowness().min(2)
}

/// How long either end waits for the other: however bad the network is, longer is a failure.
fn patience() -> Duration {
    longest() * 5 / 8
}

const PORT: u16 = 7000;

/// What the client has read, and how its stream ended.
#[derive(Debug)]
struct Told {
    length: usize,
    sum: [u8; 32],
    error: Option<io::Error>,
    closed: Option<Result<(), Error>>,
}

#[test]
fn each_row_is_exact_or_a_clean_error() {
    let _serial = Serial::begin();
    let wanted = std::env::var("CRAFTER_TEST_ROW").ok();
    let rows: Vec<Row> =
        rows().into_iter().filter(|row| wanted.as_ref().is_none_or(|wanted| row.name.contains(wanted))).collect();
    assert!(!rows.is_empty(), "no row is called {wanted:?}");
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    let failed: Vec<&str> = std::thread::scope(|scope| {
        let work = || {
            let mut failed = Vec::new();
            while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                // Caught, so that the other rows are told too.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(row))).is_err() {
                    // Seen even if another row never ends.
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

fn play(row: &Row) {
    let began = Instant::now();
    let bad = BadNetwork::new(row.network, row.mtu);
    prepare(row, &bad);
    let (up, down) = (text(row.up, row.network.seed), text(row.down, row.network.seed + 1));
    let sums = [sha256(&up), sha256(&down)];
    let remote = SocketAddr::new(ENDS[usize::from(row.v6)].1, PORT);
    let moment = Arc::new(Meeting::default());
    let listener = bad.server.run(|| listen(row, remote)).expect("enter the server");
    let server = {
        let (row, moment, down) = (row.clone(), Arc::clone(&moment), down.clone());
        std::thread::spawn(move || (row.ending != Ending::NeverThere).then(|| serve(&row, &listener, down, &moment)))
    };
    let (told, stats) = within(&bad.client, async || {
        let crafter = Crafter::open(INTERFACE, options(row.attach)).await.expect("open the interface");
        let played = tokio::time::timeout(longest(), client(row, &crafter, &bad, remote, &up, &moment)).await;
        let (told, stats) = played.unwrap_or_else(|_| panic!("{}: no end in {:?}", row.name, longest()));
        let lost = crafter.stats();
        assert_eq!((lost.lost, lost.overflow), (0, 0), "{}: {lost:?}", row.name);
        (told, stats)
    });
    // A client that did not connect leaves it accepting.
    wait_for("the server's end", longest(), || server.is_finished().then_some(()));
    let got = server.join().expect("the server");
    let seen = bad.seen();
    // Programs that other rows start hold our descriptors from fork() to exec().
    wait_for("the end of all hooks", PATIENCE, || attached(&bad.client, INTERFACE).is_empty().then_some(()));
    judge(row, &told, got.as_ref(), sums, [&up, &down]);
    judge_network(row, &seen);
    let kilobytes = (told.length + got.as_ref().map_or(0, |got| got.length)) / 1000;
    println!(
        "{:45} {:5.1} s {kilobytes:6} kB, lost {:4} of {:5}, ours again {:4}, zero windows {:3}/{:3}, probes {:2}/{:2}",
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

/// The server's settings; and where much is lost, its route's: its kernel waits at least 200 ms before it repeats what
/// was lost last, which on this link would be most of the test.
fn prepare(row: &Row, bad: &BadNetwork) {
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
    bad: &BadNetwork,
    remote: SocketAddr,
    up: &[u8],
    moment: &Arc<Meeting>,
) -> (Told, crafter::engine::StreamStats) {
    let lease = crafter.lease(LeaseRequest::tcp()).await.expect("a lease");
    // The neighbour is known before anything is cut.
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
        Ending::NeverThere => {
            options.connect_timeout = Some(Duration::from_secs(4));
            bad.cut();
            let refused = lease.connect(remote, options).await.map(drop).expect_err("nothing gets through");
            let told = Told { length: 0, sum: [0; 32], error: None, closed: Some(Err(refused)) };
            return (told, Default::default());
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
            // Whoever writes in the midst of it may be told too.
            Ending::Cut => bad.cut(),
            _ => {}
        }
        Ok::<(), io::Error>(())
    };
    let (wrote, mut told) = tokio::join!(write, read(row, &mut reader));
    let mut stream: Stream = reader.unsplit(writer);
    told.error = told.error.or(wrote.err());
    let stats = stream.stats();
    match row.ending {
        Ending::ClientDrops => {
            drop(stream);
            return (told, stats);
        }
        Ending::Both => {
            let moment = Arc::clone(moment);
            let met = tokio::task::spawn_blocking(move || moment.wait(patience())).await.expect("a thread");
            assert!(met, "{}: the server does not come to the end: {told:?}", row.name);
            stream.shutdown().await.expect("shut down");
            assert_eq!(stream.read(&mut [0; 1]).await.expect("the end"), 0);
        }
        // What failed has been told by reading or writing.
        Ending::ServerFirst | Ending::ClientFirst => drop(stream.shutdown().await),
        _ => {}
    }
    told.closed = Some(stream.closed().await);
    (told, stream.stats())
}

/// Reads to the end, or as far as the row has it.
async fn read(row: &Row, reader: &mut (impl AsyncReadExt + Unpin)) -> Told {
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
        let place = (most - all.len()).min(buffer.len());
        match reader.read(&mut buffer[..place]).await {
            Ok(0) => break,
            Ok(count) => all.extend(&buffer[..count]),
            Err(e) => {
                error = Some(e);
                break;
            }
        }
    }
    Told { length: all.len(), sum: sha256(&all), error, closed: None }
}

/// Whole, or what came is right, and the reason is.
fn judge(row: &Row, told: &Told, got: Option<&Got>, sums: [[u8; 32]; 2], texts: [&[u8]; 2]) {
    let name = row.name;
    let prefix = |text: &[u8], length: usize| sha256(&text[..length]);
    assert!(
        told.length <= texts[1].len() && told.sum == prefix(texts[1], told.length) || told.length == 0,
        "{name}: wrong bytes down"
    );
    if let Some(got) = got {
        assert!(got.length <= texts[0].len() && got.sum == prefix(texts[0], got.length), "{name}: wrong bytes up");
    }
    let kind = |error: Option<&io::Error>| error.map(io::Error::kind);
    match row.ending {
        Ending::ServerFirst | Ending::ClientFirst | Ending::Both => {
            let got = got.expect("a server");
            if row.may_give_up() && matches!(told.closed, Some(Err(Error::TimedOut { .. }))) {
                println!(
                    "{name}: given up, {} of {} bytes up and {} of {} down",
                    got.length, row.up, told.length, row.down
                );
                return;
            }
            assert!(told.error.is_none() && got.error.is_none(), "{name}: {:?}, {:?}", told.error, got.error);
            assert_eq!((got.length, told.length), (row.up, row.down), "{name}");
            assert_eq!([got.sum, told.sum], sums, "{name}");
            assert!(matches!(told.closed, Some(Ok(()))), "{name}: {:?}", told.closed);
        }
        Ending::ServerResets => {
            assert_eq!(kind(told.error.as_ref()), Some(io::ErrorKind::ConnectionReset), "{name}");
            assert!(matches!(told.closed, Some(Err(Error::Reset { .. }))), "{name}: {:?}", told.closed);
        }
        Ending::ClientDrops => {
            let got = got.expect("a server");
            assert_eq!(kind(got.error.as_ref()), Some(io::ErrorKind::ConnectionReset), "{name}");
        }
        Ending::Cut => {
            assert_eq!(kind(told.error.as_ref()), Some(io::ErrorKind::TimedOut), "{name}");
            assert!(matches!(told.closed, Some(Err(Error::TimedOut { .. }))), "{name}: {:?}", told.closed);
        }
        Ending::NeverThere => assert!(
            matches!(told.closed, Some(Err(Error::TimedOut { waiting_for: "SYN-ACK", .. }))),
            "{name}: {:?}",
            told.closed
        ),
    }
}

/// The network was as bad as the row says, and what was to be seen was seen.
fn judge_network(row: &Row, seen: &[Seen; 2]) {
    let name = row.name;
    let [ours, theirs] = seen;
    if row.ending == Ending::NeverThere {
        return assert!(ours.packets >= 3 && theirs.packets == 0, "{name}: {seen:?}");
    }
    let packets = ours.packets + theirs.packets;
    if row.network.loss >= 0.05 && packets > 300 {
        let share = (ours.lost + theirs.lost) as f64 / packets as f64;
        assert!((share / row.network.loss - 1.0).abs() < 0.8, "{name}: {share} lost");
    }
    assert_eq!(row.network.corrupt > 0.0, ours.corrupted + theirs.corrupted > 0, "{name}");
    let longest = if row.down >= 100_000 && row.rx_buffer.is_none() { theirs.longest } else { 0 };
    assert!(longest == 0 || longest == row.mtu, "{name}: {longest} bytes, the MTU is {}", row.mtu);
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
        // One lost segment, and the next one of the timer, may take the whole pause.
        assert!(theirs.zero_windows > 0 || row.network.loss > 0.0, "{name}: it had room");
        // The first probe comes after a second.
        let probes = pause >= Duration::from_secs(2) && row.network.loss == 0.0;
        assert!(ours.probes > 0 || !probes, "{name}: we did not probe");
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
