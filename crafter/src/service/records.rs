//! What of the service's life goes to the audit log.

use std::time::Instant;

use super::{
    caller::Caller,
    host::audit::{Counts, Of, Record, What, Who},
    served_lease::ServedLease,
    state::Service,
};
use crate::{
    packet::PacketPorts,
    policy::{Decision, PacketInfo},
};

impl Service {
    /// Writes a record.
    pub(super) fn record(&self, record: &Record<'_>) {
        self.audit.record(record, Instant::now());
    }

    /// A lease began.
    pub(super) fn record_lease(&self, lease: &ServedLease) {
        let rule = self.policy().rule_of(lease.subject()).map(|rule| rule.number);
        self.record(&Record::Lease { who: who(lease), what: what(lease), rule });
    }

    /// A lease ended.
    pub(super) fn record_end(&self, lease: &ServedLease, reason: &str) {
        let tally = &lease.tally;
        let counts = Counts {
            sent: tally.sent.get(),
            refused: tally.refused.get(),
            delivered: tally.delivered.get(),
            lost: tally.lost.get(),
        };
        self.record(&Record::End { who: who(lease), what: what(lease), reason, counts });
    }

    /// A packet was refused by the policy.
    pub(super) fn record_refused_packet(&self, lease: &ServedLease, decision: Decision, outgoing: Option<&PacketInfo>) {
        let destination_port = outgoing.and_then(|outgoing| match outgoing.ports {
            PacketPorts::Both { destination, .. } => Some(destination),
            _ => None,
        });
        let destination = outgoing.map(|outgoing| outgoing.destination);
        let what = What { destination, destination_port, ..what(lease) };
        self.record(&Record::Refusal { who: who(lease), of: Of::Packet, what, decision });
    }

    /// A lease was refused by the policy.
    pub(super) fn record_refused_lease(&self, caller: &Caller, of: Of, what: What<'_>, decision: Decision) {
        let who = Who { user: caller.subject.user, pid: caller.pid.and_then(|pid| pid.try_into().ok()), lease: None };
        self.record(&Record::Refusal { who, of, what, decision });
    }
}

fn who(lease: &ServedLease) -> Who {
    let pid = lease.what.pid.and_then(|pid| pid.try_into().ok());
    Who { user: lease.subject().user, pid, lease: Some(lease.what.number) }
}

fn what(lease: &ServedLease) -> What<'_> {
    let wish = lease.what.grant.wish();
    What {
        interface: Some(&wish.interface),
        protocol: Some(lease.what.protocol),
        address: lease.what.address,
        ports: wish.transport.map(|_| wish.ports.clone()),
        destination: None,
        destination_port: None,
    }
}
