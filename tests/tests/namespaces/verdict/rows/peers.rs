//! Rows of leases that receive the packets of peers that they have sent to.

use std::net::SocketAddr;

use crafter_common::reason::Reason;
use crafter_tests::frame::{self, ACK, ICMP, MORE, SYN, TCP, Tcp, UDP, V4};

use super::*;

/// The peers: from `LOCAL`, at port 80 of `PEER`, or at any port of it.
pub fn known() -> Vec<FlowId> {
    let mut peers = Vec::new();
    for version in 0..2 {
        let end = |port| at(PEER[version], port);
        let local = |port| at(LOCAL[version], port);
        for protocol in [TCP, UDP] {
            peers.push(flow_id(protocol, local(KNOWN), end(80)));
            peers.push(flow_id(protocol, local(BY_ADDRESS), end(0)));
        }
        peers.extend([KNOWN, BY_ADDRESS].map(|port| flow_id(ICMP, local(port), end(0))));
    }
    peers
}

const NOT_PEER: Expect = is(Reason::NotPeer);

/// Packets of peers and of others, to the address that was sent from and to another one.
pub fn ingress_rows(rows: &mut Vec<Row>, version: usize) {
    let (peer, stranger) = (PEER[version], TRANSIT[version]);
    for (port, address, from, is_peer) in [
        (KNOWN, LOCAL[version], at(peer, 80), true),
        (KNOWN, LOCAL[version], at(peer, 81), false),
        (KNOWN, LOCAL[version], at(stranger, 80), false),
        (KNOWN, SECOND[version], at(peer, 80), false),
        (BY_ADDRESS, LOCAL[version], at(peer, 80), true),
        (BY_ADDRESS, LOCAL[version], at(peer, 81), true),
        (BY_ADDRESS, LOCAL[version], at(stranger, 80), false),
        (BY_ADDRESS, SECOND[version], at(peer, 80), false),
    ] {
        let local = at(address, port);
        let expect = |not_owned| if is_peer { Consumed } else { not_owned };
        let name = |what: &str| format!("{what} from {from} to {local}");
        let segment = Tcp::new(SYN | ACK, 7, 8).ip(from, local);
        let segment = row(name("a segment"), expect(NOT_PEER), frame::framed(&segment));
        rows.push(segment.updating(TCP, local, from, SEGMENT));
        let datagram = frame::udp_ip(from, local, b"answer");
        let datagram = row(name("a datagram"), expect(NOT_PEER), frame::framed(&datagram));
        rows.push(datagram.updating(UDP, local, from, (0, 0, 0)));
        fragment_rows(rows, local, from, expect(NOT_PEER), expect(is(Reason::FragmentNotOwned)));
        // An error of a router about what was sent, or was not.
        let (kind, code) = [(11, 0), (3, 0)][version];
        for sent in [Tcp::new(SYN, 1, 0).ip(local, from), frame::udp_ip(local, from, b"question")] {
            let error = frame::icmp(ip(stranger), ip(address), kind, code, &sent);
            let name = format!("time exceeded about protocol {} from {local} to {from}", sent[[9, 6][version]]);
            rows.push(row(name, expect(is(Reason::IcmpNotOwned)), frame::framed(&error)));
        }
    }
    let (request, reply) = [(8, 0), (128, 129)][version];
    for (address, from, is_peer) in
        [(LOCAL[version], peer, true), (LOCAL[version], stranger, false), (SECOND[version], peer, false)]
    {
        let expect = |not_owned| if is_peer { Consumed } else { not_owned };
        for id in [KNOWN, BY_ADDRESS] {
            let echo = frame::icmp_query(ip(from), ip(address), reply, id, b"\0data");
            let row =
                row(format!("an echo reply {id} from {from} to {address}"), expect(NOT_PEER), frame::framed(&echo));
            rows.push(row.updating(ICMP, at(address, id), SocketAddr::new(ip(from), 0), (0, 0, 0)));
            let sent = frame::icmp_query(ip(address), ip(from), request, id, b"\0data");
            let (kind, code) = [(11, 0), (3, 0)][version];
            let error = frame::icmp(ip(stranger), ip(address), kind, code, &sent);
            let name = format!("time exceeded about echo request {id} from {address} to {from}");
            rows.push(super::row(name, expect(is(Reason::IcmpNotOwned)), frame::framed(&error)));
        }
    }
}

/// Two fragments of a datagram.
fn fragment_rows(rows: &mut Vec<Row>, local: SocketAddr, from: SocketAddr, first: Expect, later: Expect) {
    let whole = frame::udp(from, local, &[0x5a; 64]);
    for (offset, piece, more, expect) in [(0, &whole[..16], true, first), (16, &whole[16..], false, later)] {
        let packet = if local.is_ipv4() {
            let fragment = offset / 8 | if more { MORE } else { 0 };
            V4 { id: 300, fragment, ..V4::default() }.packet(from.ip(), local.ip(), UDP, piece)
        } else {
            frame::v6(from.ip(), local.ip(), 44, &frame::fragment6(UDP, offset, more, 300, piece))
        };
        let name = format!("a fragment at {offset} from {from} to {local}");
        let row = row(name, expect, frame::framed(&packet));
        rows.push(if more { row.updating(UDP, local, from, (0, 0, 0)) } else { row });
    }
}
