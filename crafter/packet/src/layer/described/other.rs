//! Layers of other protocols.

use super::{
    Description, Family, Form,
    field::{bytes, d, field, fixed, header_length, ipv4, laid_out, uint, zero},
};

pub(super) const TABLE: &[Description] = &[
    Description::new(
        "NetflowHeader",
        "RFC 3954",
        "Version of a NetFlow message",
        Family::Leaf,
        &const { laid_out([field("version", Form::NetflowVersion, 16, None, "Version, by the next layer")]) },
    ),
    Description::new(
        "NetflowHeaderV5",
        "Cisco NetFlow, version 5",
        "Header of a NetFlow message",
        Family::Leaf,
        &const {
            laid_out([
                field("count", Form::Records, 16, None, "Number of records"),
                uint("sysUptime", 32, d!(0), "Milliseconds since the start"),
                uint("unixSecs", 32, d!(0), "Seconds since 1970"),
                uint("unixNanoSeconds", 32, d!(0), "Nanoseconds"),
                uint("flowSequence", 32, d!(0), "Number of flows before"),
                uint("engineType", 8, d!(0), "Type of the engine"),
                uint("engineID", 8, d!(0), "The engine"),
                uint("samplingInterval", 16, d!(0), "Sampling"),
            ])
        },
    ),
    Description::new(
        "NetflowRecordV5",
        "Cisco NetFlow, version 5",
        "Record of a flow",
        Family::Leaf,
        &const {
            laid_out([
                field("src", Form::Ipv4, 32, Some(d!("127.0.0.1")), "Source address"),
                field("dst", Form::Ipv4, 32, Some(d!("127.0.0.1")), "Destination address"),
                ipv4("nexthop", "Next hop"),
                uint("input", 16, d!(0), "Interface of input"),
                uint("output", 16, d!(0), "Interface of output"),
                uint("dpkts", 32, d!(1), "Packets"),
                uint("dOctets", 32, d!(60), "Bytes"),
                uint("first", 32, d!(0), "Start in milliseconds"),
                uint("last", 32, d!(0), "End in milliseconds"),
                uint("srcport", 16, d!(0), "Source port"),
                uint("dstport", 16, d!(0), "Destination port"),
                zero("pad1", 8),
                field("tcpFlags", Form::Flags("FSRPAUEC"), 8, Some(d!(2)), "All flags of TCP"),
                uint("prot", 8, d!(6), "Protocol"),
                uint("tos", 8, d!(0), "Type of service"),
                uint("src_as", 16, d!(0), "System of the source"),
                uint("dst_as", 16, d!(0), "System of the destination"),
                uint("src_mask", 8, d!(0), "Prefix length of the source"),
                uint("dst_mask", 8, d!(0), "Prefix length of the destination"),
                zero("pad2", 16),
            ])
        },
    ),
    Description::new(
        "PPTPStartControlConnectionReply",
        "RFC 2637, section 2.2",
        "PPTP: reply to the start",
        Family::Leaf,
        &const {
            laid_out([
                uint("len", 16, d!(156), "Length in bytes"),
                uint("type", 16, d!(1), "Type of the message"),
                uint("magic_cookie", 32, d!(0x1a2b_3c4d), "Magic number"),
                uint("ctrl_msg_type", 16, d!(2), "Type of the control message"),
                zero("reserved_0", 16),
                uint("protocol_version", 16, d!(256), "Version"),
                uint("result_code", 8, d!(1), "Result"),
                uint("error_code", 8, d!(0), "Error"),
                field("framing_capabilities", Form::Uint, 32, Some(d!(0)), "Framing"),
                field("bearer_capabilities", Form::Uint, 32, Some(d!(0)), "Bearer"),
                uint("maximum_channels", 16, d!(65535), "Channels"),
                uint("firmware_revision", 16, d!(256), "Revision of the firmware"),
                fixed("host_name", 64, d!("linux"), "Host name"),
                fixed("vendor_string", 64, d!(""), "Vendor"),
            ])
        },
    ),
    Description::new(
        "RadiusAttr_EAP_Message",
        "RFC 3579, section 3.1",
        "RADIUS attribute: EAP",
        Family::Leaf,
        &const {
            laid_out([
                uint("type", 8, d!(79), "Type"),
                header_length("len", 8, 1, 0, "Length in bytes"),
                bytes("value", d!(""), "The message"),
            ])
        },
    ),
];
