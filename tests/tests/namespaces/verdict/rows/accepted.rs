//! Rows of packets to owned ports that the kernel does not take: another destination address of the frame, sources that
//! no host has, invalid IPv4 headers. Tags of VLANs are among the rows of the transport.

use std::net::SocketAddr;

use crafter_common::reason::Reason;
use crafter_tests::frame::{self, ICMP, MORE, SYN, TCP, Tcp, UDP, V4};

use super::*;

/// Ethernet addresses: of another host, of the broadcast, of a group.
const STATIONS: [(&str, [u8; 6]); 3] =
    [("another station", [2, 0, 0, 0, 0, 3]), ("broadcast", [0xff; 6]), ("a group", [0x01, 0, 0x5e, 0, 0, 1])];

/// The packet with `change` made to its IPv4 header, and the checksum corrected.
fn changed(mut packet: Vec<u8>, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let words = usize::from(packet[0] % 16);
    packet[10..12].fill(0);
    change(&mut packet);
    let sum: u32 = packet[..words * 4].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet
}

/// Everything that can belong to an owned port: its name, the packet from `source`, and the protocol.
fn owned(source: SocketAddr, local: SocketAddr) -> Vec<(&'static str, Vec<u8>, u8)> {
    let v6 = local.is_ipv6();
    let query = Tcp::new(SYN, 1, 0).ip(local, source);
    let error = frame::icmp(source.ip(), local.ip(), [3, 1][usize::from(v6)], 1, &query);
    let reply = frame::icmp_query(source.ip(), local.ip(), [0, 129][usize::from(v6)], local.port(), &[0, 0, 1]);
    vec![
        ("TCP", Tcp::new(SYN, 7, 8).ip(source, local), TCP),
        ("UDP", frame::udp_ip(source, local, b"answer"), UDP),
        ("an ICMP error", error, ICMP),
        ("an ICMP reply", reply, ICMP),
    ]
}

pub fn accepted_rows(rows: &mut Vec<Row>, version: usize, local: &str) {
    let (peer, local) = (at(PEER[version], 80), at(local, ON_ANY));
    let number = [4, 6][version];
    let updating = |row: Row, name: &str, protocol: u8, packet: &[u8]| match name {
        "TCP" => row.updating(protocol, local, peer, (7, 8, SYN)),
        "UDP" => row.updating(protocol, local, peer, (0, 0, 0)),
        "an ICMP reply" => {
            let (local, peer) = (SocketAddr::new(local.ip(), ON_ANY), SocketAddr::new(peer.ip(), 0));
            row.updating(frame::ICMP, local, peer, (0, 0, 0))
        }
        _ => {
            assert!(!packet.is_empty());
            row
        }
    };
    for (name, packet, protocol) in owned(peer, local) {
        for (station, address) in STATIONS {
            let mut frame = frame::framed(&packet);
            frame[..6].copy_from_slice(&address);
            let is_taken = address[0] & 1 != 0 && protocol != TCP;
            let expect = if is_taken { Consumed } else { is(Reason::OtherLink) };
            rows.push(updating(
                row(format!("{name} to {station}, IPv{number}"), expect, frame),
                name,
                protocol,
                &packet,
            ));
        }
    }
    // An unowned port is passed for that reason, whatever else is wrong.
    let mut unowned = frame::framed(&segment(SocketAddr::new(local.ip(), FREE)));
    unowned[..6].copy_from_slice(&STATIONS[0].1);
    rows.push(row(format!("an unowned port of another station, IPv{number}"), NOT_OWNED, unowned));

    let martians: &[&str] = match version {
        0 => &["127.0.0.1", "127.8.9.10", "224.0.0.1", "239.255.255.255", "255.255.255.255", "0.0.0.0"],
        _ => &["::1", "ff02::1", "::ffff:192.0.2.1"],
    };
    let own: &[&str] = if version == 0 { &[LOCAL[0], SECOND[0]] } else { &[] };
    for source in martians.iter().chain(own) {
        for (name, packet, _) in owned(at(source, 80), local) {
            rows.push(row(format!("{name} from {source}"), is(Reason::MartianSource), frame::framed(&packet)));
        }
    }
    if version == 0 {
        header_rows(rows, peer, local);
    }
}

/// Invalid headers, with and without options, of whole packets and fragments.
fn header_rows(rows: &mut Vec<Row>, peer: SocketAddr, local: SocketAddr) {
    let invalid = is(Reason::InvalidHeader);
    for (name, packet, _) in owned(peer, local) {
        let mut spoiled = packet.clone();
        spoiled[10] ^= 0x40;
        rows.push(row(format!("{name} with a wrong header checksum"), invalid, frame::framed(&spoiled)));
        let expired = changed(packet, |header| header[8] = 0);
        rows.push(row(format!("{name} without time to live"), invalid, frame::framed(&expired)));
    }
    let segment = Tcp::new(SYN, 7, 8).bytes(peer, local);
    for words in [1, 5, 10] {
        let with = V4 { options: vec![1; words * 4], ..V4::default() };
        let mut packet = with.packet(peer.ip(), local.ip(), TCP, &segment);
        // The last option: the sum covers all of them.
        packet[19 + words * 4] ^= 1;
        rows.push(row(format!("a wrong checksum over {words} words of options"), invalid, frame::framed(&packet)));
    }
    let last = changed(Tcp::new(SYN, 7, 8).ip(peer, local), |header| header[8] = 1);
    let row_of_last = row("a time to live of 1", Consumed, frame::framed(&last));
    rows.push(row_of_last.updating(TCP, local, peer, (7, 8, SYN)));

    // A first fragment that is refused is not remembered, and its later fragments are their own.
    let whole = frame::udp(peer, local, &[0x5a; 64]);
    let piece =
        |id, fragment, bytes: &[u8]| V4 { id, fragment, ..V4::default() }.packet(peer.ip(), local.ip(), UDP, bytes);
    let mut first = piece(0x600, MORE, &whole[..16]);
    first[10] ^= 1;
    rows.push(row("a spoiled fragment at the start", invalid, frame::framed(&first)));
    let later = frame::framed(&piece(0x600, 2, &whole[16..]));
    rows.push(row("a later fragment of a spoiled one", is(Reason::FragmentNotOwned), later));
    let first = row("a valid fragment at the start", Consumed, frame::framed(&piece(0x601, MORE, &whole[..16])));
    rows.push(first.updating(UDP, local, peer, (0, 0, 0)));
    let mut later = piece(0x601, 2, &whole[16..]);
    later[10] ^= 1;
    rows.push(row("a spoiled later fragment", invalid, frame::framed(&later)));
    let mut later = frame::framed(&piece(0x601, 2, &whole[16..]));
    later[..6].copy_from_slice(&STATIONS[0].1);
    rows.push(row("a later fragment of another station", is(Reason::OtherLink), later));
}
