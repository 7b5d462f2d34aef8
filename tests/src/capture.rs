//! Captures packets with tcpdump and dissects them with tshark, without any code of crafter.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crafter::lab::NetNs;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    frame::{self, FIN, RST, SYN},
    peer::{Process, wait_for},
    wire::Wire,
};

/// Filter for TCP segments with SYN, FIN or RST, and for ICMP errors: sufficient to check a long download.
pub const CONTROL: &str =
    "(tcp[13] & 7 != 0) or (ip6[6] == 6 and ip6[53] & 7 != 0) or icmp or (icmp6 and ip6[40] < 128)";

/// The discard port, destination of the marker packet that ends a capture.
const MARKER_PORT: u16 = 9;

/// A running tcpdump on one interface.
pub struct Capture<'n> {
    process: Process,
    directory: TempDir,
    namespace: &'n NetNs,
    interface: &'static str,
}

impl<'n> Capture<'n> {
    /// Starts tcpdump on `interface` of `namespace` and waits until it captures. `filter` is a pcap filter.
    pub fn start(namespace: &'n NetNs, interface: &'static str, filter: Option<&str>) -> Self {
        let directory = TempDir::with_prefix("crafter-tcpdump-").expect("a directory for tcpdump");
        let mut command = namespace.command("tcpdump");
        command.args(["-i", interface, "-n", "-U", "--immediate-mode", "-B", "32768", "-Z", "root", "-w"]);
        command.arg(directory.path().join("pcap"));
        if let Some(filter) = filter {
            command.arg(format!("{filter} or udp port {MARKER_PORT}"));
        }
        let mut process = Process::start(command.stderr(Stdio::piped()).stdout(Stdio::null()));
        let mut lines = BufReader::new(process.0.stderr.take().expect("tcpdump's messages"));
        let mut messages = String::new();
        while !messages.contains("listening on") {
            let had = messages.len();
            lines.read_line(&mut messages).expect("read tcpdump's messages");
            assert!(messages.len() > had, "tcpdump does not listen: {messages}");
        }
        process.0.stderr = Some(lines.into_inner());
        Self { process, directory, namespace, interface }
    }

    /// Ends the capture after everything sent so far has been recorded, and dissects it.
    pub fn finish(mut self) -> Vec<Packet> {
        let marker = format!("crafter marker {:?}", Instant::now());
        // The destination Ethernet address does not exist, so nothing answers.
        let [from, to] = ["192.0.2.250", "192.0.2.251"]
            .map(|address| (address.parse::<IpAddr>().expect("an address"), MARKER_PORT).into());
        let packet = frame::udp_ip(from, to, marker.as_bytes());
        let send = || Wire::open(self.interface, [2, 0, 0, 0, 0, 0x99])?.send(&packet);
        let file = self.directory.path().join("pcap");
        // Packets sent before the marker may still be written after this point, so search for the marker from here on.
        let before = fs::metadata(&file).map_or(0, |file| file.len() as usize);
        self.namespace.run(send).expect("enter the namespace").expect("send the marker");
        wait_for("the marker in the capture", Duration::from_secs(20), || {
            let bytes = fs::read(&file).ok()?;
            bytes.get(before..)?.windows(marker.len()).any(|window| window == marker.as_bytes()).then_some(())
        });
        kill(Pid::from_raw(self.process.id() as i32), Signal::SIGINT).expect("interrupt tcpdump");
        let mut messages = String::new();
        if let Some(mut stderr) = self.process.0.stderr.take() {
            let _ = stderr.read_to_string(&mut messages);
        }
        let _ = self.process.0.wait();
        // An incomplete capture proves nothing.
        assert!(messages.contains("\n0 packets dropped by kernel"), "tcpdump missed packets: {messages}");
        let packets = dissect(&file);
        packets.into_iter().filter(|packet| packet.destination.port() != MARKER_PORT).collect()
    }
}

/// A packet as dissected by tshark; for an ICMP error, the outer header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source; port 0 if the protocol has no ports.
    pub source: SocketAddr,
    /// Destination.
    pub destination: SocketAddr,
    /// TCP flags, the low byte.
    pub flags: Option<u8>,
    /// TCP sequence number.
    pub seq: u32,
    /// TCP acknowledgment number.
    pub ack: u32,
    /// TCP payload length in bytes.
    pub length: u32,
    /// Whether the TCP or UDP checksum is correct; `None` if tshark did not verify it.
    pub checksum: Option<bool>,
    /// ICMP or ICMPv6 type and code.
    pub icmp: Option<(u8, u8)>,
    /// Whether it is a fragment.
    pub fragment: bool,
    /// Whether tshark found it malformed.
    pub malformed: bool,
}

impl Packet {
    fn has(&self, flag: u8) -> bool {
        self.flags.is_some_and(|flags| flags & flag != 0)
    }

    /// RST set.
    pub fn is_rst(&self) -> bool {
        self.has(RST)
    }

    /// FIN set.
    pub fn is_fin(&self) -> bool {
        self.has(FIN)
    }

    /// SYN set.
    pub fn is_syn(&self) -> bool {
        self.has(SYN)
    }
}

/// The packets with this source address and port.
pub fn from(packets: &[Packet], source: SocketAddr) -> Vec<&Packet> {
    packets.iter().filter(|packet| packet.source == source).collect()
}

/// Number of RSTs from an address and port.
pub fn rsts(packets: &[Packet], source: SocketAddr) -> usize {
    from(packets, source).iter().filter(|packet| packet.is_rst()).count()
}

/// Number of port-unreachable errors of either IP version from an address.
pub fn unreachables(packets: &[Packet], source: IpAddr) -> usize {
    let ours = packets.iter().filter(|packet| packet.source.ip() == source);
    ours.filter(|packet| packet.icmp == Some(if source.is_ipv4() { (3, 3) } else { (1, 4) })).count()
}

const FIELDS: [&str; 21] = [
    "ip.src",
    "ip.dst",
    "ipv6.src",
    "ipv6.dst",
    "tcp.srcport",
    "tcp.dstport",
    "udp.srcport",
    "udp.dstport",
    "tcp.flags",
    "tcp.seq_raw",
    "tcp.ack_raw",
    "tcp.len",
    "tcp.checksum.status",
    "udp.checksum.status",
    "icmp.type",
    "icmp.code",
    "icmpv6.type",
    "icmpv6.code",
    "ip.flags.mf",
    "ip.frag_offset",
    "ipv6.fraghdr.offset",
];

fn dissect(file: &std::path::Path) -> Vec<Packet> {
    let mut command = Command::new("tshark");
    command.arg("-n").arg("-r").arg(file).args(["-T", "fields", "-E", "separator=|", "-E", "occurrence=f"]);
    for preference in ["tcp.check_checksum", "udp.check_checksum"] {
        command.arg("-o").arg(format!("{preference}:TRUE"));
    }
    // With reassembly, tshark reports one datagram instead of its fragments.
    command.args(["-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"]);
    for field in FIELDS.into_iter().chain(["_ws.malformed"]) {
        command.args(["-e", field]);
    }
    let output = command.stdin(Stdio::null()).output().expect("tshark (`cargo xtask setup` installs it)");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tshark: {errors}");
    String::from_utf8_lossy(&output.stdout).lines().filter_map(packet).collect()
}

/// Parses one line of tshark's output; `None` if the packet is not IP.
fn packet(line: &str) -> Option<Packet> {
    let columns: Vec<&str> = line.split('|').collect();
    assert_eq!(columns.len(), FIELDS.len() + 1, "unexpected line of tshark: {line:?}");
    let number = |at: usize| {
        let text: &str = columns[at];
        match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    };
    // No packet in these tests has addresses of both versions: at most one pair is set.
    let address = |v4: usize, v6: usize| columns[v4].parse().or_else(|_| columns[v6].parse()).ok();
    let (source, destination): (IpAddr, IpAddr) = (address(0, 2)?, address(1, 3)?);
    let icmp = |kind, code| Some((number(kind)? as u8, number(code)? as u8));
    let icmp = icmp(14, 15).or_else(|| icmp(16, 17));
    // tshark reports the ports of the packet quoted by an ICMP error.
    let port = |tcp, udp| if icmp.is_some() { 0 } else { number(tcp).or_else(|| number(udp)).unwrap_or(0) as u16 };
    Some(Packet {
        source: SocketAddr::new(source, port(4, 6)),
        destination: SocketAddr::new(destination, port(5, 7)),
        flags: number(8).filter(|_| icmp.is_none()).map(|flags| flags as u8),
        seq: number(9).unwrap_or(0),
        ack: number(10).unwrap_or(0),
        length: number(11).unwrap_or(0),
        // 0: wrong, 1: correct, others: not verified.
        checksum: number(12)
            .or_else(|| number(13))
            .and_then(|status| [Some(false), Some(true)].get(status as usize).copied()?),
        icmp,
        fragment: columns[18] == "1" || columns[18] == "True" || number(19).unwrap_or(0) > 0 || number(20).is_some(),
        malformed: !columns[21].is_empty(),
    })
}
