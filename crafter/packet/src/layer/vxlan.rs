//! VXLAN.

use std::fmt;

use super::{
    AnyLayer, Kind, answer,
    protocol::{Fixed, Parsed, Protocol},
    table::{FieldError, layer},
};

layer! {
    /// Virtual network of Ethernet frames over UDP
    pub struct Vxlan: "VXLAN", "RFC 7348" {
        /// Flags; 8: the network identifier is valid
        flags: u8, 8, (8);
        /// Reserved, or extensions
        reserved1: u32, 24, (0);
        /// Network identifier
        vni: u32, 24, (0);
        /// Reserved
        reserved2: u8, 8, (0);
    }
    tail {}
}

impl Protocol for Vxlan {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let layer = Self::get_fixed(bytes)?;
        Some(Parsed { layer, header: Self::FIXED, end: bytes.len(), next: Kind::Ether })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)
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
