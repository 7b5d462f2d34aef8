//! UDP datagrams (RFC 768).

use std::fmt;
use std::net::SocketAddr;

use pnet_packet::udp::UdpPacket;

use super::ip::{self, IpPacket};
use crate::error::{Error, Result};

/// Length of a UDP header, in bytes.
pub const HEADER: usize = 8;

/// A view over a UDP datagram in an IP packet; allocates nothing. Numbers are in host byte order.
#[derive(Debug, Clone)]
pub struct UdpView<'a> {
    /// The IP packet around it.
    pub ip: IpPacket<'a>,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Checksum as in the header; 0 over IPv4: none.
    pub checksum: u16,
    length: usize,
}

impl<'a> UdpView<'a> {
    /// Reads the UDP datagram in an IP packet.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the packet is malformed, a fragment, or not UDP.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        Self::read(bytes).map_err(|reason| Error::invalid("UDP datagram", reason))
    }

    /// Like [`parse`](Self::parse); the error is the reason, not allocated.
    ///
    /// # Errors
    /// The reason.
    pub fn read(bytes: &'a [u8]) -> Result<Self, &'static str> {
        let ip = IpPacket::read_whole(bytes)?;
        if ip.protocol != ip::UDP {
            return Err("the packet does not carry UDP");
        }
        let header = UdpPacket::new(ip.payload()).ok_or("shorter than a UDP header")?;
        let length = match usize::from(header.get_length()) {
            // RFC 2675, section 4: a jumbogram.
            0 => ip.payload().len(),
            length => length,
        };
        if !(HEADER..=ip.payload().len()).contains(&length) {
            return Err("the UDP length does not fit the packet");
        }
        Ok(Self {
            source_port: header.get_source(),
            destination_port: header.get_destination(),
            checksum: header.get_checksum(),
            length,
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

    /// The data.
    pub fn payload(&self) -> &'a [u8] {
        &self.ip.payload()[HEADER..self.length]
    }
}

/// One line as `tcpdump -n` prints it, without the time.
impl fmt::Display for UdpView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip.write_endpoints(f, self.source_port, self.destination_port)?;
        write!(f, ": UDP, length {}", self.payload().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Udp;

    #[test]
    fn prints_like_tcpdump_and_rejects_a_wrong_length() {
        let ends = ("192.0.2.2:5".parse().unwrap(), "192.0.2.1:53".parse().unwrap());
        let bytes = (Udp::new().between(ends.0, ends.1) / vec![0; 30]).build().unwrap();
        let view = UdpView::parse(&bytes).unwrap();
        assert_eq!(view.to_string(), "IP 192.0.2.2.5 > 192.0.2.1.53: UDP, length 30");
        assert_eq!((view.source(), view.destination(), view.payload()), (ends.0, ends.1, &[0; 30][..]));
        for length in [7_u16, 39] {
            let mut bytes = bytes.clone();
            bytes[24..26].copy_from_slice(&length.to_be_bytes());
            assert!(UdpView::parse(&bytes).is_err());
        }
    }
}
