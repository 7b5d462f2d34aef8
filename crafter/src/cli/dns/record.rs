//! Records in the format of zone files (RFC 1035, section 5.1), one per line.

use std::fmt::Write as _;

use hickory_proto::{
    rr::{DNSClass, RData, Record, RecordType},
    serialize::binary::BinEncodable as _,
};
use serde_json::{Value, json};

/// `name ttl class type data`, joined by tabs.
pub fn line(record: &Record) -> String {
    let [name, class, kind, data] = parts(record);
    format!("{name}\t{}\t{class}\t{kind}\t{data}", record.ttl)
}

/// The same as an object.
pub fn object(record: &Record) -> Value {
    let [name, class, kind, data] = parts(record);
    json!({ "name": name, "ttl": record.ttl, "class": class, "type": kind, "data": data })
}

/// Name, class, type and data.
fn parts(record: &Record) -> [String; 4] {
    let (class, kind) = (class_name(record.dns_class), type_name(record.record_type()));
    [record.name.to_ascii(), class, kind, data(&record.data)]
}

/// The type's mnemonic, or `TYPE65534` (RFC 3597, section 5).
pub fn type_name(kind: RecordType) -> String {
    match kind {
        RecordType::Unknown(number) => format!("TYPE{number}"),
        known => known.to_string(),
    }
}

/// Reads a type: a mnemonic in any case, or `TYPE65534`.
///
/// # Errors
/// A sentence for clap.
pub fn parse_type(text: &str) -> Result<RecordType, String> {
    let upper = text.to_ascii_uppercase();
    let kind = match upper.strip_prefix("TYPE").map(str::parse::<u16>) {
        Some(Ok(number)) => RecordType::from(number),
        _ => upper
            .parse()
            .map_err(|_| "not a record type; give e.g. A, AAAA, MX, TXT, PTR, NS, SOA, SRV, ANY or TYPE64")?,
    };
    match kind {
        RecordType::AXFR | RecordType::IXFR => Err("zone transfers are not supported; use `dig` for them".to_owned()),
        RecordType::OPT | RecordType::TSIG | RecordType::ZERO => {
            Err("not a type that can be queried; give e.g. A, AAAA or TYPE64".to_owned())
        }
        kind => Ok(kind),
    }
}

/// The class's mnemonic (RFC 1035, section 3.2.4), or `CLASS255` (RFC 3597, section 5).
pub fn class_name(class: DNSClass) -> String {
    match u16::from(class) {
        1 => "IN".to_owned(),
        3 => "CH".to_owned(),
        4 => "HS".to_owned(),
        number => format!("CLASS{number}"),
    }
}

/// Reads a class: a mnemonic in any case, or `CLASS3`.
pub fn class(text: &str) -> Option<DNSClass> {
    let upper = text.to_ascii_uppercase();
    match upper.as_str() {
        "IN" => Some(DNSClass::IN),
        "CH" | "CHAOS" => Some(DNSClass::CH),
        "HS" | "HESIOD" => Some(DNSClass::HS),
        "NONE" => Some(DNSClass::NONE),
        "ANY" => Some(DNSClass::ANY),
        other => other.strip_prefix("CLASS")?.parse::<u16>().ok().map(DNSClass::from),
    }
}

/// Reads the class of a query.
///
/// # Errors
/// A sentence that says why the class cannot be queried, and which can.
pub fn parse_class(text: &str) -> Result<DNSClass, String> {
    match class(text) {
        Some(class @ (DNSClass::IN | DNSClass::CH | DNSClass::HS)) => Ok(class),
        Some(DNSClass::ANY) => Err("no server answers for class ANY; use IN, CH or HS".to_owned()),
        Some(DNSClass::NONE) => Err("class NONE is for updates (RFC 2136); use IN, CH or HS".to_owned()),
        Some(other) => Err(format!("class {} cannot be queried; use IN, CH or HS", u16::from(other))),
        None => Err("not a class; use IN, CH or HS".to_owned()),
    }
}

fn data(data: &RData) -> String {
    match data {
        RData::TXT(text) => strings(text.txt_data.iter().map(AsRef::as_ref)),
        RData::HINFO(info) => strings([&*info.cpu, &*info.os].into_iter()),
        RData::NULL(_) | RData::OPENPGPKEY(_) | RData::Unknown { .. } | RData::OPT(_) => generic(data),
        other => other.to_string().chars().fold(String::new(), |mut text, c| {
            // Control characters from a hostile server could control the terminal.
            match c {
                c if c.is_control() => _ = write!(text, "\\{:03}", u32::from(c)),
                c => text.push(c),
            }
            text
        }),
    }
}

/// Quoted character strings.
fn strings<'s>(strings: impl Iterator<Item = &'s [u8]>) -> String {
    let quoted = strings.map(|bytes| {
        let mut text = String::from("\"");
        for &byte in bytes {
            match byte {
                b'"' | b'\\' => text.extend(['\\', byte.into()]),
                b' '..=b'~' => text.push(byte.into()),
                _ => _ = write!(text, "\\{byte:03}"),
            }
        }
        text + "\""
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// `\# 3 010203` (RFC 3597, section 5).
fn generic(data: &RData) -> String {
    let bytes = data.to_bytes().unwrap_or_default();
    let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    format!("\\# {} {hex}", bytes.len()).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{
        Name,
        rdata::{MX, NULL, TXT},
    };

    use super::*;

    #[test]
    fn lines_have_the_format_of_zone_files() {
        let name = Name::from_ascii("lab.test.").unwrap();
        let record = |data| line(&Record::from_rdata(name.clone(), 300, data));
        let text = TXT::from_bytes(vec![b"say \"hi\"\\", b"\x1b[2J\xff"]);
        assert_eq!(record(RData::TXT(text)), r#"lab.test.	300	IN	TXT	"say \"hi\"\\" "\027[2J\255""#);
        let mail = MX::new(10, Name::from_ascii("mail.lab.test.").unwrap());
        assert_eq!(record(RData::MX(mail)), "lab.test.\t300\tIN\tMX\t10 mail.lab.test.");
        let code = RecordType::Unknown(65_280);
        let unknown = RData::Unknown { code, rdata: NULL::with(vec![1, 0xab]) };
        assert_eq!(record(unknown), "lab.test.\t300\tIN\tTYPE65280\t\\# 2 01ab");
        let classes = [1, 3, 4, 255].map(|number| class_name(DNSClass::from(number)));
        assert_eq!(classes, ["IN", "CH", "HS", "CLASS255"]);
    }

    #[test]
    fn types_are_case_insensitive() {
        assert_eq!(parse_type("aaaa"), Ok(RecordType::AAAA));
        assert_eq!(parse_type("TYPE28"), Ok(RecordType::AAAA));
        assert_eq!(parse_type("type65280"), Ok(RecordType::Unknown(65_280)));
        for text in ["", "AAAAA", "TYPE", "TYPE70000", "AXFR", "TYPE252", "OPT"] {
            assert!(parse_type(text).is_err(), "{text}");
        }
    }
}
