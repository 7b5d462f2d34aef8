//! DNS messages; hickory-proto encodes names and record data.

use std::{fmt, sync::LazyLock};

use hickory_proto::serialize::binary::{BinDecoder, BinEncodable as _, BinEncoder, NameEncoding};

use super::{
    AnyLayer, Kind,
    build::Building,
    dns_record::{Question, Record, type_name},
    protocol::{Fixed, Parsed, Protocol, be16},
    table::{FieldError, layer},
    value::IntoField,
};

const OPCODES: &[(u64, &str)] = &[(0, "QUERY"), (1, "IQUERY"), (2, "STATUS"), (4, "NOTIFY"), (5, "UPDATE")];
const RCODES: &[(u64, &str)] =
    &[(0, "ok"), (1, "format-error"), (2, "server-failure"), (3, "name-error"), (4, "not-implemented"), (5, "refused")];

layer! {
    /// Domain Name System
    pub struct Dns: "DNS", "RFC 1035" {
        /// Identifier of the query
        id: u16, 16, (0);
        /// Response
        qr: u8, 1, (0);
        /// Kind of query
        opcode: u8, 4, (0), OPCODES;
        /// Authoritative answer
        aa: u8, 1, (0);
        /// Truncated
        tc: u8, 1, (0);
        /// Recursion desired
        rd: u8, 1, (1);
        /// Recursion available
        ra: u8, 1, (0);
        /// Reserved
        z: u8, 1, (0);
        /// Authentic data (RFC 4035)
        ad: u8, 1, (0);
        /// Checking disabled (RFC 4035)
        cd: u8, 1, (0);
        /// Response code
        rcode: u8, 4, (0), RCODES;
        /// Number of questions
        qdcount: u16, 16, computed;
        /// Number of answers
        ancount: u16, 16, computed;
        /// Number of authority records
        nscount: u16, 16, computed;
        /// Number of additional records
        arcount: u16, 16, computed;
    }
    tail {
        /// Length before the message; over TCP, computed if unset (RFC 1035, section 4.2.2)
        length: u16;
        /// Questions; if unset, for the address of www.example.com, as in Scapy: `qd=[]` for none
        qd: Vec<Question>;
        /// Answers
        an: Vec<Record>;
        /// Authority records
        ns: Vec<Record>;
        /// Additional records
        ar: Vec<Record>;
        /// The bytes of the sections; if set, they replace qd, an, ns and ar. Parsing sets it if these would be built
        /// to other bytes, such as another compression of names; unset it after changing a section
        body: Vec<u8>;
        /// 1: repeated names are pointers (RFC 1035, section 4.1.4)
        compress: u8;
    }
}

/// Size of the length field before a message over TCP, in bytes.
pub(crate) const PREFIX: usize = 2;

impl Dns {
    /// A query for a name: `Dns::query("example.org", 1)` asks for addresses.
    ///
    /// # Panics
    /// If the name is invalid; see [`IntoField`].
    pub fn query(qname: &str, qtype: impl IntoField<u16>) -> Self {
        match Question::new(qname, qtype.into_field()) {
            Ok(question) => Self::new().qd([question]),
            Err(reason) => panic!("{reason}"),
        }
    }

    /// Parses the sections after the header; returns their end.
    fn read(&mut self, bytes: &[u8]) -> Option<usize> {
        let decoder = &mut BinDecoder::new(bytes);
        decoder.read_slice(Self::FIXED).ok()?;
        // A message without questions, unlike one whose questions are unset.
        self.qd = section(self.qdcount?, || Question::read(decoder))?.or_else(|| Some(Vec::new()));
        self.an = section(self.ancount?, || Record::read(decoder))?;
        self.ns = section(self.nscount?, || Record::read(decoder))?;
        self.ar = section(self.arcount?, || Record::read(decoder))?;
        Some(decoder.index())
    }

    /// The questions, or the default one.
    fn questions(&self) -> &[Question] {
        static DEFAULT: LazyLock<Vec<Question>> =
            LazyLock::new(|| Question::new("www.example.com", 1).into_iter().collect());
        match &self.qd {
            Some(questions) => questions,
            // With the bytes of the sections given, nothing is added to the count.
            None if self.body.is_some() => &[],
            None => &DEFAULT,
        }
    }

    /// The encoded sections after 12 zero bytes in place of the header, because compressed names are offsets into the
    /// message.
    fn sections(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut encoder = BinEncoder::new(&mut bytes);
        if self.compress.unwrap_or(0) == 0 {
            encoder.set_name_encoding(NameEncoding::Uncompressed);
        }
        encoder.emit_vec(&[0; Self::FIXED]).ok()?;
        for question in self.questions() {
            question.emit(&mut encoder).ok()?;
        }
        for record in [&self.an, &self.ns, &self.ar].into_iter().flatten().flatten() {
            record.emit(&mut encoder).ok()?;
        }
        Some(bytes)
    }
}

/// `None` for an empty section, as if it were unset.
#[allow(clippy::option_option)]
fn section<T>(count: u16, mut read: impl FnMut() -> Option<T>) -> Option<Option<Vec<T>>> {
    // Does not allocate by the count, which is untrusted.
    let mut entries = Vec::new();
    for _ in 0..count {
        entries.push(read()?);
    }
    Some(if entries.is_empty() { None } else { Some(entries) })
}

impl Protocol for Dns {
    fn parse(bytes: &[u8], below: &[AnyLayer]) -> Option<Parsed<Self>> {
        if let Some(AnyLayer::Tcp(_)) = below.last() {
            let message = Self::parse(bytes.get(PREFIX..)?, &[])?;
            let layer = Self { length: be16(bytes), ..message.layer };
            return Some(Parsed { layer, header: PREFIX + message.header, end: bytes.len(), next: Kind::Raw });
        }
        let head = Self::get_fixed(bytes)?;
        let mut layer = head.clone();
        let end = layer.read(bytes);
        let (layer, header) = match end {
            Some(end) => {
                let sections = &bytes[Self::FIXED..end];
                let is_exact = |layer: &Self| layer.sections().is_some_and(|again| again[Self::FIXED..] == *sections);
                if !is_exact(&layer) {
                    layer.compress = Some(1);
                    if !is_exact(&layer) {
                        layer.compress = None;
                        layer.body = Some(sections.to_vec());
                    }
                }
                (layer, end)
            }
            None => (Self { body: Some(bytes[Self::FIXED..].to_vec()), ..head }, bytes.len()),
        };
        Some(Parsed { layer, header, end: bytes.len(), next: Kind::Raw })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FieldError> {
        if let Some(length) = self.length {
            out.extend_from_slice(&length.to_be_bytes());
        }
        self.put_fixed(out)?;
        match &self.body {
            Some(body) => out.extend_from_slice(body),
            None => {
                let sections = self.sections().ok_or(FieldError { layer: "DNS", field: "sections", bits: 65_535 * 8 })?;
                out.extend_from_slice(&sections[Self::FIXED..]);
            }
        }
        Ok(())
    }

    fn finish(&self, packet: &mut Building<'_>) -> Result<(), FieldError> {
        let counts = [
            (self.qdcount, self.questions().len(), "qdcount"),
            (self.ancount, self.an.as_ref().map_or(0, Vec::len), "ancount"),
            (self.nscount, self.ns.as_ref().map_or(0, Vec::len), "nscount"),
            (self.arcount, self.ar.as_ref().map_or(0, Vec::len), "arcount"),
        ];
        let mut start = 0;
        if self.length.is_some() || packet.is_behind_tcp() {
            start = PREFIX;
        }
        if self.length.is_none() && start > 0 {
            let length = packet.length().saturating_sub(PREFIX);
            packet.put16(0, u16::try_from(length).map_err(|_| FieldError { layer: "DNS", field: "length", bits: 16 })?);
        }
        for (i, (set, count, field)) in counts.into_iter().enumerate() {
            if set.is_none() {
                let count = u16::try_from(count).map_err(|_| FieldError { layer: "DNS", field, bits: 16 })?;
                packet.put16(start + Self::AT.qdcount + 2 * i, count);
            }
        }
        Ok(())
    }

    /// A response with the query's identifier and question; or, without a question, a record of its name (RFC 6762,
    /// section 6).
    fn answers(&self, _: &[AnyLayer], request: &Self, _: &[AnyLayer]) -> bool {
        self.qr == Some(1)
            && request.qr.unwrap_or(0) == 0
            && self.id.unwrap_or(0) == request.id.unwrap_or(0)
            && match (self.questions(), &self.an, request.questions()) {
                ([], Some(records), questions @ [_, ..]) => {
                    records.iter().any(|record| questions.iter().any(|question| question.qname == record.rrname))
                }
                // An error may come without the question.
                ([], ..) | (_, _, []) => true,
                (repeated, _, questions) => repeated == questions,
            }
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>, _: &[AnyLayer], _: usize) -> fmt::Result {
        f.write_str(if self.qr == Some(1) { "DNS Ans" } else { "DNS Qry" })?;
        if let Some(question) = self.questions().first() {
            write!(f, " {} {}", question.name(), type_name(question.qtype))?;
        }
        match (self.qr, &self.an) {
            (Some(1), Some(answers)) => write!(f, " {} answers", answers.len()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Ip, Packet, Tcp, Udp, Value};

    #[test]
    fn query_and_answer() {
        let request = Ip::to("192.0.2.53").src("192.0.2.1") / Udp::new().sport(999) / Dns::query("example.org", 1).id(7);
        let bytes = request.build().unwrap();
        assert_eq!(bytes[22..24], [0, 53]);
        assert_eq!(bytes[28..40], [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[40..], b"\x07example\x03org\x00\x00\x01\x00\x01");
        let record = Record::address("example.org", 60, "192.0.2.7".parse().unwrap()).unwrap();
        let answer = |id: u16, name: &str| {
            let dns = Dns::query(name, 1).id(id).qr(1).an([record.clone()]);
            Ip::to("192.0.2.1").src("192.0.2.53") / Udp::to(999).sport(53) / dns
        };
        assert!(answer(7, "example.org").answers(&request));
        assert!(!answer(8, "example.org").answers(&request));
        assert!(!answer(7, "example.com").answers(&request));
        assert!(!request.answers(&request));
        for compress in [0_u8, 1] {
            let mut answer = answer(7, "example.org");
            answer.get_mut::<Dns>().unwrap().compress = Some(compress);
            let bytes = answer.build().unwrap();
            let first = if compress > 0 { [0xc0, 12] } else { [7, b'e'] };
            assert_eq!(bytes[57..59], first, "the name of the answer points to that of the question if compressed");
            let read = Packet::from_ip(&bytes);
            assert_eq!(read.get::<Dns>().unwrap().an.as_deref(), Some(&[record.clone()][..]));
            assert_eq!(read.get::<Dns>().unwrap().body, None);
            assert_eq!(read.build().unwrap(), bytes);
        }
    }

    /// From edns-opts.pcap of tcpdump: the EDNS record has no zone file format.
    #[test]
    fn edns() {
        let opt = b"\0\x07\x01\x20\0\0\0\0\0\0\0\x01\0\0\x29\x10\0\0\0\x80\0\0\x0c\0\x0a\0\x08crafter!";
        let packet = Ip::to("192.0.2.53") / Udp::to(53).sport(53) / Packet::parse(crate::layer::Kind::Dns, opt);
        let bytes = packet.build().unwrap();
        let read = Packet::from_ip(&bytes);
        assert_eq!(read.get::<Dns>().unwrap().ar.as_ref().map(Vec::len), Some(1));
        let text = read.to_string();
        assert!(text.contains(r#"DNSRR(rrname=".", type=41, rclass=4096, ttl=32768, rdata=b"\x00\n\x00\x08crafter!""#), "{text}");
        assert!(read.show().unwrap().contains("crafter!"));
        let again = crate::expr::PacketSet::parse(&text).unwrap().packets(1).unwrap().next().unwrap();
        assert_eq!(again, read);
        assert_eq!(again.build().unwrap(), bytes);
    }

    #[test]
    fn sections_that_build_differently_are_kept_as_bytes() {
        // An answer with a compressed name, one without, and bytes after the message.
        let mut bytes = b"\0\x07\x81\x80\0\x01\0\x02\0\0\0\0\x01a\0\0\x01\0\x01".to_vec();
        bytes.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x01\x02\x03\x04");
        bytes.extend(b"\x01a\0\0\x01\0\x01\0\0\0\x3c\0\x04\x01\x02\x03\x04");
        bytes.extend(b"more");
        let read = Packet::parse(Kind::Dns, &bytes);
        let dns = read.get::<Dns>().unwrap();
        assert!(dns.body.is_some() && dns.an.as_ref().is_some_and(|answers| answers.len() == 2));
        assert_eq!(read.build().unwrap(), bytes);
        // Wrong counts.
        bytes[5] = 9;
        let read = Packet::parse(Kind::Dns, &bytes);
        assert_eq!(read.get::<Dns>().unwrap().qdcount, Some(9));
        assert_eq!(read.build().unwrap(), bytes);
    }

    #[test]
    fn dns_over_tcp_has_length_prefix() {
        let dns = Dns::query("example.org", 1).id(7);
        let packet = Ip::to("192.0.2.53").src("192.0.2.1") / Tcp::to(53).flags("PA") / dns.clone();
        let bytes = packet.build().unwrap();
        assert_eq!(bytes[40..54], [0, 29, 0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert!(packet.show().unwrap().contains("  qdcount         = 1  (computed)\n"));
        assert!(packet.show().unwrap().contains("  length          = 29  (default)\n"));
        let mut read = Packet::from_ip(&bytes);
        assert_eq!(read.get::<Dns>().unwrap().length, Some(29));
        assert_eq!(read.build().unwrap(), bytes);
        read.recompute();
        assert_eq!(read.get::<Dns>().unwrap().length, None);
        assert_eq!(read.build().unwrap(), bytes);
        assert_eq!(read.to_string().parse::<Packet>().unwrap(), read);
        // An incomplete message, or more than one, is not a layer.
        for load in [&bytes[40..60], &[&bytes[40..], b"\0"].concat()] {
            let packet = Ip::to("192.0.2.53") / Tcp::to(53) / load;
            let part = Packet::from_ip(&packet.build().unwrap());
            assert!(part.get::<Dns>().is_none());
        }
        // Set fields are kept, also where they do not belong.
        let set = dns.clone().length(3);
        for below in [Packet::from(Tcp::to(53)), Packet::from(Udp::to(53))] {
            let below = Ip::to("192.0.2.53") / below;
            let header = below.build().unwrap().len();
            let bytes = (below / set.clone()).build().unwrap();
            assert_eq!(bytes[header..header + 8], [0, 3, 0, 7, 1, 0, 0, 1]);
            assert_eq!(Packet::from_ip(&bytes).build().unwrap(), bytes);
        }
        let reply = |id: u16| {
            let dns = Dns::query("example.org", 1).id(id).qr(1);
            let tcp = Tcp::to(20).sport(53).flags("PA").ack(29 + 2);
            (Ip::to("192.0.2.1").src("192.0.2.53") / tcp / dns).resolved().unwrap()
        };
        assert!(reply(7).answers(&packet));
        assert!(!reply(8).answers(&packet));
        let llmnr = (Ip::to("224.0.0.252") / Udp::to(5355).sport(999) / dns).resolved().unwrap();
        assert!(llmnr.get::<Dns>().is_some());
    }

    #[test]
    fn records_by_name() {
        let mut packet = Packet::from(Dns::new().qd([]));
        let fields = vec![("rrname".to_owned(), Value::Text("a.".into())), ("rdata".to_owned(), Value::Text("1.2.3.4".into()))];
        packet.set_field("DNS", "an", &Value::List(vec![Value::Record("DNSRR".into(), fields)])).unwrap();
        assert_eq!(packet.build().unwrap().len(), 12 + 3 + 10 + 4);
        let wrong = Value::List(vec![Value::Record("DNSRR".into(), vec![("rname".into(), Value::None)])]);
        let error = packet.set_field("DNS", "an", &wrong).unwrap_err().to_string();
        assert_eq!(error, "DNS.an: DNSRR has no field 'rname'; did you mean rrname?");
    }
}
