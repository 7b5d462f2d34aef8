//! The rows: a network, settings of both ends, and the expected ending.

use std::time::Duration;

use crafter::datapath::program::Attach;
use crafter_tests::impair::Network;

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The server closes after sending everything, the client after reading it.
    ServerFirst,
    /// The client closes after sending everything, the server after reading it.
    ClientFirst,
    /// Both have sent and read everything, and close at the same time.
    Both,
    /// The server resets during the transfer: the client gets a connection reset.
    ServerResets,
    /// The client drops its stream during the transfer: the server gets a connection reset.
    ClientDrops,
    /// The network is cut during the transfer: the client gets a timeout.
    Cut,
    /// The network is cut before the connection is opened.
    CutBeforeConnect,
}

/// Number of bytes after which reading pauses, and for how long.
pub type Stall = Option<(usize, Duration)>;

#[derive(Clone, Debug)]
pub struct Row {
    pub name: &'static str,
    pub v6: bool,
    pub attach: Attach,
    pub mtu: usize,
    pub network: Network,
    /// Settings of the server's namespace, without the prefix `net.ipv4.`.
    pub sysctls: &'static [(&'static str, &'static str)],
    /// `SO_RCVBUF` of the server.
    pub server_buffer: Option<usize>,
    pub server_stall: Stall,
    pub rx_buffer: Option<usize>,
    pub tx_buffer: Option<usize>,
    /// Whether the client offers timestamps; the server accepts them unless a sysctl disables them.
    pub timestamps: bool,
    pub client_stall: Stall,
    pub ending: Ending,
    /// Bytes sent by the client, and by the server.
    pub up: usize,
    pub down: usize,
}

impl Row {
    /// Whether losses are so frequent that all retransmissions of a segment may be lost; a timeout is then permitted.
    pub fn may_give_up(&self) -> bool {
        self.network.loss >= 0.1
    }
}

const KB: usize = 1000;
const MS: Duration = Duration::from_millis(1);

/// A network without impairments; 300 kB in each direction at the same time.
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

/// A network with this loss rate in each direction.
fn lossy(name: &'static str, loss: f64) -> Row {
    let row = good(name);
    Row { network: Network { loss, ..row.network }, up: 60 * KB, ..row }
}

fn impaired(name: &'static str) -> Row {
    let network = Network { loss: 0.05, duplicate: 0.05, reorder: 0.1, corrupt: 0.01, latency: MS, seed: 3 };
    // The client's minimum retransmission timeout is one second (RFC 6298, section 2.4), so it sends less.
    Row { network, up: 60 * KB, ..good(name) }
}

pub fn rows() -> Vec<Row> {
    let pause = |after, seconds| Some((after, Duration::from_millis(seconds)));
    let mut rows = vec![
        Row { up: 5000 * KB, down: 5000 * KB, ..lossy("loss 0%", 0.0) },
        lossy("loss 1%", 0.01),
        Row { v6: true, ..lossy("loss 1%, IPv6", 0.01) },
        lossy("loss 5%", 0.05),
        Row { v6: true, ending: Ending::ClientFirst, ..lossy("loss 5%, IPv6, client closes first", 0.05) },
        lossy("loss 10%", 0.1),
        Row { ending: Ending::Both, ..lossy("loss 1%, simultaneous close", 0.01) },
        Row { up: 10 * KB, ..lossy("loss 20%", 0.2) },
        Row { v6: true, up: 10 * KB, ..lossy("loss 20%, IPv6", 0.2) },
    ];
    let network = good("").network;
    rows.extend([
        Row { network: Network { reorder: 0.25, ..network }, ..good("25 % reordered") },
        Row { network: Network { reorder: 0.25, ..network }, v6: true, ..good("25 % reordered, IPv6") },
        Row { network: Network { duplicate: 0.3, ..network }, ..good("30 % duplicated") },
        Row { network: Network { corrupt: 0.05, ..network }, up: 60 * KB, ..good("5 % corrupted") },
        Row { network: Network { latency: 50 * MS, ..network }, ..good("latency 50 ms") },
        impaired("all impairments"),
        Row { v6: true, ..impaired("all impairments, IPv6") },
        Row { attach: Attach::Generic, ..impaired("all impairments, generic XDP") },
        Row { attach: Attach::Tc, ..impaired("all impairments, tc") },
    ]);
    rows.extend([
        Row { sysctls: &[("tcp_sack", "0")], ..impaired("without SACK") },
        Row { timestamps: true, ..impaired("with timestamps") },
        Row { timestamps: true, v6: true, ..impaired("with timestamps, IPv6") },
        Row { timestamps: true, mtu: 576, ..impaired("with timestamps, MTU 576") },
        Row { timestamps: true, up: 10 * KB, ..lossy("with timestamps, loss 20%", 0.2) },
        Row { timestamps: true, up: 5000 * KB, down: 5000 * KB, ..good("with timestamps, 5 MB in each direction") },
        Row {
            timestamps: true,
            network: Network { reorder: 0.25, ..network },
            ..good("with timestamps, 25 % reordered")
        },
        Row {
            timestamps: true,
            rx_buffer: Some(536),
            server_buffer: Some(1),
            up: 30 * KB,
            down: 30 * KB,
            ..good("with timestamps, both windows minimal")
        },
        Row { timestamps: true, sysctls: &[("tcp_sack", "0")], ..impaired("with timestamps, without SACK") },
        Row { timestamps: true, sysctls: &[("tcp_timestamps", "0")], ..impaired("timestamps offered and declined") },
        Row { sysctls: &[("tcp_timestamps", "0")], ..impaired("without timestamps at either end") },
        Row { sysctls: &[("tcp_sack", "0"), ("tcp_timestamps", "0")], ..impaired("without SACK and timestamps") },
        Row { sysctls: &[("tcp_window_scaling", "0")], ..impaired("without window scaling") },
        Row { sysctls: &[("tcp_dsack", "0"), ("tcp_recovery", "0")], ..impaired("without D-SACK and RACK") },
        Row { sysctls: &[("tcp_ecn", "1")], ..impaired("with ECN") },
        Row { sysctls: &[("tcp_congestion_control", "reno")], ..impaired("with Reno") },
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
        Row { mtu: 576, ..impaired("MTU 576, all impairments") },
        Row { mtu: 9000, up: 300 * KB, down: 2000 * KB, ..impaired("MTU 9000, all impairments") },
        Row { mtu: 9000, attach: Attach::Tc, down: 2000 * KB, ..good("MTU 9000, tc") },
        Row { rx_buffer: Some(536), down: 50 * KB, ..good("client window 536 bytes") },
        Row { rx_buffer: Some(2000), down: 50 * KB, ..lossy("client window 2000 bytes, loss 5%", 0.05) },
        Row { rx_buffer: Some(1), down: 30, up: 400, ..good("client window 1 byte") },
        Row { server_buffer: Some(1), up: 50 * KB, ..good("minimal server window") },
        Row { server_buffer: Some(1), up: 15 * KB, ..impaired("minimal server window, all impairments") },
        Row {
            server_buffer: Some(1),
            rx_buffer: Some(536),
            up: 30 * KB,
            down: 30 * KB,
            ..good("both windows minimal")
        },
        Row { tx_buffer: Some(100), up: 20 * KB, ..good("client send buffer 100 bytes") },
        Row { server_buffer: Some(8192), server_stall: pause(20_000, 3000), ..good("server stops reading") },
        Row {
            server_buffer: Some(8192),
            server_stall: pause(20_000, 3000),
            ..impaired("server stops reading, all impairments")
        },
        Row { rx_buffer: Some(8192), client_stall: pause(20_000, 2000), ..good("client stops reading") },
        Row {
            rx_buffer: Some(8192),
            client_stall: pause(20_000, 2000),
            v6: true,
            ..impaired("client stops reading, all impairments")
        },
        Row {
            rx_buffer: Some(8192),
            server_buffer: Some(8192),
            client_stall: pause(20_000, 2000),
            server_stall: pause(20_000, 3000),
            ..good("both stop reading")
        },
    ]);
    let slow = Network { latency: 100 * MS, seed: 5, ..Network::default() };
    rows.extend([
        Row { ending: Ending::ClientFirst, ..good("client closes first") },
        Row { ending: Ending::Both, network: slow, ..good("simultaneous close") },
        Row { ending: Ending::Both, network: slow, v6: true, ..good("simultaneous close, IPv6") },
        Row { ending: Ending::Both, up: 0, down: 0, network: slow, ..good("simultaneous close without data") },
        Row { up: 0, ..good("data from the server only") },
        Row { down: 0, ending: Ending::ClientFirst, ..good("data from the client only") },
        Row { ending: Ending::ServerResets, ..good("server resets") },
        Row { ending: Ending::ServerResets, ..impaired("server resets, all impairments") },
        Row { ending: Ending::ClientDrops, ..good("client drops its stream") },
        Row { ending: Ending::Cut, v6: true, ..good("network cut") },
        Row { ending: Ending::CutBeforeConnect, ..good("network cut before the connect") },
    ]);
    for (number, row) in rows.iter_mut().enumerate() {
        row.network.seed += 100 * number as u64;
    }
    rows
}
