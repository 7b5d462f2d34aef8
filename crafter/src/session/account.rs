//! What became of every packet, and whether both halves agree on it.

use std::fmt;

use serde::Serialize;

use crate::{datapath::maps::Counters, driver::Stats};
use crafter_common::reason::Reason;

/// What became of every packet of an exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Packets that were to be sent.
    pub requests: u64,
    /// Packets that the kernel took, with those sent again.
    pub sent: u64,
    /// Packets that the kernel would not take: its queue was full, or a rule forbids them.
    pub not_sent: u64,
    /// Requests that no way led to: no route, or the next hop does not answer.
    pub unroutable: u64,
    /// Requests with an answer.
    pub answered: u64,
    /// Requests without one.
    pub unanswered: u64,
    /// Packets that came back: the sum of the next four.
    pub received: u64,
    /// Answers; more than `answered` only where all answers are taken.
    pub matched: u64,
    /// Further answers to a request that had one.
    pub duplicate: u64,
    /// What answers nothing that was sent.
    pub unmatched: u64,
    /// What has a wrong checksum, and is taken for no answer.
    pub bad_checksum: u64,
    /// Packets for the leased ports that were lost on their way here: no room in the ring buffer, ...
    pub delivery_full: u64,
    /// ... in the AF_XDP socket's ring, ...
    pub lost: u64,
    /// ... or in the lease's queue.
    pub overflow: u64,
    /// RSTs and port-unreachables of the kernel that were dropped.
    pub suppressed: u64,
    /// Half-open connections that were reset meanwhile, because their port was given back, and in exchanges without an
    /// account before. The others are reset with the session:
    /// [`Session::reset_half_open`](super::Session::reset_half_open) counts them.
    pub half_open_reset: u64,
    /// What the kernel half counted meanwhile.
    pub kernel: Kernel,
}

/// What the kernel half counted, and by how much the user half differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// Packets that it took for owned ports: redirected, copied or observed.
    pub delivered: u64,
    /// Crafted packets that passed its egress hook.
    pub crafted: u64,
    /// Of these, how often a queue behind the hook had no room for one, which was then tried again.
    pub turned_away: u64,
    /// `delivered`, less what user space knows the fate of: 0 if nothing is unaccounted for.
    pub delivered_difference: i64,
    /// `crafted`, less `sent` and `turned_away`: 0 if nothing is unaccounted for.
    pub crafted_difference: i64,
}

impl Account {
    /// What was sent, in words; nothing was waited for.
    pub fn sending(&self) -> String {
        let requests = if self.requests == 1 { "request" } else { "requests" };
        let mut text = format!("{} {requests}, {} sent", self.requests, self.sent);
        for (count, what) in [(self.not_sent, "not taken by the kernel"), (self.unroutable, "without a way")] {
            if count > 0 {
                text += &format!(", {count} {what}");
            }
        }
        text
    }

    /// Whether both halves agree on every packet.
    pub fn agrees(&self) -> bool {
        self.kernel.delivered_difference == 0 && self.kernel.crafted_difference == 0
    }

    /// Adds what one interface saw between two readings.
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
        self.kernel.delivered_difference += delivered as i64 - stats(known) as i64;
        self.kernel.turned_away += stats(|s| s.turned_away);
        self.kernel.crafted_difference += crafted as i64 - stats(|s| s.sent + s.turned_away) as i64;
    }
}

/// Packets whose fate user space knows. Fragments count one by one, their datagram does not.
fn known(stats: &Stats) -> u64 {
    (stats.delivered + stats.stray + stats.bad_checksum + stats.overflow + stats.lost + stats.fragments)
        .saturating_sub(stats.reassembled)
}

/// The counters of one interface at one time.
pub(super) struct Reading {
    pub(super) counters: Counters,
    pub(super) stats: Stats,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sending())?;
        let optional = |f: &mut fmt::Formatter<'_>, fields: &[(u64, &str)]| {
            fields.iter().filter(|(count, _)| *count > 0).try_for_each(|(count, what)| write!(f, ", {count} {what}"))
        };
        write!(f, "; {} received, {} answered, {} unanswered", self.received, self.answered, self.unanswered)?;
        optional(
            f,
            &[
                (self.matched - self.answered.min(self.matched), "further answers"),
                (self.duplicate, "duplicate"),
                (self.unmatched, "unmatched"),
                (self.bad_checksum, "with a wrong checksum"),
                (self.delivery_full, "lost before a full ring buffer"),
                (self.lost, "lost before a full socket"),
                (self.overflow, "lost before a full queue"),
                (self.suppressed, "of the kernel suppressed"),
            ],
        )?;
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
    fn what_is_lost_and_what_differs_is_told() {
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
        // 13 delivered: 6 (one of them of 4 fragments) and 2 lost leave 2 of which nothing is known.
        assert_eq!(account.kernel, Kernel { delivered: 13, crafted: 10, delivered_difference: 2, ..Kernel::default() });
        assert!(
            account.to_string().ends_with("2 lost before a full socket; the kernel half counted +2 received, +0 sent")
        );
    }
}
