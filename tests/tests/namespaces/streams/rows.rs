//! The rows: a network, what is special about either end, and what is to come of it.

use std::time::Duration;

use crafter::datapath::program::Attach;
use crafter_tests::impair::Network;

/// How a conversation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The server closes when it has sent everything, this end when it has read that.
    ServerFirst,
    /// This end closes when it has sent everything, the server when it has read that.
    ClientFirst,
    /// Both have sent and read everything, and close at the same moment.
    Both,
    /// The server resets in the midst of it: the client is told of a reset.
    ServerResets,
    /// The client drops its stream in the midst of it: the server is told of a reset.
    ClientDrops,
    /// The network is cut in the midst of it: the client is told that nothing comes any more.
    Cut,
    /// Nothing gets through from the beginning.
    NeverThere,
}

/// A pause in reading, after so many bytes.
pub type Stall = Option<(usize, Duration)>;

#[derive(Clone, Debug)]
pub struct Row {
    pub name: &'static str,
    pub v6: bool,
    pub attach: Attach,
    pub mtu: usize,
    pub network: Network,
    /// Of the server's namespace.
    pub sysctls: &'static [(&'static str, &'static str)],
    /// `SO_RCVBUF` of the server.
    pub server_buffer: Option<usize>,
    pub server_stall: Stall,
    pub rx_buffer: Option<usize>,
    pub tx_buffer: Option<usize>,
    /// Whether the client offers timestamps; the server has them where no sysctl says otherwise.
    pub timestamps: bool,
    pub client_stall: Stall,
    pub ending: Ending,
    /// Bytes that the client sends, and the server.
    pub up: usize,
    pub down: usize,
}

impl Row {
    /// So much is lost that a peer which is there may seem not to be: five times in a row nothing of it is heard. That
    /// is a clean error too, if it says so.
    pub fn may_give_up(&self) -> bool {
        self.network.loss >= 0.1
    }
}

const KB: usize = 1000;
const MS: Duration = Duration::from_millis(1);

/// A good network, both ways 300 kB at the same time.
fn good(name: &'static str) -> Row {
    Row {
        name,
        v6: false,
        attach: Attach::Native,
        mtu: 1500,
        network: Network { latency: MS, seed: 1, ..Network::default() },
        sysctls: &[],
        server_buffer: None,
        server_stall: None,
        rx_buffer: None,
        tx_buffer: None,
        timestamps: false,
        client_stall: None,
        ending: Ending::ServerFirst,
        up: 300 * KB,
        down: 300 * KB,
    }
}

/// A network that loses so much, each way.
fn lossy(name: &'static str, loss: f64) -> Row {
    let row = good(name);
    Row { network: Network { loss, ..row.network }, up: 60 * KB, ..row }
}

fn bad(name: &'static str) -> Row {
    let network = Network { loss: 0.05, duplicate: 0.05, reorder: 0.1, corrupt: 0.01, latency: MS, seed: 3 };
    // Ours wait at least a second before they send again what was lost last (RFC 6298, 2.4).
    Row { network, up: 60 * KB, ..good(name) }
}

pub fn rows() -> Vec<Row> {
    let pause = |after, seconds| Some((after, Duration::from_millis(seconds)));
    let mut rows = vec![
        Row { up: 5000 * KB, down: 5000 * KB, ..lossy("loss 0%", 0.0) },
        lossy("loss 1%", 0.01),
        Row { v6: true, ..lossy("loss 1%, IPv6", 0.01) },
        lossy("loss 5%", 0.05),
        Row { v6: true, ending: Ending::ClientFirst, ..lossy("loss 5%, IPv6, we close first", 0.05) },
        lossy("loss 10%", 0.1),
        Row { ending: Ending::Both, ..lossy("loss 1%, both close at once", 0.01) },
        Row { up: 10 * KB, ..lossy("loss 20%", 0.2) },
        Row { v6: true, up: 10 * KB, ..lossy("loss 20%, IPv6", 0.2) },
    ];
    let network = good("").network;
    rows.extend([
        Row { network: Network { reorder: 0.25, ..network }, ..good("a quarter comes late") },
        Row { network: Network { reorder: 0.25, ..network }, v6: true, ..good("a quarter comes late, IPv6") },
        Row { network: Network { duplicate: 0.3, ..network }, ..good("a third comes twice") },
        Row { network: Network { corrupt: 0.05, ..network }, up: 60 * KB, ..good("a twentieth is damaged") },
        Row { network: Network { latency: 50 * MS, ..network }, ..good("far away") },
        bad("everything at once"),
        Row { v6: true, ..bad("everything at once, IPv6") },
        Row { attach: Attach::Generic, ..bad("everything at once, generic XDP") },
        Row { attach: Attach::Tc, ..bad("everything at once, tc") },
    ]);
    rows.extend([
        Row { sysctls: &[("tcp_sack", "0")], ..bad("without SACK") },
        Row { timestamps: true, ..bad("with timestamps") },
        Row { timestamps: true, v6: true, ..bad("with timestamps, IPv6") },
        Row { timestamps: true, mtu: 576, ..bad("with timestamps, MTU 576") },
        Row { timestamps: true, up: 10 * KB, ..lossy("with timestamps, loss 20%", 0.2) },
        Row { timestamps: true, up: 5000 * KB, down: 5000 * KB, ..good("with timestamps, 5 MB each way") },
        Row {
            timestamps: true,
            network: Network { reorder: 0.25, ..network },
            ..good("with timestamps, a quarter late")
        },
        Row {
            timestamps: true,
            rx_buffer: Some(536),
            server_buffer: Some(1),
            up: 30 * KB,
            down: 30 * KB,
            ..good("with timestamps, both windows tiny")
        },
        Row { timestamps: true, sysctls: &[("tcp_sack", "0")], ..bad("with timestamps, without SACK") },
        Row { timestamps: true, sysctls: &[("tcp_timestamps", "0")], ..bad("timestamps offered, and not taken") },
        Row { sysctls: &[("tcp_timestamps", "0")], ..bad("without timestamps at either end") },
        Row { sysctls: &[("tcp_sack", "0"), ("tcp_timestamps", "0")], ..bad("without SACK and timestamps") },
        Row { sysctls: &[("tcp_window_scaling", "0")], ..bad("without window scaling") },
        Row { sysctls: &[("tcp_dsack", "0"), ("tcp_recovery", "0")], ..bad("without D-SACK and RACK") },
        Row { sysctls: &[("tcp_ecn", "1")], ..bad("with ECN") },
        Row { sysctls: &[("tcp_congestion_control", "reno")], ..bad("with Reno") },
    ]);
    for (name, v6, mtu) in [
        ("MTU 576", false, 576),
        ("MTU 1280, IPv6", true, 1280),
        ("MTU 3490", false, 3490),
        ("MTU 4082", false, 4082),
        ("MTU 4096, IPv6", true, 4096),
        ("MTU 9000", false, 9000),
        ("MTU 9000, IPv6", true, 9000),
    ] {
        rows.push(Row { v6, mtu, up: 2000 * KB, down: 2000 * KB, ..good(name) });
    }
    rows.extend([
        Row { mtu: 576, ..bad("MTU 576, everything at once") },
        Row { mtu: 9000, up: 300 * KB, down: 2000 * KB, ..bad("MTU 9000, everything at once") },
        Row { mtu: 9000, attach: Attach::Tc, down: 2000 * KB, ..good("MTU 9000, tc") },
        Row { rx_buffer: Some(536), down: 50 * KB, ..good("our window: 536 bytes") },
        Row { rx_buffer: Some(2000), down: 50 * KB, ..lossy("our window: 2000 bytes, loss 5%", 0.05) },
        Row { rx_buffer: Some(1), down: 30, up: 400, ..good("our window: 1 byte") },
        Row { server_buffer: Some(1), up: 50 * KB, ..good("its window: the smallest") },
        Row { server_buffer: Some(1), up: 15 * KB, ..bad("its window: the smallest, everything at once") },
        Row { server_buffer: Some(1), rx_buffer: Some(536), up: 30 * KB, down: 30 * KB, ..good("both windows tiny") },
        Row { tx_buffer: Some(100), up: 20 * KB, ..good("our buffer to send: 100 bytes") },
        Row { server_buffer: Some(8192), server_stall: pause(20_000, 3000), ..good("it stops to read") },
        Row {
            server_buffer: Some(8192),
            server_stall: pause(20_000, 3000),
            ..bad("it stops to read, everything at once")
        },
        Row { rx_buffer: Some(8192), client_stall: pause(20_000, 2000), ..good("we stop to read") },
        Row {
            rx_buffer: Some(8192),
            client_stall: pause(20_000, 2000),
            v6: true,
            ..bad("we stop to read, everything at once")
        },
        Row {
            rx_buffer: Some(8192),
            server_buffer: Some(8192),
            client_stall: pause(20_000, 2000),
            server_stall: pause(20_000, 3000),
            ..good("both stop to read")
        },
    ]);
    let slow = Network { latency: 100 * MS, seed: 5, ..Network::default() };
    rows.extend([
        Row { ending: Ending::ClientFirst, ..good("we close first") },
        Row { ending: Ending::Both, network: slow, ..good("both close at once") },
        Row { ending: Ending::Both, network: slow, v6: true, ..good("both close at once, IPv6") },
        Row { ending: Ending::Both, up: 0, down: 0, network: slow, ..good("both close at once, without a byte") },
        Row { up: 0, ..good("down only") },
        Row { down: 0, ending: Ending::ClientFirst, ..good("up only") },
        Row { ending: Ending::ServerResets, ..good("it resets") },
        Row { ending: Ending::ServerResets, ..bad("it resets, everything at once") },
        Row { ending: Ending::ClientDrops, ..good("we drop it") },
        Row { ending: Ending::Cut, v6: true, ..good("the network is cut") },
        Row { ending: Ending::NeverThere, ..good("the network was never there") },
    ]);
    for (number, row) in rows.iter_mut().enumerate() {
        row.network.seed += 100 * number as u64;
    }
    rows
}
