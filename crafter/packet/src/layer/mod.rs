//! Packets as stacks of layers with any fields, valid or malformed on purpose.
//!
//! ```
//! use crafter_packet::layer::{Ether, Ip, Packet, Tcp, TcpOption};
//!
//! let packet = Ether::new() / Ip::to("192.0.2.2") / Tcp::to(80).flags("S").options([TcpOption::Mss(1460)]) / "data";
//! let bytes = packet.build()?;
//! let mut read = Packet::from_ethernet(&bytes);
//! assert_eq!(read.get::<Tcp>().unwrap().dport, Some(80));
//! assert_eq!(read.build()?, bytes);
//! read.get_mut::<Ip>().unwrap().ttl = Some(1);
//! read.recompute();
//! println!("{read}\n{}", read.show()?);
//! # Ok::<(), crafter_packet::Error>(())
//! ```
//!
//! - A field that is `None` gets its default, or is computed: lengths, checksums, the number of the next protocol. A
//!   field that is `Some` is written as it is, valid or not.
//! - Any layer can follow any other. In the text form layers and fields have the names of Scapy.
//! - Numbers in fields are in host byte order, in the units of the header: `ihl`, for example, in 32-bit words.
//! - [`Packet::build_into`] does not allocate if the buffer is large enough.
//! - [`expr`](crate::expr) parses the text form, which is also the `Display` of a packet.

#[macro_use]
mod packet;

mod answer;
mod build;
mod described;
mod fragment;
mod fuzz;
pub mod mac;
mod match_key;
mod parse;
mod protocol;
mod reassemble;
mod service;
mod show;
mod table;
mod text;
pub mod value;

// To add a layer: if it only has fields, an entry of a table in `described`. If it has rules of its own, or is on the fast
// path: a file with its struct (`layer!`, see `table.rs`) and its `Protocol`, a line here, its number in the layer below
// (`ip.rs`, `udp.rs`, `ether.rs`, ...), and a sample in `samples.rs`, which the tests compare with tshark and Scapy.
packet::layers! {
    arp: Arp;
    dns: Dns;
    dot1q: Dot1Q, Dot1AD;
    ether: Ether;
    gre: Gre;
    icmp: Icmp;
    icmp_extension: IcmpExtensionHeader, IcmpExtensionMpls, IcmpExtensionObject;
    icmpv6: Icmpv6DestUnreach, Icmpv6PacketTooBig, Icmpv6TimeExceeded, Icmpv6ParamProblem,
        Icmpv6EchoRequest, Icmpv6EchoReply, Icmpv6Unknown;
    http: HttpRequest, HttpResponse;
    ip: Ip;
    ipv6: Ipv6;
    ipv6_extension: Ipv6HopByHop, Ipv6Destination, Ipv6Routing, Ipv6Fragment;
    mpls: Mpls;
    nd: NdRouterSolicitation, NdRouterAdvertisement, NdNeighborSolicitation, NdNeighborAdvertisement, NdRedirect;
    nd_option: NdSourceLinkLayer, NdTargetLinkLayer, NdPrefix, NdRedirected, NdMtu, NdRdnss, NdUnknown;
    raw: Raw, Padding;
    tcp: Tcp, TcpError;
    udp: Udp;
    vxlan: Vxlan;
}

/// Access to the fields of a layer by index, independent of its type.
pub trait Layer {
    /// Description of the layer and its fields.
    fn info(&self) -> &'static LayerInfo;

    /// The value of a field by its index in [`LayerInfo::fields`]; `None` if it is unset.
    fn value(&self, index: usize) -> Option<Value>;

    /// Sets a field by its index in [`LayerInfo::fields`]; [`Value::None`] unsets it.
    ///
    /// # Errors
    /// Why the value does not fit, without the name of the field.
    fn set_value(&mut self, index: usize, value: &Value) -> Result<(), String>;
}

/// A type of layer that can be looked up in a packet.
pub trait LayerType: Layer + Default + 'static {
    /// The kind of the layer.
    const KIND: Kind;
    /// The layer, if it is of this type.
    fn of(layer: &AnyLayer) -> Option<&Self>;
    /// The layer, to change, if it is of this type.
    fn of_mut(layer: &mut AnyLayer) -> Option<&mut Self>;
}

pub(crate) use ether::payload as of_ethertype;

mod dns_rcode;
mod dns_record;
mod ip_option;
mod ipv6_option;
mod option;
mod tcp_option;

pub use self::{
    described::{Described, Entry},
    dns_record::{Question, Record},
    fragment::Cut,
    http::HttpHeader,
    ip::IpFlags,
    ip_option::IpOption,
    ipv6_option::Ipv6Option,
    mac::Mac,
    match_key::MatchKey,
    mpls::MplsLabel,
    packet::Packet,
    reassemble::reassemble,
    table::LayerInfo,
    tcp_option::TcpOption,
    value::{FieldInfo, FieldKind, Value},
};

pub use table::get_bits;
pub use value::nearest;

#[cfg(test)]
mod match_tests;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
