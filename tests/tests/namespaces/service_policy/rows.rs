//! The keys of the policy, each with a rule that refuses and one that allows.

use std::net::{IpAddr, SocketAddr};

use crafter::{
    lab::{CLIENT_V4, CLIENT_V6},
    protocol::wire::LeaseCall,
};
use crafter_tests::{
    frame::{self, SYN, Tcp, V4, udp_ip},
    guarded::GuardedLab,
    service::lease_call,
};

/// A packet or frame, with its source and destination as in the capture: port 0 if the protocol has none.
pub(crate) struct Sent {
    pub(crate) bytes: Vec<u8>,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

/// One key of the policy.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// The verdict of a refusal.
    pub(crate) verdict: &'static str,
    /// Lines of the rule that refuses, and of the one that allows. `{n}` is the number of the attempt, `{port}` its
    /// port.
    pub(crate) rules: [&'static str; 2],
    /// Leases, of which the last one sends. If no packet is sent, the last lease is refused.
    pub(crate) leases: fn(u8) -> Vec<LeaseCall>,
    /// Packets to send, of which the last is refused.
    pub(crate) packets: fn(&Setup, u8) -> Vec<Sent>,
}

/// What packets and frames are built from.
pub(crate) struct Setup {
    pub(crate) lab: GuardedLab,
    /// Ethernet addresses of the client and of the server.
    pub(crate) macs: [[u8; 6]; 2],
}

/// The port of an attempt.
pub(crate) fn port(n: u8) -> u16 {
    50_000 + u16::from(n) * 4
}

/// A destination beyond the server, for an attempt.
pub(crate) fn far(n: u8) -> IpAddr {
    IpAddr::from([198, 51, 100, n])
}

fn on(protocol: &str) -> LeaseCall {
    lease_call(protocol, None, None)
}

pub(crate) fn ported(protocol: &str, port: u16) -> LeaseCall {
    lease_call(protocol, Some(port), None)
}

fn tcp(n: u8) -> Vec<LeaseCall> {
    vec![ported("tcp", port(n))]
}

fn none(_: &Setup, _: u8) -> Vec<Sent> {
    Vec::new()
}

fn segment(from: SocketAddr, to: SocketAddr) -> Sent {
    Sent { bytes: Tcp::new(SYN, 7, 0).ip(from, to), from, to }
}

fn local(n: u8) -> SocketAddr {
    SocketAddr::new(CLIENT_V4.into(), port(n))
}

/// A SYN from the lease's port to port 80 of its destination.
fn syn(_: &Setup, n: u8) -> Vec<Sent> {
    vec![segment(local(n), SocketAddr::new(far(n), 80))]
}

/// A datagram from the lease's port.
fn datagram_to(to: IpAddr, n: u8) -> Vec<Sent> {
    let to = SocketAddr::new(to, 9999);
    let source = if to.is_ipv4() { CLIENT_V4.into() } else { CLIENT_V6.into() };
    let from = SocketAddr::new(source, port(n));
    vec![Sent { bytes: udp_ip(from, to, b"to a group"), from, to }]
}

/// The same SYN in a frame to an Ethernet address.
fn framed(setup: &Setup, n: u8, to: [u8; 6]) -> Vec<Sent> {
    let mut sent = syn(setup, n);
    let head = [&to[..], &setup.macs[0], &[8, 0]].concat();
    sent[0].bytes.splice(0..0, head);
    sent
}

/// A lease of the port, and a lease for frames that contain packets from it.
fn frames(n: u8) -> Vec<LeaseCall> {
    vec![ported("tcp", port(n)), LeaseCall { frames: Some(true), ..on("none") }]
}

pub(crate) fn is_allowed(n: u8) -> bool {
    n % 2 == 1
}

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "interfaces",
        verdict: "interface",
        rules: ["interfaces = [\"eth*\"]", "interfaces = [\"eth*\", \"lab*\"]"],
        leases: tcp,
        packets: none,
    },
    Row {
        name: "addresses",
        verdict: "address",
        rules: ["addresses = [\"192.0.2.3\", \"2001:db8::/64\"]", "addresses = [\"192.0.2.0/24\"]"],
        leases: |n| vec![LeaseCall { address: Some("192.0.2.2".to_owned()), ..ported("tcp", port(n)) }],
        packets: none,
    },
    Row {
        name: "addresses, IPv6",
        verdict: "address",
        rules: ["addresses = [\"192.0.2.0/24\", \"2001:db8::3\"]", "addresses = [\"2001:db8::2/128\"]"],
        leases: |n| vec![LeaseCall { address: Some("2001:db8::2".to_owned()), ..ported("udp", port(n)) }],
        packets: none,
    },
    Row {
        name: "ports",
        verdict: "port",
        rules: ["ports = [\"1-49999\", \"51024-65535\"]", "ports = [\"50000-51023\"]"],
        leases: tcp,
        packets: none,
    },
    Row {
        name: "ports, the end of a range",
        verdict: "port",
        rules: ["ports = [\"50000-{port}\"]", "ports = [\"50000-{port}\", \"50000-52000\"]"],
        leases: |n| vec![LeaseCall { last_port: Some(u64::from(port(n)) + 1), ..ported("tcp", port(n)) }],
        packets: none,
    },
    Row {
        name: "protocols",
        verdict: "protocol",
        rules: ["protocols = [\"udp\", \"icmp\"]", "protocols = [\"tcp\"]"],
        leases: tcp,
        packets: none,
    },
    Row {
        name: "protocols, icmp",
        verdict: "protocol",
        rules: ["protocols = [\"tcp\", \"udp\"]", "protocols = [\"icmp\"]"],
        leases: |n| vec![ported("icmp", port(n))],
        packets: none,
    },
    Row {
        name: "protocols, any",
        verdict: "protocol",
        rules: ["protocols = [\"tcp\", \"udp\", \"icmp\"]", "protocols = [\"any\"]"],
        leases: |_| vec![on("none")],
        packets: |_, n| {
            // GRE (RFC 2784) with an empty payload.
            let (from, to) = (SocketAddr::new(CLIENT_V4.into(), 0), SocketAddr::new(far(n), 0));
            vec![Sent { bytes: frame::packet(from.ip(), to.ip(), 47, &[0, 0, 8, 0]), from, to }]
        },
    },
    Row {
        name: "protocols, a source route",
        verdict: "source-route",
        rules: ["protocols = [\"tcp\"]", "protocols = [\"any\"]"],
        leases: tcp,
        packets: |_, n| {
            // A loose source route without remaining addresses (RFC 791, section 3.1), and the end of options.
            let (from, to) = (local(n), SocketAddr::new(far(n), 80));
            let header = V4 { options: vec![131, 7, 8, 192, 0, 2, 1, 0], ..V4::default() };
            let bytes = header.packet(from.ip(), to.ip(), frame::TCP, &Tcp::new(SYN, 7, 0).bytes(from, to));
            vec![Sent { bytes, from, to }]
        },
    },
    Row {
        name: "protocols, a router alert",
        verdict: "ip-option",
        rules: ["protocols = [\"tcp\"]", "protocols = [\"any\"]"],
        leases: tcp,
        packets: |_, n| {
            // RFC 2113.
            let (from, to) = (local(n), SocketAddr::new(far(n), 80));
            let header = V4 { options: vec![148, 4, 0, 0], ..V4::default() };
            let bytes = header.packet(from.ip(), to.ip(), frame::TCP, &Tcp::new(SYN, 7, 0).bytes(from, to));
            vec![Sent { bytes, from, to }]
        },
    },
    Row {
        name: "link_local",
        verdict: "link-local",
        rules: ["link_local = false", "link_local = true"],
        leases: tcp,
        packets: |_, n| vec![segment(local(n), SocketAddr::new(IpAddr::from([169, 254, 169, 254]), 80))],
    },
    Row {
        name: "the lease's port",
        verdict: "source-port",
        rules: ["", ""],
        leases: tcp,
        packets: |setup, n| match is_allowed(n) {
            true => syn(setup, n),
            false => vec![segment(SocketAddr::new(CLIENT_V4.into(), port(n) + 1), SocketAddr::new(far(n), 80))],
        },
    },
    Row {
        name: "the lease's protocol",
        verdict: "source-port",
        rules: ["", ""],
        leases: |n| vec![ported(if is_allowed(n) { "udp" } else { "tcp" }, port(n))],
        packets: |_, n| datagram_to(far(n), n),
    },
    Row {
        name: "the lease's address",
        verdict: "foreign-source",
        rules: ["", ""],
        leases: |n| {
            let address = if is_allowed(n) { "2001:db8::2" } else { "192.0.2.2" };
            vec![LeaseCall { address: Some(address.to_owned()), ..ported("udp", port(n)) }]
        },
        packets: |_, n| datagram_to(IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(n)]), n),
    },
    Row {
        name: "allow",
        verdict: "not-allowed",
        rules: ["allow = [\"203.0.113.0/24\", \"2001:db8::/32\"]", "allow = [\"198.51.100.{n}\"]"],
        leases: tcp,
        packets: syn,
    },
    Row {
        name: "allow, empty list",
        verdict: "not-allowed",
        rules: ["allow = []", "allow = [\"any\"]"],
        leases: tcp,
        packets: syn,
    },
    Row {
        name: "allow, ports",
        verdict: "not-allowed",
        rules: [
            "allow = [{ prefix = \"any\", ports = [\"81-90\"] }]",
            "allow = [{ prefix = \"198.51.100.0/24\", ports = [\"80-90\"] }]",
        ],
        leases: tcp,
        packets: syn,
    },
    Row {
        name: "deny",
        verdict: "denied",
        rules: ["deny = [\"198.51.100.{n}\"]", "deny = [\"203.0.113.0/24\"]"],
        leases: tcp,
        packets: syn,
    },
    Row {
        name: "deny takes precedence over allow",
        verdict: "denied",
        rules: [
            "allow = [\"198.51.100.{n}\"]\ndeny = [\"198.51.100.0/24\"]",
            "allow = [\"198.51.100.0/24\"]\ndeny = [\"198.51.100.0/28\"]",
        ],
        leases: tcp,
        packets: syn,
    },
    Row {
        name: "deny, ports",
        verdict: "denied",
        rules: ["deny = [{ prefix = \"any\", ports = [80] }]", "deny = [{ prefix = \"any\", ports = [25, 81] }]"],
        leases: tcp,
        packets: syn,
    },
    Row {
        name: "deny, one of two ports",
        verdict: "denied",
        rules: ["deny = [{ prefix = \"any\", ports = [25] }]", "deny = [{ prefix = \"any\", ports = [25] }]"],
        leases: tcp,
        packets: |_, n| vec![segment(local(n), SocketAddr::new(far(n), if is_allowed(n) { 26 } else { 25 }))],
    },
    Row {
        name: "deny, IPv6",
        verdict: "denied",
        rules: ["deny = [\"2001:db8:1::/48\"]", "deny = [\"2001:db8:2::/48\", \"0.0.0.0/0\"]"],
        leases: |n| vec![ported("udp", port(n))],
        packets: |_, n| datagram_to(IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(n)]), n),
    },
    Row {
        name: "max_leases",
        verdict: "max-leases",
        rules: ["max_leases = 1", "max_leases = 2"],
        leases: |n| vec![on("none"), ported("tcp", port(n))],
        packets: none,
    },
    Row {
        name: "max_ports",
        verdict: "max-ports",
        rules: ["max_ports = 3", "max_ports = 4"],
        leases: |n| {
            let three = LeaseCall { last_port: Some(u64::from(port(n)) + 2), ..ported("tcp", port(n)) };
            vec![three, ported("udp", port(n))]
        },
        packets: none,
    },
    Row {
        name: "max_flows",
        verdict: "max-flows",
        rules: ["max_flows = 1", "max_flows = 2"],
        leases: tcp,
        packets: |_, n| [80, 81].map(|to| segment(local(n), SocketAddr::new(far(n), to))).into(),
    },
    Row {
        name: "max_interfaces",
        verdict: "max-interfaces",
        rules: ["max_interfaces = 1", "max_interfaces = 2"],
        leases: |n| {
            vec![ported("tcp", port(n)), LeaseCall { interface: Some("lo".to_owned()), ..ported("tcp", port(n) + 1) }]
        },
        packets: none,
    },
    Row {
        name: "peers",
        verdict: "peers",
        rules: ["peers = \"address\"", "peers = \"any\""],
        leases: |n| vec![LeaseCall { peers: Some("any".to_owned()), ..ported("tcp", port(n)) }],
        packets: none,
    },
    Row {
        name: "raw_ethernet",
        verdict: "raw-ethernet",
        rules: ["raw_ethernet = false", "raw_ethernet = true"],
        leases: frames,
        packets: none,
    },
    Row {
        name: "raw_ethernet, policy of the packet in the frame",
        verdict: "denied",
        rules: ["raw_ethernet = true\ndeny = [\"198.51.100.{n}\"]", "raw_ethernet = true\ndeny = [\"203.0.113.0/24\"]"],
        leases: frames,
        packets: |setup, n| framed(setup, n, setup.macs[1]),
    },
    Row {
        name: "raw_ethernet, source port not leased",
        verdict: "source-port",
        rules: ["raw_ethernet = true", "raw_ethernet = true"],
        leases: |n| frames(n).split_off(usize::from(!is_allowed(n))),
        packets: |setup, n| framed(setup, n, setup.macs[1]),
    },
    Row {
        name: "raw_ethernet, unreadable",
        verdict: "unreadable",
        rules: ["raw_ethernet = true", "raw_ethernet = true"],
        leases: frames,
        packets: |setup, n| {
            let mut sent = framed(setup, n, setup.macs[1]);
            if !is_allowed(n) {
                sent[0].bytes.truncate(14 + 10);
            }
            sent
        },
    },
    Row {
        name: "foreign_sources",
        verdict: "foreign-source",
        rules: ["foreign_sources = false", "foreign_sources = true"],
        leases: tcp,
        packets: |_, n| vec![segment(([203, 0, 113, n], port(n)).into(), SocketAddr::new(far(n), 80))],
    },
    Row {
        name: "foreign_sources, prefixes",
        verdict: "foreign-source",
        rules: ["foreign_sources = [\"203.0.112.0/24\"]", "foreign_sources = [\"203.0.113.0/24\"]"],
        leases: tcp,
        packets: |_, n| vec![segment(([203, 0, 113, n], port(n)).into(), SocketAddr::new(far(n), 80))],
    },
    Row {
        name: "multicast",
        verdict: "multicast",
        rules: ["multicast = false", "multicast = true"],
        leases: |n| vec![ported("udp", port(n))],
        packets: |_, n| datagram_to(IpAddr::from([239, 1, 1, n]), n),
    },
    Row {
        name: "multicast, IPv6",
        verdict: "multicast",
        rules: ["multicast = false", "multicast = true"],
        leases: |n| vec![ported("udp", port(n))],
        packets: |_, n| datagram_to(IpAddr::from([0xff05, 0, 0, 0, 0, 0, 1, u16::from(n)]), n),
    },
    Row {
        name: "multicast, frames",
        verdict: "multicast",
        rules: ["raw_ethernet = true", "raw_ethernet = true\nmulticast = true"],
        leases: frames,
        packets: |setup, n| framed(setup, n, [1, 0, 0x5e, 1, 1, n]),
    },
    Row {
        name: "broadcast",
        verdict: "broadcast",
        rules: ["broadcast = false", "broadcast = true"],
        leases: |n| vec![ported("udp", port(n))],
        packets: |_, n| datagram_to(IpAddr::from([192, 0, 2, 255]), n),
    },
    Row {
        name: "broadcast, to all",
        verdict: "broadcast",
        rules: ["multicast = true", "broadcast = true"],
        leases: |n| vec![ported("udp", port(n))],
        packets: |_, n| datagram_to(IpAddr::from([255; 4]), n),
    },
    Row {
        name: "broadcast, frames",
        verdict: "broadcast",
        rules: ["raw_ethernet = true\nmulticast = true", "raw_ethernet = true\nbroadcast = true"],
        leases: frames,
        packets: |setup, n| framed(setup, n, [0xff; 6]),
    },
    Row { name: "refuse", verdict: "refused", rules: ["refuse = true", "refuse = false"], leases: tcp, packets: none },
    Row {
        name: "the MTU",
        verdict: "too-long",
        rules: ["", ""],
        leases: tcp,
        packets: |_, n| {
            let (from, to) = (local(n), SocketAddr::new(far(n), 80));
            let payload = vec![7; if is_allowed(n) { 1460 } else { 1461 }];
            vec![Sent { bytes: Tcp::new(SYN, 7, 0).with(&payload).ip(from, to), from, to }]
        },
    },
];
