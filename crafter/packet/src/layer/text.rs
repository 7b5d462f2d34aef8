//! The text form of packets, their one-line summary, and JSON.

use std::{collections::HashMap, fmt, sync::LazyLock};

use serde_json::json;

use super::{AnyLayer, Kind, Layer, Packet, Value, value::nearest};

/// Names of Scapy for layers that have another name here.
const ALIASES: [(&str, Kind); 8] = [
    ("IPerror", Kind::Ip),
    ("IPerror6", Kind::Ipv6),
    ("UDPerror", Kind::Udp),
    ("TCPerror", Kind::Tcp),
    ("ICMPerror", Kind::Icmp),
    // Scapy up to 2.5.
    ("ICMPExtensionHeader", Kind::IcmpExtensionHeader),
    ("ICMPExtensionMPLS", Kind::IcmpExtensionMpls),
    ("ICMPExtensionObject", Kind::IcmpExtensionObject),
];

impl Kind {
    /// The name in Scapy.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// The kind with a name.
    ///
    /// # Errors
    /// An error message with the nearest names.
    pub fn named(name: &str) -> Result<Self, String> {
        static NAMES: LazyLock<HashMap<&'static str, Kind>> = LazyLock::new(|| {
            let exact = Kind::ALL.iter().map(|kind| (kind.name(), *kind));
            ALIASES.iter().copied().chain(exact).collect()
        });
        NAMES.get(name).copied().ok_or_else(|| {
            match nearest(name, Self::ALL.iter().map(|kind| kind.name())) {
                near if near.starts_with("; did") => format!("there is no layer '{name}'{near}"),
                // All of them are too many for a message.
                _ => format!("there is no layer '{name}'; `crafter ls` lists the layers"),
            }
        })
    }
}

impl fmt::Display for AnyLayer {
    /// The text form with the set fields: `TCP(dport=80, flags="S")`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.info();
        write!(f, "{}(", info.name)?;
        let set = info.fields.iter().enumerate().filter_map(|(i, field)| Some((field.name, self.value(i)?)));
        for (i, (name, value)) in set.enumerate() {
            write!(f, "{}{name}={value}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str(")")
    }
}

impl fmt::Display for Packet {
    /// The text form, which [`expr`](crate::expr) parses: the layers separated by `/`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, layer) in self.layers().iter().enumerate() {
            write!(f, "{}{layer}", if i > 0 { "/" } else { "" })?;
        }
        Ok(())
    }
}

struct Summary<'a>(&'a Packet);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = self.0.layers();
        for (at, layer) in layers.iter().enumerate() {
            f.write_str(if at > 0 { " / " } else { "" })?;
            layer.summary(f, layers, at)?;
        }
        Ok(())
    }
}

impl Packet {
    /// A one-line summary of the packet.
    pub fn summary(&self) -> String {
        Summary(self).to_string()
    }

    /// The packet as JSON: its bytes, and each layer with all fields. `unset` lists the fields whose value is the
    /// default or computed.
    ///
    /// # Errors
    /// Those of [`build`](Self::build).
    pub fn to_json(&self) -> crate::Result<serde_json::Value> {
        let (bytes, shown) = self.shown()?;
        let layers: Vec<_> = shown
            .iter()
            .map(|layer| {
                let fields: serde_json::Map<_, _> =
                    layer.fields.iter().map(|field| (field.info.name.to_owned(), field.value.to_json())).collect();
                let unset: Vec<_> = layer.fields.iter().filter(|field| !field.set).map(|field| field.info.name).collect();
                json!({ "layer": layer.name, "offset": layer.start, "length": layer.length, "fields": fields, "unset": unset })
            })
            .collect();
        Ok(json!({
            "summary": self.summary(),
            "expression": self.to_string(),
            "bytes": super::value::hex(&bytes),
            "layers": layers,
        }))
    }
}

impl Value {
    /// The value with the name of a number: `6 (tcp)`.
    pub(crate) fn with_name(&self, names: &[(u64, &str)]) -> String {
        let name = match self {
            Self::Uint(number) => names.iter().find(|(known, _)| known == number),
            _ => None,
        };
        match name {
            Some((_, name)) => format!("{self} ({name})"),
            None => self.to_string(),
        }
    }
}
