//! The segment routing header, as in Scapy; received ones are parsed to `IPv6ExtHdrRouting`.

use super::{
    Description, Family, Form,
    field::{bytes, count_of, d, field, header_length, laid_out, length_of, uint, variable, zero},
};
use crate::layer::Value;

macro_rules! tlv {
    ($name:literal, $doc:literal, $number:literal, $($field:expr),* $(,)?) => {
        Description::new($name, "RFC 8754, section 2.1", $doc, Family::SegmentTlv, &const {
            laid_out([uint("type", 8, d!($number), "Type"), $($field),*])
        })
    };
}

pub(super) const TABLE: &[Description] = &[
    Description::new(
        "IPv6ExtHdrSegmentRouting",
        "RFC 8754, section 2",
        "Segments to visit",
        Family::SegmentRouting,
        &const {
            laid_out([
                field("nh", Form::NextHeader, 8, None, "Next header"),
                header_length("len", 8, 8, -1, "Length in units of 8 bytes, without the first 8 bytes"),
                uint("type", 8, d!(4), "Routing type"),
                count_of("segleft", 8, "addresses", -1),
                count_of("lastentry", 8, "addresses", -1),
                zero("unused1", 1),
                uint("protected", 1, d!(0), "Protected"),
                uint("oam", 1, d!(0), "Operations and management"),
                uint("alert", 1, d!(0), "Alert"),
                uint("hmac", 1, d!(0), "There is an HMAC"),
                zero("unused2", 3),
                uint("tag", 16, d!(0), "Tag"),
                field(
                    "addresses",
                    Form::Ipv6s,
                    0,
                    Some(|| Value::List(vec!["::1".into()])),
                    "Segments, the last one first",
                ),
                variable("tlv_objects", Form::List(Family::SegmentTlv), "TLVs, padded to a multiple of 8 bytes"),
            ])
        },
    ),
    tlv!(
        "IPv6ExtHdrSegmentRoutingTLV",
        "TLV of any other type",
        255,
        uint("len", 8, d!(0), "Length of the value"),
        bytes("value", d!(""), "The value"),
    ),
    tlv!(
        "IPv6ExtHdrSegmentRoutingTLVIngressNode",
        "TLV: ingress node",
        1,
        uint("len", 8, d!(18), "Length"),
        zero("reserved", 8),
        zero("flags", 8),
        field("ingress_node", Form::Ipv6, 128, Some(d!("::1")), "The node"),
    ),
    tlv!(
        "IPv6ExtHdrSegmentRoutingTLVEgressNode",
        "TLV: egress node",
        2,
        uint("len", 8, d!(18), "Length"),
        zero("reserved", 8),
        zero("flags", 8),
        field("egress_node", Form::Ipv6, 128, Some(d!("::1")), "The node"),
    ),
    tlv!("IPv6ExtHdrSegmentRoutingTLVPad1", "TLV: one byte of padding", 0,),
    tlv!(
        "IPv6ExtHdrSegmentRoutingTLVPadN",
        "TLV: padding",
        4,
        length_of("len", 8, "padding", 1, 0),
        bytes("padding", d!(vec![0_u8]), "The bytes"),
    ),
    tlv!(
        "IPv6ExtHdrSegmentRoutingTLVHMAC",
        "TLV: HMAC",
        5,
        length_of("len", 8, "hmac", 1, 6),
        uint("D", 1, d!(0), "Destination address is not verified"),
        zero("reserved", 15),
        uint("hmackeyid", 32, d!(0), "Identifier of the key"),
        bytes("hmac", d!(""), "The HMAC"),
    ),
];
