//! ICMPv6 messages: multicast listeners and routers, inverse neighbour discovery, Mobile IPv6.

use super::{
    Description, Family, Form,
    field::{bytes, checksum, count_of, d, field, ipv6, laid_out, length_of, uint, variable, zero},
};
use crate::view::ip::ICMPV6;

const CODE: crate::layer::FieldInfo = zero_named("code");

const fn zero_named(name: &'static str) -> crate::layer::FieldInfo {
    uint(name, 8, d!(0), "Code")
}

/// A message with type, code and checksum.
macro_rules! message {
    ($name:literal, $source:literal, $doc:literal, $family:ident, $number:literal, $($field:expr),* $(,)?) => {
        Description::new($name, $source, $doc, Family::$family, &const {
            laid_out([uint("type", 8, d!($number), "Type"), CODE, checksum(ICMPV6), $($field),*])
        })
    };
}

pub(super) const TABLE: &[Description] = &[
    message!(
        "ICMPv6MLQuery",
        "RFC 2710, section 3",
        "Multicast listener query",
        Icmpv6,
        130,
        uint("mrd", 16, d!(10_000), "Maximum response delay in milliseconds"),
        zero("reserved", 16),
        ipv6("mladdr", "Multicast address"),
    ),
    message!(
        "ICMPv6MLReport",
        "RFC 2710, section 3",
        "Multicast listener report",
        Icmpv6,
        131,
        uint("mrd", 16, d!(0), "Maximum response delay in milliseconds"),
        zero("reserved", 16),
        ipv6("mladdr", "Multicast address"),
    ),
    message!(
        "ICMPv6MLDone",
        "RFC 2710, section 3",
        "Multicast listener done",
        Icmpv6,
        132,
        uint("mrd", 16, d!(0), "Maximum response delay in milliseconds"),
        zero("reserved", 16),
        ipv6("mladdr", "Multicast address"),
    ),
    message!(
        "ICMPv6MLQuery2",
        "RFC 3810, section 5.1",
        "Multicast listener query, version 2",
        Icmpv6,
        130,
        uint("mrd", 16, d!(10_000), "Maximum response code"),
        zero("reserved", 16),
        ipv6("mladdr", "Multicast address"),
        zero("Resv", 4),
        uint("S", 1, d!(0), "Suppress router-side processing"),
        uint("QRV", 3, d!(0), "The querier's robustness variable"),
        uint("QQIC", 8, d!(0), "The querier's query interval code"),
        count_of("sources_number", 16, "sources", 0),
        variable("sources", Form::Ipv6s, "Source addresses"),
    ),
    Description::new(
        "ICMPv6MLReport2",
        "RFC 3810, section 5.2",
        "Multicast listener report, version 2",
        Family::Icmpv6,
        &const {
            laid_out([
                uint("type", 8, d!(143), "Type"),
                zero("res", 8),
                checksum(ICMPV6),
                zero("reserved", 16),
                count_of("records_number", 16, "records", 0),
                variable("records", Form::List(Family::MldRecord), "Multicast address records"),
            ])
        },
    ),
    Description::new(
        "ICMPv6MLDMultAddrRec",
        "RFC 3810, section 5.2",
        "A multicast address record of a report",
        Family::MldRecord,
        &const {
            laid_out([
                uint("rtype", 8, d!(4), "Type of the record"),
                length_of("auxdata_len", 8, "auxdata", 1, 0),
                count_of("sources_number", 16, "sources", 0),
                ipv6("dst", "Multicast address"),
                variable("sources", Form::Ipv6s, "Source addresses"),
                bytes("auxdata", d!(""), "Auxiliary data"),
            ])
        },
    ),
    Description::new(
        "ICMPv6MRD_Advertisement",
        "RFC 4286, section 3",
        "Multicast router advertisement",
        Family::Icmpv6,
        &const {
            laid_out([
                uint("type", 8, d!(151), "Type"),
                uint("advinter", 8, d!(20), "Interval of advertisements in seconds"),
                checksum(ICMPV6),
                uint("queryint", 16, d!(0), "Query interval in seconds"),
                uint("robustness", 16, d!(0), "Robustness variable"),
            ])
        },
    ),
    Description::new(
        "ICMPv6MRD_Solicitation",
        "RFC 4286, section 4",
        "Multicast router solicitation",
        Family::Icmpv6,
        &const { laid_out([uint("type", 8, d!(152), "Type"), zero("res", 8), checksum(ICMPV6)]) },
    ),
    Description::new(
        "ICMPv6MRD_Termination",
        "RFC 4286, section 5",
        "Multicast router termination",
        Family::Icmpv6,
        &const { laid_out([uint("type", 8, d!(153), "Type"), zero("res", 8), checksum(ICMPV6)]) },
    ),
    message!(
        "ICMPv6ND_INDSol",
        "RFC 3122, section 2.1",
        "Inverse neighbour discovery solicitation",
        NdMessage,
        141,
        zero("reserved", 32),
    ),
    message!(
        "ICMPv6ND_INDAdv",
        "RFC 3122, section 2.2",
        "Inverse neighbour discovery advertisement",
        NdMessage,
        142,
        zero("reserved", 32),
    ),
    message!(
        "ICMPv6HAADRequest",
        "RFC 6275, section 6.5",
        "Home agent address discovery request",
        Icmpv6,
        144,
        uint("id", 16, d!(0), "Identifier"),
        uint("R", 1, d!(1), "Mobile router (RFC 3963)"),
        zero("res", 15),
    ),
    message!(
        "ICMPv6HAADReply",
        "RFC 6275, section 6.6",
        "Home agent address discovery reply",
        Icmpv6,
        145,
        uint("id", 16, d!(0), "Identifier"),
        uint("R", 1, d!(1), "Mobile router (RFC 3963)"),
        zero("res", 15),
        field("addresses", Form::Ipv6s, 0, Some(|| crate::layer::Value::List(Vec::new())), "Home agents"),
    ),
    message!(
        "ICMPv6MPSol",
        "RFC 6275, section 6.7",
        "Mobile prefix solicitation",
        Icmpv6,
        146,
        uint("id", 16, d!(0), "Identifier"),
        zero("res", 16),
    ),
    message!(
        "ICMPv6MPAdv",
        "RFC 6275, section 6.8",
        "Mobile prefix advertisement",
        NdMessage,
        147,
        uint("id", 16, d!(0), "Identifier"),
        uint("flags", 2, d!(2), "Managed and other configuration"),
        zero("res", 14),
    ),
    Description::new(
        "ICMPv6RPL",
        "RFC 6550, section 6",
        "Routing protocol for low-power networks",
        Family::Icmpv6,
        &const { laid_out([uint("type", 8, d!(155), "Type"), CODE, checksum(ICMPV6)]) },
    ),
];
