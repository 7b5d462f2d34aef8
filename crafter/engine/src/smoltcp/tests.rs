//! One test per defect of smoltcp, through the whole engine: each fails without its workaround.

use std::time::Duration;

use crate::tests::manual::{ManualPeer, bytes, config};
use crate::{Received, StreamConfig, StreamEngine, StreamState};
use crafter_packet::view::field::ipv6;
use crafter_packet::view::{Flags, IcmpReason, ip};
use crafter_packet::{layer::TcpOption, testing::Segment};

/// Longer than smoltcp's first retransmission timeout, which is 1 s.
const TIMEOUT: Duration = Duration::from_millis(1100);

/// The segments that the client sends within `span`.
fn sent_within(lab: &mut ManualPeer, span: Duration) -> Vec<Segment> {
    let end = lab.now + span;
    let mut sent = lab.sent();
    while let Some(next) = lab.client.poll_timeout(lab.now).filter(|next| *next <= end) {
        lab.now = next.max(lab.now + Duration::from_micros(1));
        lab.client.handle_timeout(lab.now);
        sent.extend(lab.sent());
    }
    lab.now = lab.now.max(end);
    sent
}

/// A client whose peer offers a window of `window` bytes from its SYN on.
fn with_window(window: u32) -> ManualPeer {
    let (mut lab, _) = ManualPeer::connecting(config(false));
    lab.server.receive_window = window;
    lab.establish();
    lab
}

/// The end of a segment, relative to the beginning of the client's stream.
fn end(lab: &ManualPeer, segment: &Segment) -> u32 {
    let first = lab.server.clone().ack().ack;
    segment.seq.wrapping_add(segment.sequence_length()).wrapping_sub(first)
}

#[test]
fn inexact_rst_gets_challenge_ack() {
    let mut lab = ManualPeer::established(config(false));
    let exact = lab.server.clone().rst();
    let guess = Segment { seq: exact.seq.wrapping_add(1000), ..exact.clone() };
    lab.give(&guess);
    assert_eq!(lab.client.state(), StreamState::Established);
    let challenge = lab.sent();
    assert_eq!(challenge.len(), 1);
    assert_eq!((challenge[0].flags, challenge[0].ack, challenge[0].seq), (Flags::ACK, exact.seq, exact.ack));
    lab.give(&exact);
    assert!(matches!(lab.client.error(), Some(crate::Error::Reset { .. })));
}

#[test]
fn syn_on_open_connection_gets_challenge_ack() {
    let mut lab = ManualPeer::established(config(false));
    let next = lab.server.clone().ack();
    let syn = Segment { flags: Flags::SYN, ack: 0, seq: next.seq.wrapping_add(70_000), ..next.clone() };
    lab.give(&syn);
    let challenge = lab.sent();
    assert_eq!(challenge.len(), 1);
    assert_eq!((challenge[0].flags, challenge[0].ack), (Flags::ACK, next.seq));
    // The peer answers that with a RST with exactly that number.
    lab.give(&Segment { flags: Flags::RST, seq: challenge[0].ack, ..next });
    assert!(matches!(lab.client.error(), Some(crate::Error::Reset { .. })));
}

#[test]
fn lost_fin_is_retransmitted_after_duplicate_acks() {
    let mut lab = ManualPeer::established(config(false));
    lab.client.close(lab.now);
    let fin = lab.sent();
    assert!(fin[0].flags.contains(Flags::FIN));
    for _ in 0..6 {
        let ack = lab.server.ack();
        lab.give(&ack);
    }
    let repeated = sent_within(&mut lab, 2 * TIMEOUT);
    assert!(repeated.iter().any(|segment| segment.flags.contains(Flags::FIN)), "{repeated:?}");
}

#[test]
fn fast_retransmit_stays_within_window() {
    let mut lab = with_window(512);
    lab.client.send(&bytes(3000)).unwrap();
    let mut sent = lab.sent();
    for _ in 0..6 {
        let ack = lab.server.clone().ack();
        lab.give(&ack);
        sent.extend(lab.sent());
    }
    let ends: Vec<_> = sent.iter().map(|segment| end(&lab, segment)).collect();
    assert_eq!(ends.iter().max(), Some(&512), "{ends:?}");
}

#[test]
fn ack_at_right_edge_is_accepted() {
    let mut lab = ManualPeer::established(config(false));
    lab.client.send(b"request").unwrap();
    for segment in lab.sent() {
        lab.server.handle(&segment);
    }
    let ack = lab.server.ack();
    let edge = ack.seq.wrapping_add(4 << 20);
    lab.give(&Segment { seq: edge.wrapping_add(1), ..ack.clone() });
    assert_eq!(lab.client.unacknowledged(), 7, "beyond the edge");
    lab.give(&Segment { seq: edge, ..ack });
    assert_eq!(lab.client.unacknowledged(), 0);
}

#[test]
fn reordered_ack_does_not_shrink_window() {
    let mut lab = ManualPeer::established(config(false));
    let newer = lab.server.ack();
    lab.give(&newer);
    lab.give(&Segment { window: 0, ..newer });
    lab.client.send(b"more").unwrap();
    assert_eq!(lab.sent().iter().map(|segment| segment.payload.len()).sum::<usize>(), 4);
    // A probe of a closed window would have been one byte.
}

#[test]
fn data_in_window_rounded_to_zero_is_retransmitted() {
    let mut lab = with_window(100);
    lab.client.send(&bytes(100)).unwrap();
    let sent = lab.sent();
    assert_eq!(sent.iter().map(|segment| segment.payload.len()).sum::<usize>(), 100);
    // A window of 100 is 0 in units of 128. The data is lost.
    for segment in lab.server.data(b"x") {
        assert_eq!(segment.window, 0);
        lab.give(&segment);
    }
    let repeated = sent_within(&mut lab, 3 * TIMEOUT);
    assert!(repeated.iter().any(|segment| segment.seq == sent[0].seq && !segment.payload.is_empty()), "{repeated:?}");
}

#[test]
fn acks_carry_send_next_during_retransmission() {
    let mut lab = ManualPeer::established(config(false));
    lab.client.send(&bytes(2000)).unwrap();
    let first = lab.sent()[0].seq;
    let repeated = sent_within(&mut lab, TIMEOUT);
    assert_eq!(repeated.iter().map(|segment| segment.seq).collect::<Vec<_>>(), [first], "smoltcp begins again");
    let data = lab.server.data(b"meanwhile").remove(0);
    lab.give(&data);
    let acks = lab.sent();
    assert!(acks.iter().all(|ack| ack.payload.is_empty()), "{acks:?}");
    assert_eq!(acks[0].seq, first.wrapping_add(2000));
}

#[test]
fn segment_after_extension_headers_is_accepted() {
    let mut lab = ManualPeer::established(config(true));
    let mut packet = lab.server.data(b"behind options").remove(0).build();
    let length = packet.len() - ip::IPV6_HEADER + 8;
    packet.splice(ip::IPV6_HEADER..ip::IPV6_HEADER, [ip::TCP, 0, 1, 4, 0, 0, 0, 0]);
    packet[ipv6::NEXT_HEADER] = ip::DESTINATION_OPTIONS;
    packet[ipv6::LENGTH].copy_from_slice(&(length as u16).to_be_bytes());
    assert!(lab.client.handle_packet(lab.now, &packet));
    assert_eq!(lab.read(), b"behind options");
}

#[test]
fn super_frame_beyond_length_field_is_accepted() {
    for v6 in [false, true] {
        let mut lab = ManualPeer::established(config(v6));
        let body = bytes(100_000);
        let segment = Segment { payload: body.clone(), flags: Flags::ACK | Flags::FIN, ..lab.server.ack() };
        assert!(lab.give(&segment));
        assert!(lab.read() == body);
        assert_eq!(lab.client.state(), StreamState::PeerClosed, "FIN is behind the last piece");
    }
}

#[test]
fn data_after_syn_ack_is_limited_to_buffer() {
    let (mut lab, _) = ManualPeer::connecting(StreamConfig { rx_buffer: 1 << 17, ..config(false) });
    let syn = lab.server.syn();
    lab.give(&syn);
    // Beyond the buffer, but within the window of the SYN if that is scaled.
    let first = lab.server.ack();
    let beyond = 200_000;
    lab.give(&Segment { seq: first.seq.wrapping_add(beyond), payload: vec![1; 1000], ..first.clone() });
    let mut read = 0;
    for offset in (0..beyond).step_by(20_000) {
        lab.give(&Segment { seq: first.seq.wrapping_add(offset), payload: vec![2; 20_000], ..first.clone() });
        read += lab.read().len();
        lab.sent();
    }
    assert_eq!(read, beyond as usize, "1000 bytes were never stored");
}

#[test]
fn aborted_attempt_sends_no_rst() {
    let (mut lab, _) = ManualPeer::connecting(config(false));
    lab.client.abort(lab.now);
    assert!(lab.sent().is_empty() && lab.client.is_finished());
    let mut lab = ManualPeer::established(config(false));
    lab.client.handle_link_removed(lab.now);
    assert!(sent_within(&mut lab, TIMEOUT).is_empty() && lab.client.is_finished());
}

#[test]
fn segments_fit_a_smaller_mtu() {
    let mut lab = ManualPeer::established(config(false));
    lab.client.send(&bytes(1460)).unwrap();
    let sent = lab.sent();
    let too_big = lab.icmp(sent[0].seq, IcmpReason::PacketTooBig { mtu: 1000 });
    assert!(lab.client.handle_icmp(lab.now, &too_big));
    let repeated = sent_within(&mut lab, TIMEOUT);
    assert_eq!(repeated[0].payload.len(), 960);
}

/// A client with timestamps; the SYN of its peer had 1000.
fn with_timestamps() -> (ManualPeer, u32) {
    let (mut lab, syn) = ManualPeer::connecting(StreamConfig { timestamps: true, ..config(false) });
    let (value, _) = timestamps(&syn).expect("timestamps are offered");
    let mut answer = lab.server.syn();
    answer.options.push(TcpOption::Timestamp(1000, value));
    lab.give(&answer);
    for segment in lab.sent() {
        lab.server.handle(&segment);
    }
    (lab, value)
}

fn timestamps(segment: &Segment) -> Option<(u32, u32)> {
    segment.options.iter().find_map(|option| match option {
        TcpOption::Timestamp(value, echo) => Some((*value, *echo)),
        _ => None,
    })
}

fn at_time(segment: Segment, value: u32) -> Segment {
    Segment { options: vec![TcpOption::Timestamp(value, 0)], ..segment }
}

#[test]
fn segment_with_old_timestamp_is_dropped() {
    let (mut lab, _) = with_timestamps();
    let data = lab.server.data(b"data").remove(0);
    lab.give(&at_time(data.clone(), 999));
    assert_eq!(lab.read(), b"");
    assert_eq!(lab.sent().iter().map(|ack| ack.ack).collect::<Vec<_>>(), [data.seq], "answered");
    lab.give(&at_time(data, 1000));
    assert_eq!(lab.read(), b"data");
}

#[test]
fn ts_recent_before_gap_is_echoed() {
    let (mut lab, _) = with_timestamps();
    let data = lab.server.data(&bytes(2920));
    lab.give(&at_time(data[1].clone(), 1500));
    assert_eq!(timestamps(&lab.sent()[0]).map(|(_, echo)| echo), Some(1000));
    lab.give(&at_time(data[0].clone(), 1400));
    assert_eq!(timestamps(lab.sent().last().unwrap()).map(|(_, echo)| echo), Some(1400));
}

#[test]
fn streams_on_one_thread_have_separate_clocks() {
    let (mut lab, begin) = with_timestamps();
    lab.now += Duration::from_millis(250);
    // Another stream starts on this thread and sets its own clock.
    let mut other = StreamEngine::connect(
        StreamConfig { timestamps: true, seed: 7, ..config(true) },
        None,
        lab.now + Duration::from_secs(9),
    )
    .unwrap();
    let mut syn = None;
    other.poll_transmit(lab.now + Duration::from_secs(9), &mut |packet| syn = Some(Segment::parse(packet).unwrap()));
    lab.client.send(b"later").unwrap();
    let later = timestamps(&lab.sent()[0]).unwrap().0;
    assert_eq!(later.wrapping_sub(begin), 250);
    assert_ne!(timestamps(&syn.unwrap()).unwrap().0, begin, "another seed, another offset");
}

#[test]
fn lossy_peer_gets_five_attempts() {
    let mut lab = ManualPeer::established(config(false));
    lab.client.send(b"x").unwrap();
    let start = lab.now;
    // Even the first attempts are late, because the timer is polled late.
    lab.sent();
    for _ in 0..3 {
        lab.now += Duration::from_secs(30);
        lab.client.handle_timeout(lab.now);
        lab.sent();
    }
    assert!(lab.client.error().is_none(), "four attempts in 90 s, 60 s being allowed");
    for _ in 0..3 {
        lab.now += Duration::from_secs(30);
        lab.client.handle_timeout(lab.now);
        lab.sent();
    }
    assert!(matches!(lab.client.error(), Some(crate::Error::TimedOut { .. })));
    assert!(lab.now - start < Duration::from_secs(200));
}

#[test]
fn time_wait_has_configured_duration() {
    let mut lab = ManualPeer::established(StreamConfig { time_wait: Duration::from_millis(300), ..config(false) });
    lab.client.close(lab.now);
    for fin in lab.sent() {
        lab.server.handle(&fin);
    }
    let fin = lab.server.fin();
    lab.give(&fin);
    assert_eq!(lab.client.state(), StreamState::TimeWait);
    sent_within(&mut lab, Duration::from_millis(299));
    assert!(!lab.client.is_finished());
    sent_within(&mut lab, Duration::from_millis(2));
    assert!(lab.client.is_finished());
}

#[test]
fn initially_closed_window_is_probed_at_once() {
    let mut lab = with_window(0);
    lab.client.send(b"probe").unwrap();
    assert_eq!(lab.sent().iter().map(|segment| segment.payload.len()).collect::<Vec<_>>(), [1]);
}

#[test]
fn icmp_errors_outside_flight_are_ignored() {
    let (mut lab, syn) = ManualPeer::connecting(config(false));
    for seq in [syn.seq.wrapping_sub(1), syn.seq.wrapping_add(1)] {
        let forged = lab.icmp(seq, IcmpReason::HostUnreachable);
        assert!(!lab.client.handle_icmp(lab.now, &forged));
    }
    let true_one = lab.icmp(syn.seq, IcmpReason::HostUnreachable);
    assert!(lab.client.handle_icmp(lab.now, &true_one) && lab.client.is_finished());
}

#[test]
fn receive_next_counts_read_data_and_fin() {
    let mut lab = ManualPeer::established(config(false));
    for segment in lab.server.data(b"read") {
        lab.give(&segment);
    }
    assert_eq!(lab.read(), b"read");
    let (data, fin) = (lab.server.data(b"unread").remove(0), lab.server.fin());
    lab.give(&data);
    lab.give(&fin);
    assert_eq!(lab.client.state(), StreamState::PeerClosed);
    let exact = lab.server.rst();
    assert_eq!(exact.seq, fin.seq.wrapping_add(1));
    lab.give(&exact);
    assert!(matches!(lab.client.error(), Some(crate::Error::Reset { .. })), "{:?}", lab.client.state());
    assert_eq!(lab.server.handle(&exact), Received::Foreign);
}
