//! DNS questions and resource records, with the fields of their data.

use std::collections::BTreeMap;

use super::{
    Described, Description, Family, Form, Of, encode,
    field::{bytes, d, field, laid_out, length_of, uint, variable},
};
use crate::layer::{Value, dns_record, value::FieldInfo};

const fn name(name: &'static str, doc: &'static str) -> FieldInfo {
    field(name, Form::Name, 0, Some(d!(".")), doc)
}

const fn kind(name: &'static str, number: fn() -> Value) -> FieldInfo {
    field(name, Form::DnsType, 16, Some(number), "Type: a number, or its mnemonic")
}

const CACHE_FLUSH: FieldInfo = uint("cacheflush", 1, d!(0), "Replaces known records (RFC 6762, section 10.2)");
const CLASS: FieldInfo = field("rclass", Form::DnsClass, 15, Some(d!(1)), "Class, 1 for the internet");
const WIDE_CLASS: FieldInfo = field("rclass", Form::DnsClass, 16, Some(d!(1)), "Class, 1 for the internet");
const TTL: FieldInfo =
    uint("ttl", 32, d!(0), "How long the record may be cached, in seconds (RFC 1035, section 3.2.1)");
const RDLEN: FieldInfo = field("rdlen", Form::Length(Of::Behind, 1, 0), 16, None, "Length of the data in bytes");

/// A record with the fields of its data.
macro_rules! record {
    ($name:literal, $source:literal, $doc:literal, $number:literal, $($field:expr),* $(,)?) => {
        Description::new($name, $source, $doc, Family::DnsRecord, &const {
            laid_out([name("rrname", "Name"), kind("type", d!($number)), CACHE_FLUSH, CLASS, TTL, RDLEN, $($field),*])
        })
    };
}

/// A record whose class has all 16 bits.
macro_rules! plain {
    ($name:literal, $source:literal, $doc:literal, $number:literal, $($field:expr),* $(,)?) => {
        Description::new($name, $source, $doc, Family::DnsRecord, &const {
            laid_out([name("rrname", "Name"), kind("type", d!($number)), WIDE_CLASS, TTL, RDLEN, $($field),*])
        })
    };
}

const fn sized(name: &'static str, length: &'static str, doc: &'static str) -> FieldInfo {
    field(name, Form::Sized(length), 0, Some(d!("")), doc)
}

macro_rules! digest {
    ($name:literal, $source:literal, $doc:literal, $number:literal) => {
        record!(
            $name,
            $source,
            $doc,
            $number,
            uint("keytag", 16, d!(0), "Tag of the key"),
            uint("algorithm", 8, d!(5), "Algorithm of the key"),
            uint("digesttype", 8, d!(5), "Algorithm of the digest"),
            bytes("digest", d!(""), "The digest"),
        )
    };
}

macro_rules! service_binding {
    ($name:literal, $number:literal) => {
        record!(
            $name,
            "RFC 9460, section 2",
            "DNS record: service binding",
            $number,
            uint("svc_priority", 16, d!(0), "Priority, 0 for an alias"),
            name("target_name", "Name of the service"),
            variable("svc_params", Form::List(Family::SvcParam), "Parameters"),
        )
    };
}

pub(super) const TABLE: &[Description] = &[
    Description::new(
        "DNSQR",
        "RFC 1035, section 4.1.2",
        "DNS question",
        Family::DnsQuestion,
        &const {
            laid_out([
                field("qname", Form::Name, 0, Some(d!("www.example.com.")), "Name"),
                kind("qtype", d!(1)),
                uint("unicastresponse", 1, d!(0), "Answer by unicast (RFC 6762, section 5.4)"),
                field("qclass", Form::DnsClass, 15, Some(d!(1)), "Class, 1 for the internet"),
            ])
        },
    ),
    record!(
        "DNSRR",
        "RFC 1035, section 4.1.3",
        "DNS record",
        1,
        field(
            "rdata",
            Form::RecordData,
            0,
            Some(|| Value::Bytes(Vec::new())),
            "The data: an address, a name, texts, or bytes, by the type"
        ),
    ),
    plain!(
        "DNSRRSOA",
        "RFC 1035, section 3.3.13",
        "DNS record: start of a zone",
        6,
        name("mname", "Primary server"),
        name("rname", "Mailbox"),
        uint("serial", 32, d!(0), "Serial number"),
        uint("refresh", 32, d!(0), "Seconds"),
        uint("retry", 32, d!(0), "Seconds"),
        uint("expire", 32, d!(0), "Seconds"),
        uint("minimum", 32, d!(0), "Seconds"),
    ),
    record!(
        "DNSRRHINFO",
        "RFC 1035, section 3.3.2",
        "DNS record: host information",
        13,
        length_of("cpulen", 8, "cpu", 1, 0),
        bytes("cpu", d!(""), "Processor"),
        length_of("oslen", 8, "os", 1, 0),
        bytes("os", d!(""), "Operating system"),
    ),
    record!(
        "DNSRRMX",
        "RFC 1035, section 3.3.9",
        "DNS record: mail exchange",
        15,
        uint("preference", 16, d!(0), "Preference"),
        name("exchange", "Mail server"),
    ),
    record!(
        "DNSRRSRV",
        "RFC 2782",
        "DNS record: service",
        33,
        uint("priority", 16, d!(0), "Priority"),
        uint("weight", 16, d!(0), "Weight"),
        uint("port", 16, d!(0), "Port"),
        name("target", "Host"),
    ),
    record!(
        "DNSRRNAPTR",
        "RFC 3403, section 4",
        "DNS record: naming authority pointer",
        35,
        uint("order", 16, d!(0), "Order"),
        uint("preference", 16, d!(0), "Preference"),
        length_of("flags_len", 8, "flags", 1, 0),
        bytes("flags", d!(""), "Flags"),
        length_of("services_len", 8, "services", 1, 0),
        bytes("services", d!(""), "Services"),
        length_of("regexp_len", 8, "regexp", 1, 0),
        bytes("regexp", d!(""), "Regular expression"),
        name("replacement", "Replacement"),
    ),
    Description::new(
        "DNSRROPT",
        "RFC 6891, section 6.1",
        "DNS record: EDNS options",
        Family::DnsRecord,
        &const {
            laid_out([
                name("rrname", "Name"),
                kind("type", d!(41)),
                field("rclass", Form::DnsClass, 16, Some(d!(4096)), "UDP payload size of the sender"),
                uint("extrcode", 8, d!(0), "Upper bits of the response code"),
                uint("version", 8, d!(0), "Version"),
                uint("z", 16, d!(32768), "Flags; 32768: DNSSEC OK (RFC 3225)"),
                RDLEN,
                variable("rdata", Form::List(Family::EdnsOption), "Options"),
            ])
        },
    ),
    digest!("DNSRRDS", "RFC 4034, section 5", "DNS record: delegation signer", 43),
    digest!("DNSRRDLV", "RFC 4431", "DNS record: DNSSEC look-aside", 32769),
    record!(
        "DNSRRRSIG",
        "RFC 4034, section 3",
        "DNS record: signature",
        46,
        kind("typecovered", d!(1)),
        uint("algorithm", 8, d!(5), "Algorithm"),
        uint("labels", 8, d!(0), "Number of labels"),
        uint("originalttl", 32, d!(0), "TTL of the signed records in their zone, in seconds (RFC 4034, section 3.1.4)"),
        uint("expiration", 32, d!(0), "Seconds since 1970"),
        uint("inception", 32, d!(0), "Seconds since 1970"),
        uint("keytag", 16, d!(0), "Tag of the key"),
        name("signersname", "Signer"),
        bytes("signature", d!(""), "The signature"),
    ),
    record!(
        "DNSRRNSEC",
        "RFC 4034, section 4",
        "DNS record: next name",
        47,
        name("nextname", "The next name"),
        variable("typebitmaps", Form::TypeBitmap, "Types of the name"),
    ),
    record!(
        "DNSRRDNSKEY",
        "RFC 4034, section 2",
        "DNS record: key",
        48,
        field("flags", Form::Flags("S???????Z???????"), 16, Some(d!(256)), "Secure entry point (S), zone key (Z)"),
        uint("protocol", 8, d!(3), "Protocol, 3"),
        uint("algorithm", 8, d!(5), "Algorithm"),
        bytes("publickey", d!(""), "The key"),
    ),
    record!(
        "DNSRRNSEC3",
        "RFC 5155, section 3",
        "DNS record: hashed next name",
        50,
        uint("hashalg", 8, d!(0), "Hash algorithm"),
        uint("flags", 8, d!(0), "1: opt-out"),
        uint("iterations", 16, d!(0), "Iterations"),
        uint("saltlength", 8, d!(0), "Length of the salt"),
        sized("salt", "saltlength", "Salt"),
        uint("hashlength", 8, d!(0), "Length of the hash"),
        sized("nexthashedownername", "hashlength", "Hash of the next name"),
        variable("typebitmaps", Form::TypeBitmap, "Types of the name"),
    ),
    record!(
        "DNSRRNSEC3PARAM",
        "RFC 5155, section 4",
        "DNS record: parameters of NSEC3",
        51,
        uint("hashalg", 8, d!(0), "Hash algorithm"),
        uint("flags", 8, d!(0), "Flags"),
        uint("iterations", 16, d!(0), "Iterations"),
        uint("saltlength", 8, d!(0), "Length of the salt"),
        sized("salt", "saltlength", "Salt"),
    ),
    service_binding!("DNSRRSVCB", 64),
    service_binding!("DNSRRHTTPS", 65),
    plain!(
        "DNSRRTSIG",
        "RFC 8945, section 4.2",
        "DNS record: transaction signature",
        250,
        field("algo_name", Form::Name, 0, Some(d!("hmac-sha1.")), "Algorithm"),
        uint("time_signed", 48, d!(0), "Seconds since 1970"),
        uint("fudge", 16, d!(0), "Allowed difference in seconds"),
        length_of("mac_len", 16, "mac_data", 1, 0),
        bytes("mac_data", d!(""), "MAC"),
        uint("original_id", 16, d!(0), "Identifier of the message"),
        uint("error", 16, d!(0), "Error"),
        length_of("other_len", 16, "other_data", 1, 0),
        bytes("other_data", d!(""), "Other data"),
    ),
    Description::new(
        "TCPAOValue",
        "RFC 5925, section 2.2",
        "Value of TCP's authentication option",
        Family::TcpOption,
        &const {
            laid_out([
                uint("keyid", 8, d!(0), "Key of this segment"),
                uint("rnextkeyid", 8, d!(0), "Key for the next received one"),
                bytes("mac", d!(""), "MAC"),
            ])
        },
    ),
];

/// Writes the data of a record by its type.
pub(super) fn write(layer: &Described, value: &Value, out: &mut Vec<u8>) -> Option<()> {
    let kind = u16::try_from(layer.number("type")?).ok()?;
    out.extend(dns_record::data_bytes(kind, value).ok()?);
    Some(())
}

/// Reads the data of a record by its type.
pub(super) fn read(layer: &Described, data: &[u8]) -> Value {
    let kind = layer.number("type").and_then(|kind| u16::try_from(kind).ok()).unwrap_or(0);
    dns_record::bytes_value(kind, data)
}

/// Writes types as bit maps (RFC 4034, section 4.1.2).
pub(super) fn write_bitmap(types: &[Value], out: &mut Vec<u8>) {
    let mut windows: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    for value in types {
        match value {
            Value::Uint(number) => {
                let [window, bit] = (*number as u16).to_be_bytes();
                let map = windows.entry(window).or_default();
                let at = usize::from(bit / 8);
                map.resize(map.len().max(at + 1), 0);
                map[at] |= 0x80 >> (bit % 8);
            }
            other => out.extend(encode::bytes(other)),
        }
    }
    for (window, map) in windows {
        out.extend([window, map.len() as u8]);
        out.extend(map);
    }
}

/// Reads bit maps; other bytes are kept as one element.
pub(super) fn read_bitmap(data: &[u8]) -> Vec<Value> {
    let (mut types, mut rest) = (Vec::new(), data);
    while let [window, length, behind @ ..] = rest {
        let Some((map, behind)) = behind.split_at_checked(usize::from(*length)) else { break };
        for (at, byte) in map.iter().enumerate().take(32) {
            let bits = (0..8).filter(|bit| byte & (0x80 >> bit) != 0);
            types.extend(bits.map(|bit| Value::Uint(u64::from(*window) << 8 | (at as u64) << 3 | bit)));
        }
        rest = behind;
    }
    let mut again = Vec::new();
    write_bitmap(&types, &mut again);
    if again == data { types } else { vec![Value::Bytes(data.to_vec())] }
}

/// A type's number or mnemonic as a number.
pub(super) fn kind_of(value: &Value) -> Result<Value, String> {
    dns_record::type_from(value).map(|number| Value::Uint(number.into()))
}
