//! UDP datagrams (RFC 768).

use std::fmt;
use std::net::SocketAddr;

use pnet_packet::udp::{MutableUdpPacket, UdpPacket};

use super::checksum::{self, Checksum};
use super::field::udp as field;
use super::ip::{self, Header, IpPacket};
use super::tcp::endpoints;
use crate::error::{Error, Result};

/// Length of a UDP header, in bytes.
pub const HEADER: usize = 8;

/// A UDP datagram with its IP header, every field settable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// The sender.
    pub source: SocketAddr,
    /// The receiver.
    pub destination: SocketAddr,
    /// The data.
    pub payload: Vec<u8>,
    /// `None`: computed. `Some`: this, whether right or wrong; `Some(0)` over IPv4 means that there is none.
    pub checksum: Option<u16>,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// DSCP and ECN, the traffic class.
    pub tos: u8,
    /// IPv4 identification; not used for IPv6.
    pub id: u16,
}

impl Datagram {
    /// A datagram with time to live 64.
    pub fn new(source: SocketAddr, destination: SocketAddr, payload: Vec<u8>) -> Self {
        Self { source, destination, payload, checksum: None, ttl: 64, tos: 0, id: 0 }
    }

    /// Reads a whole datagram. A wrong checksum is no error: it is kept in [`checksum`](Self::checksum), which is
    /// `None` for a right one.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the packet is malformed, a fragment, or not UDP.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let malformed = |reason: &str| Error::invalid("UDP datagram", reason);
        let ip = IpPacket::read(bytes).map_err(malformed)?;
        if ip.fragment.is_some() {
            return Err(malformed("a fragment: reassemble it first"));
        }
        if ip.protocol != ip::UDP {
            return Err(malformed("the packet does not carry UDP"));
        }
        let header = UdpPacket::new(ip.payload()).ok_or_else(|| malformed("shorter than a UDP header"))?;
        let length = match usize::from(header.get_length()) {
            // RFC 2675, section 4: a jumbogram.
            0 => ip.payload().len(),
            length => length,
        };
        let payload =
            ip.payload().get(HEADER..length).ok_or_else(|| malformed("the UDP length does not fit the packet"))?;
        let checksum = header.get_checksum();
        let right = checksum::verify(bytes, false) == Checksum::Valid && checksum != 0;
        Ok(Self {
            source: SocketAddr::new(ip.source, header.get_source()),
            destination: SocketAddr::new(ip.destination, header.get_destination()),
            payload: payload.to_vec(),
            checksum: (!right).then_some(checksum),
            ttl: ip.ttl,
            tos: ip.tos,
            id: ip.id,
        })
    }

    /// The IP packet. Where one address is IPv4 and the other IPv6, the former is mapped into IPv6.
    /// More payload than 65,527 bytes leaves length 0 in the header.
    pub fn build(&self) -> Vec<u8> {
        let length = HEADER + self.payload.len();
        let (mut bytes, at) = Header {
            source: self.source.ip(),
            destination: self.destination.ip(),
            protocol: ip::UDP,
            ttl: self.ttl,
            tos: self.tos,
            id: self.id,
        }
        .build(length);
        bytes[at + HEADER..].copy_from_slice(&self.payload);
        if let Some(mut udp) = MutableUdpPacket::new(&mut bytes[at..]) {
            udp.set_source(self.source.port());
            udp.set_destination(self.destination.port());
            udp.set_length(u16::try_from(length).unwrap_or(0));
        }
        match self.checksum {
            Some(checksum) => bytes[at..][field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes()),
            None => checksum::fix(&mut bytes),
        }
        bytes
    }
}

/// One line as `tcpdump -n` prints it, without the time.
impl fmt::Display for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        endpoints(f, self.source, self.destination)?;
        write!(f, ": UDP, length {}", self.payload.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parse_undoes_build(
            v6 in any::<bool>(), ports in any::<(u16, u16)>(), (id, ttl, tos) in any::<(u16, u8, u8)>(),
            payload in proptest::collection::vec(any::<u8>(), 0..1500),
        ) {
            let address = if v6 { ["2001:db8::1", "2001:db8::2"] } else { ["192.0.2.1", "192.0.2.2"] };
            let datagram = Datagram {
                ttl, tos, id: if v6 { 0 } else { id },
                ..Datagram::new(
                    SocketAddr::new(address[0].parse().unwrap(), ports.0),
                    SocketAddr::new(address[1].parse().unwrap(), ports.1),
                    payload,
                )
            };
            let bytes = datagram.build();
            prop_assert_eq!(checksum::verify(&bytes, false), Checksum::Valid);
            prop_assert_eq!(Datagram::parse(&bytes).unwrap(), datagram);
        }
    }

    #[test]
    fn prints_like_tcpdump_and_refuses_a_wrong_length() {
        let datagram = Datagram::new("192.0.2.2:5".parse().unwrap(), "192.0.2.1:53".parse().unwrap(), vec![0; 30]);
        assert_eq!(datagram.to_string(), "IP 192.0.2.2.5 > 192.0.2.1.53: UDP, length 30");
        for length in [7_u16, 39] {
            let mut bytes = datagram.build();
            bytes[24..26].copy_from_slice(&length.to_be_bytes());
            assert!(Datagram::parse(&bytes).is_err());
        }
        let none = Datagram { checksum: Some(0), ..datagram };
        assert_eq!(Datagram::parse(&none.build()).unwrap(), none);
    }
}
