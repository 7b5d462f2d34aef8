//! VLAN tags.

use std::fmt;

use super::{
    AnyLayer,
    build::Building,
    ether::{self, ETHERTYPES},
    protocol::{Fixed, Parsed, Protocol},
    table::{FieldError, layer},
};

layer! {
    /// VLAN tag of the customer, or the only tag
    pub struct Dot1Q: "Dot1Q", "IEEE 802.1Q" {
        /// Priority code point
        prio: u8, 3, (0);
        /// Drop eligible indicator
        dei: u8, 1, (0);
        /// VLAN identifier
        vlan: u16, 12, (1);
        /// Type of the payload
        r#type: u16, 16, computed, ETHERTYPES;
    }
    tail {}
}

layer! {
    /// VLAN tag of the service provider, outside another
    pub struct Dot1AD: "Dot1AD", "IEEE 802.1ad" {
        /// Priority code point
        prio: u8, 3, (0);
        /// Drop eligible indicator
        dei: u8, 1, (0);
        /// VLAN identifier
        vlan: u16, 12, (1);
        /// Type of the payload
        r#type: u16, 16, computed, ETHERTYPES;
    }
    tail {}
}

macro_rules! tag {
    ($($layer:ident: $name:literal),*) => {$(
        impl Protocol for $layer {
            fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
                let layer = Self::get_fixed(bytes)?;
                let next = ether::payload(layer.r#type?);
                Some(Parsed { layer, header: Self::FIXED, end: bytes.len(), next })
            }

            fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
                self.put_fixed(out)
            }

            fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
                if self.r#type.is_none() {
                    // Like Scapy, 0 where the payload has no type.
                    let number = ether::number(packet.next()).unwrap_or(0);
                    packet.put16(Self::AT.r#type, number);
                }
                Ok(())
            }

            fn answers(&self, above: &[AnyLayer], request: &Self, asked: &[AnyLayer]) -> bool {
                self.vlan.or(Self::DEFAULTS.vlan) == request.vlan.or(Self::DEFAULTS.vlan)
                    && super::answer::answers(above, asked)
            }

            fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
                write!(f, "{} vlan {}", $name, self.vlan.unwrap_or(1))
            }
        }
    )*};
}

tag!(Dot1Q: "802.1Q", Dot1AD: "802.1AD");

#[cfg(test)]
mod tests {
    use crate::layer::{Dot1AD, Dot1Q, Ether, Ip, Packet};

    #[test]
    fn two_tags() {
        let packet = Ether::new() / Dot1AD::new().vlan(0x123).prio(7) / Dot1Q::new().dei(1) / Ip::to("192.0.2.1");
        let bytes = packet.build().unwrap();
        assert_eq!(bytes[12..22], [0x88, 0xa8, 0xe1, 0x23, 0x81, 0, 0x10, 1, 8, 0]);
        let read = Packet::from_ethernet(&bytes);
        assert_eq!(read.get::<Dot1AD>().unwrap().vlan, Some(0x123));
        assert!(read.get::<Ip>().is_some());
        assert_eq!(read.build().unwrap(), bytes);
    }

    #[test]
    fn too_large_value_is_rejected() {
        let error = Packet::from(Dot1Q::new().vlan(4096)).build().unwrap_err().to_string();
        assert_eq!(error, "Dot1Q.vlan: the value does not fit 12 bits");
    }
}
