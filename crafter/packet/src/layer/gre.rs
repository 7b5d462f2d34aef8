//! GRE.

use std::fmt;

use super::{
    AnyLayer, Kind, answer,
    build::Building,
    ether::{self, ETHERTYPES},
    protocol::{Fixed, Parsed, Protocol, be16, be32},
    table::{FieldError, layer},
};

layer! {
    /// Generic Routing Encapsulation
    pub struct Gre: "GRE", "RFC 2784, RFC 2890" {
        /// Checksum and offset are present
        chksum_present: u8, 1, computed;
        /// Routing is present (RFC 1701); it is kept as payload
        routing_present: u8, 1, (0);
        /// A key is present
        key_present: u8, 1, computed;
        /// A sequence number is present
        seqnum_present: u8, 1, computed;
        /// Strict source route (RFC 1701)
        strict_route_source: u8, 1, (0);
        /// Recursion control (RFC 1701)
        recursion_control: u8, 3, (0);
        /// Flags
        flags: u8, 5, (0);
        /// Version
        version: u8, 3, (0);
        /// Type of the payload
        proto: u16, 16, computed, ETHERTYPES;
    }
    tail {
        /// Checksum over header and payload, computed if chksum_present is set
        chksum: u16;
        /// Offset of the active route, or reserved
        offset: u16;
        /// Key
        key: u32;
        /// Sequence number
        sequence_number: u32;
    }
}

impl Gre {
    fn has_checksum(&self) -> bool {
        self.chksum_present == Some(1) || self.chksum.is_some() || self.offset.is_some()
    }
}

impl Protocol for Gre {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let mut layer = Self::get_fixed(bytes)?;
        let mut header = Self::FIXED;
        if layer.chksum_present == Some(1) {
            layer.chksum = Some(be16(bytes.get(header..)?)?);
            layer.offset = Some(be16(bytes.get(header + 2..)?)?);
            header += 4;
        }
        if layer.key_present == Some(1) {
            layer.key = Some(be32(bytes.get(header..)?)?);
            header += 4;
        }
        if layer.seqnum_present == Some(1) {
            layer.sequence_number = Some(be32(bytes.get(header..)?)?);
            header += 4;
        }
        let next = match (layer.routing_present, layer.version) {
            (Some(0), Some(0)) => ether::payload(layer.proto?),
            _ => Kind::Raw,
        };
        Some(Parsed { layer, header, end: bytes.len(), next })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)?;
        if self.has_checksum() {
            out.extend_from_slice(&self.chksum.unwrap_or(0).to_be_bytes());
            out.extend_from_slice(&self.offset.unwrap_or(0).to_be_bytes());
        }
        // A set bit adds its field, a set field is written without its bit.
        if self.key.is_some() || self.key_present == Some(1) {
            out.extend_from_slice(&self.key.unwrap_or(0).to_be_bytes());
        }
        if self.sequence_number.is_some() || self.seqnum_present == Some(1) {
            out.extend_from_slice(&self.sequence_number.unwrap_or(0).to_be_bytes());
        }
        Ok(())
    }

    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        let bits = [
            (self.chksum_present.is_none() && self.has_checksum(), 0x80),
            (self.key_present.is_none() && self.key.is_some(), 0x20),
            (self.seqnum_present.is_none() && self.sequence_number.is_some(), 0x10),
        ];
        if let Some(first) = packet.bytes().first_mut() {
            *first |= bits.iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, bit)| all | bit);
        }
        if self.proto.is_none() {
            let number = match packet.next() {
                None | Some(AnyLayer::Raw(_) | AnyLayer::Padding(_)) => 0,
                next => ether::ethertype(next),
            };
            packet.put16(Self::AT.proto, number);
        }
        if self.has_checksum()
            && self.chksum.is_none()
            && let Some(value) = packet.checksum(None)
        {
            // The first of the optional fields.
            packet.put16(Self::FIXED, value);
        }
        Ok(())
    }

    fn answers(&self, above: &[AnyLayer], request: &Self, asked: &[AnyLayer]) -> bool {
        self.key == request.key && answer::answers(above, asked)
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
        match self.key {
            Some(key) => write!(f, "GRE key {key}"),
            None => f.write_str("GRE"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        layer::{Gre, Ip, Packet},
        view::checksum::{fold, sum},
    };

    #[test]
    fn optional_fields() {
        let packet = Ip::new() / Gre::new().chksum_present(1).key(7).sequence_number(9) / Ip::new() / "x";
        let bytes = packet.build().unwrap();
        assert_eq!(bytes[20..24], [0xb0, 0, 8, 0]);
        assert_eq!(bytes[26..36], [0, 0, 0, 0, 0, 7, 0, 0, 0, 9]);
        assert_eq!(fold(sum(&bytes[20..])), 0xffff);
        assert_eq!(Packet::from_ip(&bytes).build().unwrap(), bytes);
        assert_eq!((Ip::new() / Gre::new() / Ip::new()).build().unwrap()[20..24], [0, 0, 8, 0]);
    }
}
