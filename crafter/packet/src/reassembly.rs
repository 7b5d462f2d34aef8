//! Reassembly of IP fragments: IPv4 (RFC 791, section 3.2) and IPv6 (RFC 8200, section 4.5).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::view::field::{ipv4, ipv6};
use crate::view::{Fragment, IpPacket, checksum, ip};

/// The longest payload of a datagram, in bytes.
const MAX_DATAGRAM: usize = 65_535;
/// More fragments than a datagram of 64 KiB has at the minimum IPv4 MTU; smaller fragments are an attack.
const MAX_FRAGMENTS: usize = 1500;

/// Reassembles datagrams, bounded in memory and time.
///
/// Fragments may arrive in any order and repeatedly. If two overlap, the datagram and all its later fragments are
/// dropped (RFC 5722, section 4); Linux does the same for IPv4.
#[derive(Debug)]
pub struct Reassembler {
    timeout: Duration,
    max_bytes: usize,
    max_datagrams: usize,
    bytes: usize,
    partial: HashMap<Key, Partial>,
}

/// RFC 791, section 3.2 includes the protocol in the key; RFC 8200, section 4.5 does not: 0 for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    protocol: u8,
}

#[derive(Debug)]
struct Partial {
    since: Instant,
    /// Header of the datagram, from the first fragment.
    header: Option<Vec<u8>>,
    /// By offset, without overlap.
    parts: Vec<(usize, Vec<u8>)>,
    total: Option<usize>,
    /// Fragments overlapped or contradicted each other: later ones are dropped.
    rejected: bool,
}

impl Default for Reassembler {
    /// 60 s (RFC 8200, section 4.5), 4 MiB and 256 datagrams.
    fn default() -> Self {
        Self::new(Duration::from_secs(60), 4 << 20, 256)
    }
}

impl Reassembler {
    /// `timeout` runs from the first fragment received. Beyond `max_bytes` of payload or `max_datagrams`, the oldest
    /// incomplete datagram is dropped.
    pub fn new(timeout: Duration, max_bytes: usize, max_datagrams: usize) -> Self {
        Self { timeout, max_bytes, max_datagrams: max_datagrams.max(1), bytes: 0, partial: HashMap::new() }
    }

    /// Takes an IP packet and returns a datagram once it is complete: the packet itself if it is not a fragment.
    ///
    /// The transport checksum of the datagram has not been verified.
    pub fn handle(&mut self, now: Instant, packet: &[u8]) -> Option<Vec<u8>> {
        let packet = IpPacket::read(packet).ok()?;
        let Some(fragment) = packet.fragment else {
            return Some(packet.bytes().to_vec());
        };
        self.handle_timeout(now);
        let data = packet.fragment_data();
        let end = fragment.offset + data.len();
        // RFC 8200, section 4.5: all fragments but the last are multiples of 8 bytes. Fragments without data are
        // dropped.
        if end > MAX_DATAGRAM || data.is_empty() || (fragment.more && data.len() % 8 != 0) {
            return None;
        }
        let key = Key {
            source: packet.source,
            destination: packet.destination,
            id: fragment.id,
            protocol: if packet.version() == 4 { packet.protocol } else { 0 },
        };
        if !self.partial.contains_key(&key) {
            self.make_room(data.len());
        }
        let partial = self.partial.entry(key).or_insert_with(|| Partial {
            since: now,
            header: None,
            parts: Vec::new(),
            total: None,
            rejected: false,
        });
        match partial.add(&packet, fragment, data) {
            Added::Nothing => return None,
            Added::Rejected(freed) => {
                self.bytes -= freed;
                return None;
            }
            Added::Bytes(length) => self.bytes += length,
        }
        if partial.is_whole() {
            let whole = self.partial.remove(&key)?;
            self.bytes -= whole.length();
            return whole.build(packet.version());
        }
        while self.bytes > self.max_bytes {
            self.drop_oldest();
        }
        None
    }

    /// Drops incomplete datagrams whose timeout has expired.
    pub fn handle_timeout(&mut self, now: Instant) {
        let (timeout, bytes) = (self.timeout, &mut self.bytes);
        self.partial.retain(|_, partial| {
            let keep = now.saturating_duration_since(partial.since) < timeout;
            *bytes -= if keep { 0 } else { partial.length() };
            keep
        });
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due next; `None` if no datagram is incomplete.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.partial.values().map(|partial| partial.since + self.timeout).min()
    }

    /// Number of incomplete datagrams.
    pub fn pending(&self) -> usize {
        self.partial.len()
    }

    fn make_room(&mut self, length: usize) {
        while !self.partial.is_empty()
            && (self.partial.len() >= self.max_datagrams || self.bytes + length > self.max_bytes)
        {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self.partial.iter().min_by_key(|(_, partial)| partial.since).map(|(key, _)| *key);
        match oldest.and_then(|key| self.partial.remove(&key)) {
            Some(partial) => self.bytes -= partial.length(),
            None => self.bytes = 0,
        }
    }
}

enum Added {
    Nothing,
    Bytes(usize),
    /// Number of bytes that are freed.
    Rejected(usize),
}

impl Partial {
    fn length(&self) -> usize {
        self.parts.iter().map(|(_, data)| data.len()).sum()
    }

    fn add(&mut self, packet: &IpPacket<'_>, fragment: Fragment, data: &[u8]) -> Added {
        if self.rejected {
            return Added::Nothing;
        }
        let end = fragment.offset + data.len();
        let at = self.parts.partition_point(|(offset, _)| *offset < fragment.offset);
        if let Some((offset, known)) = self.parts.get(at)
            && *offset == fragment.offset
            && known == data
        {
            return Added::Nothing;
        }
        let overlaps_next = self.parts.get(at).is_some_and(|(offset, _)| *offset < end);
        let previous = at.checked_sub(1).and_then(|before| self.parts.get(before));
        let overlaps_previous = previous.is_some_and(|(offset, known)| offset + known.len() > fragment.offset);
        let last_end = self.parts.last().map_or(0, |(offset, known)| offset + known.len());
        let contradicts = match self.total {
            Some(total) => end > total || (!fragment.more && end != total),
            None => !fragment.more && end < last_end,
        };
        if overlaps_next || overlaps_previous || contradicts || self.parts.len() >= MAX_FRAGMENTS {
            let freed = self.length();
            self.parts = Vec::new();
            self.rejected = true;
            return Added::Rejected(freed);
        }
        if !fragment.more {
            self.total = Some(end);
        }
        if fragment.offset == 0 {
            self.header = Some(header(packet, fragment));
        }
        self.parts.insert(at, (fragment.offset, data.to_vec()));
        Added::Bytes(data.len())
    }

    fn is_whole(&self) -> bool {
        // Parts do not overlap, so that enough bytes leave no gap.
        self.header.is_some() && self.total == Some(self.length())
    }

    fn build(self, version: u8) -> Option<Vec<u8>> {
        let mut datagram = self.header?;
        let header = datagram.len();
        self.parts.iter().for_each(|(_, data)| datagram.extend_from_slice(data));
        let (field, length) = match version {
            4 => (ipv4::LENGTH, datagram.len()),
            _ => (ipv6::LENGTH, datagram.len() - ip::IPV6_HEADER),
        };
        // Longer than the length field allows: RFC 8200, section 4.5 requires that it is dropped.
        let length = u16::try_from(length).ok()?;
        datagram[field].copy_from_slice(&length.to_be_bytes());
        if version == 4 {
            datagram[ipv4::CHECKSUM].fill(0);
            let sum = !checksum::fold(checksum::sum(&datagram[..header]));
            datagram[ipv4::CHECKSUM].copy_from_slice(&sum.to_be_bytes());
        }
        Some(datagram)
    }
}

/// The first fragment's header without its fragment fields; the caller sets lengths and checksum.
fn header(packet: &IpPacket<'_>, fragment: Fragment) -> Vec<u8> {
    let bytes = packet.bytes();
    if packet.version() == 4 {
        let mut header = bytes[..packet.payload.start].to_vec();
        header[ipv4::FRAGMENT].fill(0);
        return header;
    }
    let mut header = bytes[..fragment.header].to_vec();
    header[fragment.next_header_at] = bytes[fragment.header];
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Packet, Udp};
    use crate::view::{Checksum, UdpView};
    use proptest::prelude::*;

    /// Cuts a datagram (without extension headers) into fragments with `size` bytes of data each.
    fn cut(whole: &[u8], size: usize, id: u32) -> Vec<Vec<u8>> {
        let v4 = whole[0] >> 4 == 4;
        let header = if v4 { 20 } else { 40 };
        let data = &whole[header..];
        (0..data.len())
            .step_by(size)
            .map(|offset| {
                let piece = &data[offset..data.len().min(offset + size)];
                let more = offset + size < data.len();
                let mut packet = whole[..header].to_vec();
                if v4 {
                    packet[2..4].copy_from_slice(&((20 + piece.len()) as u16).to_be_bytes());
                    packet[4..6].copy_from_slice(&(id as u16).to_be_bytes());
                    let field = u16::from(more) << 13 | (offset / 8) as u16;
                    packet[6..8].copy_from_slice(&field.to_be_bytes());
                } else {
                    packet[4..6].copy_from_slice(&((8 + piece.len()) as u16).to_be_bytes());
                    packet[6] = ip::FRAGMENT;
                    packet.extend([ip::UDP, 0]);
                    packet.extend((offset as u16 | u16::from(more)).to_be_bytes());
                    packet.extend(id.to_be_bytes());
                }
                packet.extend_from_slice(piece);
                packet
            })
            .collect()
    }

    fn payload(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n * 7) as u8).collect()
    }

    fn datagram(v6: bool, length: usize) -> Packet {
        let (a, b) = if v6 { ("[2001:db8::1]:53", "[2001:db8::2]:9") } else { ("192.0.2.1:53", "192.0.2.2:9") };
        Udp::new().between(a.parse().unwrap(), b.parse().unwrap()) / payload(length)
    }

    proptest! {
        #[test]
        fn any_order_with_repeats(
            v6 in any::<bool>(), length in 20usize..9000, eights in 2usize..180,
            order in proptest::collection::vec(any::<prop::sample::Index>(), 0..40)
        ) {
            let whole = datagram(v6, length);
            let size = eights * 8;
            let pieces = cut(&whole.build().unwrap(), size, 77);
            prop_assume!(pieces.len() > 1);
            let now = Instant::now();
            let mut reassembler = Reassembler::default();
            let picked = order.iter().map(|index| index.index(pieces.len()));
            let mut result = None;
            for index in picked.chain((0..pieces.len()).rev()) {
                result = result.or(reassembler.handle(now, &pieces[index]));
                if result.is_some() {
                    break;
                }
            }
            let bytes = result.unwrap();
            prop_assert_eq!(checksum::verify(&bytes, false), Checksum::Valid);
            prop_assert_eq!(UdpView::parse(&bytes).unwrap().payload(), payload(length));
            prop_assert_eq!(reassembler.pending(), 0);
            prop_assert_eq!(reassembler.bytes, 0);
        }
    }

    #[test]
    fn overlap_rejects_whole_datagram() {
        for v6 in [false, true] {
            let whole = datagram(v6, 3000).build().unwrap();
            let (wide, narrow) = (cut(&whole, 1000, 5), cut(&whole, 800, 5));
            let now = Instant::now();
            let mut reassembler = Reassembler::default();
            assert_eq!(reassembler.handle(now, &wide[1]), None);
            assert_eq!(reassembler.handle(now, &narrow[1]), None);
            for piece in &wide {
                assert_eq!(reassembler.handle(now, piece), None);
            }
            assert_eq!((reassembler.pending(), reassembler.bytes), (1, 0));
            // A minute later the identification is free again.
            let later = now + Duration::from_secs(60);
            let last = wide.iter().filter_map(|piece| reassembler.handle(later, piece)).last();
            assert!(last.is_some());
        }
    }

    #[test]
    fn memory_and_time_are_bounded() {
        let now = Instant::now();
        let mut reassembler = Reassembler::new(Duration::from_secs(30), 20_000, 8);
        for id in 0..100 {
            let first = &cut(&datagram(true, 4000).build().unwrap(), 1232, id)[0];
            assert_eq!(reassembler.handle(now + Duration::from_millis(id.into()), first), None);
            assert!(reassembler.pending() <= 8 && reassembler.bytes <= 20_000);
        }
        assert_eq!(reassembler.pending(), 8);
        let at = reassembler.poll_timeout().unwrap();
        reassembler.handle_timeout(at);
        assert_eq!(reassembler.pending(), 7);
        reassembler.handle_timeout(at + Duration::from_secs(1));
        assert_eq!((reassembler.pending(), reassembler.bytes), (0, 0));
    }

    #[test]
    fn data_beyond_last_fragment_rejects_datagram() {
        let now = Instant::now();
        let pieces = cut(&datagram(false, 2000).build().unwrap(), 800, 1);
        let mut beyond = pieces[1].clone();
        beyond[6..8].copy_from_slice(&400_u16.to_be_bytes());
        let mut reassembler = Reassembler::default();
        reassembler.handle(now, &pieces[2]);
        reassembler.handle(now, &beyond);
        assert!(pieces.iter().all(|piece| reassembler.handle(now, piece).is_none()));
    }
}
