//! A packet as a stack of layers.

use std::{net::IpAddr, ops::Div};

use super::{AnyLayer, Ip, Ipv6, Kind, Layer, LayerType, Padding, Raw, Value};
use crate::error::{Error, Result};

/// A packet: its layers, the outermost first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Packet {
    layers: Vec<AnyLayer>,
}

/// Fields whose computed value follows from the rest of the packet.
const RECOMPUTED: [&str; 11] =
    ["len", "length", "plen", "ihl", "dataofs", "chksum", "cksum", "qdcount", "ancount", "nscount", "arcount"];

impl Packet {
    /// A packet without layers.
    pub fn new() -> Self {
        Self::default()
    }

    /// An IPv4 or IPv6 header between two addresses. If only one of them is IPv4, it is mapped into IPv6 (RFC 4291,
    /// section 2.5.5.2).
    pub fn between(source: IpAddr, destination: IpAddr) -> Self {
        let mapped = |address| match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Ip::to(destination).src(source).into(),
            _ => Ipv6::to(mapped(destination)).src(mapped(source)).into(),
        }
    }

    /// The layers, the outermost first.
    pub fn layers(&self) -> &[AnyLayer] {
        &self.layers
    }

    /// The layers, mutable.
    pub fn layers_mut(&mut self) -> &mut Vec<AnyLayer> {
        &mut self.layers
    }

    /// Appends a layer as payload of the others.
    pub fn push(&mut self, layer: impl Into<AnyLayer>) {
        self.layers.push(layer.into());
    }

    /// The outermost layer of a type.
    pub fn get<T: LayerType>(&self) -> Option<&T> {
        self.layers.iter().find_map(T::of)
    }

    /// The outermost layer of a type, mutable.
    pub fn get_mut<T: LayerType>(&mut self) -> Option<&mut T> {
        self.layers.iter_mut().find_map(T::of_mut)
    }

    /// All layers of a type, the outermost first.
    pub fn all<T: LayerType>(&self) -> impl Iterator<Item = &T> {
        self.layers.iter().filter_map(T::of)
    }

    /// All layers of a type, mutable, the outermost first.
    pub fn all_mut<T: LayerType>(&mut self) -> impl Iterator<Item = &mut T> {
        self.layers.iter_mut().filter_map(T::of_mut)
    }

    /// Unsets the lengths, checksums and counts of all layers, so that they are computed again after a change. Numbers
    /// of the next protocol are kept: unset them where a layer was replaced.
    pub fn recompute(&mut self) {
        let mut is_on_tcp = false;
        for layer in &mut self.layers {
            for (index, field) in layer.info().fields.iter().enumerate() {
                if field.default.is_none() && RECOMPUTED.contains(&field.name) {
                    // Unsetting cannot fail.
                    let _ = layer.set_value(index, &Value::None);
                }
            }
            // Optional fields after the fixed part.
            match layer {
                AnyLayer::Gre(gre) => gre.chksum = None,
                AnyLayer::Icmp(icmp) => icmp.length = None,
                AnyLayer::Described(layer) => layer.recompute(),
                // Without TCP below, the field exists only because it was set.
                AnyLayer::Dns(dns) if is_on_tcp => dns.length = None,
                _ => {}
            }
            is_on_tcp = matches!(layer, AnyLayer::Tcp(_));
        }
    }

    /// Unsets every field whose value equals the default or computed one, which shortens the text form. The bytes stay
    /// the same.
    ///
    /// # Errors
    /// Those of [`build`](Self::build).
    pub fn simplify(&mut self) -> Result<()> {
        let bytes = self.build()?;
        let mut again = Vec::with_capacity(bytes.len());
        for at in (0..self.layers.len()).rev() {
            for index in 0..self.layers[at].info().fields.len() {
                let Some(value) = self.layers[at].value(index) else { continue };
                self.set(at, index, &Value::None)?;
                if self.build_into(&mut again).is_err() || again != bytes {
                    self.set(at, index, &value)?;
                }
            }
        }
        Ok(())
    }

    /// The value of a field by names, such as `TCP` and `dport`, in the outermost such layer; `None` if the field is
    /// unset.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no such layer or field.
    pub fn field(&self, layer: &str, field: &str) -> Result<Option<Value>> {
        let (at, index) = self.find(layer, field)?;
        Ok(self.layers[at].value(index))
    }

    /// Sets a field by names, in the outermost such layer; [`Value::None`] unsets it.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no such layer or field, or the value does not fit it.
    pub fn set_field(&mut self, layer: &str, field: &str, value: &Value) -> Result<()> {
        let (at, index) = self.find(layer, field)?;
        self.set(at, index, value)
    }

    fn set(&mut self, at: usize, index: usize, value: &Value) -> Result<()> {
        let layer = &mut self.layers[at];
        layer.set_value(index, value).map_err(|reason| {
            let info = layer.info();
            Error::invalid(format!("{}.{}", info.name, info.fields[index].name), reason)
        })
    }

    fn find(&self, layer: &str, field: &str) -> Result<(usize, usize)> {
        let kind = Kind::named(layer).map_err(|reason| Error::invalid("layer", reason))?;
        let at = self.layers.iter().position(|layer| layer.kind() == kind);
        let at = at.ok_or_else(|| Error::invalid(layer, "the packet has no such layer"))?;
        let info = self.layers[at].info();
        let found = info.field(field).ok_or_else(|| Error::invalid(layer, info.unknown(field)))?;
        Ok((at, found.0))
    }
}

impl<T: Into<Packet>> Div<T> for Packet {
    type Output = Packet;

    /// Appends the layers of `above`.
    fn div(mut self, above: T) -> Packet {
        self.layers.append(&mut above.into().layers);
        self
    }
}

impl<T: Into<AnyLayer>> From<T> for Packet {
    fn from(layer: T) -> Self {
        Self { layers: vec![layer.into()] }
    }
}

macro_rules! raw {
    ($($type:ty),*) => {$(
        impl From<$type> for AnyLayer {
            fn from(load: $type) -> Self {
                Self::Raw(Raw { load: Some(load.into()) })
            }
        }
    )*};
}

raw!(&str, String, &[u8], Vec<u8>);

impl<const N: usize> From<&[u8; N]> for AnyLayer {
    fn from(load: &[u8; N]) -> Self {
        load.as_slice().into()
    }
}

impl Padding {
    /// Padding with these bytes.
    pub fn of(load: impl Into<Vec<u8>>) -> Self {
        Self { load: Some(load.into()) }
    }
}

/// Defines the enums over all layers from the list of files.
macro_rules! layers {
    ($($file:ident: $($layer:ident),+;)*) => {
        $( mod $file; pub use $file::{$($layer),+}; )*

        /// A layer of any type.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(clippy::large_enum_variant)]
        pub enum AnyLayer { $($(
            #[doc = concat!("A [`", stringify!($layer), "`](struct@", stringify!($layer), ").")]
            $layer($layer),
        )+)*
            /// A layer of a table.
            Described(described::Described),
        }

        /// Which layer.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind { $($(
            #[doc = concat!("The kind of [`", stringify!($layer), "`](struct@", stringify!($layer), ").")]
            $layer,
        )+)*
            /// The kind of a layer of a table.
            Described(described::Entry),
        }

        const STRUCTS: &[Kind] = &[$($( Kind::$layer, )+)*];

        impl Kind {
            /// All layers.
            pub const ALL: &'static [Self] = &{
                let mut all = [Self::Raw; STRUCTS.len() + described::COUNT];
                let mut at = 0;
                while at < all.len() {
                    all[at] = if at < STRUCTS.len() {
                        STRUCTS[at]
                    } else {
                        Self::Described(described::Entry::at(at - STRUCTS.len()))
                    };
                    at += 1;
                }
                all
            };

            /// Description of the layer.
            pub fn info(self) -> &'static LayerInfo {
                match self {
                    $($( Self::$layer => <$layer as protocol::Fixed>::INFO, )+)*
                    Self::Described(entry) => &entry.description().info,
                }
            }

            /// A layer without set fields.
            pub fn layer(self) -> AnyLayer {
                match self {
                    $($( Self::$layer => AnyLayer::$layer($layer::default()), )+)*
                    Self::Described(entry) => AnyLayer::Described(described::Described::new(entry)),
                }
            }

            /// Parses the layer: length of the header, end of the payload, kind of the payload.
            #[inline]
            fn parse(self, bytes: &[u8], layers: &mut Vec<AnyLayer>) -> Option<(usize, usize, Kind)> {
                match self { $($( Self::$layer => {
                    let parsed = <$layer as protocol::Protocol>::parse(bytes, layers)?;
                    layers.push(AnyLayer::$layer(parsed.layer));
                    Some((parsed.header, parsed.end, parsed.next))
                } )+)*
                    Self::Described(entry) => described::Described::parse(entry, bytes, layers),
                }
            }
        }

        impl AnyLayer {
            /// The kind of the layer.
            #[inline]
            pub fn kind(&self) -> Kind {
                match self {
                    $($( Self::$layer(_) => Kind::$layer, )+)*
                    Self::Described(layer) => Kind::Described(layer.entry()),
                }
            }

            #[inline(always)]
            fn write(&self, out: &mut Vec<u8>) -> Result<(), table::FieldError> {
                match self {
                    $($( Self::$layer(layer) => protocol::Protocol::write(layer, out), )+)*
                    Self::Described(layer) => layer.write(out),
                }
            }

            #[inline(always)]
            fn finish(&self, packet: &mut build::Building<'_>) -> Result<(), table::FieldError> {
                match self {
                    $($( Self::$layer(layer) => protocol::Protocol::finish(layer, packet), )+)*
                    Self::Described(layer) => layer.finish(packet),
                }
            }

            fn answers_layer(&self, above: &[AnyLayer], request: &AnyLayer, asked: &[AnyLayer]) -> bool {
                match (self, request) {
                    $($( (Self::$layer(layer), Self::$layer(request)) =>
                        protocol::Protocol::answers(layer, above, request, asked), )+)*
                    _ => answer::crossed(self, request),
                }
            }

            fn summary(&self, f: &mut std::fmt::Formatter<'_>, packet: &[AnyLayer], at: usize) -> std::fmt::Result {
                match self {
                    $($( Self::$layer(layer) => protocol::Protocol::summary(layer, f, packet, at), )+)*
                    Self::Described(layer) => layer.summary(f),
                }
            }
        }

        impl Layer for AnyLayer {
            fn info(&self) -> &'static table::LayerInfo {
                match self {
                    $($( Self::$layer(layer) => layer.info(), )+)*
                    Self::Described(layer) => layer.info(),
                }
            }

            fn value(&self, index: usize) -> Option<value::Value> {
                match self {
                    $($( Self::$layer(layer) => layer.value(index), )+)*
                    Self::Described(layer) => layer.value(index),
                }
            }

            fn set_value(&mut self, index: usize, value: &value::Value) -> Result<(), String> {
                match self {
                    $($( Self::$layer(layer) => layer.set_value(index, value), )+)*
                    Self::Described(layer) => layer.set_value(index, value),
                }
            }
        }

        $($(
            impl From<$layer> for AnyLayer {
                fn from(layer: $layer) -> Self {
                    Self::$layer(layer)
                }
            }

            impl LayerType for $layer {
                const KIND: Kind = Kind::$layer;

                fn of(layer: &AnyLayer) -> Option<&Self> {
                    match layer {
                        AnyLayer::$layer(layer) => Some(layer),
                        _ => None,
                    }
                }

                fn of_mut(layer: &mut AnyLayer) -> Option<&mut Self> {
                    match layer {
                        AnyLayer::$layer(layer) => Some(layer),
                        _ => None,
                    }
                }
            }
        )+)*
    };
}

pub(crate) use layers;
