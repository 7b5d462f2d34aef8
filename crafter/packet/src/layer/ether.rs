//! Ethernet II frames.

use std::fmt;

use super::{
    AnyLayer, Kind, Layer as _, Mac,
    build::Building,
    described,
    protocol::{Fixed, Parsed, Protocol},
    table::{FieldError, layer},
};

/// Type of a frame directly in a frame, as in Scapy.
const BRIDGED: u16 = 1;

/// Type of EAP over LAN.
const EAPOL: u16 = 0x888e;

/// Names of EtherTypes.
pub(crate) const ETHERTYPES: &[(u64, &str)] = &[
    (0x0800, "IPv4"),
    (0x0806, "ARP"),
    (0x6558, "TEB"),
    (0x8100, "n_802_1Q"),
    (0x86dd, "IPv6"),
    (0x8847, "MPLS"),
    (0x8848, "MPLS_MULTI"),
    (0x88a8, "n_802_1AD"),
    (0x9000, "LOOP"),
];

layer! {
    /// Ethernet II frame header
    pub struct Ether: "Ether", "IEEE 802.3" {
        /// Destination address
        dst: Mac, 48, (Mac::BROADCAST);
        /// Source address; if unset, that of the sending interface if known, else zero
        src: Mac, 48, (Mac::ZERO);
        /// Type of the payload
        r#type: u16, 16, computed, ETHERTYPES;
    }
    tail {}
}

impl Ether {
    /// A frame to a destination address.
    pub fn to(dst: impl super::value::IntoField<Mac>) -> Self {
        Self::new().dst(dst)
    }
}

/// The layer for an EtherType.
#[inline]
pub(crate) fn payload(ethertype: u16) -> Kind {
    match ethertype {
        0x0800 => Kind::Ip,
        0x0806 => Kind::Arp,
        BRIDGED | 0x6558 => Kind::Ether,
        0x8100 => Kind::Dot1Q,
        0x86dd => Kind::Ipv6,
        0x8847 | 0x8848 => Kind::Mpls,
        0x88a8 => Kind::Dot1AD,
        described::BACKBONE => described::kind("Dot1AH"),
        EAPOL => described::kind("EAPOL"),
        _ => Kind::Raw,
    }
}

/// The EtherType for the next layer; 0x9000 (loopback) without one, as in Scapy.
#[inline]
pub(crate) fn ethertype(next: Option<&AnyLayer>) -> u16 {
    number(next).unwrap_or(0x9000)
}

/// The EtherType for the next layer, if it has one.
#[inline]
pub(crate) fn number(next: Option<&AnyLayer>) -> Option<u16> {
    Some(match next? {
        AnyLayer::Ip(_) => 0x0800,
        AnyLayer::Arp(_) => 0x0806,
        AnyLayer::Ether(_) => 0x6558,
        AnyLayer::Dot1Q(_) => 0x8100,
        AnyLayer::Ipv6(_) => 0x86dd,
        AnyLayer::Mpls(_) => 0x8847,
        AnyLayer::Dot1AD(_) => 0x88a8,
        AnyLayer::Described(layer) => match layer.info().name {
            "Dot1AH" => described::BACKBONE,
            "LLC" => 122,
            "EAPOL" => EAPOL,
            _ => return None,
        },
        _ => return None,
    })
}

impl Protocol for Ether {
    #[inline]
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let layer = Self::get_fixed(bytes)?;
        let next = payload(layer.r#type?);
        Some(Parsed { layer, header: Self::FIXED, end: bytes.len(), next })
    }

    #[inline(always)]
    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)
    }

    #[inline(always)]
    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        if self.r#type.is_none() {
            let number = match packet.next() {
                Some(AnyLayer::Ether(_)) => BRIDGED,
                next => ethertype(next),
            };
            if number == EAPOL
                && self.dst.is_none()
                && let Some(dst) = packet.bytes().first_chunk_mut()
            {
                // The group of port access entities (IEEE 802.1X).
                *dst = [1, 0x80, 0xc2, 0, 0, 3];
            }
            packet.put16(Self::AT.r#type, number);
        }
        Ok(())
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, packet: &[AnyLayer], at: usize) -> fmt::Result {
        f.write_str("Ether")?;
        if packet.get(at + 1).is_none_or(|next| matches!(next, AnyLayer::Raw(_) | AnyLayer::Padding(_))) {
            let address = |set: Option<Mac>, default: Mac| set.unwrap_or(default);
            write!(f, " {} > {}", address(self.src, Mac::ZERO), address(self.dst, Mac::BROADCAST))?;
            if let Some(ethertype) = self.r#type {
                write!(f, " (0x{ethertype:04x})")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::layer::{Arp, Ether, Packet, Raw};

    #[test]
    fn ethertype_follows_payload_unless_set() {
        let type_of = |packet: Packet| packet.build().unwrap()[12..14].to_vec();
        assert_eq!(type_of(Ether::new() / Arp::new()), [8, 6]);
        assert_eq!(type_of(Ether::new().r#type(0x1234) / Arp::new()), [0x12, 0x34]);
        assert_eq!(type_of(Ether::new() / Raw::of("x")), [0x90, 0]);
    }

    #[test]
    fn bytes() {
        let frame = Ether::to("02:00:00:00:00:02").src("02:00:00:00:00:01").r#type(0x88b5) / "hi";
        let bytes = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5, b'h', b'i'];
        assert_eq!(frame.build().unwrap(), bytes);
        assert_eq!(Packet::from_ethernet(&bytes), frame);
        assert_eq!(Packet::from_ethernet(&bytes[..13]), Packet::from(&bytes[..13]), "cut short: raw");
    }
}
