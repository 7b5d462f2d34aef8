//! The parameters of the methods.

use serde::{Deserialize, Serialize};

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
