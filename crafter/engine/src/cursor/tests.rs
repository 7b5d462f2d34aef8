//! Two cursors as peers.

use super::*;
use crafter_packet::testing::Segment;

/// A cursor with [`Segment`]s in place of packets.
#[derive(Clone)]
pub(crate) struct Hand(pub Cursor);

impl Hand {
    pub fn syn(&mut self) -> Segment {
        Segment::from(&self.0.syn())
    }

    pub fn ack(&mut self) -> Segment {
        Segment::from(&self.0.ack())
    }

    pub fn data(&mut self, bytes: &[u8]) -> Vec<Segment> {
        self.0.data(bytes).iter().map(Segment::from).collect()
    }

    pub fn fin(&mut self) -> Segment {
        Segment::from(&self.0.fin())
    }

    pub fn rst(&mut self) -> Segment {
        Segment::from(&self.0.rst())
    }

    pub fn handle(&mut self, segment: &Segment) -> Received {
        self.0.handle(&segment.build())
    }
}

impl std::ops::Deref for Hand {
    type Target = Cursor;
    fn deref(&self) -> &Cursor {
        &self.0
    }
}

impl std::ops::DerefMut for Hand {
    fn deref_mut(&mut self) -> &mut Cursor {
        &mut self.0
    }
}

fn pair(isn: u32, peer_isn: u32) -> (Hand, Hand) {
    let (a, b) = ("192.0.2.1:49152".parse().unwrap(), "192.0.2.2:80".parse().unwrap());
    (Hand(Cursor::with_isn(a, b, isn)), Hand(Cursor::with_isn(b, a, peer_isn)))
}

#[test]
fn initial_sequence_numbers_are_random() {
    let ends = ("192.0.2.1:49152".parse().unwrap(), "192.0.2.2:80".parse().unwrap());
    let numbers: Vec<u32> = (0..64).map(|_| Hand(Cursor::new(ends.0, ends.1)).syn().seq).collect();
    // Each bit is 0 in some numbers and 1 in others; by chance this fails once in 2^58 runs.
    assert_eq!(numbers.iter().fold(0, |all, number| all | number), u32::MAX, "{numbers:x?}");
    assert_eq!(numbers.iter().fold(u32::MAX, |all, number| all & number), 0, "{numbers:x?}");
}

fn established(isn: u32, peer_isn: u32) -> (Hand, Hand) {
    let (mut client, mut server) = pair(isn, peer_isn);
    assert_eq!(server.handle(&client.syn()), Received::Syn);
    assert_eq!(client.handle(&server.syn()), Received::Syn);
    assert!(client.needs_ack() && client.is_established() && !server.is_established());
    assert_eq!(server.handle(&client.ack()), Received::Ack);
    assert!(server.is_established() && !client.needs_ack());
    (client, server)
}

#[test]
fn conversation_across_sequence_wrap() {
    let (mut client, mut server) = established(u32::MAX - 2, u32::MAX);
    assert_eq!(server.peer_mss(), 1460);
    let request = vec![7; 4000];
    let segments = client.data(&request);
    assert_eq!(segments.iter().map(|s| s.payload.len()).collect::<Vec<_>>(), [1460, 1460, 1080]);
    assert!(segments[2].flags.contains(Flags::PSH) && !segments[1].flags.contains(Flags::PSH));
    for segment in &segments {
        assert_eq!(server.handle(segment), Received::Data(segment.payload.len()));
    }
    assert_eq!(server.take_data(), request);
    assert_eq!(client.unacknowledged(), 4000);
    client.handle(&server.ack());
    assert_eq!(client.unacknowledged(), 0);

    let fin = server.fin();
    assert_eq!(server.fin(), fin);
    assert_eq!(client.handle(&fin), Received::Fin);
    assert!(client.peer_closed() && !client.is_closed());
    server.handle(&client.ack());
    server.handle(&client.fin());
    client.handle(&server.ack());
    assert!(client.is_closed() && server.is_closed() && !client.is_reset());
    assert_eq!(client.handle(&fin), Received::Duplicate);
    assert!(client.needs_ack());
}

#[test]
fn out_of_order_data_and_fin_are_reordered() {
    let (mut client, mut server) = established(100, u32::MAX - 3000);
    let body: Vec<u8> = (0..6000_u32).map(|n| n as u8).collect();
    let mut segments = server.data(&body);
    segments.push(server.fin());
    for index in [4, 2, 3, 1, 2, 4] {
        assert_eq!(client.handle(&segments[index]), Received::OutOfOrder);
    }
    assert!(!client.peer_closed());
    assert_eq!(client.ack().ack, segments[0].seq);
    assert_eq!(client.handle(&segments[5]), Received::OutOfOrder);
    assert_eq!(client.handle(&segments[0]), Received::Data(6000));
    assert!(client.peer_closed());
    assert_eq!(client.take_data(), body);
    assert_eq!(client.handle(&segments[3]), Received::Duplicate);
    assert_eq!(client.ack().ack, segments[5].seq.wrapping_add(1));
}

#[test]
fn overlapping_segments_deliver_each_byte_once() {
    let (mut client, mut server) = established(1, 2);
    let whole = server.data(b"abcdefgh").remove(0);
    let part = |from: usize, to: usize| Segment {
        seq: whole.seq.wrapping_add(from as u32),
        payload: whole.payload[from..to].to_vec(),
        ..whole.clone()
    };
    client.handle(&part(0, 3));
    client.handle(&part(4, 7));
    client.handle(&part(5, 6));
    assert_eq!(client.handle(&part(2, 5)), Received::Data(4));
    client.handle(&part(6, 8));
    assert_eq!(client.take_data(), b"abcdefgh");
}

#[test]
fn only_exact_resets_are_accepted() {
    let (mut client, mut server) = pair(5, 9);
    server.handle(&client.syn());
    let mut rst = server.rst();
    rst.ack = 77;
    assert_eq!(client.handle(&rst), Received::Unacceptable);
    rst.ack = 6;
    assert_eq!(client.handle(&rst), Received::Reset);
    assert!(client.is_closed() && client.is_reset());

    let (mut client, mut server) = established(5, 9);
    let mut rst = server.rst();
    rst.seq += 1;
    assert_eq!(client.handle(&rst), Received::Unacceptable);
    let mut ack = Segment { flags: Flags::ACK, ..rst.clone() };
    ack.ack = 1000;
    assert_eq!(client.handle(&ack), Received::Unacceptable);
    rst.seq -= 1;
    rst.source.set_port(1);
    assert_eq!(client.handle(&rst), Received::Foreign);
    assert_eq!(client.0.handle(b"no packet"), Received::Foreign);
}

#[test]
fn window_shrinks_until_data_is_read() {
    let (mut client, mut server) = established(5, 9);
    client.receive_window = 2000;
    server.peer_mss = 1000;
    for segment in server.data(&[1; 3000]) {
        client.handle(&segment);
    }
    assert_eq!(client.ack().window, 0);
    assert_eq!(client.take_data().len(), 2000);
    assert_eq!(client.ack().window, 2000 >> WINDOW_SCALE);
    server.handle(&client.ack());
    assert_eq!(server.peer_window(), (2000 >> 7 << 7) - 1000);
}
