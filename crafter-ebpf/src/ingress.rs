//! The verdict on received packets: one for an owned port is delivered to its owner.

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
    let owned = if net.fragment == Fragment::Later {
        let (source, destination) = net.addresses(packet).ok_or(Reason::Malformed)?;
        let key = net.fragment_key(maps::attached(packet.slot()).link, source, destination);
        let owned = maps::fragment_owner(&key).ok_or(Reason::FragmentNotOwned)?;
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
    note(packet, net, owned, (net.protocol, destination, source), event).ok_or(Reason::Malformed)
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

/// Records an owned packet: in its flow, and for later fragments of the same datagram. `ends`: the protocol that is
/// owned, the local port, the remote one.
#[inline(always)]
fn note<P: Packet>(
    packet: &P,
    net: &Network,
    owner: Owner,
    ends: (u8, [u8; 2], [u8; 2]),
    event: impl FnOnce(u64) -> Event,
) -> Option<OwnedPort> {
    let (remote, local) = net.addresses(packet)?;
    if net.fragment == Fragment::First {
        maps::remember_fragment(&net.fragment_key(owner.link, remote, local), owner.port);
    }
    let (protocol, local_port, remote_port) = ends;
    let key = maps::flow_key(owner.link, protocol, (local, local_port), (remote, remote_port));
    let bytes = (packet.length() as u64).saturating_sub(net.start as u64);
    maps::record(&key, event(bytes));
    Some(owner.port)
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
            note(packet, net, owned, (ICMP, id, [0; 2]), event).ok_or(Reason::Malformed)
        }
    }
}

/// The owner of the port that sent the packet quoted by the ICMP error in `net`.
#[inline(always)]
fn quoted<P: Packet>(packet: &P, net: &Network) -> Option<OwnedPort> {
    let (quoted, protocol, local) = parse::quoted_sender(packet, net)?;
    let owner = maps::owner(packet.slot(), protocol, local, || quoted.end(quoted.addresses(packet)?.0))?;
    Some(owner.port)
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
    // Dropped nevertheless, unless the owner only observes: the kernel would answer it.
    if observes { Reason::ObserveFull } else { Reason::DeliveryFull }
}
