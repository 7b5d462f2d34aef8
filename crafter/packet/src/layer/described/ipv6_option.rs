//! Options of the IPv6 hop-by-hop and destination headers, as objects.

use super::{
    Description, Family,
    field::{bytes, d, header_length, ipv6, laid_out, uint, zero},
};

macro_rules! option {
    ($name:literal, $source:literal, $doc:literal, $number:literal, $($field:expr),* $(,)?) => {
        Description::new($name, $source, $doc, Family::Ipv6Option, &const {
            laid_out([uint("otype", 8, d!($number), "Type"), $($field),*])
        })
    };
}

macro_rules! length {
    ($number:literal) => {
        uint("optlen", 8, d!($number), "Length of the data in bytes")
    };
    () => {
        header_length("optlen", 8, 1, -2, "Length of the data in bytes")
    };
}

pub(super) const TABLE: &[Description] = &[
    option!("Pad1", "RFC 8200, section 4.2", "IPv6 option: one byte of padding", 0,),
    option!(
        "PadN",
        "RFC 8200, section 4.2",
        "IPv6 option: padding",
        1,
        length!(),
        bytes("optdata", d!(""), "The bytes")
    ),
    option!(
        "RouterAlert",
        "RFC 2711",
        "IPv6 option: router alert",
        5,
        length!(2),
        uint("value", 16, d!(0), "For which protocol"),
    )
    .aligned(2, 0),
    option!(
        "RplOption",
        "RFC 6553, section 3",
        "IPv6 option: routing for low-power networks",
        99,
        length!(4),
        uint("Down", 1, d!(0), "The packet goes down"),
        uint("RankError", 1, d!(0), "Rank error"),
        uint("ForwardError", 1, d!(0), "Forwarding error"),
        zero("unused", 5),
        uint("RplInstanceId", 8, d!(0), "Instance"),
        uint("SenderRank", 16, d!(0), "Rank of the sender"),
    )
    .aligned(2, 0),
    option!(
        "Jumbo",
        "RFC 2675, section 2",
        "IPv6 option: length of a jumbogram",
        194,
        length!(4),
        uint("jumboplen", 32, d!(0), "Length of the payload in bytes"),
    )
    .aligned(4, 2),
    option!(
        "HAO",
        "RFC 6275, section 6.3",
        "IPv6 option: home address",
        201,
        length!(16),
        ipv6("hoa", "The home address"),
    )
    .aligned(8, 6),
    option!(
        "HBHOptUnknown",
        "RFC 8200, section 4.2",
        "IPv6 option of any other type",
        1,
        length!(),
        bytes("optdata", d!(""), "The data"),
    ),
];
