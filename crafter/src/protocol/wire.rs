//! The types of `org.crafter.v1`, as they stand in JSON. Names and fields are those of `org.crafter.v1.varlink`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zlink::ReplyError;

/// The interface.
pub const INTERFACE: &str = "org.crafter.v1";

/// The number of this interface's layout: of the header on lease sockets, and of what methods mean.
pub const ABI: u32 = 1;

/// Its description.
pub const DESCRIPTION: &str = include_str!("org.crafter.v1.varlink");

/// The parameters of a method.
pub trait Method: Serialize + DeserializeOwned + std::fmt::Debug {
    /// Its full name.
    const NAME: &'static str;
    /// What it answers.
    type Reply: Serialize + DeserializeOwned + std::fmt::Debug;
}

macro_rules! methods {
    ($($name:literal $call:ident -> $reply:ident;)*) => {
        $(impl Method for $call {
            const NAME: &'static str = concat!("org.crafter.v1.", $name);
            type Reply = $reply;
        })*
        /// The names of all methods.
        pub const METHODS: &[&str] = &[$(<$call as Method>::NAME,)*];
    };
}

methods! {
    "Info" InfoCall -> Info;
    "Interfaces" InterfacesCall -> Interfaces;
    "Policy" PolicyCall -> Allowance;
    "Reload" ReloadCall -> Reloaded;
    "Route" RouteCall -> Way;
    "Lease" LeaseCall -> Leased;
    "Observe" ObserveCall -> Observing;
    "Release" ReleaseCall -> Nothing;
    "Account" AccountCall -> Account;
    "ListLeases" ListLeasesCall -> Leases;
    "ListFlows" ListFlowsCall -> Flows;
    "Counters" CountersCall -> Counters;
    "Monitor" MonitorCall -> Events;
}

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
            #[serde(default)]
            pub struct $name {
                $($(#[$field_doc])* pub $field: $type,)*
            }
        )*
    };
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
            #[serde(deny_unknown_fields)]
            pub struct $name {
                $($(#[$field_doc])*
                #[serde(skip_serializing_if = "crate::protocol::wire::is_null")]
                pub $field: $type,)*
            }
        )*
    };
}

/// Whether a parameter may be left out.
pub(crate) trait Absent {
    fn is_absent(&self) -> bool;
}

impl<T> Absent for Option<T> {
    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

macro_rules! never_absent {
    ($($type:ty)*) => { $(impl Absent for $type { fn is_absent(&self) -> bool { false } })* };
}

never_absent! { String u32 u64 }

pub(crate) fn is_null(value: &impl Absent) -> bool {
    value.is_absent()
}

calls! {
    /// `Info`
    InfoCall {}
    /// `Interfaces`
    InterfacesCall {
        /// Only this one.
        name: Option<String>,
    }
    /// `Policy`
    PolicyCall {}
    /// `Reload`
    ReloadCall {}
    /// `Route`
    RouteCall {
        /// Where to.
        destination: String,
        /// By this interface only.
        interface: Option<String>,
        /// With this source address.
        source: Option<String>,
    }
    /// `Lease`
    LeaseCall {
        /// The interface; otherwise the one that leads to `destination`.
        interface: Option<String>,
        /// Where packets are to go.
        destination: Option<String>,
        /// `tcp`, `udp`, `icmp` or `none`.
        protocol: String,
        /// The local address; `None`: each that the policy allows.
        address: Option<String>,
        /// The port; `None`: a free one.
        port: Option<u64>,
        /// The last port of a range.
        last_port: Option<u64>,
        /// Without a port: so many free ones in a row.
        count: Option<u64>,
        /// What is sent are Ethernet frames.
        frames: Option<bool>,
        /// The kernel sees the packets too.
        observe: Option<bool>,
        /// The kernel's own answers are dropped; the default.
        suppress: Option<bool>,
        /// Those that are dropped are copied here.
        report: Option<bool>,
        /// Consecutive segments of a TCP flow come as one.
        coalesce: Option<bool>,
    }
    /// `Observe`
    ObserveCall {
        /// The interface.
        interface: String,
        /// pcap-filter(7)
        filter: Option<String>,
        /// `in` or `out`.
        direction: Option<String>,
    }
    /// `Release`
    ReleaseCall {
        /// The lease's number.
        lease: u64,
    }
    /// `Account`
    AccountCall {}
    /// `ListLeases`
    ListLeasesCall {
        /// Only the caller's.
        mine: Option<bool>,
        /// Only on this interface.
        interface: Option<String>,
        /// Behind this one: `next` of the page before.
        after: Option<u64>,
        /// At most so many.
        limit: Option<u64>,
    }
    /// `ListFlows`
    ListFlowsCall {
        /// Only on this interface.
        interface: Option<String>,
        /// Only `tcp`, `udp` or `icmp`.
        protocol: Option<String>,
        /// Only with this port, of either end.
        port: Option<u64>,
        /// Only with this peer's address.
        remote: Option<String>,
        /// Behind this one: `next` of the page before.
        after: Option<u64>,
        /// At most so many.
        limit: Option<u64>,
    }
    /// `Counters`
    CountersCall {
        /// Only of this interface.
        interface: Option<String>,
    }
    /// `Monitor`
    MonitorCall {
        /// How often what is counted is told, in milliseconds.
        interval_ms: Option<u64>,
    }
}

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
    Way {
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

/// The errors of the interface.
#[derive(Debug, Clone, PartialEq, ReplyError)]
#[zlink(interface = "org.crafter.v1")]
pub enum Fault {
    /// The policy does not allow it.
    Refused {
        /// The rule's number.
        rule: Option<u32>,
        /// As `crafter policy explain` names it.
        verdict: String,
        /// In words.
        message: String,
    },
    /// A parameter is wrong.
    Invalid {
        /// Which.
        field: String,
        /// What would be right.
        message: String,
    },
    /// The port belongs to somebody else.
    PortTaken {
        /// `TCP`, `UDP` or `ICMP`.
        protocol: String,
        /// The local address.
        address: String,
        /// The port.
        port: u16,
        /// Who has it.
        holder: Option<String>,
        /// In words.
        message: String,
    },
    /// No such interface.
    UnknownInterface {
        /// The name.
        interface: String,
        /// In words.
        message: String,
    },
    /// No way leads there.
    NoRoute {
        /// Where to.
        destination: String,
        /// In words.
        message: String,
    },
    /// The next hop does not answer.
    NoNeighbour {
        /// The next hop.
        address: String,
        /// The interface.
        interface: String,
        /// In words.
        message: String,
    },
    /// No such lease of the caller.
    NoSuchLease {
        /// Its number.
        lease: u64,
        /// In words.
        message: String,
    },
    /// The policy's text is none.
    BadPolicy {
        /// All that is wrong.
        problems: Vec<String>,
        /// In words.
        message: String,
    },
    /// The kernel or the host would not.
    Failed {
        /// In words.
        message: String,
    },
}
