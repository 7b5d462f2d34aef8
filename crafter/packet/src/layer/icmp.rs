//! ICMP for IPv4.

use std::{fmt, net::Ipv4Addr, ops::Range};

use super::{
    AnyLayer, Ip, Kind, Raw,
    build::Building,
    icmp_extension,
    protocol::{Fixed, Parsed, Protocol, be16, be32},
    table::{FieldError, layer},
    value::IntoField,
};
use crate::view::field::icmp as field;

const TYPES: &[(u64, &str)] = &[
    (0, "echo-reply"),
    (3, "dest-unreach"),
    (4, "source-quench"),
    (5, "redirect"),
    (8, "echo-request"),
    (9, "router-advertisement"),
    (10, "router-solicitation"),
    (11, "time-exceeded"),
    (12, "parameter-problem"),
    (13, "timestamp-request"),
    (14, "timestamp-reply"),
    (15, "information-request"),
    (16, "information-response"),
    (17, "address-mask-request"),
    (18, "address-mask-reply"),
    (42, "extended-echo-request"),
    (43, "extended-echo-reply"),
];

layer! {
    /// Internet Control Message Protocol: the fields after the checksum depend on the type
    pub struct Icmp: "ICMP", "RFC 792" {
        /// Type
        r#type: u8, 8, (8), TYPES;
        /// Code
        code: u8, 8, (0);
        /// Checksum over header and payload
        chksum: u16, 16, computed;
    }
    tail {
        /// Identifier: echo, timestamp, information, address mask (bytes 4 and 5)
        id: u16;
        /// Sequence number (bytes 6 and 7)
        seq: u16;
        /// Gateway: redirect (bytes 4 to 7)
        gw: Ipv4Addr;
        /// Pointer: parameter problem (byte 4)
        ptr: u8;
        /// Reserved (byte 4)
        reserved: u8;
        /// Length of the quoted packet in 32-bit words, if extensions follow (RFC 4884; byte 5); if unset, computed,
        /// and the quote is padded to at least 128 bytes and a whole word
        length: u8;
        /// MTU of the next hop: fragmentation needed (RFC 1191; bytes 6 and 7)
        nexthopmtu: u16;
        /// Bytes 4 to 7 of a type without fields there
        unused: u32;
        /// Originate timestamp (bytes 8 to 11)
        ts_ori: u32;
        /// Receive timestamp (bytes 12 to 15)
        ts_rx: u32;
        /// Transmit timestamp (bytes 16 to 19)
        ts_tx: u32;
        /// Address mask (RFC 950; bytes 8 to 11)
        addr_mask: Ipv4Addr;
    }
}

impl Icmp {
    /// An echo request.
    pub fn echo(id: impl IntoField<u16>, seq: impl IntoField<u16>) -> Self {
        Self::new().id(id).seq(seq)
    }

    /// The type; 8 (echo request) if unset.
    pub fn number(&self) -> u8 {
        self.r#type.unwrap_or(8)
    }

    /// The type of the requests that this message answers.
    pub(crate) fn asked_by(&self) -> Option<u8> {
        match self.number() {
            0 => Some(8),
            9 => Some(10),
            number @ (14 | 16 | 18) => Some(number - 1),
            43 => Some(42),
            _ => None,
        }
    }

    /// Identifier and sequence number, equal in request and reply.
    pub(crate) fn numbers(&self) -> (u16, u16) {
        match self.number() {
            // These bytes are number of addresses and lifetime.
            9 | 10 => (0, 0),
            // RFC 8335, section 2: the sequence number has 8 bits, followed by state.
            42 | 43 => {
                let word = self.unused.unwrap_or(0);
                ((word >> 16) as u16, (word >> 8) as u16 & 0xff)
            }
            _ => (self.id.unwrap_or(0), self.seq.unwrap_or(0)),
        }
    }

    /// Whether it is an error, which quotes a packet.
    pub fn is_error(&self) -> bool {
        matches!(self.number(), 3 | 4 | 5 | 11 | 12)
    }

    /// Whether it has the length of its quote, so that extensions can follow (RFC 4884, section 4).
    pub(crate) fn has_length_field(&self) -> bool {
        matches!(self.number(), 3 | 11 | 12)
    }

    /// Length of the header for a type, in bytes.
    fn header(number: u8) -> usize {
        match number {
            13 | 14 => field::TRANSMIT.end,
            17 | 18 => field::ADDRESS_MASK.end,
            _ => field::REST.end,
        }
    }
}

impl Protocol for Icmp {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let mut layer = Self::get_fixed(bytes)?;
        let number = layer.r#type?;
        let header = Self::header(number);
        let whole = bytes.get(..header)?;
        let half = |field: Range<usize>| be16(&whole[field]);
        let word = |field: Range<usize>| be32(&whole[field]);
        match number {
            0 | 8 | 13..=18 => (layer.id, layer.seq) = (half(field::ID), half(field::SEQ)),
            3 => {
                layer.reserved = Some(whole[field::RESERVED]);
                (layer.length, layer.nexthopmtu) = (Some(whole[field::QUOTE_LENGTH]), half(field::NEXT_HOP_MTU));
            }
            5 => layer.gw = word(field::GATEWAY).map(Ipv4Addr::from),
            11 | 12 => {
                if number == 12 {
                    layer.ptr = Some(whole[field::POINTER]);
                } else {
                    layer.reserved = Some(whole[field::RESERVED]);
                }
                (layer.length, layer.nexthopmtu) = (Some(whole[field::QUOTE_LENGTH]), half(field::NEXT_HOP_MTU));
            }
            _ => layer.unused = word(field::REST),
        }
        match number {
            13 | 14 => {
                (layer.ts_ori, layer.ts_rx) = (word(field::ORIGINATE), word(field::RECEIVE));
                layer.ts_tx = word(field::TRANSMIT);
            }
            17 | 18 => layer.addr_mask = word(field::ADDRESS_MASK).map(Ipv4Addr::from),
            _ => {}
        }
        let mut end = bytes.len();
        let next = if layer.is_error() { Kind::Ip } else { Kind::Raw };
        if layer.has_length_field() {
            end = header + icmp_extension::quote_end(&bytes[header..], layer.length, 4);
        }
        Some(Parsed { layer, header, end, next })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)?;
        let mut whole = [0; field::TRANSMIT.end];
        let mut put = |field: Range<usize>, bytes: Option<&[u8]>| {
            if let Some(bytes) = bytes {
                whole[field].copy_from_slice(bytes);
            }
        };
        let one = |at: usize| at..at + 1;
        put(field::REST, self.unused.map(u32::to_be_bytes).as_ref().map(<[u8; 4]>::as_slice));
        put(field::GATEWAY, self.gw.map(|address| address.octets()).as_ref().map(<[u8; 4]>::as_slice));
        put(field::ID, self.id.map(u16::to_be_bytes).as_ref().map(<[u8; 2]>::as_slice));
        put(field::SEQ, self.seq.map(u16::to_be_bytes).as_ref().map(<[u8; 2]>::as_slice));
        put(one(field::RESERVED), self.reserved.as_ref().map(std::slice::from_ref));
        put(one(field::POINTER), self.ptr.as_ref().map(std::slice::from_ref));
        put(one(field::QUOTE_LENGTH), self.length.as_ref().map(std::slice::from_ref));
        put(field::NEXT_HOP_MTU, self.nexthopmtu.map(u16::to_be_bytes).as_ref().map(<[u8; 2]>::as_slice));
        put(field::ORIGINATE, self.ts_ori.map(u32::to_be_bytes).as_ref().map(<[u8; 4]>::as_slice));
        put(field::RECEIVE, self.ts_rx.map(u32::to_be_bytes).as_ref().map(<[u8; 4]>::as_slice));
        put(field::TRANSMIT, self.ts_tx.map(u32::to_be_bytes).as_ref().map(<[u8; 4]>::as_slice));
        put(field::ADDRESS_MASK, self.addr_mask.map(|mask| mask.octets()).as_ref().map(<[u8; 4]>::as_slice));
        // Set fields are written even if the type does not have them.
        let wanted = match (self.ts_ori, self.ts_rx, self.ts_tx, self.addr_mask) {
            (_, _, Some(_), _) => field::TRANSMIT.end,
            (_, Some(_), _, _) => field::RECEIVE.end,
            (Some(_), ..) | (.., Some(_)) => field::ORIGINATE.end,
            _ => field::REST.end,
        };
        out.extend_from_slice(&whole[Self::FIXED..wanted.max(Self::header(self.number()))]);
        Ok(())
    }

    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        if self.length.is_none()
            && self.has_length_field()
            && let Some(quote) = packet.quote()
        {
            let words = u8::try_from(quote / 4).map_err(|_| FieldError { layer: "ICMP", field: "length", bits: 8 })?;
            packet.bytes()[field::QUOTE_LENGTH] = words;
        }
        if self.chksum.is_none()
            && let Some(value) = packet.checksum(None)
        {
            packet.put16(Self::AT.chksum, value);
        }
        Ok(())
    }

    fn answers(&self, _: &[AnyLayer], request: &Self, _: &[AnyLayer]) -> bool {
        self.asked_by() == Some(request.number()) && self.numbers() == request.numbers()
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
        let number = self.number();
        match TYPES.iter().find(|(known, _)| *known == u64::from(number)) {
            Some((_, name)) => write!(f, "ICMP {name}")?,
            None => write!(f, "ICMP type {number}")?,
        }
        match self.id {
            Some(id) => write!(f, " id {id} seq {}", self.seq.unwrap_or(0)),
            None => write!(f, " code {}", self.code.unwrap_or(0)),
        }
    }
}

impl Icmp {
    /// Whether this quoted message is the `request`.
    pub(crate) fn is_quote_of(&self, request: &Self) -> bool {
        self.number() == request.number() && self.numbers() == request.numbers()
    }

    /// A quote truncated within a header longer than 8 bytes. It is not a layer, because building it would complete the
    /// header.
    pub(crate) fn cut_short(ip: &Ip, payload: &Raw) -> Option<Self> {
        let bytes = payload.load.as_deref().filter(|_| ip.proto == Some(1) && ip.frag == Some(0))?;
        let message = Self::get_fixed(bytes)?;
        let is_cut = (8..Self::header(message.number())).contains(&bytes.len());
        is_cut.then(|| Self { id: be16(&bytes[4..]), seq: be16(&bytes[6..]), ..message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Packet, Tcp, TcpError, Udp};

    #[test]
    fn echo() {
        let request = Ip::to("192.0.2.2").src("192.0.2.1") / Icmp::echo(0x1234, 7) / "ping";
        let bytes = request.build().unwrap();
        assert_eq!(bytes[20..22], [8, 0]);
        assert_eq!(bytes[24..28], [0x12, 0x34, 0, 7]);
        assert_eq!(crate::view::checksum::verify(&bytes, false), crate::view::Checksum::Valid);
        let reply = |seq: u16| Ip::to("192.0.2.1").src("192.0.2.2") / Icmp::echo(0x1234, seq).r#type(0);
        assert!(reply(7).answers(&request));
        assert!(!reply(8).answers(&request));
        assert!(!request.answers(&request));
    }

    #[test]
    fn icmp_error_answers_quoted_packet() {
        let request = Ip::to("198.51.100.9").src("192.0.2.1") / Tcp::to(443).sport(5000).seq(1);
        let error = |quote: &[u8]| {
            Packet::from_ip(&(Ip::to("192.0.2.1").src("203.0.113.1") / Icmp::new().r#type(11) / quote).build().unwrap())
        };
        let bytes = request.build().unwrap();
        let whole = error(&bytes);
        assert!(whole.get::<Tcp>().is_some());
        assert!(whole.answers(&request));
        let short = error(&bytes[..28]);
        assert_eq!(short.get::<TcpError>().unwrap().dport, Some(443));
        assert!(short.answers(&request));
        let other = Ip::to("198.51.100.9").src("192.0.2.1") / Tcp::to(443).sport(5001).seq(1);
        assert!(!error(&other.build().unwrap()[..28]).answers(&request));
        assert!(!error(&(Ip::to("198.51.100.9").src("192.0.2.1") / Udp::to(443).sport(5000)).build().unwrap()).answers(&request));
    }

    #[test]
    fn every_type_keeps_its_bytes() {
        for number in 0..=255_u8 {
            for length in [4, 7, 8, 12, 19, 20, 64] {
                let mut bytes: Vec<u8> = (0..length).map(|byte| byte * 3 + 1).collect();
                bytes[0] = number;
                let packet = Packet::parse(Kind::Icmp, &bytes);
                assert_eq!(packet.build().unwrap(), bytes, "type {number}, {length} bytes: {packet}");
            }
        }
    }
}
