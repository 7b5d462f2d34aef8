//! TCP.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::{
    AnyLayer, Kind, Packet, TcpOption, answer,
    build::Building,
    dns, http,
    protocol::{Fixed, Parsed, Protocol, or_default},
    table::{FieldError, BitField, layer},
    tcp_option, udp,
    value::{FieldInfo, FieldKind, FieldValue, IntoField, Value},
};
use crate::view::{Flags, ip};

/// The letters of the flags, from the least significant bit.
const LETTERS: &str = "FSRPAUECN";

fn flags_from(text: &str) -> Result<Flags, String> {
    text.chars().try_fold(Flags::NONE, |flags, letter| {
        let bit = LETTERS.find(letter.to_ascii_uppercase());
        bit.map(|bit| flags | Flags(1 << bit)).ok_or_else(|| match spelled_out(text) {
            Some(flags) => format!("unknown flag '{letter}'; flags are letters: \"{}\"", letters(flags)),
            None => format!("unknown flag '{letter}'; flags are {LETTERS}"),
        })
    })
}

/// The flags of a text such as `SYN-ACK` or `syn,ack`; `None` if a part of it is not a flag.
fn spelled_out(text: &str) -> Option<Flags> {
    const NAMES: [&str; 9] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "NS"];
    let mut parts = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
    parts.try_fold(Flags::NONE, |flags, part| {
        let bit = NAMES.iter().position(|name| name.eq_ignore_ascii_case(part))?;
        Some(flags | Flags(1 << bit))
    })
}

fn letters(flags: Flags) -> String {
    LETTERS.chars().enumerate().filter(|(bit, _)| flags.0 >> bit & 1 != 0).map(|(_, letter)| letter).collect()
}

impl FieldValue for Flags {
    const KIND: FieldKind = FieldKind::Flags;

    fn to_value(&self) -> Value {
        if self.0 < 0x200 { Value::Text(letters(*self)) } else { Value::Uint(self.0.into()) }
    }

    fn from_value(value: &Value, field: &FieldInfo) -> Result<Self, String> {
        match value {
            Value::Text(text) => flags_from(text),
            other => u16::from_value(other, field).map(Self),
        }
    }
}

impl BitField for Flags {
    #[inline(always)]
    fn put(self, header: &mut [u8], offset: usize, bits: usize) -> bool {
        self.0.put(header, offset, bits)
    }

    #[inline(always)]
    fn get(header: &[u8], offset: usize, bits: usize) -> Self {
        Self(BitField::get(header, offset, bits))
    }
}

impl IntoField<Flags> for &str {
    fn into_field(self) -> Flags {
        flags_from(self).unwrap_or_else(|reason| panic!("{reason}"))
    }
}

layer! {
    /// Transmission Control Protocol
    pub struct Tcp: "TCP", "RFC 9293" {
        /// Source port; if unset, 53 below DNS, as in Scapy
        sport: u16, 16, (20);
        /// Destination port
        dport: u16, 16, (80);
        /// Sequence number
        seq: u32, 32, (0);
        /// Acknowledgment number
        ack: u32, 32, (0);
        /// Header length in 32-bit words
        dataofs: u8, 4, computed;
        /// Reserved bits
        reserved: u8, 3, (0);
        /// Flags, one letter each: FSRPAUECN
        flags: Flags, 9, (Flags::SYN);
        /// Window in bytes, before scaling
        window: u16, 16, (8192);
        /// Checksum over pseudo-header, header and payload
        chksum: u16, 16, computed;
        /// Urgent pointer
        urgptr: u16, 16, (0);
    }
    tail {
        /// Options, padded to a 32-bit word with end-of-list
        options: Vec<TcpOption>;
    }
}

layer! {
    /// The first 8 bytes of a TCP header, as quoted by an ICMP error
    pub struct TcpError: "TCPquote", "RFC 792" {
        /// Source port
        sport: u16, 16, (20);
        /// Destination port
        dport: u16, 16, (80);
        /// Sequence number
        seq: u32, 32, (0);
    }
    tail {}
}

impl Tcp {
    /// A segment to a destination port.
    pub fn to(dport: impl IntoField<u16>) -> Self {
        Self::new().dport(dport)
    }

    /// This segment with the ports of two endpoints, on an IP header with their [addresses](Packet::between).
    pub fn between(self, source: SocketAddr, destination: SocketAddr) -> Packet {
        Packet::between(source.ip(), destination.ip()) / self.sport(source.port()).dport(destination.port())
    }

    /// The sequence number after this segment, whose payload is `above`.
    fn end(&self, above: &[AnyLayer]) -> u32 {
        let flags = or_default!(self, Tcp, flags).unwrap_or_default();
        let payload = match above {
            [] => 0,
            [AnyLayer::Raw(raw)] => raw.load.as_ref().map_or(0, Vec::len),
            above => length(above),
        } as u32;
        let controls = [Flags::SYN, Flags::FIN].iter().filter(|flag| flags.contains(**flag)).count() as u32;
        self.seq.unwrap_or(0).wrapping_add(payload).wrapping_add(controls)
    }
}

/// The kind of a segment's payload. Only messages that are complete in the segment have a layer.
#[inline]
fn payload(is_dns: bool, bytes: &[u8]) -> Kind {
    match bytes {
        [] => Kind::Raw,
        // RFC 1035, section 4.2.2.
        [high, low, message @ ..] if is_dns && usize::from(*high) << 8 | usize::from(*low) == message.len() => Kind::Dns,
        bytes => http::message(bytes).unwrap_or(Kind::Raw),
    }
}

/// Length of the layers without padding, in bytes.
fn length(layers: &[AnyLayer]) -> usize {
    let mut bytes = Vec::new();
    for layer in layers.iter().filter(|layer| !matches!(layer, AnyLayer::Padding(_))) {
        // A layer that cannot be built was not sent.
        let _ = layer.write(&mut bytes);
    }
    // A DNS message over TCP is preceded by its length.
    let prefix = matches!(layers.first(), Some(AnyLayer::Dns(dns)) if dns.length.is_none());
    bytes.len() + if prefix { dns::PREFIX } else { 0 }
}

impl Protocol for Tcp {
    #[inline]
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let mut layer = Self::get_fixed(bytes)?;
        let header = usize::from(layer.dataofs?) * 4;
        let Some(options) = bytes.get(Self::FIXED..header) else {
            return Some(Parsed { layer, header: Self::FIXED, end: bytes.len(), next: Kind::Raw });
        };
        if !options.is_empty() {
            layer.options = Some(TcpOption::parse(options));
        }
        let next = payload(layer.sport == Some(udp::DNS) || layer.dport == Some(udp::DNS), &bytes[header..]);
        Some(Parsed { layer, header, end: bytes.len(), next })
    }

    #[inline(always)]
    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)?;
        if let Some(options) = &self.options {
            tcp_option::write(options, out)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        if self.dataofs.is_none() {
            let header = packet.header();
            if header > 60 {
                return Err(FieldError { layer: "TCP", field: "dataofs", bits: 4 });
            }
            if let Some(byte) = packet.bytes().get_mut(Self::AT.dataofs) {
                *byte = *byte & 0x0f | (header as u8) << 2;
            }
        }
        if self.sport.is_none() && matches!(packet.next(), Some(AnyLayer::Dns(_))) {
            packet.put16(Self::AT.sport, super::udp::DNS);
        }
        if self.chksum.is_none()
            && let Some(value) = packet.checksum(Some(ip::TCP))
        {
            packet.put16(Self::AT.chksum, value);
        }
        Ok(())
    }

    /// The ports must be swapped. An ACK must acknowledge the SYN exactly (RFC 9293, section 3.10.7.3), or at least the
    /// first byte of data or FIN; without any of these, it must not be older than the request. A segment without ACK is
    /// a reset with the requested sequence number (section 3.10.7.1), or a simultaneous open.
    fn answers(&self, above: &[AnyLayer], request: &Self, asked: &[AnyLayer]) -> bool {
        let ports = or_default!(self, Tcp, sport) == or_default!(request, Tcp, dport)
            && or_default!(self, Tcp, dport) == or_default!(request, Tcp, sport);
        if !ports {
            return false;
        }
        let flags = or_default!(self, Tcp, flags).unwrap_or_default();
        let asked_flags = or_default!(request, Tcp, flags).unwrap_or_default();
        let resets_what_acknowledged = flags.contains(Flags::RST) && asked_flags.contains(Flags::ACK);
        if resets_what_acknowledged && or_default!(self, Tcp, seq) == or_default!(request, Tcp, ack) {
            return true;
        }
        if !flags.contains(Flags::ACK) {
            return !resets_what_acknowledged;
        }
        let begin = request.seq.unwrap_or(0);
        let acknowledged = self.ack.unwrap_or(0).wrapping_sub(begin);
        let length = request.end(asked).wrapping_sub(begin);
        // Later data may be acknowledged too, but not more than the largest window (RFC 7323, section 2.3).
        let most = if asked_flags.contains(Flags::SYN) { length } else { 1 << 30 };
        let is_acknowledged = (length.min(1)..=most).contains(&acknowledged);
        is_acknowledged
            && match (above, asked) {
                ([AnyLayer::Dns(_), ..], [AnyLayer::Dns(_), ..]) => answer::answers(above, asked),
                _ => true,
            }
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, packet: &[AnyLayer], at: usize) -> fmt::Result {
        let flags = letters(or_default!(self, Tcp, flags).unwrap_or_default());
        ports(f, "TCP", packet, at, self.sport.unwrap_or(20), self.dport.unwrap_or(80))?;
        write!(f, " {flags}")
    }
}

impl Protocol for TcpError {
    fn parse(bytes: &[u8], _: &[AnyLayer]) -> Option<Parsed<Self>> {
        let layer = Self::get_fixed(bytes)?;
        Some(Parsed { layer, header: Self::FIXED, end: bytes.len(), next: Kind::Raw })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        self.put_fixed(out)
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, packet: &[AnyLayer], at: usize) -> fmt::Result {
        ports(f, "TCPquote", packet, at, self.sport.unwrap_or(20), self.dport.unwrap_or(80))
    }
}

/// Writes `TCP 192.0.2.1:20 > 192.0.2.2:80`, with the addresses of the IP layer below.
pub(crate) fn ports(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    packet: &[AnyLayer],
    at: usize,
    source: u16,
    destination: u16,
) -> fmt::Result {
    let addresses: Option<(IpAddr, IpAddr)> = match at.checked_sub(1).map(|below| &packet[below]) {
        Some(AnyLayer::Ip(ip)) => or_default!(ip, super::Ip, src).zip(or_default!(ip, super::Ip, dst)).map(|(a, b)| (a.into(), b.into())),
        Some(AnyLayer::Ipv6(ip)) => {
            or_default!(ip, super::Ipv6, src).zip(or_default!(ip, super::Ipv6, dst)).map(|(a, b)| (a.into(), b.into()))
        }
        _ => None,
    };
    match addresses {
        Some((from @ IpAddr::V4(_), to)) => write!(f, "{name} {from}:{source} > {to}:{destination}"),
        Some((from, to)) => write!(f, "{name} [{from}]:{source} > [{to}]:{destination}"),
        None => write!(f, "{name} {source} > {destination}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layer::{Ether, Ip, Ipv6},
        view::checksum::{Checksum, verify},
    };

    #[test]
    fn bytes() {
        let options = [TcpOption::Mss(1460), TcpOption::SackOk, TcpOption::WScale(7)];
        let packet = Ip::to("192.0.2.2").src("192.0.2.1") / Tcp::to(443).seq(0x0102_0304).options(options) / "hi";
        let bytes = packet.build().unwrap();
        assert_eq!(bytes[20..36], [0, 20, 1, 187, 1, 2, 3, 4, 0, 0, 0, 0, 0x80, 2, 0x20, 0]);
        assert_eq!(bytes[40..], [2, 4, 5, 180, 4, 2, 3, 3, 7, 0, 0, 0, b'h', b'i']);
        assert_eq!(verify(&bytes, false), Checksum::Valid);
        let six = (Ipv6::to("2001:db8::2") / Tcp::to(443)).build().unwrap();
        assert_eq!(verify(&six, false), Checksum::Valid);
        assert_eq!(Packet::from_ip(&bytes).build().unwrap(), bytes);
    }

    #[test]
    fn set_fields_are_written_unchanged() {
        let tcp = Tcp::to(1).dataofs(15).reserved(5).chksum(1).flags("SN");
        let bytes = (Ip::new() / tcp).build().unwrap();
        assert_eq!(bytes[32..38], [0xfb, 2, 32, 0, 0, 1]);
        let read = Packet::from_ip(&bytes);
        assert_eq!(read.get::<Tcp>().unwrap().reserved, Some(5));
        assert_eq!(read.build().unwrap(), bytes);
    }

    #[test]
    fn checksum_without_ip_is_zero() {
        assert_eq!((Ether::new() / Tcp::new()).build().unwrap()[30..32], [0, 0]);
    }

    #[test]
    fn answers_match_ports() {
        let request = Ip::to("192.0.2.2").src("192.0.2.1") / Tcp::to(80).sport(9).seq(100).flags("S");
        let reply = |tcp: Tcp| Ip::to("192.0.2.1").src("192.0.2.2") / tcp;
        let back = || Tcp::to(9).sport(80);
        assert!(reply(back().flags("SA").ack(101)).answers(&request));
        assert!(reply(back().flags("RA").ack(101)).answers(&request));
        assert!(!reply(back().flags("SA").ack(102)).answers(&request));
        assert!(!reply(back().flags("SA").ack(99)).answers(&request));
        assert!(!reply(back().dport(10).flags("SA").ack(101)).answers(&request));
        let elsewhere = Ip::to("192.0.2.1").src("192.0.2.3") / back().flags("SA").ack(101);
        assert!(!elsewhere.answers(&request));
        let acknowledging = Ip::to("192.0.2.2").src("192.0.2.1") / Tcp::to(80).sport(9).flags("A").ack(7);
        assert!(reply(back().flags("R").seq(7)).answers(&acknowledging));
        assert!(!reply(back().flags("R").seq(8)).answers(&acknowledging));
    }
}
