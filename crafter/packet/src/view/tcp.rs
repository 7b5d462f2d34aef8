//! TCP segments (RFC 9293, section 3.1).

use std::fmt;
use std::net::SocketAddr;
use std::ops::{BitOr, BitOrAssign};

use pnet_packet::tcp::TcpPacket;

use super::checksum::{self, Checksum};
use super::ip::{self, IpPacket};
use super::option::{self, ListItem, OptionList};
use crate::error::{Error, Result};

/// Length of a TCP header without options, in bytes.
pub const HEADER: usize = 20;

/// The 12 bits after the data offset: nine flags, and above them three reserved bits.
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

/// The letters of tcpdump: `S.` is SYN and ACK.
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

/// A view over a TCP segment in an IP packet; allocates nothing. Numbers are in host byte order.
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
    /// Acknowledgment number; valid only if [`Flags::ACK`] is set.
    pub ack: u32,
    /// Flags and reserved bits.
    pub flags: Flags,
    /// Window as in the header, not scaled.
    pub window: u16,
    /// Checksum as in the header.
    pub checksum: u16,
    /// Urgent pointer, in bytes from `seq`; valid only if [`Flags::URG`] is set.
    pub urgent: u16,
    header_length: usize,
}

impl<'a> TcpView<'a> {
    /// Reads the TCP segment in an IP packet.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the packet is malformed, a fragment, or not TCP.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        Self::read(bytes).map_err(|reason| Error::invalid("TCP segment", reason))
    }

    /// Like [`parse`](Self::parse); the error is the reason, not allocated.
    ///
    /// # Errors
    /// The reason.
    pub fn read(bytes: &'a [u8]) -> Result<Self, &'static str> {
        let ip = IpPacket::read_whole(bytes)?;
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
            checksum: header.get_checksum(),
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

    /// Length in sequence space: data, SYN and FIN (SEG.LEN of RFC 9293, section 3.3.1).
    pub fn sequence_length(&self) -> u32 {
        let controls = u32::from(self.flags.contains(Flags::SYN)) + u32::from(self.flags.contains(Flags::FIN));
        self.payload().len() as u32 + controls
    }

    /// The maximum segment size option in bytes of payload (RFC 9293, section 3.7.1), if there is one.
    pub fn mss(&self) -> Option<u16> {
        self.option(option::MSS)?.try_into().ok().map(u16::from_be_bytes)
    }

    /// The shift of the window scale option (RFC 7323, section 2.2), if there is one. It may exceed 14.
    pub fn window_scale(&self) -> Option<u8> {
        self.option(option::WINDOW_SCALE)?.try_into().ok().map(u8::from_be_bytes)
    }

    /// The data of the first option of a kind.
    fn option(&self, wanted: u8) -> Option<&'a [u8]> {
        OptionList::new(self.options()).find_map(|item| match item {
            ListItem::Option { kind, data } if kind == wanted => Some(data),
            _ => None,
        })
    }
}

/// One line as `tcpdump -n -S` prints it, without the time. A checksum is incorrect if it is neither valid nor
/// [partial](Checksum::Partial).
impl fmt::Display for TcpView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip.write_endpoints(f, self.source_port, self.destination_port)?;
        write!(f, ": Flags [{}]", self.flags)?;
        if checksum::verify(self.ip.bytes(), true) == Checksum::Invalid {
            write!(f, ", cksum {:#06x} (incorrect)", self.checksum)?;
        }
        let length = self.payload().len();
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
        if self.options().iter().any(|byte| *byte != option::END) {
            f.write_str(", options [")?;
            option::write_tcp(f, self.options())?;
            f.write_str("]")?;
        }
        write!(f, ", length {length}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Packet, Tcp, TcpOption};

    fn tcp() -> Tcp {
        Tcp::new().flags(Flags::NONE).window(64_240)
    }

    fn line(packet: &Packet) -> String {
        TcpView::parse(&packet.build().unwrap()).unwrap().to_string()
    }

    #[test]
    fn prints_like_tcpdump() {
        let ends = ("192.0.2.2:49152".parse().unwrap(), "192.0.2.1:80".parse().unwrap());
        let options = [TcpOption::Mss(1460), TcpOption::SackOk, TcpOption::Nop, TcpOption::WScale(7)];
        let syn = tcp().seq(1).ack(2).flags("SA").options(options).between(ends.0, ends.1);
        assert_eq!(
            line(&syn),
            "IP 192.0.2.2.49152 > 192.0.2.1.80: Flags [S.], seq 1, ack 2, win 64240, \
             options [mss 1460,sackOK,nop,wscale 7], length 0"
        );
        let sack = [TcpOption::Sack([(5, 9), (11, 12)].into_iter().collect())];
        let data = tcp().seq(1).ack(2).flags("PA").options(sack).between(ends.0, ends.1) / vec![0; 100];
        assert_eq!(
            line(&data),
            "IP 192.0.2.2.49152 > 192.0.2.1.80: Flags [P.], seq 1:101, ack 2, win 64240, \
             options [sack 2 {5:9}{11:12}], length 100"
        );
        let bare = tcp().between("[2001:db8::1]:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap());
        assert_eq!(line(&bare), "IP6 2001:db8::1.1 > 2001:db8::2.2: Flags [none], win 64240, length 0");
        let wrong = tcp().chksum(7).between(ends.0, ends.1);
        assert_eq!(
            line(&wrong),
            "IP 192.0.2.2.49152 > 192.0.2.1.80: Flags [none], cksum 0x0007 (incorrect), win 64240, length 0"
        );
    }

    #[test]
    fn fields_are_those_of_the_layers() {
        let options = [TcpOption::Mss(1000), TcpOption::WScale(15)];
        let tcp = Tcp::new().seq(1).ack(2).reserved(7).flags(Flags(0x1ff)).window(3).urgptr(4).options(options);
        let ends = ("192.0.2.1:5".parse().unwrap(), "192.0.2.2:6".parse().unwrap());
        let bytes = (tcp.between(ends.0, ends.1) / "data").build().unwrap();
        let view = TcpView::parse(&bytes).unwrap();
        assert_eq!((view.source(), view.destination()), ends);
        assert_eq!((view.seq, view.ack, view.flags, view.window, view.urgent), (1, 2, Flags(0xfff), 3, 4));
        assert_eq!((view.mss(), view.window_scale()), (Some(1000), Some(15)));
        assert_eq!((view.payload(), view.sequence_length()), (&b"data"[..], 6));
    }

    #[test]
    fn data_offset_outside_the_segment_is_rejected() {
        let bytes = tcp().between("192.0.2.2:1".parse().unwrap(), "192.0.2.1:2".parse().unwrap()).build().unwrap();
        for offset in [0x00, 0x40, 0x60] {
            let mut bytes = bytes.clone();
            bytes[32] = offset;
            assert!(TcpView::parse(&bytes).is_err());
        }
    }
}
