//! Forms of fields on the wire, and the values that fit them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Described, Family, dns_rdata};
use crate::layer::{
    Mac, Value, dns_record,
    value::{FieldInfo, FieldKind},
};

/// What a length field counts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Of {
    /// The whole header.
    Header,
    /// Another field.
    Field(&'static str),
    /// What follows the length.
    Behind,
}

/// How a field is written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    /// By the code of its layer.
    Typed,
    /// A number.
    Uint,
    /// Flags: a number, or their letters, the first for the lowest bit.
    Flags(&'static str),
    /// A length: bytes divided by a unit, plus a number.
    Length(Of, u8, i8),
    /// The length of a field, in bits.
    BitLength(&'static str),
    /// The number of elements of a field, plus a number.
    Count(&'static str, i8),
    /// The Internet checksum with the pseudo-header of a protocol.
    Checksum(u8),
    /// The length of the payload, in bytes.
    PayloadLength,
    /// The number of the next layer: of IP protocols, or EtherTypes.
    NextHeader,
    NextEthertype,
    /// A type and a class of DNS.
    DnsType,
    DnsClass,
    /// What a node information query asks about, by its data.
    QueryCode,
    /// The family of an address: 1 for IPv4, 2 for IPv6.
    AddressFamily(&'static str),
    /// The version of NetFlow, and the number of its records, by the next layers.
    NetflowVersion,
    Records,
    /// Service access point and control field, by the next layer.
    Sap,
    Control,
    /// As many bytes as the field has, filled with zeros.
    Fixed,
    /// Bytes.
    Bytes,
    /// As many bytes as another field says.
    Sized(&'static str),
    /// Numbers of one byte each.
    Numbers8,
    /// Bytes, filled with zeros until the header is a multiple of 8 bytes.
    Padded,
    /// Addresses.
    Mac,
    Ipv4,
    Ipv6,
    Ipv4s,
    Ipv6s,
    /// The leading bytes of an IPv6 address: as many as the length field of the header leaves, or a number.
    Prefix,
    Leading(u8),
    /// An IPv4 or IPv6 address in as many bytes as the prefix length in this field needs.
    Network(&'static str),
    /// A DNS name, and several with zeros up to a multiple of 8 bytes.
    Name,
    Names,
    /// Types as bit maps (RFC 4034, section 4.1.2).
    TypeBitmap,
    /// The data of a DNS record, by its field `type`; of a service parameter, by its `key`.
    RecordData,
    ParamValue,
    /// Data of node information: of a query, of a reply.
    Query,
    Reply,
    /// Described layers of a family, each aligned as it needs; the last number is where the list begins.
    Options(Family, u8),
    /// Described layers of a family.
    List(Family),
    /// No bytes: 0 turns off the alignment of options.
    Switch,
    /// A number that is there if a field has another value than 0.
    If(&'static str, &'static Form),
}

impl Form {
    pub(super) const fn kind(self) -> FieldKind {
        match self {
            Self::Flags(_) => FieldKind::Flags,
            Self::Mac => FieldKind::Mac,
            Self::Ipv4 => FieldKind::Ipv4,
            Self::Ipv6 | Self::Prefix | Self::Leading(_) => FieldKind::Ipv6,
            Self::If(_, form) => form.kind(),
            Self::Numbers8 | Self::Ipv4s | Self::Ipv6s | Self::Names | Self::Options(..) | Self::List(_) => {
                FieldKind::List
            }
            Self::TypeBitmap | Self::RecordData | Self::ParamValue | Self::Reply => FieldKind::List,
            Self::Fixed | Self::Bytes | Self::Sized(_) | Self::Padded | Self::Name | Self::Network(_) | Self::Query => {
                FieldKind::Bytes
            }
            _ => FieldKind::Uint,
        }
    }

    /// Whether an unset field follows from the rest of the packet.
    pub(super) const fn is_computed(self) -> bool {
        matches!(
            self,
            Self::Length(..)
                | Self::BitLength(_)
                | Self::Count(..)
                | Self::Checksum(_)
                | Self::PayloadLength
                | Self::QueryCode
                | Self::AddressFamily(_)
        )
    }
}

/// The value of a field as it is kept: of one type for each form.
pub(super) fn canonical(field: &FieldInfo, value: &Value) -> Result<Value, String> {
    let of_list = |each: &dyn Fn(&Value) -> Result<Value, String>| match value {
        Value::List(values) => values.iter().map(each).collect::<Result<_, _>>().map(Value::List),
        one => Ok(Value::List(vec![each(one)?])),
    };
    let v4 = |value: &Value| Ok(Value::Text(value.parsed::<Ipv4Addr>("an IPv4 address")?.to_string()));
    let v6 = |value: &Value| Ok(Value::Text(value.parsed::<Ipv6Addr>("an IPv6 address")?.to_string()));
    match field.form {
        Form::Flags(letters) => match value {
            Value::Text(text) => {
                let bit = |letter| {
                    let at =
                        letters.find(letter).ok_or_else(|| format!("unknown flag '{letter}'; flags are {letters}"));
                    at.map(|at| 1 << at)
                };
                Ok(Value::Uint(
                    text.chars().map(bit).try_fold(0, |all, bit: Result<u64, String>| Ok::<_, String>(all | bit?))?,
                ))
            }
            other => number(field, other),
        },
        Form::Typed
        | Form::Uint
        | Form::Length(..)
        | Form::Count(..)
        | Form::BitLength(_)
        | Form::Checksum(_)
        | Form::PayloadLength
        | Form::NextHeader
        | Form::NextEthertype
        | Form::QueryCode
        | Form::NetflowVersion
        | Form::Records
        | Form::AddressFamily(_)
        | Form::Sap
        | Form::Control
        | Form::Switch => number(field, value),
        Form::DnsType => dns_rdata::kind_of(value),
        Form::DnsClass => match value {
            Value::Text(_) => dns_record::class_from(value).map(|class| Value::Uint(class.into())),
            other => number(field, other),
        },
        Form::Numbers8 => of_list(&|value| number(&FieldInfo { bits: 8, ..*field }, value)),
        Form::Fixed => {
            let size = field.bits / 8;
            let mut bytes = match value {
                Value::Uint(number) => {
                    let bytes = number.to_be_bytes();
                    let mut wide = vec![0; size.max(8) - 8];
                    wide.extend(bytes);
                    if wide[..wide.len() - size].iter().any(|byte| *byte > 0) {
                        return Err(format!("{number} does not fit {} bits", field.bits));
                    }
                    wide.split_off(wide.len() - size)
                }
                other => other.bytes()?,
            };
            bytes.resize(size, 0);
            Ok(Value::Bytes(bytes))
        }
        Form::Bytes | Form::Sized(_) | Form::Padded => Ok(Value::Bytes(value.bytes()?)),
        Form::Mac => Ok(Value::Text(value.parsed::<Mac>("an Ethernet address such as 02:00:00:00:00:01")?.to_string())),
        Form::Ipv4 => v4(value),
        Form::Ipv6 | Form::Prefix | Form::Leading(_) => v6(value),
        Form::Ipv4s => of_list(&v4),
        Form::Ipv6s => of_list(&v6),
        Form::Network(_) => Ok(Value::Text(value.parsed::<IpAddr>("an address")?.to_string())),
        Form::Name => Ok(dns_record::wire_value(&dns_record::wire_name(value)?)),
        Form::Names => of_list(&|value| match value {
            Value::Text(text) if text.is_ascii() => Ok(Value::Text(text.clone())),
            other => Ok(Value::Bytes(other.bytes()?)),
        }),
        Form::TypeBitmap => of_list(&|value| match value {
            Value::Bytes(bytes) => Ok(Value::Bytes(bytes.clone())),
            other => dns_record::type_from(other).map(|number| Value::Uint(number.into())),
        }),
        Form::RecordData | Form::ParamValue | Form::Query | Form::Reply => Ok(value.clone()),
        Form::Options(family, _) | Form::List(family) => of_list(&|value| match value {
            Value::Record(name, fields) => {
                let layer = Described::of_record(name, fields)?;
                if layer.family() != family && !is_relative(layer.family(), family) {
                    return Err(format!("{name} is not one of the elements of {}", field.name));
                }
                Ok(layer.to_record())
            }
            other => Ok(Value::Bytes(other.bytes()?)),
        }),
        Form::If(_, form) => canonical(&FieldInfo { form: *form, ..*field }, value),
    }
}

/// Padding is the same in the options of IPv6 and of Mobile IPv6.
fn is_relative(family: Family, of: Family) -> bool {
    (family, of) == (Family::Ipv6Option, Family::MobilityOption)
}

fn number(field: &FieldInfo, value: &Value) -> Result<Value, String> {
    let number = match value {
        Value::Text(text) => field.number(text)?,
        other => other.uint(u64::MAX)?,
    };
    let max = field.max();
    if number > max {
        Err(format!("{number} does not fit {} bits, the largest is {max}", field.bits))
    } else {
        Ok(Value::Uint(number))
    }
}
