//! Link layers: IEEE 802.3 with LLC and SNAP, spanning tree, backbone bridges, and Linux's cooked captures.

use super::{
    Described, Description, Entry, Family, Form,
    field::{bytes, d, field, fixed, header_length, laid_out, length_of, mac, named, uint, zero},
};
use crate::layer::{Kind, ether::ETHERTYPES};

/// EtherType of a backbone service instance tag.
pub(crate) const BACKBONE: u16 = 0x88e7;

pub(super) const TABLE: &[Description] = &[
    Description::new(
        "Dot3",
        "IEEE 802.3",
        "Ethernet frame header with a length",
        Family::Dot3,
        &const {
            laid_out([
                field("dst", Form::Mac, 48, Some(d!("ff:ff:ff:ff:ff:ff")), "Destination address"),
                mac("src", "Source address"),
                field("len", Form::PayloadLength, 16, None, "Length of the payload in bytes"),
            ])
        },
    ),
    Description::new(
        "LLC",
        "IEEE 802.2",
        "Logical link control",
        Family::Llc,
        &const {
            laid_out([
                field("dsap", Form::Sap, 8, None, "Destination service access point"),
                field("ssap", Form::Sap, 8, None, "Source service access point"),
                field("ctrl", Form::Control, 8, None, "Control"),
            ])
        },
    ),
    Description::new(
        "SNAP",
        "IEEE 802",
        "Subnetwork access protocol",
        Family::Snap,
        &const {
            laid_out([
                uint("OUI", 24, d!(0), "Organization"),
                named(field("code", Form::NextEthertype, 16, None, "Type of the payload"), ETHERTYPES),
            ])
        },
    ),
    Description::new(
        "STP",
        "IEEE 802.1D",
        "Spanning tree protocol; times in units of 1/256 s",
        Family::Leaf,
        &const {
            laid_out([
                uint("proto", 16, d!(0), "Protocol"),
                uint("version", 8, d!(0), "Version"),
                uint("bpdutype", 8, d!(0), "Type"),
                uint("bpduflags", 8, d!(0), "Flags"),
                uint("rootid", 16, d!(0), "Priority of the root"),
                mac("rootmac", "Address of the root"),
                uint("pathcost", 32, d!(0), "Cost of the path to the root"),
                uint("bridgeid", 16, d!(0), "Priority of the bridge"),
                mac("bridgemac", "Address of the bridge"),
                uint("portid", 16, d!(0), "Port"),
                uint("age", 16, d!(256), "Age of the message"),
                uint("maxage", 16, d!(20 * 256), "Maximum age"),
                uint("hellotime", 16, d!(2 * 256), "Time between messages"),
                uint("fwddelay", 16, d!(15 * 256), "Delay of forwarding"),
            ])
        },
    ),
    Description::new(
        "Dot1AH",
        "IEEE 802.1ah",
        "Backbone service instance tag",
        Family::Ethertype,
        &const {
            laid_out([
                uint("prio", 3, d!(0), "Priority"),
                uint("dei", 1, d!(0), "May be dropped"),
                uint("nca", 1, d!(0), "No customer addresses"),
                zero("res1", 1),
                zero("res2", 2),
                uint("isid", 24, d!(0), "Service instance"),
            ])
        },
    ),
    Description::new(
        "CookedLinux",
        "libpcap, LINKTYPE_LINUX_SLL",
        "Header of a cooked capture",
        Family::Ethertype,
        &const {
            laid_out([
                uint("pkttype", 16, d!(0), "Direction: 0 to us, 1 broadcast, 2 multicast, 3 to others, 4 by us"),
                uint("lladdrtype", 16, d!(512), "Hardware type"),
                uint("lladdrlen", 16, d!(0), "Length of the address"),
                fixed("src", 8, d!(""), "Source address"),
                named(uint("proto", 16, d!(0x800), "Type of the payload"), ETHERTYPES),
            ])
        },
    ),
    Description::new(
        "CookedLinuxV2",
        "libpcap, LINKTYPE_LINUX_SLL2",
        "Header of a cooked capture",
        Family::Ethertype,
        &const {
            laid_out([
                named(uint("proto", 16, d!(0x800), "Type of the payload"), ETHERTYPES),
                zero("reserved", 16),
                uint("ifindex", 32, d!(0), "Index of the interface"),
                uint("lladdrtype", 16, d!(512), "Hardware type"),
                uint("pkttype", 8, d!(0), "Direction: 0 to us, 1 broadcast, 2 multicast, 3 to others, 4 by us"),
                uint("lladdrlen", 8, d!(0), "Length of the address"),
                fixed("src", 8, d!(""), "Source address"),
            ])
        },
    ),
    Description::new(
        "EAPOL",
        "IEEE 802.1X",
        "EAP over LAN",
        Family::Leaf,
        &const {
            laid_out([
                uint("version", 8, d!(1), "Version"),
                uint("type", 8, d!(0), "Type: 0 EAP, 1 start, 2 logoff, 3 key"),
                field("len", Form::PayloadLength, 16, None, "Length of the payload in bytes"),
            ])
        },
    ),
    Description::new(
        "EAP_MD5",
        "RFC 3748, section 5.4",
        "EAP: MD5 challenge",
        Family::Leaf,
        &const {
            laid_out([
                uint("code", 8, d!(1), "Code"),
                uint("id", 8, d!(0), "Identifier"),
                header_length("len", 16, 1, 0, "Length in bytes"),
                uint("type", 8, d!(4), "Type"),
                length_of("value_size", 8, "value", 1, 0),
                bytes("value", d!(""), "The value"),
                bytes("optional_name", d!(""), "Name"),
            ])
        },
    ),
];

pub(crate) fn kind(name: &str) -> Kind {
    Entry::named(name).map_or(Kind::Raw, Kind::Described)
}

/// The payload of an 802.3 frame.
pub(super) fn of_dot3(_: &[u8]) -> Kind {
    kind("LLC")
}

/// The service access points and the control field for the next layer.
pub(super) fn access_point(next: Option<&str>) -> (u8, u8) {
    match next {
        Some("SNAP") => (0xaa, 3),
        Some("STP") => (0x42, 3),
        _ => (0, 0),
    }
}

pub(super) fn of_llc(dsap: usize, ssap: usize, control: usize) -> Kind {
    match (dsap, ssap, control) {
        (0xaa, 0xaa, 3) => kind("SNAP"),
        (0x42, 0x42, 3) => kind("STP"),
        _ => Kind::Raw,
    }
}

/// The payload of a header with an EtherType, or of a backbone tag.
pub(super) fn of_ethertype(layer: &Described) -> Kind {
    match layer.number("proto") {
        Some(proto) => u16::try_from(proto).map_or(Kind::Raw, crate::layer::of_ethertype),
        None if layer.get("isid").is_some() => Kind::Ether,
        None => Kind::Raw,
    }
}
