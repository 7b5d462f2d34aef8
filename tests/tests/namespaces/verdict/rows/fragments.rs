//! Rows of fragments: later fragments are delivered to the owner of the first.

use crafter_common::reason::Reason;
use crafter_tests::frame::{self, MORE, TCP, UDP, V4};

use super::*;

pub fn fragment_rows(rows: &mut Vec<Row>) {
    let (peer, local) = (at(PEER[0], 53), at(LOCAL[0], ON_ANY));
    // First and atomic fragments contain the ports and update a flow entry; these rows are recognized by their names.
    let mut add = |name: &str, expect, packet: Vec<u8>| {
        let row = row(name, expect, frame::framed(&packet));
        let version = usize::from(packet[0] >> 4 == 6);
        let port = if name.contains("observed") { OBSERVED } else { ON_ANY };
        rows.push(match name.contains("first fragment") || name.contains("atomic") {
            true => row.updating(UDP, at(LOCAL[version], port), at(PEER[version], 53), (0, 0, 0)),
            false => row,
        });
    };
    let whole = frame::udp(peer, local, &[0x5a; 64]);
    let unowned = frame::udp(peer, at(LOCAL[0], FREE), &[0x5a; 64]);
    let v4 = |id, fragment, protocol, bytes: &[u8]| {
        V4 { id, fragment, ..V4::default() }.packet(peer.ip(), local.ip(), protocol, bytes)
    };
    let follows = is(Reason::FragmentNotOwned);
    add("a later fragment before its first", follows, v4(1, 2, UDP, &whole[16..]));
    add("a first fragment, owned", Consumed, v4(1, MORE, UDP, &whole[..16]));
    add("its second", Consumed, v4(1, MORE | 2, UDP, &whole[16..32]));
    add("its last", Consumed, v4(1, 4, UDP, &whole[32..]));
    add("a later fragment of another identification", follows, v4(2, 2, UDP, &whole[16..]));
    add("a later fragment of another protocol", follows, v4(1, 2, TCP, &whole[16..]));
    add("a later fragment from another host", follows, {
        V4 { id: 1, fragment: 2, ..V4::default() }.packet(ip(TRANSIT[0]), local.ip(), UDP, &whole[16..])
    });
    add("a first fragment, not owned", NOT_OWNED, v4(3, MORE, UDP, &unowned[..16]));
    add("the second of one not owned", follows, v4(3, 2, UDP, &unowned[16..]));
    let observed = frame::udp(peer, at(LOCAL[0], OBSERVED), &[0x5a; 64]);
    add("a first fragment, observed", is(Reason::Observed), v4(4, MORE, UDP, &observed[..16]));
    add("the second of one observed", is(Reason::Observed), v4(4, 2, UDP, &observed[16..]));
    add("a first fragment that ends in its header", MALFORMED, v4(5, MORE, UDP, &whole[..6]));

    let (peer, local) = (at(PEER[1], 53), at(LOCAL[1], ON_ANY));
    let whole = frame::udp(peer, local, &[0x5a; 64]);
    let unowned = frame::udp(peer, at(LOCAL[1], FREE), &[0x5a; 64]);
    let v6 = |id, offset, more, bytes: &[u8]| {
        frame::v6(peer.ip(), local.ip(), 44, &frame::fragment6(UDP, offset, more, id, bytes))
    };
    add("a later fragment before its first, IPv6", follows, v6(1, 16, false, &whole[16..]));
    add("a first fragment, owned, IPv6", Consumed, v6(1, 0, true, &whole[..16]));
    add("its second, IPv6", Consumed, v6(1, 16, true, &whole[16..32]));
    add("its last, IPv6", Consumed, v6(1, 32, false, &whole[32..]));
    add("a later fragment of another identification, IPv6", follows, v6(2, 16, false, &whole[16..]));
    add("a first fragment, not owned, IPv6", NOT_OWNED, v6(3, 0, true, &unowned[..16]));
    add("the second of one not owned, IPv6", follows, v6(3, 16, false, &unowned[16..]));
    let (next, bytes) = frame::extended(&[0, 60], 44, &frame::fragment6(UDP, 0, true, 4, &whole[..16]));
    add("a first fragment after extension headers", Consumed, frame::v6(peer.ip(), local.ip(), next, &bytes));
    add("its second without them", Consumed, v6(4, 16, false, &whole[16..]));
    add("an atomic fragment, IPv6", Consumed, v6(5, 0, false, &whole));
    // A fragment is not fragmented again: another fragment header after that of a first fragment is malformed.
    for (offset, more) in [(0, false), (0, true), (8, false)] {
        let inner = frame::fragment6(UDP, offset, more, 7, &whole);
        let packet = frame::v6(peer.ip(), local.ip(), 44, &frame::fragment6(44, 0, true, 6, &inner));
        add(&format!("a first fragment of a fragment, {offset}, {more}"), MALFORMED, packet);
    }
    let (next, bytes) = frame::extended(&[44], 44, &frame::fragment6(UDP, 0, true, 8, &whole[..16]));
    add("a first fragment after an atomic header", Consumed, frame::v6(peer.ip(), local.ip(), next, &bytes));
    add("its second, of the inner identification", Consumed, v6(8, 16, false, &whole[16..]));
}

/// A datagram in three fragments, in each of the six orders: fragments that arrive before the first are not owned,
/// later ones are delivered.
pub fn order_rows(rows: &mut Vec<Row>) {
    const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for version in 0..2 {
        let (peer, local) = (at(PEER[version], 53), at(LOCAL[version], ON_ANY));
        let whole = frame::udp(peer, local, &[0x5a; 40]);
        for (number, order) in ORDERS.into_iter().enumerate() {
            let id = 100 + number as u16;
            let mut first_seen = false;
            for piece in order {
                first_seen |= piece == 0;
                let (offset, more) = (16 * piece, piece < 2);
                let bytes = &whole[offset..whole.len().min(offset + 16)];
                let packet = match version {
                    0 => {
                        let fragment = ((offset / 8) as u16) | if more { MORE } else { 0 };
                        V4 { id, fragment, ..V4::default() }.packet(peer.ip(), local.ip(), UDP, bytes)
                    }
                    _ => {
                        let fragment = frame::fragment6(UDP, offset as u16, more, u32::from(id), bytes);
                        frame::v6(peer.ip(), local.ip(), 44, &fragment)
                    }
                };
                let expect = if first_seen { Consumed } else { is(Reason::FragmentNotOwned) };
                let name = format!("fragments in order {order:?}: number {piece}, IPv{}", [4, 6][version]);
                let row = row(name, expect, frame::framed(&packet));
                rows.push(if piece == 0 { row.updating(UDP, local, peer, (0, 0, 0)) } else { row });
            }
        }
    }
}
