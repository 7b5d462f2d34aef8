//! The verdict on outgoing packets: the kernel's RSTs and port-unreachables from owned ports to peers of their leases
//! are dropped.

use crafter_common::{
    ICMP, TCP, UDP, accept,
    flow::FlowKey,
    parse::{self, Fragment, Icmp, Network},
    port::{REPORT, SUPPRESS},
    reason::Reason,
};

use crate::{
    maps::{self, Event, Owner},
    packet::Packet,
};

/// RST among the flags of RFC 9293 section 3.1.
const RST: u8 = 0x04;

/// The reason, and so the verdict, for an outgoing packet with `mark`.
#[inline(always)]
pub fn decide<P: Packet>(packet: &P, mark: u32) -> Reason {
    let crafted = mark == maps::crafted_mark();
    match inspect(packet, crafted) {
        _ if crafted => Reason::Crafted,
        Some(reason) => reason,
        None => Reason::EgressOther,
    }
}

/// Counts a crafted packet in its flow, and decides on any other; `None` if no port is owned.
#[inline(always)]
fn inspect<P: Packet>(packet: &P, crafted: bool) -> Option<Reason> {
    let (start, v6) = parse::link(packet, maps::link_header()).ok()?;
    // 0 to 22: the verifier need not follow a path of its own for each number of VLAN tags.
    let start = packet.opaque_mask::<0x1f>(start);
    let net = parse::network(packet, start, v6).ok()?;
    if net.fragment == Fragment::Later {
        return None;
    }
    if crafted {
        sent(packet, &net);
        None
    } else if net.protocol == TCP {
        rst(packet, &net)
    } else if parse::is_icmp(&net) {
        unreachable(packet, &net)
    } else {
        None
    }
}

/// Counts a crafted packet in its flow.
#[inline(always)]
fn sent<P: Packet>(packet: &P, net: &Network) {
    let found = if parse::has_ports(net.protocol) {
        local_is_source(packet, net)
    } else if parse::is_icmp(net) {
        query(packet, net)
    } else {
        return;
    };
    if let Some((key, _)) = found {
        let bytes = (packet.length() as u64).saturating_sub(net.start as u64);
        maps::record(&key, Event::Sent { bytes });
    }
}

/// The flow of an ICMP query, and the owner of its identifier; `None` where there is no owner.
#[inline(always)]
fn query<P: Packet>(packet: &P, net: &Network) -> Option<(FlowKey, Owner)> {
    let Icmp::Query { id } = parse::icmp(packet, net)? else {
        return None;
    };
    let (local, remote) = net.addresses(packet)?;
    let owner = maps::owner(packet.slot(), ICMP, id, || net.end(local))?;
    Some((maps::flow_key(&owner, ICMP, (local, id), (remote, [0; 2])), owner))
}

/// A segment of the kernel: a RST from an owned port is the answer to what crafter sent.
#[inline(always)]
fn rst<P: Packet>(packet: &P, net: &Network) -> Option<Reason> {
    if packet.load::<20>(net.transport)?[13] & RST == 0 {
        return None;
    }
    let found = local_is_source(packet, net);
    Some(answer(packet, net, found, [Reason::RstSuppressed, Reason::RstAllowed, Reason::RstNotOwned]))
}

/// An ICMP message of the kernel: a port-unreachable quotes a received packet, so the owned port is
/// the destination there.
#[inline(always)]
fn unreachable<P: Packet>(packet: &P, net: &Network) -> Option<Reason> {
    if parse::icmp(packet, net)? != (Icmp::Error { port_unreachable: true }) {
        return None;
    }
    let quoted = parse::quoted(packet, net).ok()?;
    if quoted.protocol != UDP || quoted.fragment == Fragment::Later {
        return None;
    }
    let (remote_port, local_port) = parse::ports(packet, quoted.transport)?;
    let (remote, local) = quoted.addresses(packet)?;
    let owner = maps::owner(packet.slot(), UDP, local_port, || quoted.end(local));
    let found = owner.map(|owner| (maps::flow_key(&owner, UDP, (local, local_port), (remote, remote_port)), owner));
    Some(answer(
        packet,
        net,
        found,
        [Reason::UnreachableSuppressed, Reason::UnreachableAllowed, Reason::UnreachableNotOwned],
    ))
}

/// The flow of a packet that this host sends, and the owner of its source port; `None` where there is no owner.
#[inline(always)]
fn local_is_source<P: Packet>(packet: &P, net: &Network) -> Option<(FlowKey, Owner)> {
    let (local_port, remote_port) = parse::ports(packet, net.transport)?;
    let (local, remote) = net.addresses(packet)?;
    let owner = maps::owner(packet.slot(), net.protocol, local_port, || net.end(local))?;
    Some((maps::flow_key(&owner, net.protocol, (local, local_port), (remote, remote_port)), owner))
}

/// The reason for an answer of the kernel, by the terms of the lease: suppressed, allowed, not owned.
#[inline(always)]
fn answer<P: Packet>(
    packet: &P,
    net: &Network,
    found: Option<(FlowKey, Owner)>,
    [suppressed, allowed, not_owned]: [Reason; 3],
) -> Reason {
    // What the kernel answers in another VLAN does not answer what the lease sent.
    let found = if packet.is_tagged() || accept::other_vlan(packet, net.start) { None } else { found };
    match found.filter(|(key, owner)| maps::is_peer(owner, key, false)) {
        Some((key, owner)) if owner.port.flags & SUPPRESS != 0 => {
            maps::record(&key, Event::Suppressed);
            if owner.port.flags & REPORT != 0 {
                // The packet is dropped even if there is no room for the copy.
                packet.deliver(net.start as u32, suppressed, owner.port.share());
            }
            suppressed
        }
        Some(_) => allowed,
        None => not_owned,
    }
}
