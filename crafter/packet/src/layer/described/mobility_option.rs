//! Options of Mobile IPv6 (RFC 6275, section 6.2).

use super::{
    Description, Family,
    field::{bytes, d, fixed, header_length, ipv6, laid_out, mac, uint, zero},
};

macro_rules! option {
    ($name:literal, $source:literal, $doc:literal, $number:literal, $length:expr, $($field:expr),* $(,)?) => {
        Description::new($name, $source, $doc, Family::MobilityOption, &const {
            laid_out([uint("otype", 8, d!($number), "Type"), $length, $($field),*])
        })
    };
}

macro_rules! length {
    ($number:literal) => {
        uint("olen", 8, d!($number), "Length of the data in bytes")
    };
    () => {
        header_length("olen", 8, 1, -2, "Length of the data in bytes")
    };
}

pub(super) const TABLE: &[Description] = &[
    option!(
        "MIP6OptBRAdvice",
        "RFC 6275, section 6.2.4",
        "Mobility option: binding refresh advice",
        2,
        length!(2),
        uint("rinter", 16, d!(0), "Interval in units of 4 seconds"),
    )
    .aligned(2, 0),
    option!(
        "MIP6OptAltCoA",
        "RFC 6275, section 6.2.5",
        "Mobility option: alternate care-of address",
        3,
        length!(16),
        ipv6("acoa", "The address"),
    )
    .aligned(8, 6),
    option!(
        "MIP6OptNonceIndices",
        "RFC 6275, section 6.2.6",
        "Mobility option: nonce indices",
        4,
        length!(16),
        uint("hni", 16, d!(0), "Home nonce index"),
        uint("coni", 16, d!(0), "Care-of nonce index"),
    )
    .aligned(2, 0),
    option!(
        "MIP6OptBindingAuthData",
        "RFC 6275, section 6.2.7",
        "Mobility option: authorization of a binding",
        5,
        length!(16),
        fixed("authenticator", 12, d!(""), "The authenticator: bytes, or a number"),
    )
    .aligned(8, 2),
    option!(
        "MIP6OptMobNetPrefix",
        "RFC 3963, section 4.3",
        "Mobility option: network prefix",
        6,
        length!(18),
        zero("reserved", 8),
        uint("plen", 8, d!(64), "Length of the prefix in bits"),
        ipv6("prefix", "The prefix"),
    )
    .aligned(8, 4),
    option!(
        "MIP6OptLLAddr",
        "RFC 5568, section 6.4.4",
        "Mobility option: link-layer address",
        7,
        length!(7),
        uint("ocode", 8, d!(2), "Whose address"),
        zero("pad", 8),
        mac("lla", "The address"),
    ),
    option!(
        "MIP6OptMNID",
        "RFC 4283, section 3",
        "Mobility option: identifier of the mobile node",
        8,
        length!(),
        uint("subtype", 8, d!(1), "Type of the identifier"),
        bytes("id", d!(""), "The identifier"),
    ),
    option!(
        "MIP6OptMsgAuth",
        "RFC 4285, section 5",
        "Mobility option: authentication of a message",
        9,
        length!(),
        uint("subtype", 8, d!(1), "With whom"),
        uint("mspi", 32, d!(0), "Security parameter index"),
        bytes("authdata", d!("AAAAAAAAAAAA"), "Authentication data"),
    )
    .aligned(4, 1),
    option!(
        "MIP6OptReplayProtection",
        "RFC 4285, section 6",
        "Mobility option: protection against replays",
        10,
        length!(8),
        uint("timestamp", 64, d!(0), "Time in the format of NTP"),
    )
    .aligned(8, 2),
    option!(
        "MIP6OptCGAParamsReq",
        "RFC 4866, section 6.6",
        "Mobility option: request for CGA parameters",
        11,
        length!(0),
    ),
    option!(
        "MIP6OptCGAParams",
        "RFC 4866, section 6.1",
        "Mobility option: CGA parameters",
        12,
        length!(),
        bytes("cgaparams", d!(""), "The parameters"),
    ),
    option!(
        "MIP6OptSignature",
        "RFC 4866, section 6.2",
        "Mobility option: signature",
        13,
        length!(),
        bytes("sig", d!(""), "The signature"),
    ),
    option!(
        "MIP6OptHomeKeygenToken",
        "RFC 4866, section 6.3",
        "Mobility option: permanent home keygen token",
        14,
        length!(),
        bytes("hkt", d!(""), "The token"),
    ),
    option!("MIP6OptCareOfTestInit", "RFC 4866, section 6.4", "Mobility option: care-of test init", 15, length!(0),),
    option!(
        "MIP6OptCareOfTest",
        "RFC 4866, section 6.5",
        "Mobility option: care-of test",
        16,
        length!(),
        bytes("cokt", d!(vec![0_u8; 8]), "Care-of keygen token"),
    ),
    Description::new(
        "MIP6OptUnknown",
        "RFC 6275, section 6.2.1",
        "Mobility option of any other type",
        Family::MobilityOption,
        &const { laid_out([uint("otype", 8, d!(6), "Type"), length!(), bytes("odata", d!(""), "The data")]) },
    ),
];
