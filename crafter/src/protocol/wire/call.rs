//! The parameters of the methods.

use serde::{Deserialize, Serialize};

calls! {
    /// `Info`
    InfoCall {}
    /// `Interfaces`
    InterfacesCall {
        /// Only this interface.
        name: Option<String>,
    }
    /// `Policy`
    PolicyCall {}
    /// `Reload`
    ReloadCall {}
    /// `Route`
    RouteCall {
        /// The destination address.
        destination: String,
        /// Only over this interface.
        interface: Option<String>,
        /// From this source address.
        source: Option<String>,
    }
    /// `Lease`
    LeaseCall {
        /// The interface; `None`: that of the route to `destination`.
        interface: Option<String>,
        /// The destination of the packets.
        destination: Option<String>,
        /// `tcp`, `udp`, `icmp` or `none`.
        protocol: String,
        /// The local address; `None`: each address that the policy allows.
        address: Option<String>,
        /// The port; `None`: a free one.
        port: Option<u64>,
        /// The last port of a range.
        last_port: Option<u64>,
        /// Without `port`: the number of consecutive free ports.
        count: Option<u64>,
        /// The client sends Ethernet frames.
        frames: Option<bool>,
        /// The kernel sees the packets too.
        observe: Option<bool>,
        /// The kernel's own answers are dropped; the default.
        suppress: Option<bool>,
        /// Dropped answers are copied to the lease's socket.
        report: Option<bool>,
        /// Consecutive segments of a TCP flow are merged.
        coalesce: Option<bool>,
        /// Whose packets the lease receives: `flow`, `address` or `any`; `None`: as many as the policy allows.
        peers: Option<String>,
    }
    /// `Observe`
    ObserveCall {
        /// The interface.
        interface: String,
        /// A filter of pcap-filter(7).
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
        /// Only leases of the caller.
        mine: Option<bool>,
        /// Only on this interface.
        interface: Option<String>,
        /// Start after this lease: `next` of the previous page.
        after: Option<u64>,
        /// The maximum number of entries of the page.
        limit: Option<u64>,
    }
    /// `ListFlows`
    ListFlowsCall {
        /// Only on this interface.
        interface: Option<String>,
        /// Only `tcp`, `udp` or `icmp`.
        protocol: Option<String>,
        /// Only with this port at either end.
        port: Option<u64>,
        /// Only with this peer's address.
        remote: Option<String>,
        /// Start after this flow: `next` of the previous page.
        after: Option<u64>,
        /// The maximum number of entries of the page.
        limit: Option<u64>,
    }
    /// `Counters`
    CountersCall {
        /// Only this interface.
        interface: Option<String>,
    }
    /// `Monitor`
    MonitorCall {
        /// The interval of counter events in milliseconds.
        interval_ms: Option<u64>,
    }
}
