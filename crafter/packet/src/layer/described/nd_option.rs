//! Options of neighbour discovery that are not in `layer/nd_option.rs`.

use super::{
    Description, Family, Form,
    field::{d, field, fixed, header_length, ipv6, laid_out, mac, named, uint, variable, zero},
};

/// An option with its type and its length in units of 8 bytes.
macro_rules! option {
    ($name:literal, $source:literal, $doc:literal, $number:literal, $length:expr, $($field:expr),* $(,)?) => {
        Description::new($name, $source, $doc, Family::NdOption, &const {
            laid_out([uint("type", 8, d!($number), "Type"), $length, $($field),*])
        })
    };
}

macro_rules! units {
    ($number:literal) => {
        uint("len", 8, d!($number), "Length in units of 8 bytes")
    };
    () => {
        header_length("len", 8, 8, 0, "Length in units of 8 bytes")
    };
}

pub(super) const TABLE: &[Description] = &[
    option!(
        "ICMPv6NDOptShortcutLimit",
        "RFC 2491, section 6.2",
        "Option: limit of shortcuts",
        6,
        units!(1),
        uint("shortcutlim", 8, d!(40), "Hop limit"),
        zero("res1", 8),
        zero("res2", 32),
    ),
    option!(
        "ICMPv6NDOptAdvInterval",
        "RFC 6275, section 7.3",
        "Option: interval of advertisements",
        7,
        units!(1),
        zero("res", 16),
        uint("advint", 32, d!(0), "Interval in milliseconds"),
    ),
    option!(
        "ICMPv6NDOptHAInfo",
        "RFC 6275, section 7.4",
        "Option: home agent",
        8,
        units!(1),
        zero("res", 16),
        uint("pref", 16, d!(0), "Preference"),
        uint("lifetime", 16, d!(1), "Lifetime in seconds"),
    ),
    option!(
        "ICMPv6NDOptSrcAddrList",
        "RFC 3122, section 3.1",
        "Option: addresses of the sender",
        9,
        units!(),
        fixed("res", 6, d!(""), "Reserved"),
        variable("addrlist", Form::Ipv6s, "The addresses"),
    ),
    option!(
        "ICMPv6NDOptTgtAddrList",
        "RFC 3122, section 3.2",
        "Option: addresses of the target",
        10,
        units!(),
        fixed("res", 6, d!(""), "Reserved"),
        variable("addrlist", Form::Ipv6s, "The addresses"),
    ),
    option!(
        "ICMPv6NDOptIPAddr",
        "RFC 5568, section 6.4.1",
        "Option: address for a fast handover",
        17,
        units!(3),
        uint("optcode", 8, d!(1), "Which address"),
        uint("plen", 8, d!(64), "Length of the prefix in bits"),
        zero("res", 32),
        ipv6("addr", "The address"),
    ),
    option!(
        "ICMPv6NDOptNewRtrPrefix",
        "RFC 4068, section 6.4.2",
        "Option: prefix of the new router",
        18,
        units!(3),
        uint("optcode", 8, d!(0), "Code"),
        uint("plen", 8, d!(64), "Length of the prefix in bits"),
        zero("res", 32),
        ipv6("prefix", "The prefix"),
    ),
    option!(
        "ICMPv6NDOptLLA",
        "RFC 5568, section 6.4.3",
        "Option: link-layer address for a fast handover",
        19,
        units!(1),
        uint("optcode", 8, d!(0), "Which address"),
        mac("lla", "The address"),
    ),
    option!(
        "ICMPv6NDOptMAP",
        "RFC 5380, section 5.1",
        "Option: mobility anchor point",
        23,
        units!(3),
        uint("dist", 4, d!(1), "Distance"),
        uint("pref", 4, d!(15), "Preference"),
        uint("R", 1, d!(1), "Use the regional care-of address"),
        zero("res", 7),
        uint("validlifetime", 32, d!(0xffff_ffff), "Valid lifetime in seconds"),
        ipv6("addr", "Address of the anchor point"),
    ),
    option!(
        "ICMPv6NDOptRouteInfo",
        "RFC 4191, section 2.3",
        "Option: a more specific route",
        24,
        units!(),
        uint("plen", 8, d!(0), "Length of the prefix in bits"),
        zero("res1", 3),
        uint("prf", 2, d!(0), "Preference"),
        zero("res2", 3),
        uint("rtlifetime", 32, d!(0xffff_ffff), "Lifetime in seconds"),
        field("prefix", Form::Prefix, 0, Some(d!("::")), "The prefix: as many bytes as len leaves"),
    ),
    option!(
        "ICMPv6NDOptEFA",
        "RFC 5175, section 4",
        "Option: more flags of an advertisement",
        26,
        units!(1),
        uint("res", 48, d!(0), "The flags"),
    ),
    option!(
        "ICMPv6NDOptDNSSL",
        "RFC 8106, section 5.2",
        "Option: DNS search list",
        31,
        units!(),
        zero("res", 16),
        uint("lifetime", 32, d!(0xffff_ffff), "Lifetime in seconds"),
        variable("searchlist", Form::Names, "Names of domains"),
    ),
    option!(
        "ICMPv6NDOptCaptivePortal",
        "RFC 8910, section 2.3",
        "Option: captive portal",
        37,
        units!(),
        variable("URI", Form::Padded, "The URI, padded to a multiple of 8 bytes with type and length"),
    ),
    option!(
        "ICMPv6NDOptPREF64",
        "RFC 8781, section 4",
        "Option: prefix of a NAT64",
        38,
        units!(2),
        uint("scaledlifetime", 13, d!(0), "Lifetime in units of 8 seconds"),
        named(
            uint("plc", 3, d!(0), "Length of the prefix"),
            &[(0, "/96"), (1, "/64"), (2, "/56"), (3, "/48"), (4, "/40"), (5, "/32")]
        ),
        field("prefix", Form::Leading(12), 96, Some(d!("::")), "The highest 96 bits of the prefix"),
    ),
];
