//! Merges consecutive segments of a TCP flow, for clients that use the stream and not the segments, by the rules of the
//! kernel's GRO (`tcp_gro_receive()`).

use crate::{
    driver::{LeaseId, Received},
    packet::{Checksum, TcpView, ip},
};

/// The maximum length of an IP packet in bytes: its length field has 16 bits.
const LONGEST: usize = 65_535;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// A merged segment.
pub(super) struct Run {
    packet: Received,
    /// Length of the IP header, and of both headers, in bytes.
    ip: usize,
    headers: usize,
    /// The sequence number after the segment.
    next: u32,
    count: u64,
}

impl Run {
    /// Starts with a segment; `None` if it cannot be merged.
    pub(super) fn begin(packet: &Received) -> Option<Self> {
        let (ip, headers) = headers(packet)?;
        let bytes = &packet.ip;
        let next = sequence(bytes, ip).wrapping_add((bytes.len() - headers) as u32);
        // Room for further segments: there usually are some.
        let mut whole = Vec::with_capacity(LONGEST.min(bytes.len() * 16));
        whole.extend_from_slice(bytes);
        let Received { checksum, timestamp_ns, cut, reason, .. } = *packet;
        let packet = Received { ip: whole, checksum, timestamp_ns, cut, reason };
        Some(Self { packet, ip, headers, next, count: 1 })
    }

    /// Appends a segment. `false` if it does not follow, or differs in its headers.
    pub(super) fn push(&mut self, packet: &Received) -> bool {
        if !self.is_followed_by(packet) {
            return false;
        }
        let (at, bytes) = (self.ip, &packet.ip);
        let first = &mut self.packet.ip;
        // Of the flags only PSH may differ; the latest window is valid.
        first[at + 13] |= bytes[at + 13] & PSH;
        first[at + 14..at + 16].copy_from_slice(&bytes[at + 14..at + 16]);
        first.extend_from_slice(&bytes[self.headers..]);
        self.next = self.next.wrapping_add((bytes.len() - self.headers) as u32);
        self.count += 1;
        true
    }

    fn is_followed_by(&self, packet: &Received) -> bool {
        let (first, next) = (&self.packet.ip, &packet.ip);
        if headers(packet) != Some((self.ip, self.headers))
            || packet.reason != self.packet.reason
            || sequence(next, self.ip) != self.next
            || first.len() + next.len() - self.headers > LONGEST
            // PSH ends a merged segment.
            || first[self.ip + 13] & PSH != 0
        {
            return false;
        }
        let same = |from: usize, to: usize| first[from..to] == next[from..to];
        let ip = if self.ip == 20 {
            // Not the length, the identification and the checksum.
            same(0, 2) && same(6, 10) && same(12, 20)
        } else {
            same(0, 4) && same(6, 40)
        };
        let tcp = self.ip;
        ip && same(tcp, tcp + 4) && same(tcp + 8, tcp + 13) && same(tcp + 18, self.headers)
    }

    /// The number of segments, and the merged packet.
    pub(super) fn finish(self) -> (u64, Received) {
        let Self { mut packet, ip, count, .. } = self;
        if count == 1 {
            return (count, packet);
        }
        let bytes = &mut packet.ip;
        let length = bytes.len();
        let transport = (length - ip) as u32;
        let addresses = if ip == 20 {
            bytes[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            bytes[10..12].fill(0);
            let checksum = !fold(sum(&bytes[..20]));
            bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
            sum(&bytes[12..20])
        } else {
            bytes[4..6].copy_from_slice(&(transport as u16).to_be_bytes());
            sum(&bytes[8..40])
        };
        // Each segment's checksum was verified; that of the merged segment is partial, as after GRO.
        let pseudo = fold(addresses + 6 + transport);
        bytes[ip + 16..ip + 18].copy_from_slice(&pseudo.to_be_bytes());
        packet.checksum = Checksum::Partial;
        (count, packet)
    }
}

/// Merges consecutive segments of one lease. Returns each packet with the number of segments in it.
pub(super) fn coalesce(packets: &[(LeaseId, Received)]) -> Vec<(u64, Received)> {
    let mut whole = Vec::with_capacity(packets.len());
    let mut run: Option<Run> = None;
    for (_, packet) in packets {
        if let Some(run) = &mut run
            && run.push(packet)
        {
            continue;
        }
        whole.extend(run.take().map(Run::finish));
        run = Run::begin(packet);
        if run.is_none() {
            whole.push((1, packet.clone()));
        }
    }
    whole.extend(run.map(Run::finish));
    whole
}

/// The lengths of the IP header and of both headers, if the packet is a segment with data, and with no flags but ACK
/// and PSH.
fn headers(packet: &Received) -> Option<(usize, usize)> {
    if packet.cut || packet.checksum == Checksum::Invalid || !packet.reason.is_ingress() {
        return None;
    }
    let segment = TcpView::read(&packet.ip).ok()?;
    let ip = &segment.ip;
    let fixed = if ip.version() == 4 { ip::IPV4_HEADER } else { ip::IPV6_HEADER };
    // Neither options nor extension headers, nor trailing bytes.
    let is_bare = ip.payload.start == fixed && ip.declares_length() && ip.total_length() == packet.ip.len();
    let is_plain = segment.flags.0 & !u16::from(PSH) == u16::from(ACK);
    let data = segment.payload().len();
    (is_bare && is_plain && data > 0).then_some((fixed, packet.ip.len() - data))
}

fn sequence(bytes: &[u8], ip: usize) -> u32 {
    u32::from_be_bytes([bytes[ip + 4], bytes[ip + 5], bytes[ip + 6], bytes[ip + 7]])
}

/// The sum of RFC 1071, of an even number of bytes.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use crafter_common::reason::Reason;

    use super::*;
    use crate::packet::{Flags, checksum};
    use crafter_packet::testing::Segment;

    fn segment(v6: bool, seq: u32, flags: u16, payload: &[u8]) -> (LeaseId, Received) {
        let end = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (source, destination) = if v6 {
            (end("[2001:db8::1]:80"), end("[2001:db8::2]:50000"))
        } else {
            (end("192.0.2.1:80"), end("192.0.2.2:50000"))
        };
        let mut segment = Segment::new(source, destination);
        segment.seq = seq;
        segment.ack = 7;
        segment.flags = Flags(flags);
        segment.window = 500_u16.wrapping_add(seq as u16);
        segment.payload = payload.to_vec();
        let received = Received {
            ip: segment.build(),
            checksum: Checksum::Valid,
            timestamp_ns: None,
            cut: false,
            reason: Reason::Redirected,
        };
        (LeaseId(1), received)
    }

    #[test]
    fn consecutive_segments_are_merged() {
        for v6 in [false, true] {
            let packets = [
                segment(v6, u32::MAX - 1, 0x10, b"abc"),
                segment(v6, 1, 0x10, b"defg"),
                segment(v6, 5, 0x18, b"h"),
                segment(v6, 6, 0x10, b"i"),
            ];
            let whole = coalesce(&packets);
            assert_eq!(whole.len(), 2, "PSH ends a merged segment");
            let (_, first) = &whole[0];
            assert_eq!((first.checksum, checksum::verify(&first.ip, true)), (Checksum::Partial, Checksum::Partial));
            let read = Segment::parse(&first.ip).unwrap();
            assert_eq!((read.seq, read.ack, read.flags, read.window), (u32::MAX - 1, 7, Flags(0x18), 505));
            assert_eq!(read.payload, b"abcdefgh");
            assert_eq!((whole[0].0, &whole[1]), (3, &(1, packets[3].1.clone())));
        }
    }

    #[test]
    fn other_packets_are_not_merged() {
        let first = segment(false, 1, 0x10, b"abc");
        let mut other_ttl = segment(false, 4, 0x10, b"d");
        other_ttl.1.ip[8] = 1;
        let mut wrong = segment(false, 4, 0x10, b"d");
        wrong.1.checksum = Checksum::Invalid;
        let mut options = segment(false, 4, 0x10, b"d");
        options.1.ip[0] = 0x46;
        for second in [
            segment(false, 5, 0x10, b"gap"),
            segment(false, 1, 0x10, b"abc"),
            segment(false, 4, 0x11, b"fin"),
            segment(false, 4, 0x14, b"rst"),
            segment(false, 4, 0x10, b""),
            segment(true, 4, 0x10, b"d"),
            segment(false, 4, 0x10, &[0; 65_495]),
            other_ttl,
            wrong,
            options,
        ] {
            let packets = [first.clone(), second];
            assert_eq!(coalesce(&packets), packets.map(|(_, packet)| (1, packet)));
        }
    }
}
