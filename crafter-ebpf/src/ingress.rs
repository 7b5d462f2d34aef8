//! The verdict on received packets: one for an owned port, of a peer of its lease, is delivered to its owner.

use crafter_common::{
    ICMP, TCP,
    parse::{self, Fragment, Icmp, Network},
    port::{OBSERVE, OwnedPort},
    reason::Reason,
};

use crate::{
    maps::{self, Event, Owner},
    packet::Packet,
};

/// The reason, and so the verdict, for a received packet; delivers it if its port is owned.
#[inline(always)]
pub fn decide<P: Packet>(packet: &P) -> Reason {
    match owner(packet) {
        Ok((owned, offset)) => deliver(packet, owned, offset),
        Err(reason) => reason,
    }
}

/// The owned port that the packet is for, and the offset of its IP header.
#[inline(always)]
fn owner<P: Packet>(packet: &P) -> Result<(OwnedPort, usize), Reason> {
    let (start, v6) = parse::link(packet, maps::link_header())?;
    // 0 to 22: the verifier need not follow a path of its own for each number of VLAN tags.
    let start = packet.opaque_mask::<0x1f>(start);
    let net = parse::network(packet, start, v6)?;
    if net.fragment == Fragment::First {
        // Whoever it is for, fragments that follow belong to it and to no earlier one.
        let (source, destination) = net.addresses(packet).ok_or(Reason::Malformed)?;
        maps::forget_fragment(&net.fragment_key(maps::attached(packet.slot()).link, source, destination));
    }
    let owned = if net.fragment == Fragment::Later {
        let owned = later(packet, &net).ok_or(Reason::FragmentNotOwned)?;
        accepted(packet, &net)?;
        owned
    } else if parse::has_ports(net.protocol) {
        own(packet, &net)?
    } else if parse::is_icmp(&net) {
        icmp(packet, &net)?
    } else {
        return Err(Reason::OtherProtocol);
    };
    Ok((owned, start))
}

/// A later fragment: by its first, whose lease must still own the port.
#[inline(always)]
fn later<P: Packet>(packet: &P, net: &Network) -> Option<OwnedPort> {
    let (source, destination) = net.addresses(packet)?;
    let key = net.fragment_key(maps::attached(packet.slot()).link, source, destination);
    let first = maps::first_fragment(&key)?;
    // In transit to another host.
    if net.left != 0 {
        return None;
    }
    let protocol = first.protocol as u8;
    let owner = maps::owner_at(packet.slot(), protocol, first.local_port, destination)?;
    let ends = ((destination, first.local_port), (source, first.remote_port));
    let flow = maps::flow_key(&owner, protocol, ends.0, ends.1);
    if owner.port.lease == first.lease && maps::is_peer(&owner, &flow, true) { Some(owner.port) } else { None }
}

/// TCP and UDP: by destination port.
#[inline(always)]
fn own<P: Packet>(packet: &P, net: &Network) -> Result<OwnedPort, Reason> {
    let (source, destination) = parse::ports(packet, net.transport).ok_or(Reason::Malformed)?;
    let owned = receiver(packet, net, net.protocol, destination).ok_or(Reason::NotOwned)?;
    accepted(packet, net)?;

    // The kernel discards a segment whose header is cut short, and answers nothing.
    let (seq, ack, flags) = if net.protocol == TCP {
        let header = packet.load::<20>(net.transport).ok_or(Reason::Malformed)?;
        let seq = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let ack = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        (seq, ack, header[13])
    } else {
        packet.load::<8>(net.transport).ok_or(Reason::Malformed)?;
        (0, 0, 0)
    };
    let event = |bytes| Event::Received { bytes, seq, ack, flags };
    note(packet, net, owned, (net.protocol, destination, source), event)
}

/// Passes a packet that the kernel would not deliver: nothing else is its owner's.
#[inline(always)]
fn accepted<P: Packet>(packet: &P, net: &Network) -> Result<(), Reason> {
    match packet.refusal(net) {
        None => Ok(()),
        Some(reason) => Err(reason),
    }
}

/// The owner of `port` at the packet's destination.
#[inline(always)]
fn receiver<P: Packet>(packet: &P, net: &Network, protocol: u8, port: [u8; 2]) -> Option<Owner> {
    maps::owner(packet.slot(), protocol, port, || {
        // In transit to another host.
        if net.left != 0 {
            return None;
        }
        net.end(net.addresses(packet)?.1)
    })
}

/// Records a packet to an owned port, if it is of a peer of the lease: in its flow, and for later fragments of the same
/// datagram. `ends`: the protocol that is owned, the local port, the remote one.
#[inline(always)]
fn note<P: Packet>(
    packet: &P,
    net: &Network,
    owner: Owner,
    ends: (u8, [u8; 2], [u8; 2]),
    event: impl FnOnce(u64) -> Event,
) -> Result<OwnedPort, Reason> {
    let (remote, local) = net.addresses(packet).ok_or(Reason::Malformed)?;
    let (protocol, local_port, remote_port) = ends;
    let flow = maps::flow_key(&owner, protocol, (local, local_port), (remote, remote_port));
    if !maps::is_peer(&owner, &flow, true) {
        return Err(Reason::NotPeer);
    }
    if net.fragment == Fragment::First {
        let key = net.fragment_key(owner.link, remote, local);
        maps::remember_fragment(&key, owner.port.lease, protocol, local_port, remote_port);
    }
    let bytes = (packet.length() as u64).saturating_sub(net.start as u64);
    maps::record(&flow, event(bytes));
    Ok(owner.port)
}

/// ICMP: replies by their identifier, errors by the source of the packet that they quote.
#[inline(always)]
fn icmp<P: Packet>(packet: &P, net: &Network) -> Result<OwnedPort, Reason> {
    match parse::icmp(packet, net).ok_or(Reason::Malformed)? {
        Icmp::Other | Icmp::Query { .. } => Err(Reason::OtherProtocol),
        Icmp::Error { .. } => {
            let owned = quoted(packet, net).ok_or(Reason::IcmpNotOwned)?;
            accepted(packet, net)?;
            Ok(owned)
        }
        Icmp::Reply { id } => {
            let owned = receiver(packet, net, ICMP, id).ok_or(Reason::NotOwned)?;
            accepted(packet, net)?;
            let event = |bytes| Event::Received { bytes, seq: 0, ack: 0, flags: 0 };
            note(packet, net, owned, (ICMP, id, [0; 2]), event)
        }
    }
}

/// The owner of the port that sent the packet quoted by the ICMP error in `net`, to a peer of its lease.
#[inline(always)]
fn quoted<P: Packet>(packet: &P, net: &Network) -> Option<OwnedPort> {
    let (quoted, protocol, [local_port, remote_port]) = parse::quoted_sender(packet, net)?;
    let owner = maps::owner(packet.slot(), protocol, local_port, || quoted.end(quoted.addresses(packet)?.0))?;
    let (local, remote) = quoted.addresses(packet)?;
    let flow = maps::flow_key(&owner, protocol, (local, local_port), (remote, remote_port));
    if maps::is_peer(&owner, &flow, false) { Some(owner.port) } else { None }
}

/// Delivers the packet to its owner.
#[inline(always)]
fn deliver<P: Packet>(packet: &P, owned: OwnedPort, offset: usize) -> Reason {
    let share = owned.share();
    let observes = owned.flags & OBSERVE != 0;
    let redirected = if observes { None } else { packet.redirect(share) };
    if redirected == Some(true) {
        return Reason::Redirected;
    }
    let copied = if observes { Reason::Observed } else { Reason::Copied };
    if redirected.is_none() && packet.deliver(offset as u32, copied, share) {
        return copied;
    }
    maps::lose(packet.slot(), share);
    // The packet is dropped, because the kernel would answer it; if the owner observes, it is passed.
    if observes { Reason::ObserveFull } else { Reason::DeliveryFull }
}
