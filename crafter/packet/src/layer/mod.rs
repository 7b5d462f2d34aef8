//! Packets as stacks of layers: every layer, every field, valid or broken on purpose.
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
//! - Unset is computed, set is sacred: a field that is `None` gets its default, or a length, checksum, or
//!   number of the next protocol that fits the packet; a field that is `Some` is kept bit for bit.
//! - Any layer goes on any other. Layers and fields have the names of Scapy in the text form.
//! - [`Packet::build_into`] allocates nothing with a buffer that is large enough.
//! - [`expr`](crate::expr) reads the text form that every packet prints itself in.

#[macro_use]
mod packet;

mod answer;
mod answer_key;
mod build;
mod fragment;
mod fuzz;
pub mod mac;
mod parse;
mod protocol;
mod reassemble;
mod show;
mod table;
mod text;
pub mod value;

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

/// What every layer can do without its type being known.
pub trait Layer {
    /// What is known of the layer and its fields.
    fn info(&self) -> &'static LayerInfo;

    /// The value of a field by its place in [`LayerInfo::fields`]; `None` if it is unset.
    fn value(&self, index: usize) -> Option<Value>;

    /// Sets a field by its place in [`LayerInfo::fields`]; [`Value::None`] unsets it.
    ///
    /// # Errors
    /// Why the value does not fit, as a sentence without its subject.
    fn set_value(&mut self, index: usize, value: &Value) -> Result<(), String>;
}

/// A type of layer that can be looked for in a packet.
pub trait LayerType: Layer + Default + 'static {
    /// Which layer it is.
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
    answer_key::AnswerKey,
    dns_record::{Question, Record},
    fragment::Cut,
    http::HttpHeader,
    ip::IpFlags,
    ip_option::IpOption,
    ipv6_option::Ipv6Option,
    mac::Mac,
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
mod answer_tests;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
