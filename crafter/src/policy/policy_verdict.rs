//! Decisions and verdicts of the policy.

use std::fmt;

use super::rule::Rule;

/// A verdict, and the rule that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// The number of the rule, from 1; `None`: no rule names the subject.
    pub rule: Option<usize>,
    /// The verdict.
    pub verdict: Verdict,
}

impl Decision {
    pub(super) const NO_RULE: Self = Self { rule: None, verdict: Verdict::NoRule };

    pub(super) fn of(rule: &Rule, checked: Result<(), Verdict>) -> Self {
        Self { rule: Some(rule.number), verdict: checked.err().unwrap_or(Verdict::Allowed) }
    }

    /// Whether the verdict is [`Verdict::Allowed`].
    pub fn is_allowed(self) -> bool {
        self.verdict == Verdict::Allowed
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Some(rule) => write!(f, "rule {rule}: {}", self.verdict),
            None => write!(f, "{}", self.verdict),
        }
    }
}

macro_rules! verdicts {
    ($($(#[$doc:meta])* $name:ident $key:literal $sentence:literal,)*) => {
        /// Allowed, or why not.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Verdict {
            $($(#[$doc])* $name,)*
        }

        impl Verdict {
            /// All verdicts.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name in JSON and in logs.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $key,)*
                }
            }

            const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$name => $sentence,)*
                }
            }
        }
    };
}

verdicts! {
    /// The policy allows it.
    Allowed "allowed" "allowed",
    /// No rule names the user or a group of the user.
    NoRule "no-rule" "no rule names the user or one of the user's groups",
    /// The rule has `refuse = true`.
    Refused "refused" "it refuses everything",
    /// Not in `interfaces`.
    Interface "interface" "the interface is not among its interfaces",
    /// Not in `addresses`.
    Address "address" "the local address is not among its addresses",
    /// Not in `ports`.
    Port "port" "the local port is not among its ports",
    /// Not in `protocols`.
    Protocol "protocol" "the protocol is not among its protocols",
    /// More than `max_leases`.
    Leases "max-leases" "the lease exceeds its max_leases",
    /// More than `max_ports`.
    Ports "max-ports" "the ports exceed its max_ports",
    /// More than `max_flows`.
    Flows "max-flows" "the flow exceeds its max_flows",
    /// More than `max_interfaces`.
    Interfaces "max-interfaces" "the interface exceeds its max_interfaces",
    /// No `raw_ethernet`.
    RawEthernet "raw-ethernet" "Ethernet frames need raw_ethernet = true and a lease for frames",
    /// Wider than `peers`.
    Peers "peers" "the lease asks for packets of more peers than its peers allows",
    /// No `observe`.
    Observe "observe" "packets of others need observe = true",
    /// The source address is not the lease's, and not in `foreign_sources`.
    ForeignSource "foreign-source" "the source address is neither the lease's nor among its foreign_sources",
    /// The source port (ICMP: identifier) or the protocol is not the lease's.
    SourcePort "source-port" "the source port is not the lease's",
    /// No `multicast`.
    Multicast "multicast" "a multicast destination needs multicast = true",
    /// No `broadcast`.
    Broadcast "broadcast" "a broadcast destination needs broadcast = true",
    /// In `deny`.
    Denied "denied" "it denies the destination",
    /// Not in `allow`.
    NotAllowed "not-allowed" "it does not allow the destination",
    /// A source route or routing header, without protocol `any`.
    SourceRoute "source-route" "a source-routed packet needs \"any\" among its protocols",
    /// An IP option such as router alert, without protocol `any`.
    Option "ip-option" "a packet with special IP options needs \"any\" among its protocols",
    /// No `link_local`.
    LinkLocal "link-local" "a link-local destination needs link_local = true",
    /// Longer than the MTU.
    TooLong "too-long" "the packet is longer than the interface's MTU",
    /// Faster than `packets_per_second` and `burst`.
    Rate "rate" "the packets exceed its packets_per_second and burst",
    /// The packet's headers cannot be read.
    Unreadable "unreadable" "the packet's headers cannot be read",
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

impl serde::Serialize for Verdict {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
