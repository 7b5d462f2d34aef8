//! IPv6.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use super::{
    AnyLayer, Layer as _, answer,
    build::Building,
    described::Family,
    ip::{self, PROTOCOLS},
    protocol::{Fixed, Parsed, Protocol, or_default},
    table::{FieldError, layer},
    value::IntoField,
};

layer! {
    /// Internet Protocol, version 6
    pub struct Ipv6: "IPv6", "RFC 8200" {
        /// Version
        version: u8, 4, (6);
        /// Traffic class: DSCP and ECN
        tc: u8, 8, (0);
        /// Flow label
        fl: u32, 20, (0);
        /// Length of the payload in bytes
        plen: u16, 16, computed;
        /// Next header: protocol of the payload
        nh: u8, 8, computed, PROTOCOLS;
        /// Hop limit; if unset, 255 for neighbour discovery (RFC 4861, section 4), 1 for multicast listeners, else 64
        hlim: u8, 8, computed;
        /// Source address; if unset, that of the route if known, else ::
        src: Ipv6Addr, 128, (Ipv6Addr::UNSPECIFIED);
        /// Destination address; if unset, the group of the message above, else ::1
        dst: Ipv6Addr, 128, (Ipv6Addr::LOCALHOST);
    }
    tail {}
}

const MULTICAST_DNS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
const LLMNR: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 3);

/// No next header (RFC 8200, section 4.7).
pub(crate) const NO_NEXT_HEADER: u8 = 59;

impl Ipv6 {
    /// A packet to a destination address.
    pub fn to(dst: impl IntoField<Ipv6Addr>) -> Self {
        Self::new().dst(dst)
    }
}

/// Number of extension headers at the start of the layers.
pub(crate) fn extensions(layers: &[AnyLayer]) -> usize {
    let is_extension = |layer: &&AnyLayer| match layer {
        AnyLayer::Ipv6HopByHop(_)
        | AnyLayer::Ipv6Destination(_)
        | AnyLayer::Ipv6Routing(_)
        | AnyLayer::Ipv6Fragment(_) => true,
        AnyLayer::Described(layer) => layer.family() == Family::SegmentRouting,
        _ => false,
    };
    layers.iter().take_while(is_extension).count()
}

/// The final destination of a packet; in transit, a routing header holds it (RFC 8200, section 8.1).
pub(crate) fn last_destination(ip: &Ipv6, above: &[AnyLayer]) -> Option<IpAddr> {
    let routing = above[..extensions(above)].iter().find_map(|layer| match layer {
        AnyLayer::Ipv6Routing(routing) => routing.final_destination(),
        AnyLayer::Described(layer) if layer.family() == Family::SegmentRouting => layer.final_destination(),
        _ => None,
    });
    routing.or(ip.dst).or_else(|| group(above.first())).or(Ipv6::DEFAULTS.dst).map(Into::into)
}

/// The group to which a message goes if the destination is unset, as in Scapy.
#[cold]
pub(crate) fn group(next: Option<&AnyLayer>) -> Option<Ipv6Addr> {
    let last = match next? {
        AnyLayer::Udp(_) => {
            let last = super::udp::group(next)?.octets()[3];
            return Some(if last == 251 { MULTICAST_DNS } else { LLMNR });
        }
        AnyLayer::NdRouterSolicitation(_) => 2,
        message if super::icmpv6::is_neighbor_discovery(message) => 1,
        AnyLayer::Described(layer) => match layer.info().name {
            "ICMPv6MLQuery" | "ICMPv6MLQuery2" | "ICMPv6ND_INDSol" | "ICMPv6ND_INDAdv" => 1,
            "ICMPv6MLDone" | "ICMPv6MRD_Advertisement" | "ICMPv6MRD_Solicitation" => 2,
            "ICMPv6MLReport2" => 0x16,
            "ICMPv6MRD_Termination" => 0x6a,
            "ICMPv6RPL" => 0x1a,
            _ => return None,
        },
        _ => return None,
    };
    Some(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, last))
}

/// The hop limit if it is unset: 255 for neighbour discovery (RFC 4861, section 4), 1 for multicast listeners and
/// routers (RFC 3810, section 5; RFC 4286, section 3).
fn hop_limit(next: Option<&AnyLayer>) -> u8 {
    match next {
        Some(AnyLayer::Described(layer)) => match layer.info().name {
            "ICMPv6ND_INDSol" | "ICMPv6ND_INDAdv" => 255,
            name if name.starts_with("ICMPv6ML") || name.starts_with("ICMPv6MRD") => 1,
            _ => 64,
        },
        Some(message) if super::icmpv6::is_neighbor_discovery(message) => 255,
        _ => 64,
    }
}

impl Protocol for Ipv6 {
    #[inline]
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let layer = Self::get_fixed(bytes)?;
        let end = match (layer.plen?, layer.nh?) {
            (0, NO_NEXT_HEADER) => Self::FIXED,
            // A jumbogram (RFC 2675), or a super-frame of Linux (BIG TCP).
            (0, _) => bytes.len(),
            (length, _) => (Self::FIXED + usize::from(length)).min(bytes.len()),
        };
        let next = ip::payload(layer.nh?, &bytes[Self::FIXED..end]);
        Some(Parsed { layer, header: Self::FIXED, end, next })
    }

    #[inline(always)]
    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)
    }

    #[inline(always)]
    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        if self.plen.is_none() {
            let length = packet.length().saturating_sub(Self::FIXED);
            let length = u16::try_from(length).map_err(|_| FieldError { layer: "IPv6", field: "plen", bits: 16 })?;
            packet.put16(Self::AT.plen, length);
        }
        if self.nh.is_none() {
            let number = ip::protocol(packet.next()).unwrap_or(NO_NEXT_HEADER);
            if let Some(byte) = packet.bytes().get_mut(Self::AT.nh) {
                *byte = number;
            }
        }
        if self.hlim.is_none() {
            let limit = hop_limit(packet.next());
            if let Some(byte) = packet.bytes().get_mut(Self::AT.hlim) {
                *byte = limit;
            }
        }
        Ok(())
    }

    fn answers(&self, above: &[AnyLayer], request: &Self, asked: &[AnyLayer]) -> bool {
        let (here, wanted) = (last_destination(self, above), last_destination(request, asked));
        let (above, asked) = (&above[extensions(above)..], &asked[extensions(asked)..]);
        if let [error, AnyLayer::Ipv6(quoted), rest @ ..] = above
            && super::icmpv6::is_error(error)
        {
            return request.src.is_none_or(|source| quoted.src == Some(source))
                && last_destination(quoted, rest) == wanted
                && answer::quotes(&rest[extensions(rest)..], asked);
        }
        let addresses = (or_default!(self, Ipv6, src).map(Into::into), here);
        answer::addresses_match(addresses, wanted, request.src.map(Into::into)) && answer::answers(above, asked)
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, packet: &[AnyLayer], at: usize) -> fmt::Result {
        f.write_str("IPv6")?;
        if matches!(packet.get(at + 1), Some(AnyLayer::Tcp(_) | AnyLayer::Udp(_) | AnyLayer::TcpError(_))) {
            return Ok(());
        }
        let (source, destination) = (or_default!(self, Ipv6, src), or_default!(self, Ipv6, dst));
        write!(f, " {} > {}", source.unwrap_or(Ipv6Addr::UNSPECIFIED), destination.unwrap_or(Ipv6Addr::LOCALHOST))?;
        match self.nh {
            Some(number) if ip::protocol(packet.get(at + 1)) != Some(number) => write!(f, " nh {number}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::layer::{Ipv6, Packet, Padding, Udp};

    #[test]
    fn bytes() {
        let packet = Ipv6::to("2001:db8::2").tc(0xab).fl(0xc_1234).hlim(1) / Udp::to(7) / "x" / Padding::of("pad");
        let bytes = packet.build().unwrap();
        assert_eq!(bytes[..8], [0x6a, 0xbc, 0x12, 0x34, 0, 9, 17, 1]);
        let read = Packet::from_ip(&bytes);
        assert_eq!(read.get::<Padding>().unwrap().load.as_deref(), Some(&b"pad"[..]));
        assert_eq!(read.build().unwrap(), bytes);
    }

    #[test]
    fn ipv6_without_payload_has_no_next_header() {
        let bytes = (Ipv6::new() / Padding::of([0; 6])).build().unwrap();
        assert_eq!((bytes[5], bytes[6]), (0, 59));
        assert!(Packet::from_ip(&bytes).get::<Padding>().is_some());
    }
}
