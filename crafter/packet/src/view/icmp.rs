//! ICMP (RFC 792) and ICMPv6 (RFC 4443) errors and the packets that they quote.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use pnet_packet::icmp::destination_unreachable::IcmpCodes as Unreachable;
use pnet_packet::icmp::{IcmpPacket, IcmpTypes};
use pnet_packet::icmpv6::{Icmpv6Packet, Icmpv6Types};

use super::field::{icmp as field, tcp};
use super::ip::{self, IpPacket};
use crate::error::{Error, Result};

/// Length of the header before the quoted packet, in bytes.
const HEADER: usize = 8;

/// Reason of an ICMP error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpReason {
    /// No route to the network.
    NetworkUnreachable,
    /// No route to the host, or no link-layer address for it.
    HostUnreachable,
    /// The host does not support the protocol.
    ProtocolUnreachable,
    /// Nothing is bound to the port.
    PortUnreachable,
    /// A filter on the path rejected the packet.
    Prohibited,
    /// The packet exceeds the MTU of a link.
    PacketTooBig {
        /// The link's MTU in bytes; 0 from a router older than RFC 1191.
        mtu: u32,
    },
    /// The time to live or hop limit reached 0.
    TimeExceeded,
    /// Fragments were missing.
    ReassemblyTimeExceeded,
    /// A header field is invalid or unsupported.
    ParameterProblem,
    /// Any other error.
    Other {
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
    },
}

impl IcmpReason {
    /// Whether the peer is unreachable, as opposed to a single packet being dropped. It ends a connection attempt, as
    /// in Linux (`tcp_v4_err` in SYN-SENT), but not an established connection (RFC 5927, section 5.2).
    pub fn is_unreachable(self) -> bool {
        match self {
            Self::NetworkUnreachable
            | Self::HostUnreachable
            | Self::ProtocolUnreachable
            | Self::PortUnreachable
            | Self::Prohibited
            | Self::TimeExceeded
            | Self::ParameterProblem => true,
            Self::PacketTooBig { .. } | Self::ReassemblyTimeExceeded | Self::Other { .. } => false,
        }
    }

    fn from_v4(kind: u8, code: u8, rest: [u8; 4]) -> Self {
        if kind == IcmpTypes::DestinationUnreachable.0 {
            const NETWORK: [u8; 3] = [
                Unreachable::DestinationNetworkUnreachable.0,
                Unreachable::DestinationNetworkUnknown.0,
                Unreachable::NetworkUnreachableForTOS.0,
            ];
            const HOST: [u8; 4] = [
                Unreachable::DestinationHostUnreachable.0,
                Unreachable::DestinationHostUnknown.0,
                Unreachable::SourceHostIsolated.0,
                Unreachable::HostUnreachableForTOS.0,
            ];
            const PROHIBITED: [u8; 5] = [
                Unreachable::NetworkAdministrativelyProhibited.0,
                Unreachable::HostAdministrativelyProhibited.0,
                Unreachable::CommunicationAdministrativelyProhibited.0,
                Unreachable::HostPrecedenceViolation.0,
                Unreachable::PrecedenceCutoffInEffect.0,
            ];
            return match code {
                code if NETWORK.contains(&code) => Self::NetworkUnreachable,
                code if HOST.contains(&code) => Self::HostUnreachable,
                code if PROHIBITED.contains(&code) => Self::Prohibited,
                2 => Self::ProtocolUnreachable,
                3 => Self::PortUnreachable,
                // RFC 1191, section 4: the low half of the unused word.
                4 => Self::PacketTooBig { mtu: u16::from_be_bytes([rest[2], rest[3]]).into() },
                _ => Self::Other { kind, code },
            };
        }
        match (kind, code) {
            (11, 0) => Self::TimeExceeded,
            (11, 1) => Self::ReassemblyTimeExceeded,
            (12, _) => Self::ParameterProblem,
            _ => Self::Other { kind, code },
        }
    }

    fn from_v6(kind: u8, code: u8, rest: [u8; 4]) -> Self {
        match (kind, code) {
            (1, 0) => Self::NetworkUnreachable,
            // 5: source address failed ingress or egress policy; 6: reject route to destination.
            (1, 1 | 5 | 6) => Self::Prohibited,
            (1, 2 | 3) => Self::HostUnreachable,
            (1, 4) => Self::PortUnreachable,
            (2, _) => Self::PacketTooBig { mtu: u32::from_be_bytes(rest) },
            (3, 0) => Self::TimeExceeded,
            (3, 1) => Self::ReassemblyTimeExceeded,
            // RFC 4443, section 3.4: code 1 is an unrecognized next header, the equivalent of protocol unreachable in
            // ICMP.
            (4, 1) => Self::ProtocolUnreachable,
            (4, _) => Self::ParameterProblem,
            _ => Self::Other { kind, code },
        }
    }
}

/// In words.
impl fmt::Display for IcmpReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NetworkUnreachable => f.write_str("network unreachable"),
            Self::HostUnreachable => f.write_str("host unreachable"),
            Self::ProtocolUnreachable => f.write_str("protocol unreachable"),
            Self::PortUnreachable => f.write_str("port unreachable"),
            Self::Prohibited => f.write_str("administratively prohibited"),
            Self::PacketTooBig { mtu } => write!(f, "packet too big, mtu {mtu}"),
            Self::TimeExceeded => f.write_str("time exceeded in transit"),
            Self::ReassemblyTimeExceeded => f.write_str("fragment reassembly time exceeded"),
            Self::ParameterProblem => f.write_str("parameter problem"),
            Self::Other { kind, code } => write!(f, "ICMP type {kind}, code {code}"),
        }
    }
}

/// The packet quoted in an ICMP error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    /// The protocol after all quoted extension headers.
    pub protocol: u8,
    /// Its source. The port is 0 unless it is TCP or UDP.
    pub source: SocketAddr,
    /// Its destination. The port is 0 unless it is TCP or UDP.
    pub destination: SocketAddr,
    /// The TCP sequence number, to validate the error (RFC 5927, section 4.1).
    pub seq: Option<u32>,
}

/// An ICMP or ICMPv6 error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpError {
    /// The router or host that sent the error.
    pub from: IpAddr,
    /// The host that it was sent to.
    pub to: IpAddr,
    /// The reason.
    pub reason: IcmpReason,
    /// The quoted packet.
    pub quoted: Quoted,
}

impl IcmpError {
    /// Parses an ICMP or ICMPv6 error.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a malformed packet, an ICMP message that is not an error, and an error that quotes less
    /// than the ports of a TCP or UDP packet.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::read(bytes).map_err(|reason| Error::invalid("ICMP error", reason))
    }

    /// Like [`parse`](Self::parse); the error is the reason, not allocated.
    ///
    /// # Errors
    /// The reason.
    pub fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        let packet = IpPacket::read_whole(bytes)?;
        let message = packet.payload();
        let Some(&[kind, code, _, _, a, b, c, d]) = message.first_chunk::<HEADER>() else {
            return Err("shorter than an ICMP header");
        };
        let rest = [a, b, c, d];
        let reason = match (packet.protocol, packet.version()) {
            (ip::ICMP, 4) => {
                let kind = IcmpPacket::new(message).map(|icmp| icmp.get_icmp_type());
                match kind {
                    Some(
                        IcmpTypes::DestinationUnreachable
                        | IcmpTypes::SourceQuench
                        | IcmpTypes::RedirectMessage
                        | IcmpTypes::TimeExceeded
                        | IcmpTypes::ParameterProblem,
                    ) => {}
                    _ => return Err("not an ICMP error"),
                }
                IcmpReason::from_v4(message[field::TYPE], code, rest)
            }
            (ip::ICMPV6, 6) => {
                // RFC 4443, section 2.1: the high bit of the type is 0 in errors.
                match Icmpv6Packet::new(message).map(|icmp| icmp.get_icmpv6_type()) {
                    Some(error) if error.0 < Icmpv6Types::EchoRequest.0 => {}
                    _ => return Err("not an ICMPv6 error"),
                }
                IcmpReason::from_v6(kind, code, rest)
            }
            _ => return Err("the packet does not carry ICMP"),
        };
        let quoted = IpPacket::read_quoted(&message[HEADER..])?;
        if quoted.version() != packet.version() {
            return Err("quotes another IP version");
        }
        let ports = match quoted.protocol {
            ip::TCP | ip::UDP => {
                if quoted.fragment.is_some_and(|fragment| fragment.offset > 0) {
                    return Err("quotes a later fragment");
                }
                let ports = quoted.payload().first_chunk::<4>().ok_or("quotes less than the ports")?;
                (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]]))
            }
            _ => (0, 0),
        };
        let seq = match (quoted.protocol, quoted.payload().get(tcp::SEQ)) {
            (ip::TCP, Some(&[a, b, c, d])) => Some(u32::from_be_bytes([a, b, c, d])),
            _ => None,
        };
        Ok(Self {
            from: packet.source,
            to: packet.destination,
            reason,
            quoted: Quoted {
                protocol: quoted.protocol,
                source: SocketAddr::new(quoted.source, ports.0),
                destination: SocketAddr::new(quoted.destination, ports.1),
                seq,
            },
        })
    }
}

/// One line, similar to that of tcpdump.
impl fmt::Display for IcmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ip, icmp) = if self.from.is_ipv4() { ("IP", "ICMP") } else { ("IP6", "ICMP6") };
        let Quoted { source, destination, .. } = self.quoted;
        write!(f, "{ip} {} > {}: {icmp} {}, quoting {source} > {destination}", self.from, self.to, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::super::checksum;
    use super::*;
    use crate::layer::{Ip, Ipv6, Tcp, Udp};

    fn error(from: &str, to: &str, kind: u8, code: u8, rest: [u8; 4], quoted: &[u8]) -> Vec<u8> {
        let message = [&[kind, code, 0, 0][..], &rest, quoted].concat();
        let packet = match from.contains(':') {
            false => Ip::to(to).src(from).proto(ip::ICMP) / message,
            true => Ipv6::to(to).src(from).nh(ip::ICMPV6) / message,
        };
        let mut bytes = packet.build().unwrap();
        checksum::fix(&mut bytes);
        assert_eq!(checksum::verify(&bytes, false), checksum::Checksum::Valid);
        bytes
    }

    #[test]
    fn quoted_flow_is_read_from_eight_bytes() {
        let (source, destination) = ("192.0.2.2:49152".parse().unwrap(), "198.51.100.1:80".parse().unwrap());
        let sent = (Tcp::new().seq(0xdead_beef).between(source, destination) / vec![1; 600]).build().unwrap();
        let bytes = error("192.0.2.1", "192.0.2.2", 3, 1, [0; 4], &sent[..28]);
        let read = IcmpError::parse(&bytes).unwrap();
        assert_eq!(read.reason, IcmpReason::HostUnreachable);
        assert_eq!((read.quoted.source, read.quoted.destination), (source, destination));
        assert_eq!((read.quoted.seq, read.quoted.protocol), (Some(0xdead_beef), ip::TCP));
        assert_eq!(read.from, "192.0.2.1".parse::<IpAddr>().unwrap());
        assert!(read.reason.is_unreachable());
        assert!(IcmpError::parse(&error("192.0.2.1", "192.0.2.2", 3, 1, [0; 4], &sent[..23])).is_err());
        assert!(IcmpError::parse(&error("192.0.2.1", "192.0.2.2", 8, 0, [0; 4], &sent[..28])).is_err());
    }

    #[test]
    fn icmp_reasons_display() {
        let udp = |source: &str, destination: &str| {
            Udp::new().between(source.parse().unwrap(), destination.parse().unwrap()).build().unwrap()
        };
        let (v4, v6) = (udp("192.0.2.2:1", "192.0.2.3:2"), udp("[2001:db8::2]:1", "[2001:db8::3]:2"));
        let said4 = |kind, code, rest| {
            IcmpError::parse(&error("192.0.2.1", "192.0.2.2", kind, code, rest, &v4)).unwrap().reason.to_string()
        };
        let said6 = |kind, code, rest| {
            let bytes = error("2001:db8::1", "2001:db8::2", kind, code, rest, &v6);
            IcmpError::parse(&bytes).unwrap().reason.to_string()
        };
        assert_eq!(said4(3, 3, [0; 4]), "port unreachable");
        assert_eq!(said4(3, 0, [0; 4]), "network unreachable");
        assert_eq!(said4(3, 13, [0; 4]), "administratively prohibited");
        assert_eq!(said4(3, 4, [0, 0, 0x05, 0x78]), "packet too big, mtu 1400");
        assert_eq!(said4(11, 0, [0; 4]), "time exceeded in transit");
        assert_eq!(said6(1, 4, [0; 4]), "port unreachable");
        assert_eq!(said6(1, 3, [0; 4]), "host unreachable");
        assert_eq!(said6(2, 0, [0, 0, 0x05, 0]), "packet too big, mtu 1280");
        assert_eq!(said6(3, 0, [0; 4]), "time exceeded in transit");
    }
}
