//! What the methods answer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

wire! {
    /// Nothing.
    Nothing {}
    /// Of `Info`.
    Info {
        /// crafter's version.
        version: String,
        /// [`ABI`]
        abi: u32,
        /// The service's process.
        pid: u32,
        /// The user that it runs as.
        user: u32,
        /// The policy's file, or `shipped`.
        policy: String,
        /// When it began, in microseconds since 1970, as the clock is set now.
        started: u64,
        /// How many leases there are.
        leases: u64,
    }
    /// Of `Interfaces`.
    Interfaces {
        /// They.
        interfaces: Vec<Interface>,
    }
    /// An interface of the host.
    Interface {
        /// Its name.
        name: String,
        /// Its index.
        index: u32,
        /// Whether it is up.
        up: bool,
        /// Largest IP packet in bytes.
        mtu: u32,
        /// `veth`, ...
        kind: Option<String>,
        /// Its Ethernet address.
        mac: Option<String>,
        /// Its addresses.
        addresses: Vec<String>,
        /// `native`, `generic` or `tc`, while attached.
        mode: Option<String>,
        /// `tcx` or `clsact`, while attached.
        classifier: Option<String>,
        /// AF_XDP sockets, while attached.
        sockets: Option<u32>,
        /// Why nothing faster.
        notes: Vec<String>,
        /// Leases on it.
        leases: u64,
    }
    /// Of `Policy`.
    Allowance {
        /// The caller.
        user: u32,
        /// The caller's groups.
        groups: Vec<u32>,
        /// The rule that decides; `None`: the caller may do nothing.
        rule: Option<Rule>,
        /// Leases held.
        leases: u32,
        /// Ports held.
        ports: u32,
        /// Flows open.
        flows: u32,
    }
    /// What a rule gives.
    Rule {
        /// Its place, from 1.
        number: u32,
        /// It refuses everything.
        refuse: bool,
        /// `tcp`, `udp`, `icmp`, `any`.
        protocols: Vec<String>,
        /// `None`: no limit, as below.
        packets_per_second: Option<u32>,
        /// Packets at once.
        burst: Option<u32>,
        /// Leases at most.
        max_leases: Option<u32>,
        /// Ports at most.
        max_ports: Option<u32>,
        /// Flows at most.
        max_flows: Option<u32>,
        /// Ethernet frames.
        raw_ethernet: bool,
        /// Foreign source addresses, at least some.
        foreign_sources: bool,
        /// Packets of others.
        observe: bool,
        /// Multicast destinations.
        multicast: bool,
        /// Broadcast destinations.
        broadcast: bool,
        /// The rule's text.
        text: String,
    }
    /// Of `Reload`.
    Reloaded {
        /// How many rules there are.
        rules: u32,
        /// What is hardly meant.
        warnings: Vec<String>,
        /// Leases that the new policy refuses, and that were ended.
        ended: Vec<u64>,
    }
    /// Of `Route`.
    RouteReply {
        /// The interface.
        interface: String,
        /// Its index.
        index: u32,
        /// The source address.
        source: String,
        /// Largest IP packet in bytes.
        mtu: u32,
        /// The router.
        gateway: Option<String>,
        /// The interface's Ethernet address, where packets begin with an Ethernet header.
        link_mac: Option<String>,
        /// The next hop's.
        mac: Option<String>,
    }
    /// Of `Lease`.
    Leased {
        /// Its number.
        lease: u64,
        /// Index of its descriptor among those that came.
        socket: u32,
        /// The interface.
        interface: String,
        /// Its index.
        index: u32,
        /// The local address; `None`: any.
        address: Option<String>,
        /// The first port.
        first_port: Option<u16>,
        /// The last port.
        last_port: Option<u16>,
        /// Largest IP packet in bytes.
        mtu: u32,
        /// `native`, `generic` or `tc`.
        mode: String,
        /// `tcx` or `clsact`.
        classifier: String,
        /// AF_XDP sockets.
        sockets: u32,
        /// Why nothing faster.
        notes: Vec<String>,
    }
    /// Of `Observe`.
    Observing {
        /// Its number.
        lease: u64,
        /// Index of its descriptor among those that came.
        socket: u32,
        /// The interface.
        interface: String,
        /// Its index.
        index: u32,
        /// LINKTYPE of the frames, as captures have it.
        link_type: u32,
    }
    /// Of `Account`; see [`Lease`].
    Account {
        /// Packets that the kernel took.
        sent: u64,
        /// Their bytes.
        sent_bytes: u64,
        /// Packets that it did not take.
        not_sent: u64,
        /// Packets that were refused.
        refused: u64,
        /// Packets for the client.
        delivered: u64,
        /// Bytes of those that it got.
        delivered_bytes: u64,
        /// Messages lost because the client did not read in time.
        lost: u64,
        /// RSTs and port-unreachables of the kernel that were dropped.
        suppressed: u64,
    }
    /// Of `ListLeases`.
    Leases {
        /// A page.
        leases: Vec<Lease>,
        /// Where the next one begins.
        next: Option<u64>,
    }
    /// A lease.
    Lease {
        /// Its number.
        lease: u64,
        /// Whose it is.
        user: u32,
        /// The process that asked for it.
        pid: Option<u32>,
        /// Its interface.
        interface: String,
        /// `tcp`, `udp`, `icmp`, `none` or `observe`.
        protocol: String,
        /// The local address; `None`: any.
        address: Option<String>,
        /// The first port.
        first_port: Option<u16>,
        /// The last port.
        last_port: Option<u16>,
        /// What is sent are frames.
        frames: bool,
        /// The kernel sees the packets too.
        observe: bool,
        /// The kernel's own answers are dropped.
        suppress: bool,
        /// When it began, in microseconds since 1970, as the clock is set now.
        began: u64,
        /// Packets that the kernel took.
        sent: u64,
        /// Their bytes.
        sent_bytes: u64,
        /// Packets that it did not take.
        not_sent: u64,
        /// Packets that the policy refused, or that no way led to.
        refused: u64,
        /// Packets delivered to the client's socket.
        delivered: u64,
        /// Their bytes.
        delivered_bytes: u64,
        /// Messages lost because the client did not read in time.
        lost: u64,
        /// RSTs and port-unreachables of the kernel that were dropped, as far as they are reported.
        suppressed: u64,
    }
    /// Of `ListFlows`.
    Flows {
        /// A page.
        flows: Vec<Flow>,
        /// Where the next one begins.
        next: Option<u64>,
    }
    /// A flow; see [`crate::datapath::maps::Flow`].
    Flow {
        /// The interface.
        interface: String,
        /// `tcp`, `udp` or `icmp`.
        protocol: String,
        /// This host's end.
        local: String,
        /// The peer's end.
        remote: String,
        /// Packets received.
        rx_packets: u64,
        /// Their bytes.
        rx_bytes: u64,
        /// Packets sent.
        tx_packets: u64,
        /// Their bytes.
        tx_bytes: u64,
        /// CLOCK_MONOTONIC nanoseconds.
        first_seen_ns: u64,
        /// CLOCK_MONOTONIC nanoseconds.
        last_seen_ns: u64,
        /// Of the latest segment received.
        last_seq: u32,
        /// Of the latest segment received.
        last_ack: u32,
        /// Of the latest segment received.
        last_flags: u8,
        /// The kernel's answers that were dropped.
        suppressed: u64,
    }
    /// Of `Counters`.
    Counters {
        /// By interface.
        interfaces: Vec<InterfaceCounters>,
    }
    /// The counters of the kernel half on one interface.
    InterfaceCounters {
        /// The interface.
        interface: String,
        /// Packets seen at ingress.
        ingress: u64,
        /// Packets seen at egress.
        egress: u64,
        /// Packets by reason.
        counters: BTreeMap<String, u64>,
    }
    /// Of `Monitor`.
    Events {
        /// In the order in which they happened.
        events: Vec<Event>,
    }
    /// Something that happened.
    Event {
        /// `lease-begun`, `lease-ended`, `delivered`, `suppressed`, `lost`, `refused`, `hook-lost`, `attached`,
        /// `detached`
        event: String,
        /// Microseconds since 1970.
        time: u64,
        /// The interface.
        interface: Option<String>,
        /// The lease.
        lease: Option<u64>,
        /// Whose lease.
        user: Option<u32>,
        /// Its protocol.
        protocol: Option<String>,
        /// Its first port.
        first_port: Option<u16>,
        /// Its last port.
        last_port: Option<u16>,
        /// Packets since the last event of this kind and lease.
        count: Option<u64>,
        /// Their bytes.
        bytes: Option<u64>,
        /// More of it, in words.
        message: Option<String>,
    }
}
