//! The mobility header of Mobile IPv6 (RFC 6275, section 6.1).

use super::{
    Description, Family, Form,
    field::{bytes, checksum, d, field, fixed, header_length, ipv6, laid_out, uint, variable, zero},
};
use crate::layer::value::FieldInfo;

/// Number of the mobility header.
pub(crate) const MOBILITY: u8 = 135;

const AUTOPAD: FieldInfo =
    field("autopad", Form::Switch, 0, Some(d!(1)), "1: options are aligned and padded to a multiple of 8 bytes");

/// A message.
macro_rules! message {
    ($name:literal, $section:literal, $doc:literal, $number:expr, $($field:expr),* $(,)?) => {
        Description::new($name, concat!("RFC 6275, section ", $section), $doc, Family::Mobility, &const {
            laid_out([
                uint("nh", 8, d!(59), "Next header"),
                header_length("len", 8, 8, -1, "Length in units of 8 bytes, without the first 8 bytes"),
                uint("mhtype", 8, d!($number), "Type of the message"),
                zero("res", 8),
                checksum(MOBILITY),
                $($field),*
            ])
        })
    };
}

const fn options(at: u8) -> FieldInfo {
    variable("options", Form::Options(Family::MobilityOption, at), "Options")
}

pub(super) const TABLE: &[Description] = &[
    message!("MIP6MH_BRR", "6.1.2", "Mobile IPv6: binding refresh request", 0, zero("res2", 16), AUTOPAD, options(8)),
    message!(
        "MIP6MH_HoTI",
        "6.1.3",
        "Mobile IPv6: home test init",
        1,
        fixed("reserved", 2, d!(""), "Reserved"),
        fixed("cookie", 8, d!(""), "Cookie"),
        AUTOPAD,
        options(16),
    ),
    message!(
        "MIP6MH_CoTI",
        "6.1.4",
        "Mobile IPv6: care-of test init",
        2,
        fixed("reserved", 2, d!(""), "Reserved"),
        fixed("cookie", 8, d!(""), "Cookie"),
        AUTOPAD,
        options(16),
    ),
    message!(
        "MIP6MH_HoT",
        "6.1.5",
        "Mobile IPv6: home test",
        3,
        uint("index", 16, d!(0), "Nonce index"),
        fixed("cookie", 8, d!(""), "Cookie"),
        fixed("token", 8, d!(""), "Keygen token"),
        AUTOPAD,
        options(24),
    ),
    message!(
        "MIP6MH_CoT",
        "6.1.6",
        "Mobile IPv6: care-of test",
        4,
        uint("index", 16, d!(0), "Nonce index"),
        fixed("cookie", 8, d!(""), "Cookie"),
        fixed("token", 8, d!(""), "Keygen token"),
        AUTOPAD,
        options(24),
    ),
    message!(
        "MIP6MH_BU",
        "6.1.7",
        "Mobile IPv6: binding update",
        5,
        uint("seq", 16, d!(0), "Sequence number"),
        field(
            "flags",
            Form::Flags("PRMKLHA"),
            7,
            Some(d!(104)),
            "Proxy, router, MAP, key, link-local, home, acknowledge"
        ),
        zero("reserved", 9),
        uint("mhtime", 16, d!(3), "Lifetime in units of 4 seconds"),
        AUTOPAD,
        options(12),
    ),
    message!(
        "MIP6MH_BA",
        "6.1.8",
        "Mobile IPv6: binding acknowledgement",
        6,
        uint("status", 8, d!(0), "Status"),
        field("flags", Form::Flags("PRK"), 3, Some(d!(4)), "Proxy, router, key"),
        zero("res2", 5),
        uint("seq", 16, d!(0), "Sequence number"),
        uint("mhtime", 16, d!(0), "Lifetime in units of 4 seconds"),
        AUTOPAD,
        options(12),
    ),
    message!(
        "MIP6MH_BE",
        "6.1.9",
        "Mobile IPv6: binding error",
        7,
        uint("status", 8, d!(0), "Status"),
        zero("reserved", 8),
        ipv6("ha", "Home address"),
        options(24),
    ),
    message!(
        "MIP6MH_Generic",
        "6.1.1",
        "Mobile IPv6: any other message",
        0xff,
        bytes("msg", d!(vec![0_u8; 2]), "The message")
    ),
];
