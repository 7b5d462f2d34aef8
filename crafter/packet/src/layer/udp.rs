//! UDP.

use std::{fmt, net::SocketAddr};

use super::{
    AnyLayer, Kind, Packet, answer,
    build::Building,
    protocol::{Fixed, Parsed, Protocol},
    table::{FieldError, layer},
    tcp,
    value::IntoField,
};
use crate::view::ip;

/// Port of DNS servers.
pub(crate) const DNS: u16 = 53;
/// Port of multicast DNS (RFC 6762, section 3).
const MULTICAST_DNS: u16 = 5353;
/// Port of LLMNR (RFC 4795, section 2).
const LLMNR: u16 = 5355;
/// Port of VXLAN (RFC 7348, section 5).
pub(crate) const VXLAN: u16 = 4789;

/// Port of GRE in UDP (RFC 8086, section 8).
const GRE: u16 = 4754;

layer! {
    /// User Datagram Protocol
    pub struct Udp: "UDP", "RFC 768" {
        /// Source port; if unset, the well-known port of the layer above, else 53
        sport: u16, 16, computed;
        /// Destination port; if unset, the well-known port of the layer above, else 53
        dport: u16, 16, computed;
        /// Length of header and payload in bytes
        len: u16, 16, computed;
        /// Checksum over pseudo-header, header and payload; 0: none
        chksum: u16, 16, computed;
    }
    tail {}
}

impl Udp {
    /// A datagram to a destination port.
    pub fn to(dport: impl IntoField<u16>) -> Self {
        Self::new().dport(dport)
    }

    /// This datagram with the ports of two endpoints, on an IP header with their [addresses](Packet::between).
    pub fn between(self, source: SocketAddr, destination: SocketAddr) -> Packet {
        Packet::between(source.ip(), destination.ip()) / self.sport(source.port()).dport(destination.port())
    }
}

/// The group of multicast DNS and of LLMNR, to which a datagram goes if the destination is unset, as in Scapy.
pub(crate) fn group(next: Option<&AnyLayer>) -> Option<std::net::Ipv4Addr> {
    match next {
        Some(AnyLayer::Udp(Udp { dport: Some(MULTICAST_DNS), .. })) => Some([224, 0, 0, 251].into()),
        Some(AnyLayer::Udp(Udp { dport: Some(LLMNR), .. })) => Some([224, 0, 0, 252].into()),
        _ => None,
    }
}

/// The well-known port of the layer above; 53 if it has none.
pub(crate) fn port(next: Option<&AnyLayer>) -> u16 {
    match next {
        Some(AnyLayer::Vxlan(_)) => VXLAN,
        _ => DNS,
    }
}

impl Protocol for Udp {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let layer = Self::get_fixed(bytes)?;
        let end = match usize::from(layer.len?) {
            length if length >= Self::FIXED => length.min(bytes.len()),
            // 0 in a jumbogram (RFC 2675, section 4); smaller values are malformed.
            _ => bytes.len(),
        };
        let is = |port| layer.sport == Some(port) || layer.dport == Some(port);
        let next = match () {
            () if layer.dport == Some(VXLAN) => Kind::Vxlan,
            () if layer.dport == Some(GRE) => Kind::Gre,
            () if is(DNS) || is(MULTICAST_DNS) || is(LLMNR) => Kind::Dns,
            () => Kind::Raw,
        };
        Some(Parsed { layer, header: Self::FIXED, end, next })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)
    }

    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        let port = port(packet.next());
        if self.sport.is_none() {
            packet.put16(Self::AT.sport, port);
        }
        if self.dport.is_none() {
            let port = if matches!(packet.next(), Some(AnyLayer::Gre(_))) { GRE } else { port };
            packet.put16(Self::AT.dport, port);
        }
        if self.len.is_none() {
            let length = packet.length().max(Self::FIXED);
            let length = u16::try_from(length).map_err(|_| FieldError { layer: "UDP", field: "len", bits: 16 })?;
            packet.put16(Self::AT.len, length);
        }
        if self.chksum.is_none()
            && let Some(value) = packet.checksum(Some(ip::UDP))
        {
            // 0 means that there is no checksum.
            packet.put16(Self::AT.chksum, if value == 0 { 0xffff } else { value });
        }
        Ok(())
    }

    fn answers(&self, above: &[AnyLayer], request: &Self, asked: &[AnyLayer]) -> bool {
        if let ([AnyLayer::Vxlan(_), ..], [AnyLayer::Vxlan(_), ..]) = (above, asked) {
            // Both ends of a tunnel send to the same port, from any source port (RFC 7348, section 5).
            return answer::answers(above, asked);
        }
        let (here, there) = (port(above.first()), port(asked.first()));
        self.sport.unwrap_or(here) == request.dport.unwrap_or(there)
            && self.dport.unwrap_or(here) == request.sport.unwrap_or(there)
            && answer::answers(above, asked)
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, packet: &[AnyLayer], at: usize) -> fmt::Result {
        let port = port(packet.get(at + 1));
        tcp::ports(f, "UDP", packet, at, self.sport.unwrap_or(port), self.dport.unwrap_or(port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layer::{Ip, Ipv6},
        view::checksum::{Checksum, verify},
    };

    #[test]
    fn bytes() {
        let bytes = (Ip::to("192.0.2.2").src("192.0.2.1") / Udp::to(7).sport(9) / "odd").build().unwrap();
        assert_eq!(bytes[20..26], [0, 9, 0, 7, 0, 11]);
        assert_eq!(verify(&bytes, false), Checksum::Valid);
        assert_eq!(Packet::from_ip(&bytes).build().unwrap(), bytes);
    }

    #[test]
    fn computed_checksum_of_zero_is_sent_as_ones() {
        let zero = Udp::to(7).sport(9);
        let all = (0..=u16::MAX).find(|word| {
            let bytes = (Ipv6::to("2001:db8::1") / zero.clone() / &word.to_be_bytes()).build().unwrap();
            bytes[46..48] == [0xff, 0xff]
        });
        assert!(all.is_some());
        let none = (Ip::new() / Udp::new().chksum(0)).build().unwrap();
        assert_eq!(none[26..28], [0, 0]);
    }

    #[test]
    fn answers_match_ports() {
        let request = Ip::to("192.0.2.2").src("192.0.2.1") / Udp::to(7).sport(9);
        assert!((Ip::to("192.0.2.1").src("192.0.2.2") / Udp::to(9).sport(7)).answers(&request));
        assert!(!(Ip::to("192.0.2.1").src("192.0.2.2") / Udp::to(9).sport(8)).answers(&request));
    }
}
