//! VXLAN.
#![allow(non_snake_case, reason = "the names of Scapy")]

use std::fmt;

use super::{
    AnyLayer, Kind, answer,
    build::Building,
    protocol::{Fixed, Parsed, Protocol},
    table::{FieldError, layer},
};

/// The flag of VXLAN-GPE for the type of the payload, and where that is.
const NEXT_PROTOCOL: u8 = 4;
const NEXT: usize = 3;

layer! {
    /// Virtual network of Ethernet frames over UDP
    pub struct Vxlan: "VXLAN", "RFC 7348" {
        /// Flags; 8: the network identifier is valid; 4: the type of the payload is given (VXLAN-GPE)
        flags: u8, 8, (8);
        /// Reserved, or extensions
        reserved1: u32, 24, (0);
        /// Network identifier
        vni: u32, 24, (0);
        /// Reserved
        reserved2: u8, 8, (0);
    }
    tail {
        /// Type of the payload: 1 IPv4, 2 IPv6, 3 Ethernet, in the last byte of reserved1; with flag 4, computed
        NextProtocol: u8;
    }
}

impl Protocol for Vxlan {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let mut layer = Self::get_fixed(bytes)?;
        let mut next = Kind::Ether;
        if layer.flags? & NEXT_PROTOCOL > 0 {
            let protocol = bytes[NEXT];
            layer.reserved1 = layer.reserved1.map(|reserved| reserved & !0xff);
            layer.NextProtocol = Some(protocol);
            next = match protocol {
                1 => Kind::Ip,
                2 => Kind::Ipv6,
                0 | 3 => Kind::Ether,
                _ => Kind::Raw,
            };
        }
        Some(Parsed { layer, header: Self::FIXED, end: bytes.len(), next })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        let start = out.len();
        self.put_fixed(out)?;
        if let Some(protocol) = self.NextProtocol {
            out[start + NEXT] = protocol;
        }
        Ok(())
    }

    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        if self.flags.unwrap_or(0) & NEXT_PROTOCOL > 0 && self.NextProtocol.is_none() && self.reserved1.is_none() {
            let protocol = match packet.next() {
                Some(AnyLayer::Ip(_)) => 1,
                Some(AnyLayer::Ipv6(_)) => 2,
                Some(AnyLayer::Ether(_)) => 3,
                _ => 0,
            };
            if let Some(byte) = packet.bytes().get_mut(NEXT) {
                *byte = protocol;
            }
        }
        Ok(())
    }

    fn answers(&self, above: &[AnyLayer], request: &Self, asked: &[AnyLayer]) -> bool {
        self.vni.unwrap_or(0) == request.vni.unwrap_or(0) && answer::answers(above, asked)
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
        write!(f, "VXLAN {}", self.vni.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use crate::layer::{Ether, Ip, Packet, Udp, Vxlan};

    #[test]
    fn a_frame_in_a_datagram() {
        let packet = Ip::to("192.0.2.1") / Udp::new() / Vxlan::new().vni(0x12_3456) / Ether::new() / Ip::new() / "x";
        let bytes = packet.build().unwrap();
        assert_eq!(bytes[22..24], 4789_u16.to_be_bytes());
        assert_eq!(bytes[28..36], [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        let read = Packet::from_ip(&bytes);
        assert_eq!(read.get::<Vxlan>().unwrap().vni, Some(0x12_3456));
        assert_eq!(read.all::<Ip>().count(), 2);
        assert_eq!(read.build().unwrap(), bytes);
    }
}
