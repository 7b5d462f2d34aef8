use crafter_packet::testing::Segment;

use super::*;

const HERE: &str = "192.0.2.2:50000";
const THERE: &str = "192.0.2.1:80";

/// A segment: its flags as letters, sequence and acknowledgment number.
fn segment(from: &str, to: &str, flags: &str, seq: u32, ack: u32) -> Vec<u8> {
    let flags = flags.chars().map(|letter| match letter {
        'S' => Flags::SYN,
        'A' => Flags::ACK,
        'R' => Flags::RST,
        'F' => Flags::FIN,
        _ => Flags::PSH,
    });
    let flags = flags.fold(Flags::NONE, |all, flag| all | flag);
    Segment { flags, seq, ack, ..Segment::new(from.parse().unwrap(), to.parse().unwrap()) }.build()
}

fn sent(table: &mut HalfOpen<()>, flags: &str, seq: u32, ack: u32) {
    let bytes = segment(HERE, THERE, flags, seq, ack);
    assert_eq!(table.handle_sent(&TcpView::parse(&bytes).unwrap(), || ()), None);
}

fn received(table: &mut HalfOpen<()>, flags: &str, seq: u32, ack: u32) {
    let bytes = segment(THERE, HERE, flags, seq, ack);
    table.handle_received(&TcpView::parse(&bytes).unwrap());
}

/// Takes the RSTs; returns their sequence numbers.
fn due(table: &mut HalfOpen<()>) -> Vec<u32> {
    let due = table.take().iter().map(|reset| reset.seq).collect();
    assert!(table.connections.values().all(|pending| pending.syn_ack.is_none()));
    assert_eq!(table.connections.len(), table.order.len());
    due
}

#[test]
fn unacknowledged_syn_ack_is_reset() {
    for [here, there] in [[HERE, THERE], ["[2001:db8::2]:50000", "[2001:db8::1]:80"]] {
        let mut table = HalfOpen::default();
        let syn = segment(here, there, "S", u32::MAX, 0);
        table.handle_sent(&TcpView::parse(&syn).unwrap(), || "path");
        let syn_ack = segment(there, here, "SA", 700, 0);
        table.handle_received(&TcpView::parse(&syn_ack).unwrap());
        let [reset] = table.take().try_into().unwrap();
        assert_eq!(reset.path, "path");
        let reset = Segment::parse(&reset.packet()).unwrap();
        assert_eq!((reset.source, reset.destination), (here.parse().unwrap(), there.parse().unwrap()));
        // Sequence numbers wrap from 2^32 - 1 to 0.
        assert_eq!((reset.flags, reset.seq, reset.ack, reset.checksum), (Flags::RST, 0, 0, None));
        assert!(reset.payload.is_empty() && reset.options.is_empty());
    }
}

#[test]
fn only_half_open_connections_are_reset() {
    type Step = (bool, &'static str, u32, u32);
    const OUT: bool = true;
    const IN: bool = false;
    let syn: Step = (OUT, "S", 99, 0);
    let syn_ack: Step = (IN, "SA", 700, 100);
    for (steps, resets) in [
        (&[][..], &[][..]),
        (&[syn], &[]),
        (&[syn, syn_ack], &[100]),
        // Without a SYN.
        (&[syn_ack], &[]),
        (&[syn, (IN, "RA", 0, 100), syn_ack], &[]),
        // A RST to another segment, such as an earlier ACK. Without a SYN-ACK there is nothing to reset.
        (&[(OUT, "A", 0, 5), syn, (IN, "R", 5, 0), syn_ack], &[100]),
        (&[syn, (IN, "RA", 0, 99), syn_ack], &[100]),
        (&[syn, (IN, "R", 0, 100), syn_ack], &[100]),
        (&[syn, (IN, "R", 5, 0)], &[]),
        // Acknowledged, alone or with data or a FIN; a retransmitted SYN-ACK changes nothing.
        (&[syn, syn_ack, (OUT, "A", 100, 701), syn_ack], &[]),
        (&[syn, syn_ack, (OUT, "PA", 100, 701)], &[]),
        (&[syn, syn_ack, (OUT, "FA", 100, 701)], &[]),
        // With data of the peer after the SYN-ACK (RFC 7413).
        (&[syn, syn_ack, (OUT, "A", 100, 2161)], &[]),
        (&[syn, syn_ack, (OUT, "A", 100, 700)], &[100]),
        (&[syn, syn_ack, (OUT, "A", 100, 0)], &[100]),
        // Acknowledged before the SYN-ACK was received.
        (&[syn, (OUT, "A", 100, 701), syn_ack], &[]),
        (&[syn, (OUT, "A", 0, 0), syn_ack], &[100]),
        (&[syn, (OUT, "A", 0, 701), (OUT, "P", 0, 0), syn_ack], &[]),
        // Reset by the user, with a correct sequence number or not.
        (&[syn, syn_ack, (OUT, "R", 100, 0)], &[]),
        (&[syn, (OUT, "R", 100, 0), syn_ack], &[]),
        (&[syn, syn_ack, (OUT, "R", 99, 0)], &[100]),
        (&[syn, (OUT, "R", 99, 0), syn_ack], &[100]),
        // The peer ignores a FIN without ACK.
        (&[syn, syn_ack, (OUT, "F", 100, 0)], &[100]),
        // Reset by the peer; or a RST to a wrong acknowledgment.
        (&[syn, syn_ack, (IN, "R", 701, 0)], &[]),
        (&[syn, syn_ack, (OUT, "A", 100, 5), (IN, "R", 5, 0)], &[100]),
        (&[syn, syn_ack, syn, syn_ack], &[100]),
        // The next connection of the same addresses and ports.
        (&[syn, syn_ack, (OUT, "R", 100, 0), (OUT, "S", 4999, 0), (IN, "SA", 9, 5000)], &[5000]),
        (&[syn, (OUT, "A", 100, 701), (OUT, "S", 4999, 0), (IN, "SA", 700, 5000)], &[5000]),
        (&[syn, (OUT, "R", 100, 0), (OUT, "S", 4999, 0), syn_ack], &[100]),
        // A retransmitted SYN keeps what is known of the connection.
        (&[syn, (OUT, "A", 100, 701), syn, syn_ack], &[]),
        (&[syn, (OUT, "R", 100, 0), syn, syn_ack], &[]),
        // A SYN-ACK that acknowledges something else is reset if there is no correct one.
        (&[syn, syn_ack, (IN, "SA", 900, 42)], &[100]),
        (&[syn, (IN, "SA", 900, 42), syn_ack], &[100]),
        (&[syn, (IN, "SA", 900, 42)], &[42]),
    ] {
        let mut table = HalfOpen::default();
        for &(out, flags, seq, ack) in steps {
            let handle = if out { sent } else { received };
            handle(&mut table, flags, seq, ack);
        }
        assert_eq!(due(&mut table), resets, "{steps:?}");
    }
}

/// A peer may acknowledge the data of a SYN (RFC 7413), or the SYN alone.
#[test]
fn syn_with_data_is_acknowledged_with_or_without_it() {
    for (ack, resets) in [(100, 0), (104, 0), (99, 1), (105, 1)] {
        let mut table = HalfOpen::default();
        let syn = Segment {
            flags: Flags::SYN,
            seq: 99,
            payload: b"data".to_vec(),
            ..Segment::new(HERE.parse().unwrap(), THERE.parse().unwrap())
        }
        .build();
        table.handle_sent(&TcpView::parse(&syn).unwrap(), || ());
        received(&mut table, "RA", 0, ack);
        received(&mut table, "SA", 700, 100);
        assert_eq!(due(&mut table).len(), resets, "{ack}");
    }
}

#[test]
fn unanswered_syns_are_kept() {
    let mut table = HalfOpen::default();
    sent(&mut table, "S", 99, 0);
    assert_eq!((due(&mut table), table.connections.len()), (vec![], 1));
    received(&mut table, "SA", 700, 100);
    assert_eq!(due(&mut table), [100]);
    assert_eq!((table.connections.len(), table.order.len()), (0, 0));
}

#[test]
fn resets_are_in_the_order_of_the_syns() {
    let mut table = HalfOpen::default();
    for port in 1..=10_000_u16 {
        let there = format!("192.0.2.1:{port}");
        let syn = segment(HERE, &there, "S", u32::from(port), 0);
        assert_eq!(table.handle_sent(&TcpView::parse(&syn).unwrap(), || port), None);
        let flags = if port % 100 == 0 { "SA" } else { "RA" };
        let answer = segment(&there, HERE, flags, 0, u32::from(port) + 1);
        table.handle_received(&TcpView::parse(&answer).unwrap());
    }
    assert_eq!((table.connections.len(), table.order.len()), (100, 100));
    let resets = table.take();
    assert!(resets.iter().map(|reset| reset.path).eq((1..=100).map(|hundred| hundred * 100)));
    assert!(resets.iter().all(|reset| reset.seq == u32::from(reset.path) + 1));
}

#[test]
fn connections_of_an_expired_port_are_removed() {
    let mut table = HalfOpen::default();
    for here in ["192.0.2.2:50000", "192.0.2.2:50001"] {
        for there in ["192.0.2.1:80", "192.0.2.1:81", "192.0.2.1:82"] {
            let syn = segment(here, there, "S", 0, 0);
            table.handle_sent(&TcpView::parse(&syn).unwrap(), || ());
            if !there.ends_with("82") {
                let answer = segment(there, here, "SA", 0, 1);
                table.handle_received(&TcpView::parse(&answer).unwrap());
            }
        }
    }
    let remotes: Vec<String> =
        table.take_port(HERE.parse().unwrap()).iter().map(|reset| reset.remote.to_string()).collect();
    assert_eq!(remotes, ["192.0.2.1:80", "192.0.2.1:81"]);
    assert_eq!((table.connections.len(), table.take_port(HERE.parse().unwrap()).len()), (3, 0));
    assert_eq!(table.take().len(), 2);
}

#[test]
fn oldest_connection_is_evicted_and_reset_if_half_open() {
    let mut table = HalfOpen::with_capacity(10);
    let mut resets = Vec::new();
    for port in 1..=100_u16 {
        let there = format!("192.0.2.1:{port}");
        let syn = segment(HERE, &there, "S", 0, 0);
        resets.extend(table.handle_sent(&TcpView::parse(&syn).unwrap(), || port).map(|reset| reset.path));
        if port % 2 == 0 {
            let answer = segment(&there, HERE, "SA", 0, 1);
            table.handle_received(&TcpView::parse(&answer).unwrap());
        }
        assert!(table.connections.len() <= 10 && table.order.len() == table.connections.len());
    }
    assert_eq!(resets, (1..=45).map(|half| half * 2).collect::<Vec<_>>());
    assert_eq!(table.take().len(), 5);
}
