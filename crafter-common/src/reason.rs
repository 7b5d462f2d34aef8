//! Why a packet got its verdict: one counter each, and the only place that numbers them.

/// Why a packet got its verdict. The number is the index of its per-CPU counter; each packet that
/// a hook sees adds one to exactly one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reason {
    /// Ingress, passed: neither IPv4 nor IPv6 (ARP, more than two VLAN tags, ...).
    NotIp = 0,
    /// Ingress, passed: shorter than its headers say, or an impossible header length.
    Malformed = 1,
    /// Ingress, passed: neither TCP nor UDP nor an ICMP error or reply, or more extension headers than are walked.
    OtherProtocol = 2,
    /// Ingress, passed: TCP or UDP for a port, or an ICMP reply for an identifier, that is not owned.
    NotOwned = 3,
    /// Ingress, passed: an ICMP error about a packet that no owned port or identifier sent to this peer.
    IcmpNotOwned = 4,
    /// Ingress, passed: a later fragment whose first is not owned, was not seen within 30 s, or was an ICMP error
    /// (which nobody sends in fragments: RFC 1812 section 4.3.2.3, RFC 4443 section 2.4).
    FragmentNotOwned = 5,
    /// Ingress, passed: to an owned port or identifier, from a peer that its lease has not sent to.
    NotPeer = 6,
    /// Ingress, passed: owned, but the frame is not for this interface: another destination address, TCP to a group
    /// address, or a tag of another VLAN.
    OtherLink = 7,
    /// Ingress, passed: owned, but the kernel accepts no packet from this source: a multicast, broadcast, loopback or
    /// mapped address, or an address of this host.
    MartianSource = 8,
    /// Ingress, passed: owned, but the IPv4 header has a wrong checksum, or no time to live.
    InvalidHeader = 9,
    /// Ingress, consumed: redirected into the AF_XDP socket of its queue.
    Redirected = 10,
    /// Ingress, consumed: copied into the ring buffer, then dropped.
    Copied = 11,
    /// Ingress, passed: copied into the ring buffer in observe mode.
    Observed = 12,
    /// Ingress, dropped: owned, but there was no room to deliver it.
    DeliveryFull = 13,
    /// Ingress, passed: owned in observe mode, but there was no room for the copy.
    ObserveFull = 14,
    /// Egress, passed: neither a RST nor a port-unreachable.
    EgressOther = 15,
    /// Egress, passed: crafted (it carries the mark).
    Crafted = 16,
    /// Egress, dropped: the kernel's RST from an owned port.
    RstSuppressed = 17,
    /// Egress, passed: the kernel's RST from an owned port whose lease says `pass`.
    RstAllowed = 18,
    /// Egress, passed: the kernel's RST from an unowned port, or to a peer that its lease has not sent to.
    RstNotOwned = 19,
    /// Egress, dropped: a port-unreachable quoting an owned UDP port.
    UnreachableSuppressed = 20,
    /// Egress, passed: a port-unreachable quoting an owned UDP port whose lease says `pass`.
    UnreachableAllowed = 21,
    /// Egress, passed: a port-unreachable about an unowned port, or to a peer that its lease has not sent to.
    UnreachableNotOwned = 22,
}

/// Number of reasons, and of per-CPU counters.
pub const REASONS: u32 = 23;

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; REASONS as usize] = [
        Self::NotIp,
        Self::Malformed,
        Self::OtherProtocol,
        Self::NotOwned,
        Self::IcmpNotOwned,
        Self::FragmentNotOwned,
        Self::NotPeer,
        Self::OtherLink,
        Self::MartianSource,
        Self::InvalidHeader,
        Self::Redirected,
        Self::Copied,
        Self::Observed,
        Self::DeliveryFull,
        Self::ObserveFull,
        Self::EgressOther,
        Self::Crafted,
        Self::RstSuppressed,
        Self::RstAllowed,
        Self::RstNotOwned,
        Self::UnreachableSuppressed,
        Self::UnreachableAllowed,
        Self::UnreachableNotOwned,
    ];

    /// The name that users see, in words joined by underscores.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::Malformed => "malformed",
            Self::OtherProtocol => "other_protocol",
            Self::NotOwned => "not_owned",
            Self::IcmpNotOwned => "icmp_not_owned",
            Self::FragmentNotOwned => "fragment_not_owned",
            Self::NotPeer => "not_peer",
            Self::OtherLink => "other_link",
            Self::MartianSource => "martian_source",
            Self::InvalidHeader => "invalid_header",
            Self::Redirected => "redirected",
            Self::Copied => "copied",
            Self::Observed => "observed",
            Self::DeliveryFull => "delivery_full",
            Self::ObserveFull => "observe_full",
            Self::EgressOther => "egress_other",
            Self::Crafted => "crafted",
            Self::RstSuppressed => "rst_suppressed",
            Self::RstAllowed => "rst_allowed",
            Self::RstNotOwned => "rst_not_owned",
            Self::UnreachableSuppressed => "unreachable_suppressed",
            Self::UnreachableAllowed => "unreachable_allowed",
            Self::UnreachableNotOwned => "unreachable_not_owned",
        }
    }

    /// Whether the ingress hook gives this reason (otherwise the egress hook does).
    pub const fn is_ingress(self) -> bool {
        (self as u32) < Self::EgressOther as u32
    }

    /// The verdict on a packet with this reason: the policy of both hooks in one place.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Redirected => Verdict::Redirect,
            Self::Copied | Self::DeliveryFull | Self::RstSuppressed | Self::UnreachableSuppressed => Verdict::Drop,
            _ => Verdict::Pass,
        }
    }
}

/// The verdict on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next program, and to the kernel: `XDP_PASS`, `TCX_NEXT`, or `TC_ACT_UNSPEC` under clsact.
    Pass,
    /// Dropped: `XDP_DROP`, `TC_ACT_SHOT`.
    Drop,
    /// Into the AF_XDP socket: `XDP_REDIRECT`.
    Redirect,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_numbers_are_their_positions() {
        for (position, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(position as u32, *reason as u32);
        }
    }
}
