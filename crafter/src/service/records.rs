//! What of the service's life goes to the audit log.

use std::time::Instant;

use super::{
    hold::Hold,
    host::audit::{Counts, Of, Record, What, Who},
    leasing::Caller,
    state::Service,
};
use crate::policy::{Decision, Outgoing, PacketPorts};

impl Service {
    /// Writes a record.
    pub(super) fn record(&self, record: &Record<'_>) {
        self.audit.record(record, Instant::now());
    }

    /// A lease began.
    pub(super) fn record_lease(&self, hold: &Hold) {
        let rule = self.policy().rule_of(hold.subject()).map(|rule| rule.number);
        self.record(&Record::Lease { who: who(hold), what: what(hold), rule });
    }

    /// A lease ended.
    pub(super) fn record_end(&self, hold: &Hold, reason: &str) {
        let tally = &hold.tally;
        let counts = Counts {
            sent: tally.sent.get(),
            refused: tally.refused.get(),
            delivered: tally.delivered.get(),
            lost: tally.lost.get(),
        };
        self.record(&Record::End { who: who(hold), what: what(hold), reason, counts });
    }

    /// A packet was refused by the policy.
    pub(super) fn record_refused_packet(&self, hold: &Hold, decision: Decision, outgoing: Option<&Outgoing>) {
        let destination_port = outgoing.and_then(|outgoing| match outgoing.ports {
            PacketPorts::Both { destination, .. } => Some(destination),
            _ => None,
        });
        let destination = outgoing.map(|outgoing| outgoing.destination);
        let what = What { destination, destination_port, ..what(hold) };
        self.record(&Record::Refusal { who: who(hold), of: Of::Packet, what, decision });
    }

    /// A lease was refused by the policy.
    pub(super) fn record_refused_lease(&self, caller: &Caller, of: Of, what: What<'_>, decision: Decision) {
        let who = Who { user: caller.subject.user, pid: caller.pid.and_then(|pid| pid.try_into().ok()), lease: None };
        self.record(&Record::Refusal { who, of, what, decision });
    }
}

fn who(hold: &Hold) -> Who {
    let pid = hold.what.pid.and_then(|pid| pid.try_into().ok());
    Who { user: hold.subject().user, pid, lease: Some(hold.what.number) }
}

fn what(hold: &Hold) -> What<'_> {
    let wish = hold.what.grant.wish();
    What {
        interface: Some(&wish.interface),
        protocol: Some(hold.what.protocol),
        address: hold.what.address,
        ports: wish.transport.map(|_| wish.ports.clone()),
        destination: None,
        destination_port: None,
    }
}
