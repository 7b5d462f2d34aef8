//! Options of IPv4, as objects.

use super::{
    Description, Family, Form,
    field::{bytes, d, field, fixed, header_length, ipv4, laid_out, uint, variable},
};
use crate::layer::{Value, value::FieldInfo};

/// An option: whether it is copied to fragments, its class, and its number.
macro_rules! option {
    ($name:literal, $source:literal, $doc:literal, ($copy:literal, $class:literal, $number:literal), $($field:expr),* $(,)?) => {
        Description::new($name, $source, $doc, Family::IpOption, &const {
            laid_out([
                uint("copy_flag", 1, d!($copy), "In all fragments"),
                uint("optclass", 2, d!($class), "Class"),
                uint("option", 5, d!($number), "Number"),
                $($field),*
            ])
        })
    };
}

const fn length(number: fn() -> Value) -> FieldInfo {
    uint("length", 8, number, "Length of the option in bytes")
}

const COMPUTED: FieldInfo = header_length("length", 8, 1, 0, "Length of the option in bytes");
const POINTER: FieldInfo = uint("pointer", 8, d!(4), "Where the next address goes, from 1");

pub(super) const TABLE: &[Description] = &[
    option!(
        "IPOption",
        "RFC 791, section 3.1",
        "IP option of any type",
        (0, 0, 0),
        COMPUTED,
        bytes("value", d!(""), "The data")
    ),
    option!("IPOption_EOL", "RFC 791, section 3.1", "IP option: end of the list", (0, 0, 0),),
    option!("IPOption_NOP", "RFC 791, section 3.1", "IP option: no operation", (0, 0, 1),),
    option!(
        "IPOption_Security",
        "RFC 791, section 3.1",
        "IP option: security",
        (1, 0, 2),
        length(d!(11)),
        uint("security", 16, d!(0), "Level"),
        uint("compartment", 16, d!(0), "Compartment"),
        uint("handling_restrictions", 16, d!(0), "Restrictions"),
        fixed("transmission_control_code", 3, d!("xxx"), "Code"),
    ),
    option!(
        "IPOption_LSRR",
        "RFC 791, section 3.1",
        "IP option: loose source route",
        (1, 0, 3),
        COMPUTED,
        POINTER,
        variable("routers", Form::Ipv4s, "The addresses"),
    ),
    option!(
        "IPOption_Timestamp",
        "RFC 781",
        "IP option: timestamp",
        (0, 2, 4),
        COMPUTED,
        uint("pointer", 8, d!(9), "Where the next timestamp goes, from 1"),
        uint("oflw", 4, d!(0), "Number of routers without room"),
        uint("flg", 4, d!(1), "With addresses"),
        field("internet_address", Form::If("flg", &Form::Ipv4), 0, Some(d!("0.0.0.0")), "The address"),
        uint("timestamp", 32, d!(0), "Milliseconds since midnight"),
    ),
    option!(
        "IPOption_RR",
        "RFC 791, section 3.1",
        "IP option: record route",
        (0, 0, 7),
        COMPUTED,
        POINTER,
        variable("routers", Form::Ipv4s, "The addresses"),
    ),
    option!(
        "IPOption_Stream_Id",
        "RFC 791, section 3.1",
        "IP option: stream",
        (1, 0, 8),
        length(d!(4)),
        uint("security", 16, d!(0), "Stream"),
    ),
    option!(
        "IPOption_SSRR",
        "RFC 791, section 3.1",
        "IP option: strict source route",
        (1, 0, 9),
        COMPUTED,
        POINTER,
        variable("routers", Form::Ipv4s, "The addresses"),
    ),
    option!(
        "IPOption_MTU_Probe",
        "RFC 1063",
        "IP option: MTU probe",
        (0, 0, 11),
        length(d!(4)),
        uint("mtu", 16, d!(0), "The MTU"),
    ),
    option!(
        "IPOption_MTU_Reply",
        "RFC 1063",
        "IP option: MTU reply",
        (0, 0, 12),
        length(d!(4)),
        uint("mtu", 16, d!(0), "The MTU"),
    ),
    option!(
        "IPOption_Traceroute",
        "RFC 1393",
        "IP option: traceroute",
        (0, 0, 18),
        length(d!(12)),
        uint("id", 16, d!(0), "Identifier"),
        uint("outbound_hops", 16, d!(0), "Hops to the destination"),
        uint("return_hops", 16, d!(0), "Hops back"),
        ipv4("originator_ip", "Sender"),
    ),
    option!(
        "IPOption_Address_Extension",
        "RFC 1475",
        "IP option: longer addresses",
        (1, 0, 19),
        length(d!(10)),
        ipv4("src_ext", "Of the source"),
        ipv4("dst_ext", "Of the destination"),
    ),
    option!(
        "IPOption_Router_Alert",
        "RFC 2113",
        "IP option: router alert",
        (1, 0, 20),
        length(d!(4)),
        uint("alert", 16, d!(0), "0: every router examines the packet"),
    ),
    option!(
        "IPOption_SDBM",
        "RFC 1770",
        "IP option: selective directed broadcast",
        (1, 0, 21),
        COMPUTED,
        variable("addresses", Form::Ipv4s, "The addresses"),
    ),
];
