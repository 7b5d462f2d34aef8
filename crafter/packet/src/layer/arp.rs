//! ARP for Ethernet and IPv4.

use std::{fmt, net::Ipv4Addr};

use super::{
    AnyLayer, Kind, Mac,
    ether::ETHERTYPES,
    protocol::{Fixed, Parsed, Protocol, or_default},
    table::{FieldError, layer},
};

const OPERATIONS: &[(u64, &str)] =
    &[(1, "who-has"), (2, "is-at"), (3, "RARP-req"), (4, "RARP-rep"), (8, "InARP-req"), (9, "InARP-rep")];

layer! {
    /// Address Resolution Protocol: finds the Ethernet address for an IPv4 address
    pub struct Arp: "ARP", "RFC 826" {
        /// Hardware type, 1 for Ethernet
        hwtype: u16, 16, (1);
        /// Protocol type, that of IPv4
        ptype: u16, 16, (0x0800), ETHERTYPES;
        /// Length of a hardware address
        hwlen: u8, 8, (6);
        /// Length of a protocol address
        plen: u8, 8, (4);
        /// Operation
        op: u16, 16, (1), OPERATIONS;
        /// Hardware address of the sender
        hwsrc: Mac, 48, (Mac::ZERO);
        /// Protocol address of the sender
        psrc: Ipv4Addr, 32, (Ipv4Addr::UNSPECIFIED);
        /// Hardware address of the target
        hwdst: Mac, 48, (Mac::ZERO);
        /// Protocol address of the target
        pdst: Ipv4Addr, 32, (Ipv4Addr::UNSPECIFIED);
    }
    tail {}
}

impl Arp {
    /// A request for the owner of an address.
    pub fn who_has(pdst: impl super::value::IntoField<Ipv4Addr>) -> Self {
        Self::new().pdst(pdst)
    }
}

impl Protocol for Arp {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let layer = Self::get_fixed(bytes)?;
        // Other address lengths change the layout.
        ((layer.hwlen, layer.plen) == (Some(6), Some(4))).then_some(())?;
        // ARP has no payload: bytes after it are padding of the frame.
        Some(Parsed { layer, header: Self::FIXED, end: Self::FIXED, next: Kind::Raw })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)
    }

    fn answers(&self, _: &[AnyLayer], request: &Self, _: &[AnyLayer]) -> bool {
        let asked = or_default!(request, Arp, op);
        or_default!(self, Arp, op) == asked.map(|op| op.wrapping_add(1))
            && match asked {
                // RARP (RFC 903) requests the protocol address of the target, InARP (RFC 2390) that of the receiver.
                Some(3) => or_default!(self, Arp, hwdst) == or_default!(request, Arp, hwdst),
                Some(8) => or_default!(self, Arp, hwsrc) == or_default!(request, Arp, hwdst),
                _ => or_default!(self, Arp, psrc) == or_default!(request, Arp, pdst),
            }
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
        let (source, target) = (self.psrc.unwrap_or(Ipv4Addr::UNSPECIFIED), self.pdst.unwrap_or(Ipv4Addr::UNSPECIFIED));
        match self.op.unwrap_or(1) {
            1 => write!(f, "ARP who has {target} says {source}"),
            2 => write!(f, "ARP is at {} says {source}", self.hwsrc.unwrap_or_default()),
            other => write!(f, "ARP op {other} {source} > {target}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::layer::{Arp, Ether, Packet, Padding};

    #[test]
    fn question_and_answer() {
        let request = Ether::new() / Arp::who_has("192.0.2.2").psrc("192.0.2.1");
        let reply = Ether::new() / Arp::new().op(2).psrc("192.0.2.2").hwsrc("02:00:00:00:00:02");
        assert!(reply.answers(&request));
        assert!(!request.answers(&request));
        assert!(!(Ether::new() / Arp::new().op(2).psrc("192.0.2.3")).answers(&request));
        assert_eq!(reply.summary(), "Ether / ARP is at 02:00:00:00:00:02 says 192.0.2.2");
    }

    #[test]
    fn other_address_lengths_are_raw() {
        let mut bytes = (Ether::new() / Arp::new() / Padding::of([0; 18])).build().unwrap();
        let read = Packet::from_ethernet(&bytes);
        assert!(read.get::<Padding>().is_some());
        bytes[18] = 8;
        let read = Packet::from_ethernet(&bytes);
        assert!(read.get::<Arp>().is_none());
        assert_eq!(read.build().unwrap(), bytes);
    }
}
