//! The account of an exchange: counters of all its packets, compared with those of the kernel half.

use std::fmt;

use serde::Serialize;

use crate::{datapath::maps::Counters, driver::Stats};
use crafter_common::reason::Reason;

/// Counters of the packets of an exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Requests.
    pub requests: u64,
    /// Packets sent, retransmissions included.
    pub sent: u64,
    /// Packets that the kernel refused: its queue was full, or a firewall rule dropped them.
    pub not_sent: u64,
    /// Requests that were not sent: no route, or the next hop does not answer.
    pub unroutable: u64,
    /// Requests with a reply.
    pub answered: u64,
    /// Requests without a reply.
    pub unanswered: u64,
    /// Packets received: the sum of the next four.
    pub received: u64,
    /// Replies; more than `answered` only if all replies to a request are accepted.
    pub matched: u64,
    /// Further replies to an answered request.
    pub duplicate: u64,
    /// Packets that answer no request.
    pub unmatched: u64,
    /// Packets with a wrong checksum, which are not matched.
    pub bad_checksum: u64,
    /// Packets for the leased ports that were dropped because the ring buffer was full.
    pub delivery_full: u64,
    /// Packets for the leased ports that were dropped because the AF_XDP socket's ring was full.
    pub lost: u64,
    /// Packets for the leased ports that were dropped because the lease's queue was full.
    pub overflow: u64,
    /// The kernel's own RSTs and port-unreachables that were dropped.
    pub suppressed: u64,
    /// Half-open connections reset because the lease of their port ended, since the last account. The others are
    /// counted by [`Session::reset_half_open`](super::Session::reset_half_open).
    pub half_open_reset: u64,
    /// Counters of the kernel half over the same time.
    pub kernel: Kernel,
}

/// Counters of the kernel half, and by how much those of the user half differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// Packets for owned ports: redirected, copied or observed.
    pub delivered: u64,
    /// Crafted packets seen by the egress hook.
    pub crafted: u64,
    /// Of these, packets that a full queue after the hook refused; each was sent again.
    pub turned_away: u64,
    /// `delivered` minus the packets that the user half has counted: 0 if none is unaccounted for.
    pub delivered_difference: i64,
    /// `crafted` minus `sent` and `turned_away`: 0 if none is unaccounted for.
    pub crafted_difference: i64,
}

impl Account {
    /// The counters of sending, in words.
    pub fn sending(&self) -> String {
        let requests = if self.requests == 1 { "request" } else { "requests" };
        let failures = nonzero(&[(self.not_sent, "refused by the kernel"), (self.unroutable, "unroutable")]);
        format!("{} {requests}, {} sent{failures}", self.requests, self.sent)
    }

    /// Whether both halves have counted the same.
    pub fn agrees(&self) -> bool {
        self.kernel.delivered_difference == 0 && self.kernel.crafted_difference == 0
    }

    /// Adds the difference of two readings of an interface.
    pub(super) fn add(&mut self, before: &Reading, after: &Reading) {
        let kernel = |reason| after.counters.get(reason) - before.counters.get(reason);
        let stats = |field: fn(&Stats) -> u64| field(&after.stats) - field(&before.stats);
        self.sent += stats(|s| s.sent);
        self.not_sent += stats(|s| s.not_sent);
        self.lost += stats(|s| s.lost);
        self.overflow += stats(|s| s.overflow);
        self.delivery_full += kernel(Reason::DeliveryFull) + kernel(Reason::ObserveFull);
        self.suppressed += kernel(Reason::RstSuppressed) + kernel(Reason::UnreachableSuppressed);
        let delivered = kernel(Reason::Redirected) + kernel(Reason::Copied) + kernel(Reason::Observed);
        let crafted = kernel(Reason::Crafted);
        self.kernel.delivered += delivered;
        self.kernel.crafted += crafted;
        self.kernel.delivered_difference += delivered as i64 - stats(accounted) as i64;
        self.kernel.turned_away += stats(|s| s.turned_away);
        self.kernel.crafted_difference += crafted as i64 - stats(|s| s.sent + s.turned_away) as i64;
    }
}

/// `, COUNT NAME` for each count above 0.
fn nonzero(counts: &[(u64, &str)]) -> String {
    counts.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!(", {count} {name}")).collect()
}

/// Packets for owned ports that the user half has counted: each fragment, not the reassembled datagram.
fn accounted(stats: &Stats) -> u64 {
    (stats.delivered + stats.stray + stats.bad_checksum + stats.overflow + stats.lost + stats.fragments)
        .saturating_sub(stats.reassembled)
}

/// Counters of an interface at one time.
pub(super) struct Reading {
    pub(super) counters: Counters,
    pub(super) stats: Stats,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { received, answered, unanswered, .. } = self;
        let sending = self.sending();
        let others = nonzero(&[
            (self.matched - self.answered.min(self.matched), "further answers"),
            (self.duplicate, "duplicate"),
            (self.unmatched, "unmatched"),
            (self.bad_checksum, "with a wrong checksum"),
            (self.delivery_full, "lost to a full ring buffer"),
            (self.lost, "lost to a full socket"),
            (self.overflow, "lost to a full queue"),
            (self.suppressed, "of the kernel suppressed"),
        ]);
        write!(f, "{sending}; {received} received, {answered} answered, {unanswered} unanswered{others}")?;
        if self.agrees() {
            f.write_str("; the kernel half counted the same")
        } else {
            let Kernel { delivered_difference, crafted_difference, .. } = self.kernel;
            write!(f, "; the kernel half counted {delivered_difference:+} received, {crafted_difference:+} sent")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_and_differences_are_printed() {
        let counters = |pairs: &[(Reason, u64)]| {
            let of = |reason: &Reason| pairs.iter().find(|(named, _)| named == reason).map_or(0, |(_, count)| *count);
            Counters(Reason::ALL.iter().map(of).collect())
        };
        let before =
            Reading { counters: counters(&[(Reason::Crafted, 1)]), stats: Stats { sent: 1, ..Stats::default() } };
        let after = Reading {
            counters: counters(&[(Reason::Crafted, 11), (Reason::Redirected, 9), (Reason::Copied, 4)]),
            stats: Stats { sent: 11, delivered: 6, lost: 2, fragments: 4, reassembled: 1, ..Stats::default() },
        };
        let mut account = Account { requests: 10, ..Account::default() };
        account.add(&before, &after);
        assert_eq!((account.sent, account.lost), (10, 2));
        // 13 delivered: 6 received (one of 4 fragments) and 2 lost, 2 are unaccounted for.
        assert_eq!(account.kernel, Kernel { delivered: 13, crafted: 10, delivered_difference: 2, ..Kernel::default() });
        assert!(account.to_string().ends_with("2 lost to a full socket; the kernel half counted +2 received, +0 sent"));
    }
}
