//! The replies of the methods.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::datapath::maps;

wire! {
    /// An empty reply.
    Nothing {}
    /// The reply to `Info`.
    Info {
        /// crafter's version.
        version: String,
        /// The version of the interface, [`ABI`](crate::protocol::wire::ABI).
        abi: u32,
        /// The process id of the service.
        pid: u32,
        /// The user id of the service.
        user: u32,
        /// The policy's file, or `shipped`.
        policy: String,
        /// Start time in microseconds since 1970, by the current CLOCK_REALTIME.
        started: u64,
        /// Number of leases.
        leases: u64,
    }
    /// The reply to `Interfaces`.
    Interfaces {
        /// The interfaces.
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
        /// MTU in bytes.
        mtu: u32,
        /// The kind of a virtual device: `veth`, ...
        kind: Option<String>,
        /// Its Ethernet address.
        mac: Option<String>,
        /// Its addresses.
        addresses: Vec<String>,
        /// `native`, `generic` or `tc`, while attached.
        mode: Option<String>,
        /// `tcx` or `clsact`, while attached.
        classifier: Option<String>,
        /// Number of AF_XDP sockets, while attached.
        sockets: Option<u32>,
        /// Why no faster mode is possible.
        notes: Vec<String>,
        /// Number of leases on it.
        leases: u64,
    }
    /// The reply to `Policy`.
    Allowance {
        /// The caller's user id.
        user: u32,
        /// The caller's group ids.
        groups: Vec<u32>,
        /// The rule that decides for the caller; `None`: none names the caller, who may do nothing.
        rule: Option<Rule>,
        /// Leases held.
        leases: u32,
        /// Ports held.
        ports: u32,
        /// Flows open.
        flows: u32,
        /// Interfaces with leases.
        interfaces: u32,
    }
    /// A rule of the policy.
    Rule {
        /// Its number, from 1.
        number: u32,
        /// Whether it refuses everything.
        refuse: bool,
        /// `tcp`, `udp`, `icmp`, `any`.
        protocols: Vec<String>,
        /// The rate; `None`: unlimited, as for the following limits.
        packets_per_second: Option<u32>,
        /// The burst in packets.
        burst: Option<u32>,
        /// The maximum number of leases.
        max_leases: Option<u32>,
        /// The maximum number of ports.
        max_ports: Option<u32>,
        /// The maximum number of flows.
        max_flows: Option<u32>,
        /// The maximum number of interfaces with leases.
        max_interfaces: Option<u32>,
        /// Whether Ethernet frames may be sent.
        raw_ethernet: bool,
        /// Whether some foreign source addresses are allowed.
        foreign_sources: bool,
        /// Whose packets a lease receives at most: `flow`, `address` or `any`.
        peers: String,
        /// Whether packets of others may be captured.
        observe: bool,
        /// Whether multicast destinations are allowed.
        multicast: bool,
        /// Whether broadcast destinations are allowed.
        broadcast: bool,
        /// The rule's text.
        text: String,
    }
    /// The reply to `Reload`.
    Reloaded {
        /// Number of rules.
        rules: u32,
        /// Warnings about settings that are probably not intended.
        warnings: Vec<String>,
        /// Leases that were ended because the new policy refuses them.
        ended: Vec<u64>,
    }
    /// The reply to `Route`.
    RouteReply {
        /// The interface.
        interface: String,
        /// Its index.
        index: u32,
        /// The source address.
        source: String,
        /// MTU in bytes.
        mtu: u32,
        /// The router; `None`: the destination is on the link.
        gateway: Option<String>,
        /// The interface's Ethernet address; `None` without Ethernet headers.
        link_mac: Option<String>,
        /// The next hop's Ethernet address; `None` without Ethernet headers.
        mac: Option<String>,
    }
    /// The reply to `Lease`.
    Leased {
        /// The lease's number.
        lease: u64,
        /// Index of its socket among the reply's descriptors.
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
        /// MTU in bytes.
        mtu: u32,
        /// `native`, `generic` or `tc`.
        mode: String,
        /// `tcx` or `clsact`.
        classifier: String,
        /// Number of AF_XDP sockets.
        sockets: u32,
        /// Why no faster mode is possible.
        notes: Vec<String>,
    }
    /// The reply to `Observe`.
    Observing {
        /// The lease's number.
        lease: u64,
        /// Index of its socket among the reply's descriptors.
        socket: u32,
        /// The interface.
        interface: String,
        /// Its index.
        index: u32,
        /// LINKTYPE of the frames, as in capture files.
        link_type: u32,
    }
    /// The reply to `Account`; see [`Lease`].
    Account {
        /// Packets sent.
        sent: u64,
        /// Their bytes.
        sent_bytes: u64,
        /// Packets that the kernel did not accept.
        not_sent: u64,
        /// Packets that were refused.
        refused: u64,
        /// Packets delivered to the client's sockets.
        delivered: u64,
        /// Bytes of the packets that the client received.
        delivered_bytes: u64,
        /// Packets and messages lost: received by the kernel half, but not delivered. Packets that arrive for the lease are
        /// either delivered or lost.
        lost: u64,
        /// Of the lost packets, those that found no room in the lease's share of the receive queues. The others found no
        /// room in the client's socket: the client reads too slowly.
        queue_full: u64,
        /// RSTs and port-unreachables of the kernel that were dropped.
        suppressed: u64,
    }
    /// The reply to `ListLeases`.
    Leases {
        /// A page of leases.
        leases: Vec<Lease>,
        /// `after` for the next page; `None`: this is the last one.
        next: Option<u64>,
    }
    /// A lease.
    Lease {
        /// Its number.
        lease: u64,
        /// The owner's user id.
        user: u32,
        /// The process that leased it.
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
        /// Whether the client sends Ethernet frames.
        frames: bool,
        /// Whether the kernel sees the packets too.
        observe: bool,
        /// Whether the kernel's own answers are dropped.
        suppress: bool,
        /// Start time in microseconds since 1970, by the current CLOCK_REALTIME.
        began: u64,
        /// Packets sent.
        sent: u64,
        /// Their bytes.
        sent_bytes: u64,
        /// Packets that the kernel did not accept.
        not_sent: u64,
        /// Packets that the policy refused, or that had no route.
        refused: u64,
        /// Packets delivered to the client's socket.
        delivered: u64,
        /// Their bytes.
        delivered_bytes: u64,
        /// Packets and messages lost: received by the kernel half, but not delivered. Packets that arrive for the lease are
        /// either delivered or lost.
        lost: u64,
        /// Of the lost packets, those that found no room in the lease's share of the receive queues. The others found no
        /// room in the client's socket: the client reads too slowly.
        queue_full: u64,
        /// RSTs and port-unreachables of the kernel that were dropped and reported.
        suppressed: u64,
    }
    /// The reply to `ListFlows`.
    Flows {
        /// A page of flows.
        flows: Vec<Flow>,
        /// `after` for the next page; `None`: this is the last one.
        next: Option<u64>,
    }
    /// A flow; see [`crate::datapath::maps::Flow`].
    Flow {
        /// The interface.
        interface: String,
        /// `tcp`, `udp` or `icmp`.
        protocol: String,
        /// Local address and port.
        local: String,
        /// Remote address and port.
        remote: String,
        /// Packets received.
        rx_packets: u64,
        /// Their bytes.
        rx_bytes: u64,
        /// Packets sent.
        tx_packets: u64,
        /// Their bytes.
        tx_bytes: u64,
        /// Time of the first packet: CLOCK_MONOTONIC nanoseconds.
        first_seen_ns: u64,
        /// Time of the last packet: CLOCK_MONOTONIC nanoseconds.
        last_seen_ns: u64,
        /// Sequence number of the last received segment.
        last_seq: u32,
        /// Acknowledgment number of the last received segment.
        last_ack: u32,
        /// Flags of the last received segment.
        last_flags: u8,
        /// The kernel's answers that were dropped.
        suppressed: u64,
    }
    /// The reply to `Counters`.
    Counters {
        /// Counters of each interface.
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
        /// Packets by verdict reason.
        counters: BTreeMap<String, u64>,
    }
    /// A reply to `Monitor`.
    Events {
        /// Events in their order.
        events: Vec<Event>,
    }
    /// An event.
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
        /// The owner of the lease.
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
        /// Details in words.
        message: Option<String>,
    }
}

impl Flow {
    /// A flow of a map as the service reports it.
    pub fn of_map(interface: String, flow: &maps::Flow) -> Self {
        Self {
            interface,
            protocol: flow.protocol.to_owned(),
            local: flow.local.to_string(),
            remote: flow.remote.to_string(),
            rx_packets: flow.rx_packets,
            rx_bytes: flow.rx_bytes,
            tx_packets: flow.tx_packets,
            tx_bytes: flow.tx_bytes,
            first_seen_ns: flow.first_seen_ns,
            last_seen_ns: flow.last_seen_ns,
            last_seq: flow.last_seq,
            last_ack: flow.last_ack,
            last_flags: flow.last_flags,
            suppressed: flow.suppressed,
        }
    }
}
