//! Random packets, built layer by layer: mostly valid, with plausible fields.

use std::net::{IpAddr, SocketAddr};

use super::{Rng, world::World};
use crate::frame::{self, MORE, TCP, Tcp, UDP, V4};

/// IPv6 extension headers, and two types that resemble one: HIP and Shim6.
const EXTENSIONS: [u8; 18] = [0, 43, 44, 51, 60, 135, 60, 0, 43, 44, 51, 60, 135, 60, 60, 60, 139, 140];
/// Number of distinct fragment identifications: small, so that fragments of the same datagram occur in every order.
const IDENTIFICATIONS: usize = 5;

/// Direction of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a peer to this host.
    In,
    /// From this host to a peer.
    Out,
}

/// A frame, or only an IP packet if `ethernet` is false.
pub fn frame(rng: &mut Rng, world: &World, direction: Direction, ethernet: bool) -> Vec<u8> {
    let v6 = rng.chance(50);
    let packet = packet(rng, world, direction, v6, true);
    if !ethernet {
        return packet;
    }
    let tpids = [0x8100, 0x88a8, 0x8100, 0x88a8, 0x8100, 0x88a8, 0x8100, 0x88a8, 0x9100];
    let count = if rng.chance(75) { 0 } else { rng.pick(&[1, 1, 1, 2, 2, 2, 3]) };
    let tags: Vec<(u16, u16)> =
        (0..count).map(|_| (rng.pick(&tpids), if rng.chance(60) { 0xe000 } else { rng.bits() as u16 })).collect();
    let announced = if v6 { 0x86dd } else { 0x0800 };
    let other = [0x0806, 0x86dd, 0x0800, 0x8863, 0x0026];
    let ethertype = if rng.chance(97) { announced } else { rng.pick(&other) };
    let mut frame = frame::ethernet(&tags, ethertype, &packet);
    if rng.chance(5) {
        frame[..6].copy_from_slice(&rng.pick(&[[2, 0, 0, 0, 0, 3], [0xff; 6], [0x33, 0x33, 0, 0, 0, 1]]));
    }
    frame
}

/// An IP packet; `quoting`: may be an ICMP error.
fn packet(rng: &mut Rng, world: &World, direction: Direction, v6: bool, quoting: bool) -> Vec<u8> {
    let (near, far) = (world.near(rng, v6), world.far(rng, v6));
    let (source, destination) = if direction == Direction::In { (far, near) } else { (near, far) };
    let kind = rng.below(if quoting { 100 } else { 75 });
    let (protocol, payload) = match kind {
        0..35 => (TCP, tcp(rng, world, direction, source, destination)),
        35..60 => (UDP, udp(rng, world, direction, source, destination)),
        60..72 => query(rng, world, direction, source, destination),
        72..75 => {
            let count = rng.below(40);
            (rng.pick(&[0, 1, 2, 4, 41, 47, 50, 58, 59, 89, 132, 136, 139, 255]), rng.bytes(count))
        }
        _ => error(rng, world, direction, source, destination),
    };
    if v6 {
        ipv6(rng, source, destination, protocol, payload)
    } else {
        ipv4(rng, source, destination, protocol, payload)
    }
}

/// Source and destination; the port of this host is one that may be owned.
fn ends(
    rng: &mut Rng,
    world: &World,
    direction: Direction,
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
) -> [SocketAddr; 2] {
    let (near, far) = (world.port(rng, protocol), rng.pick(&world.ports));
    let (from, to) = if direction == Direction::In { (far, near) } else { (near, far) };
    [SocketAddr::new(source, from), SocketAddr::new(destination, to)]
}

fn data(rng: &mut Rng) -> Vec<u8> {
    let count = match rng.below(100) {
        0..40 => 0,
        40..80 => rng.below(32),
        80..97 => rng.below(400),
        _ => rng.below(3000),
    };
    rng.bytes(count)
}

fn tcp(rng: &mut Rng, world: &World, direction: Direction, source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let [from, to] = ends(rng, world, direction, TCP, source, destination);
    // Half of the segments have RST set, which the egress program checks.
    let flags = if rng.chance(50) { rng.pick(&[0x04, 0x14]) } else { rng.bits() as u8 };
    let segment = Tcp {
        offset: rng.chance(15).then(|| rng.below(16) as u8),
        spoil: if rng.chance(10) { rng.bits() as u16 } else { 0 },
        ..Tcp::new(flags, rng.bits() as u32, rng.bits() as u32).with(&data(rng))
    };
    segment.bytes(from, to)
}

fn udp(rng: &mut Rng, world: &World, direction: Direction, source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let [from, to] = ends(rng, world, direction, UDP, source, destination);
    let mut bytes = frame::udp(from, to, &data(rng));
    if rng.chance(10) {
        let at = 4 + rng.below(4);
        bytes[at] = rng.bits() as u8;
    }
    bytes
}

/// An ICMP query or reply, or a message of any type with an identifier.
fn query(rng: &mut Rng, world: &World, direction: Direction, source: IpAddr, destination: IpAddr) -> (u8, Vec<u8>) {
    let v6 = source.is_ipv6();
    let kind = match (v6, direction) {
        _ if rng.chance(10) => rng.bits() as u8,
        (false, Direction::In) => rng.pick(&[0, 0, 14, 16, 18, 8]),
        (false, Direction::Out) => rng.pick(&[8, 8, 13, 15, 17, 0]),
        (true, Direction::In) => rng.pick(&[129, 129, 128, 135]),
        (true, Direction::Out) => rng.pick(&[128, 128, 129, 136]),
    };
    let id = world.port(rng, 1);
    let data = [vec![rng.pick(&[0, 0, 0, 1])], data(rng)].concat();
    icmp_payload(&frame::icmp_query(source, destination, kind, id, &data), v6)
}

/// An ICMP error: an inbound one quotes an outbound packet, an outbound one an inbound packet.
fn error(rng: &mut Rng, world: &World, direction: Direction, source: IpAddr, destination: IpAddr) -> (u8, Vec<u8>) {
    let v6 = source.is_ipv6();
    let (kind, code) = if rng.chance(50) {
        [(3, 3), (1, 4)][usize::from(v6)]
    } else if v6 {
        (rng.pick(&[1, 2, 3, 4, 5, 100, 127, 137]), rng.below(6) as u8)
    } else {
        (rng.pick(&[3, 3, 4, 5, 11, 12]), rng.below(6) as u8)
    };
    let opposite = if direction == Direction::In { Direction::Out } else { Direction::In };
    // One in a hundred quotes the other IP version, which is invalid.
    let quoted_v6 = v6 != rng.chance(1);
    let mut quoted = packet(rng, world, opposite, quoted_v6, false);
    // RFC 792 wants 8 bytes of transport, RFC 4443 as much as fits; routers differ.
    if rng.chance(60) {
        let least = if quoted_v6 { 40 } else { 20 };
        let keep = least + rng.pick(&[0, 1, 3, 4, 5, 7, 8, 8, 8, 9, 20, 28, 100]);
        quoted.truncate(keep);
    }
    icmp_payload(&frame::icmp(source, destination, kind, code, &quoted), v6)
}

fn icmp_payload(packet: &[u8], v6: bool) -> (u8, Vec<u8>) {
    if v6 { (frame::ICMPV6, packet[40..].to_vec()) } else { (frame::ICMP, packet[20..].to_vec()) }
}

fn ipv4(rng: &mut Rng, source: IpAddr, destination: IpAddr, protocol: u8, payload: Vec<u8>) -> Vec<u8> {
    let words = if rng.chance(20) { rng.below(11) } else { 0 };
    let (fragment, payload) = match rng.below(100) {
        0..75 => (rng.pick(&[0, 0x4000, 0x8000]), payload),
        _ => {
            let (offset, more, piece) = piece(rng, payload);
            ((offset / 8) | if more { MORE } else { 0 }, piece)
        }
    };
    let header = V4 { options: rng.bytes(words * 4), id: rng.below(IDENTIFICATIONS) as u16, fragment };
    header.packet(source, destination, protocol, &payload)
}

/// A piece of `payload`: its offset, whether more follows, its bytes.
fn piece(rng: &mut Rng, mut payload: Vec<u8>) -> (u16, bool, Vec<u8>) {
    let cut = 8 * (1 + rng.below(4));
    match rng.below(10) {
        0..5 => {
            payload.truncate(if rng.chance(80) { cut.max(24) } else { cut });
            (0, true, payload)
        }
        5..9 => {
            let rest = payload.get(cut..).unwrap_or_default().to_vec();
            (cut as u16, rng.chance(50), rest)
        }
        // An atomic fragment.
        _ => (0, false, payload),
    }
}

fn ipv6(rng: &mut Rng, source: IpAddr, destination: IpAddr, protocol: u8, payload: Vec<u8>) -> Vec<u8> {
    let count = if rng.chance(60) { 0 } else { rng.pick(&[1, 1, 1, 2, 2, 3, 5, 6, 7, 8, 8, 9, 10]) };
    let mut next = protocol;
    let mut bytes = payload;
    for _ in 0..count {
        let kind = rng.pick(&EXTENSIONS);
        (next, bytes) = extension(rng, kind, next, bytes);
    }
    if rng.chance(15) {
        (next, bytes) = extension(rng, 44, next, bytes);
    }
    frame::v6(source, destination, next, &bytes)
}

/// One extension header before `rest`, of a random length; a fragment header may cut `rest`.
fn extension(rng: &mut Rng, kind: u8, next: u8, rest: Vec<u8>) -> (u8, Vec<u8>) {
    let mut header = if kind == 44 {
        let (offset, more, piece) = piece(rng, rest);
        let id = rng.below(IDENTIFICATIONS) as u32;
        return (kind, frame::fragment6(next, offset, more, id, &piece));
    } else {
        let units = rng.pick(&[0, 0, 0, 1, 2, 5]);
        let mut header = if kind == 51 { rng.bytes(8 + 8 * units) } else { rng.bytes(8 * (units + 1)) };
        header[1] = if kind == 51 { 2 * units as u8 } else { units as u8 };
        header[0] = next;
        // Segments left; a lie of a length now and then.
        if kind == 43 && rng.chance(70) {
            header[3] = 0;
        }
        if rng.chance(3) {
            header[1] = rng.bits() as u8;
        }
        header
    };
    header.extend(rest);
    (kind, header)
}
