//! ICMPv6: errors, echo, and the kinds of messages. Neighbour discovery is in `nd.rs`.

use std::fmt;

use super::{
    AnyLayer, Kind,
    build::Building,
    icmp_extension,
    protocol::{Fixed, Parsed, Protocol},
    table::{FieldError, layer},
};
use crate::view::ip;

const TYPES: &[(u64, &str)] = &[
    (1, "Destination unreachable"),
    (2, "Packet too big"),
    (3, "Time exceeded"),
    (4, "Parameter problem"),
    (128, "Echo Request"),
    (129, "Echo Reply"),
];

layer! {
    /// ICMPv6: destination unreachable
    pub struct Icmpv6DestUnreach: "ICMPv6DestUnreach", "RFC 4443, section 3.1" {
        /// Type
        r#type: u8, 8, (1), TYPES;
        /// Code
        code: u8, 8, (0);
        /// Checksum over pseudo-header, header and payload
        cksum: u16, 16, computed;
        /// Length of the quoted packet in units of 8 bytes, if extensions follow (RFC 4884); if unset, computed, and
        /// the quote is padded to at least 128 bytes and a whole unit
        length: u8, 8, computed;
        /// Unused
        unused: u32, 24, (0);
    }
    tail {}
}

layer! {
    /// ICMPv6: the packet exceeds the MTU of a link
    pub struct Icmpv6PacketTooBig: "ICMPv6PacketTooBig", "RFC 4443, section 3.2" {
        /// Type
        r#type: u8, 8, (2), TYPES;
        /// Code
        code: u8, 8, (0);
        /// Checksum over pseudo-header, header and payload
        cksum: u16, 16, computed;
        /// MTU of the next hop
        mtu: u32, 32, (1280);
    }
    tail {}
}

layer! {
    /// ICMPv6: the hop limit was reached, or fragments are missing
    pub struct Icmpv6TimeExceeded: "ICMPv6TimeExceeded", "RFC 4443, section 3.3" {
        /// Type
        r#type: u8, 8, (3), TYPES;
        /// Code
        code: u8, 8, (0);
        /// Checksum over pseudo-header, header and payload
        cksum: u16, 16, computed;
        /// Length of the quoted packet in units of 8 bytes, if extensions follow (RFC 4884); if unset, computed, and
        /// the quote is padded to at least 128 bytes and a whole unit
        length: u8, 8, computed;
        /// Unused
        unused: u32, 24, (0);
    }
    tail {}
}

layer! {
    /// ICMPv6: a field was not recognized
    pub struct Icmpv6ParamProblem: "ICMPv6ParamProblem", "RFC 4443, section 3.4" {
        /// Type
        r#type: u8, 8, (4), TYPES;
        /// Code
        code: u8, 8, (0);
        /// Checksum over pseudo-header, header and payload
        cksum: u16, 16, computed;
        /// Offset of the field in the quoted packet, in bytes
        ptr: u32, 32, (6);
    }
    tail {}
}

layer! {
    /// ICMPv6 echo request
    pub struct Icmpv6EchoRequest: "ICMPv6EchoRequest", "RFC 4443, section 4.1" {
        /// Type
        r#type: u8, 8, (128), TYPES;
        /// Code
        code: u8, 8, (0);
        /// Checksum over pseudo-header, header and payload
        cksum: u16, 16, computed;
        /// Identifier
        id: u16, 16, (0);
        /// Sequence number
        seq: u16, 16, (0);
    }
    tail {
        /// Data, before any other layer
        data: Vec<u8>;
    }
}

layer! {
    /// ICMPv6 echo reply
    pub struct Icmpv6EchoReply: "ICMPv6EchoReply", "RFC 4443, section 4.2" {
        /// Type
        r#type: u8, 8, (129), TYPES;
        /// Code
        code: u8, 8, (0);
        /// Checksum over pseudo-header, header and payload
        cksum: u16, 16, computed;
        /// Identifier
        id: u16, 16, (0);
        /// Sequence number
        seq: u16, 16, (0);
    }
    tail {
        /// Data, before any other layer
        data: Vec<u8>;
    }
}

layer! {
    /// ICMPv6 message of any other type
    pub struct Icmpv6Unknown: "ICMPv6Unknown", "RFC 4443, section 2.1" {
        /// Type
        r#type: u8, 8, (1), TYPES;
        /// Code
        code: u8, 8, (0);
        /// Checksum over pseudo-header, header and payload
        cksum: u16, 16, computed;
    }
    tail {}
}

/// The kind of an ICMPv6 message.
pub(crate) fn message(bytes: &[u8]) -> Kind {
    match bytes.first() {
        Some(1) => Kind::Icmpv6DestUnreach,
        Some(2) => Kind::Icmpv6PacketTooBig,
        Some(3) => Kind::Icmpv6TimeExceeded,
        Some(4) => Kind::Icmpv6ParamProblem,
        Some(128) => Kind::Icmpv6EchoRequest,
        Some(129) => Kind::Icmpv6EchoReply,
        Some(133) => Kind::NdRouterSolicitation,
        Some(134) => Kind::NdRouterAdvertisement,
        Some(135) => Kind::NdNeighborSolicitation,
        Some(136) => Kind::NdNeighborAdvertisement,
        Some(137) => Kind::NdRedirect,
        _ => super::described::icmpv6(bytes),
    }
}

/// Whether a layer is an ICMPv6 message.
pub(crate) fn is_message(layer: &AnyLayer) -> bool {
    let other = matches!(
        layer,
        AnyLayer::Icmpv6EchoRequest(_) | AnyLayer::Icmpv6EchoReply(_) | AnyLayer::Icmpv6Unknown(_)
    );
    other || is_error(layer) || is_neighbor_discovery(layer)
}

/// Whether a layer is a message of neighbour discovery.
pub(crate) fn is_neighbor_discovery(layer: &AnyLayer) -> bool {
    matches!(
        layer,
        AnyLayer::NdRouterSolicitation(_)
            | AnyLayer::NdRouterAdvertisement(_)
            | AnyLayer::NdNeighborSolicitation(_)
            | AnyLayer::NdNeighborAdvertisement(_)
            | AnyLayer::NdRedirect(_)
    )
}

/// Whether a layer is an ICMPv6 error, which quotes a packet.
pub(crate) fn is_error(layer: &AnyLayer) -> bool {
    matches!(
        layer,
        AnyLayer::Icmpv6DestUnreach(_)
            | AnyLayer::Icmpv6PacketTooBig(_)
            | AnyLayer::Icmpv6TimeExceeded(_)
            | AnyLayer::Icmpv6ParamProblem(_)
    )
}

/// Implements a message: the kind of its payload, and its summary.
macro_rules! icmpv6_message {
    ($($layer:ident: $summary:literal, $next:expr $(, $data:ident)?;)*) => {$(
        impl $crate::layer::protocol::Protocol for $layer {
            fn parse(bytes: &[u8], _: &[$crate::layer::AnyLayer]) -> Option<$crate::layer::protocol::Parsed<Self>> {
                let layer = <Self as $crate::layer::protocol::Fixed>::get_fixed(bytes)?;
                let header = Self::FIXED;
                let next: fn(&[u8]) -> $crate::layer::Kind = $next;
                let next = next(&bytes[header..]);
                Some($crate::layer::protocol::Parsed { layer, header, end: bytes.len(), next })
            }

            fn write(&self, out: &mut Vec<u8>) -> Result<(), $crate::layer::table::FieldError> {
                $crate::layer::protocol::Fixed::put_fixed(self, out)?;
                $( out.extend_from_slice(self.$data.as_deref().unwrap_or_default()); )?
                Ok(())
            }

            fn finish(&self, packet: &mut $crate::layer::build::Building<'_>) -> Result<(), $crate::layer::table::FieldError> {
                if self.cksum.is_none()
                    && let Some(value) = packet.checksum(Some($crate::view::ip::ICMPV6))
                {
                    packet.put16(Self::AT.cksum, value);
                }
                Ok(())
            }

            // A message answers one of another type; an error answers the packet that it quotes.
            fn answers(&self, _: &[$crate::layer::AnyLayer], _: &Self, _: &[$crate::layer::AnyLayer]) -> bool {
                false
            }

            fn summary(&self, f: &mut std::fmt::Formatter<'_>, _: &[$crate::layer::AnyLayer], _: usize) -> std::fmt::Result {
                f.write_str($summary)?;
                self.details(f)
            }
        }
    )*};
}

pub(crate) use icmpv6_message;

icmpv6_message! {
    Icmpv6PacketTooBig: "ICMPv6 packet too big", |_| Kind::Ipv6;
    Icmpv6ParamProblem: "ICMPv6 parameter problem", |_| Kind::Ipv6;
    Icmpv6EchoRequest: "ICMPv6 echo request", |_| Kind::Raw, data;
    Icmpv6EchoReply: "ICMPv6 echo reply", |_| Kind::Raw, data;
    Icmpv6Unknown: "ICMPv6", |_| Kind::Raw;
}

macro_rules! error_with_length {
    ($($layer:ident, $name:literal: $summary:literal),*) => {$(
        impl Protocol for $layer {
            fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
                let layer = Self::get_fixed(bytes)?;
                let end = Self::FIXED + icmp_extension::quote_end(&bytes[Self::FIXED..], layer.length, 8);
                Some(Parsed { layer, header: Self::FIXED, end, next: Kind::Ipv6 })
            }

            fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
                self.put_fixed(out)
            }

            fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
                if self.length.is_none()
                    && let Some(quote) = packet.quote()
                {
                    let too_large = FieldError { layer: $name, field: "length", bits: 8 };
                    packet.bytes()[Self::AT.length] = u8::try_from(quote / 8).map_err(|_| too_large)?;
                }
                if self.cksum.is_none()
                    && let Some(value) = packet.checksum(Some(ip::ICMPV6))
                {
                    packet.put16(Self::AT.cksum, value);
                }
                Ok(())
            }

            fn answers(&self, _: &[AnyLayer], _: &Self, _: &[AnyLayer]) -> bool {
                false
            }

            fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
                write!(f, "{} code {}", $summary, self.code.unwrap_or(0))
            }
        }
    )*};
}

error_with_length!(
    Icmpv6DestUnreach, "ICMPv6DestUnreach": "ICMPv6 destination unreachable",
    Icmpv6TimeExceeded, "ICMPv6TimeExceeded": "ICMPv6 time exceeded"
);

impl Icmpv6PacketTooBig {
    fn details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " mtu {}", self.mtu.unwrap_or(1280))
    }
}

impl Icmpv6ParamProblem {
    fn details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " code {} at {}", self.code.unwrap_or(0), self.ptr.unwrap_or(6))
    }
}

impl Icmpv6EchoRequest {
    fn details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " id {} seq {}", self.id.unwrap_or(0), self.seq.unwrap_or(0))
    }
}

impl Icmpv6EchoReply {
    fn details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " id {} seq {}", self.id.unwrap_or(0), self.seq.unwrap_or(0))
    }
}

impl Icmpv6Unknown {
    fn details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " type {} code {}", self.r#type.unwrap_or(1), self.code.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layer::{Ipv6, Packet, Udp},
        view::checksum::{Checksum, verify},
    };

    #[test]
    fn echo() {
        let request = Ipv6::to("2001:db8::2").src("2001:db8::1") / Icmpv6EchoRequest::new().id(5).seq(6) / "ping";
        let bytes = request.build().unwrap();
        assert_eq!((bytes[6], bytes[40]), (58, 128));
        assert_eq!(verify(&bytes, false), Checksum::Valid);
        let reply = |seq: u16| Ipv6::to("2001:db8::1").src("2001:db8::2") / Icmpv6EchoReply::new().id(5).seq(seq);
        assert!(reply(6).answers(&request));
        assert!(!reply(7).answers(&request));
        assert!(!request.answers(&request));
    }

    #[test]
    fn icmp_error_answers_quoted_packet() {
        let request = Ipv6::to("2001:db8::2").src("2001:db8::1") / Udp::to(33434).sport(5000);
        let error = |quote: &Packet| {
            let from = Ipv6::to("2001:db8::1").src("2001:db8::ff");
            Packet::from_ip(&(from / Icmpv6TimeExceeded::new() / quote.clone()).build().unwrap())
        };
        assert!(error(&request).answers(&request));
        assert!(!error(&(Ipv6::to("2001:db8::2").src("2001:db8::1") / Udp::to(33435).sport(5000))).answers(&request));
    }
}
