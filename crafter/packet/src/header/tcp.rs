//! TCP segments (RFC 9293): a borrowed view for the fast path, an owned [`Segment`] for crafting.

use std::fmt;
use std::net::SocketAddr;
use std::ops::{BitOr, BitOrAssign};

use pnet_packet::tcp::{MutableTcpPacket, TcpPacket};

use super::checksum::{self, Checksum};
use super::field::tcp as field;
use super::ip::{self, Header, IpPacket};
use super::option::TcpOption;
use crate::error::{Error, Result};

/// Length of a TCP header without options, in bytes.
pub const HEADER: usize = 20;
/// The data offset has four bits, so options end here.
pub const MAX_OPTIONS: usize = 40;

/// The 12 bits behind the data offset: the flags, and above them the reserved bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronize sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment field is significant.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer is significant.
    pub const URG: Self = Self(0x20);
    /// ECN echo (RFC 3168).
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced (RFC 3168).
    pub const CWR: Self = Self(0x80);
    /// Accurate ECN (RFC 9768).
    pub const AE: Self = Self(0x100);

    /// Whether all of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is set.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Flags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// As tcpdump prints them: `S.` is SYN and ACK.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LETTERS: [(Flags, &str); 9] = [
            (Flags::FIN, "F"),
            (Flags::SYN, "S"),
            (Flags::RST, "R"),
            (Flags::PSH, "P"),
            (Flags::ACK, "."),
            (Flags::URG, "U"),
            (Flags::ECE, "E"),
            (Flags::CWR, "W"),
            (Flags::AE, "e"),
        ];
        if self.0 & 0x1ff == 0 {
            return f.write_str("none");
        }
        LETTERS.iter().filter(|(flag, _)| self.contains(*flag)).try_for_each(|(_, letter)| f.write_str(letter))
    }
}

/// A segment read in place; allocates nothing.
#[derive(Debug, Clone)]
pub struct TcpView<'a> {
    /// The IP packet around it.
    pub ip: IpPacket<'a>,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number; without meaning unless [`Flags::ACK`] is set.
    pub ack: u32,
    /// Flags and reserved bits.
    pub flags: Flags,
    /// Window as in the header, unscaled.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    header_length: usize,
}

impl<'a> TcpView<'a> {
    /// Reads the TCP segment in an IP packet.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the packet is malformed, a fragment, or not TCP.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        Self::read(bytes).map_err(|reason| Error::invalid("TCP segment", reason))
    }

    /// [`parse`](Self::parse) without a sentence to allocate.
    ///
    /// # Errors
    /// What is wrong, in a few words.
    pub fn read(bytes: &'a [u8]) -> Result<Self, &'static str> {
        let ip = IpPacket::read(bytes)?;
        if ip.fragment.is_some() {
            return Err("a fragment: reassemble it first");
        }
        if ip.protocol != ip::TCP {
            return Err("the packet does not carry TCP");
        }
        let header = TcpPacket::new(ip.payload()).ok_or("shorter than a TCP header")?;
        let header_length = usize::from(header.get_data_offset()) * 4;
        if !(HEADER..=ip.payload().len()).contains(&header_length) {
            return Err("the TCP data offset points outside the segment");
        }
        Ok(Self {
            source_port: header.get_source(),
            destination_port: header.get_destination(),
            seq: header.get_sequence(),
            ack: header.get_acknowledgement(),
            flags: Flags(u16::from(header.get_reserved()) << 8 | u16::from(header.get_flags())),
            window: header.get_window(),
            urgent: header.get_urgent_ptr(),
            header_length,
            ip,
        })
    }

    /// The sender.
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(self.ip.source, self.source_port)
    }

    /// The receiver.
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.ip.destination, self.destination_port)
    }

    /// The option bytes, padding included.
    pub fn options(&self) -> &'a [u8] {
        &self.ip.payload()[HEADER..self.header_length]
    }

    /// The data.
    pub fn payload(&self) -> &'a [u8] {
        &self.ip.payload()[self.header_length..]
    }

    /// How much of the sequence space the segment takes: data, SYN and FIN (RFC 9293, SEG.LEN).
    pub fn sequence_length(&self) -> u32 {
        sequence_length(self.flags, self.payload().len())
    }
}

fn sequence_length(flags: Flags, payload: usize) -> u32 {
    payload as u32 + u32::from(flags.contains(Flags::SYN)) + u32::from(flags.contains(Flags::FIN))
}

/// A TCP segment with its IP header, every field settable.
///
/// Malformed is legal: what is set here is sent as it is, computed is only what is `None`,
/// the lengths and the IPv4 header checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The sender.
    pub source: SocketAddr,
    /// The receiver.
    pub destination: SocketAddr,
    /// Sequence number of the first byte, or of SYN.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Flags; the reserved bits too.
    pub flags: Flags,
    /// Window as in the header, unscaled.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options in their order. More than 40 bytes are cut off when building; less than a
    /// multiple of 4 is padded with zeros.
    pub options: Vec<TcpOption>,
    /// The data.
    pub payload: Vec<u8>,
    /// `None`: computed. `Some`: this, whether right or wrong.
    pub checksum: Option<u16>,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// DSCP and ECN, the traffic class.
    pub tos: u8,
    /// IPv4 identification; not used for IPv6.
    pub id: u16,
}

impl Segment {
    /// A segment without flags, data or options, window 64240, time to live 64.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source,
            destination,
            seq: 0,
            ack: 0,
            flags: Flags::NONE,
            // What Linux offers first: 44 segments of 1460.
            window: 64_240,
            urgent: 0,
            options: Vec::new(),
            payload: Vec::new(),
            checksum: None,
            ttl: 64,
            tos: 0,
            id: 0,
        }
    }

    /// Reads a segment. A wrong checksum is no error: it is kept in [`checksum`](Self::checksum), which is `None` for
    /// a right one.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the packet is malformed, a fragment, or not TCP.
    pub fn parse(ip: &[u8]) -> Result<Self> {
        let view = TcpView::parse(ip)?;
        let checksum = &view.ip.payload()[field::CHECKSUM];
        let checksum = u16::from_be_bytes([checksum[0], checksum[1]]);
        Ok(Self {
            source: view.source(),
            destination: view.destination(),
            seq: view.seq,
            ack: view.ack,
            flags: view.flags,
            window: view.window,
            urgent: view.urgent,
            options: TcpOption::parse_all(view.options()),
            payload: view.payload().to_vec(),
            checksum: (checksum::verify(ip, false) != Checksum::Valid).then_some(checksum),
            ttl: view.ip.ttl,
            tos: view.ip.tos,
            id: view.ip.id,
        })
    }

    /// The IP packet. Where one address is IPv4 and the other IPv6, the former is mapped into IPv6.
    pub fn build(&self) -> Vec<u8> {
        let mut options = Vec::with_capacity(MAX_OPTIONS);
        self.options.iter().for_each(|option| option.emit(&mut options));
        options.truncate(MAX_OPTIONS);
        options.resize(options.len().next_multiple_of(4), 0);
        let header = HEADER + options.len();
        let (mut bytes, at) = Header {
            source: self.source.ip(),
            destination: self.destination.ip(),
            protocol: ip::TCP,
            ttl: self.ttl,
            tos: self.tos,
            id: self.id,
        }
        .build(header + self.payload.len());
        bytes[at + HEADER..at + header].copy_from_slice(&options);
        bytes[at + header..].copy_from_slice(&self.payload);
        if let Some(mut tcp) = MutableTcpPacket::new(&mut bytes[at..]) {
            tcp.set_source(self.source.port());
            tcp.set_destination(self.destination.port());
            tcp.set_sequence(self.seq);
            tcp.set_acknowledgement(self.ack);
            tcp.set_data_offset((header / 4) as u8);
            tcp.set_reserved((self.flags.0 >> 8 & 0x0f) as u8);
            tcp.set_flags(self.flags.0 as u8);
            tcp.set_window(self.window);
            tcp.set_urgent_ptr(self.urgent);
        }
        match self.checksum {
            Some(checksum) => bytes[at..][field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes()),
            None => checksum::fix(&mut bytes),
        }
        bytes
    }

    /// How much of the sequence space the segment takes: data, SYN and FIN (RFC 9293, SEG.LEN).
    pub fn sequence_length(&self) -> u32 {
        sequence_length(self.flags, self.payload.len())
    }

    /// The maximum segment size option, if there is one.
    pub fn mss(&self) -> Option<u16> {
        self.options.iter().find_map(|option| match option {
            TcpOption::Mss(mss) => Some(*mss),
            _ => None,
        })
    }

    /// The window scale option, if there is one.
    pub fn window_scale(&self) -> Option<u8> {
        self.options.iter().find_map(|option| match option {
            TcpOption::WindowScale(shift) => Some(*shift),
            _ => None,
        })
    }
}

/// One line as `tcpdump -n -S` prints it, without the time.
impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        endpoints(f, self.source, self.destination)?;
        write!(f, ": Flags [{}]", self.flags)?;
        let length = self.payload.len();
        if let Some(checksum) = self.checksum {
            write!(f, ", cksum {checksum:#06x} (incorrect)")?;
        }
        if length > 0 {
            write!(f, ", seq {}:{}", self.seq, self.seq.wrapping_add(length as u32))?;
        } else if self.flags.intersects(Flags::SYN | Flags::FIN | Flags::RST) {
            write!(f, ", seq {}", self.seq)?;
        }
        if self.flags.contains(Flags::ACK) {
            write!(f, ", ack {}", self.ack)?;
        }
        write!(f, ", win {}", self.window)?;
        if self.flags.contains(Flags::URG) {
            write!(f, ", urg {}", self.urgent)?;
        }
        if !self.options.is_empty() {
            f.write_str(", options [")?;
            for (index, option) in self.options.iter().enumerate() {
                let comma = if index > 0 { "," } else { "" };
                write!(f, "{comma}{option}")?;
            }
            f.write_str("]")?;
        }
        write!(f, ", length {length}")
    }
}

/// `IP 192.0.2.2.49152 > 192.0.2.1.80`
pub(super) fn endpoints(f: &mut fmt::Formatter<'_>, source: SocketAddr, destination: SocketAddr) -> fmt::Result {
    let version = if source.is_ipv4() && destination.is_ipv4() { "IP" } else { "IP6" };
    let (from, to) = (source.ip(), destination.ip());
    write!(f, "{version} {from}.{} > {to}.{}", source.port(), destination.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn option() -> impl Strategy<Value = TcpOption> {
        prop_oneof![
            Just(TcpOption::Nop),
            any::<u16>().prop_map(TcpOption::Mss),
            any::<u8>().prop_map(TcpOption::WindowScale),
            Just(TcpOption::SackPermitted),
            proptest::collection::vec(any::<(u32, u32)>(), 1..2).prop_map(TcpOption::Sack),
            any::<(u32, u32)>().prop_map(|(value, echo)| TcpOption::Timestamps { value, echo }),
            (9u8.., proptest::collection::vec(any::<u8>(), 0..5))
                .prop_map(|(kind, data)| TcpOption::Other { kind, data }),
        ]
    }

    proptest! {
        #[test]
        fn parse_undoes_build(
            v6 in any::<bool>(), ports in any::<(u16, u16)>(), numbers in any::<(u32, u32)>(), flags in 0u16..0x1000,
            (window, urgent, id, ttl, tos) in any::<(u16, u16, u16, u8, u8)>(),
            options in proptest::collection::vec(option(), 0..4),
            bad_options in any::<bool>(),
            payload in proptest::collection::vec(any::<u8>(), 0..1500),
            wrong in any::<bool>(),
        ) {
            let mut options = options;
            if bad_options {
                options.push(TcpOption::Raw(vec![77, 0, 1, 2]));
            }
            let address = if v6 { ["2001:db8::1", "2001:db8::2"] } else { ["192.0.2.1", "192.0.2.2"] };
            let mut segment = Segment {
                seq: numbers.0, ack: numbers.1, flags: Flags(flags), window, urgent, options, payload, checksum: None,
                ttl, tos, id: if v6 { 0 } else { id },
                ..Segment::new(
                    SocketAddr::new(address[0].parse().unwrap(), ports.0),
                    SocketAddr::new(address[1].parse().unwrap(), ports.1),
                )
            };
            // The padding of a Raw would be read as part of it.
            let mut emitted = Vec::new();
            segment.options.iter().for_each(|option| option.emit(&mut emitted));
            prop_assume!(emitted.len() <= MAX_OPTIONS);
            if bad_options && emitted.len() % 4 > 0 {
                segment.options.pop();
            }
            let bytes = segment.build();
            prop_assert_eq!(checksum::verify(&bytes, false), Checksum::Valid);
            prop_assert_eq!(&Segment::parse(&bytes).unwrap(), &segment);
            if wrong {
                let at = if v6 { 56 } else { 36 };
                segment.checksum = Some(!u16::from_be_bytes([bytes[at], bytes[at + 1]]) ^ 1);
                prop_assert_eq!(&Segment::parse(&segment.build()).unwrap(), &segment);
            }
        }
    }

    #[test]
    fn prints_like_tcpdump() {
        let mut segment = Segment {
            seq: 1,
            ack: 2,
            flags: Flags::SYN | Flags::ACK,
            options: vec![TcpOption::Mss(1460), TcpOption::SackPermitted, TcpOption::Nop, TcpOption::WindowScale(7)],
            ..Segment::new("192.0.2.2:49152".parse().unwrap(), "192.0.2.1:80".parse().unwrap())
        };
        assert_eq!(
            segment.to_string(),
            "IP 192.0.2.2.49152 > 192.0.2.1.80: Flags [S.], seq 1, ack 2, win 64240, \
             options [mss 1460,sackOK,nop,wscale 7], length 0"
        );
        segment.options = vec![TcpOption::Sack(vec![(5, 9), (11, 12)])];
        segment.flags = Flags::PSH | Flags::ACK;
        segment.payload = vec![0; 100];
        assert_eq!(
            segment.to_string(),
            "IP 192.0.2.2.49152 > 192.0.2.1.80: Flags [P.], seq 1:101, ack 2, win 64240, \
             options [sack 2 {5:9}{11:12}], length 100"
        );
        let bare = Segment::new("[2001:db8::1]:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap());
        assert_eq!(bare.to_string(), "IP6 2001:db8::1.1 > 2001:db8::2.2: Flags [none], win 64240, length 0");
    }

    #[test]
    fn a_data_offset_outside_is_refused() {
        let segment = Segment::new("192.0.2.2:1".parse().unwrap(), "192.0.2.1:2".parse().unwrap());
        for offset in [0x00, 0x40, 0x60] {
            let mut bytes = segment.build();
            bytes[32] = offset;
            assert!(Segment::parse(&bytes).is_err());
        }
    }
}
