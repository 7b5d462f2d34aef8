//! Audit records of leases.

use std::time::Instant;

use super::{
    caller::Caller,
    host::audit::{Audit, Cause, Counts, Record, RequestKind, Resource, Who},
    served_lease::ServedLease,
};
use crate::{
    packet::PacketPorts,
    policy::{Decision, PacketInfo},
};

/// A lease began; `rule` allows it.
pub(super) fn begin(audit: &Audit, lease: &ServedLease, rule: Option<usize>) {
    audit.record(&Record::Lease { who: who(lease), resource: resource(lease), rule }, Instant::now());
}

/// A lease ended.
pub(super) fn end(audit: &Audit, lease: &ServedLease, reason: &str) {
    let tally = lease.tally.borrow();
    let counts = Counts { sent: tally.sent, refused: tally.refused, delivered: tally.delivered, lost: tally.lost };
    audit.record(&Record::End { who: who(lease), resource: resource(lease), reason, counts }, Instant::now());
}

/// The policy refused a packet.
pub(super) fn refused_packet(audit: &Audit, lease: &ServedLease, decision: Decision, packet: Option<&PacketInfo>) {
    let destination_port = packet.and_then(|packet| match packet.ports {
        PacketPorts::Both { destination, .. } => Some(destination),
        _ => None,
    });
    let destination = packet.map(|packet| packet.destination);
    let resource = Resource { destination, destination_port, ..resource(lease) };
    let (kind, cause) = (RequestKind::Packet, Cause::Policy(decision));
    audit.record(&Record::Refusal { who: who(lease), kind, resource, cause }, Instant::now());
}

/// The policy refused a request.
pub(super) fn refused_lease(
    audit: &Audit,
    caller: &Caller,
    kind: RequestKind,
    resource: Resource<'_>,
    cause: Cause<'_>,
) {
    let who = Who { user: caller.subject.user, pid: caller.pid.and_then(|pid| pid.try_into().ok()), lease: None };
    audit.record(&Record::Refusal { who, kind, resource, cause }, Instant::now());
}

fn who(lease: &ServedLease) -> Who {
    let pid = lease.terms.pid.and_then(|pid| pid.try_into().ok());
    Who { user: lease.subject().user, pid, lease: Some(lease.terms.number) }
}

fn resource(lease: &ServedLease) -> Resource<'_> {
    let requested = lease.terms.grant.requested();
    Resource {
        interface: Some(&requested.interface),
        protocol: Some(lease.terms.protocol),
        address: lease.terms.address,
        ports: requested.transport.map(|_| requested.ports.clone()),
        destination: None,
        destination_port: None,
    }
}
