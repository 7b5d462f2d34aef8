//! Human-readable output: all fields, and the bytes.

use std::{fmt::Write as _, ops::Range};

use super::{
    AnyLayer, FieldInfo, Layer, Packet, Value,
    build::{self, Offsets},
    dns,
    table::get_bits,
    value::FieldKind,
};
use crate::error::Result;

/// A field with its value in the built packet.
pub(crate) struct ShownField {
    pub info: &'static FieldInfo,
    pub value: Value,
    pub set: bool,
}

/// A layer with its position in the built packet.
pub(crate) struct ShownLayer {
    pub name: &'static str,
    pub start: usize,
    pub length: usize,
    pub fields: Vec<ShownField>,
}

impl Packet {
    pub(crate) fn shown(&self) -> Result<(Vec<u8>, Vec<ShownLayer>)> {
        let (mut bytes, mut places) = (Vec::new(), Offsets::new());
        build::build(self.layers(), &mut bytes, &mut places)?;
        let ends = places.iter().skip(1).copied().chain([bytes.len()]);
        let shown = self.layers().iter().zip(places.iter().copied().zip(ends)).enumerate().map(
            |(at, (layer, (start, end)))| {
                let info = layer.info();
                // The length of DNS over TCP is a tail field, although it precedes the fixed part.
                let prefix = match (layer, at.checked_sub(1).map(|below| &self.layers()[below])) {
                    (AnyLayer::Dns(dns), below) if dns.length.is_some() || matches!(below, Some(AnyLayer::Tcp(_))) => {
                        dns::PREFIX
                    }
                    _ => 0,
                };
                let message = (start + prefix).min(end);
                let field = |(index, info): (usize, &'static FieldInfo)| {
                    let set = layer.value(index);
                    let value = match &set {
                        Some(value) => value.clone(),
                        None if prefix > 0 && info.name == "length" => Value::Uint(get_bits(&bytes[start..end], 0, 16)),
                        None => unset(layer, index, info, &bytes[message..end]),
                    };
                    ShownField { info, value, set: set.is_some() }
                };
                ShownLayer {
                    name: info.name,
                    start,
                    length: end - start,
                    fields: info.fields.iter().enumerate().map(field).collect(),
                }
            },
        );
        let shown = shown.collect();
        Ok((bytes, shown))
    }

    /// All fields of all layers, one per line. Unset fields are marked as default or computed.
    ///
    /// # Errors
    /// Those of [`build`](Self::build).
    pub fn show(&self) -> Result<String> {
        let (_, layers) = self.shown()?;
        let mut text = String::new();
        for layer in layers {
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "###[ {} ]###", layer.name);
            for field in layer.fields {
                // Optional fields that this packet does not have.
                if !field.set && field.info.offset.is_none() && field.value == Value::None {
                    continue;
                }
                let mark = match (field.set, field.info.default) {
                    (true, _) => "",
                    (false, Some(_)) => "  (default)",
                    (false, None) => "  (computed)",
                };
                let value = field.value.with_name(field.info.names);
                let _ = writeln!(text, "  {:<16}= {value}{mark}", field.info.name);
            }
        }
        Ok(text)
    }

    /// A hex dump with 16 bytes per line: offset, hex digits, ASCII.
    ///
    /// # Errors
    /// Those of [`build`](Self::build).
    pub fn hexdump(&self) -> Result<String> {
        let bytes = self.build()?;
        let mut text = String::new();
        for (line, chunk) in bytes.chunks(16).enumerate() {
            let digits: String = chunk.iter().map(|byte| format!("{byte:02x} ")).collect();
            let readable = |byte: &u8| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '.' };
            let _ =
                writeln!(text, "{:04x}  {digits:<48} {}", line * 16, chunk.iter().map(readable).collect::<String>());
        }
        Ok(text)
    }

    /// The name of each layer, and the bytes that it fills in the built packet.
    ///
    /// # Errors
    /// Those of [`build`](Self::build).
    pub fn layout(&self) -> Result<Vec<(&'static str, Range<usize>)>> {
        let (_, layers) = self.shown()?;
        Ok(layers.into_iter().map(|layer| (layer.name, layer.start..layer.start + layer.length)).collect())
    }
}

/// The value of an unset field, from the layer's bytes.
fn unset(layer: &AnyLayer, index: usize, info: &FieldInfo, bytes: &[u8]) -> Value {
    match (info.offset, info.kind) {
        (Some(offset), FieldKind::Uint) if bytes.len() * 8 >= offset + info.bits => {
            Value::Uint(get_bits(bytes, offset, info.bits))
        }
        (Some(_), _) => info.default.map_or(Value::None, |default| default()),
        // Optional fields may be missing: parse the header again to find out.
        (None, kind) => {
            let mut again = Vec::with_capacity(1);
            let read = layer.kind().parse(bytes, &mut again);
            let value = read.and_then(|_| again.first().and_then(|layer| layer.value(index)));
            match kind {
                FieldKind::List | FieldKind::Bytes => {
                    value.unwrap_or_else(|| info.default.map_or(Value::None, |d| d()))
                }
                _ => value.unwrap_or(Value::None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::layer::{Ether, Ip, Tcp, TcpOption};

    #[test]
    fn show_marks_default_and_computed_fields() {
        let packet = Ip::to("192.0.2.1").src("192.0.2.2") / Tcp::to(80).options([TcpOption::Mss(1460)]) / "hi";
        let text = packet.show().unwrap();
        for line in [
            "###[ IP ]###",
            "  version         = 4  (default)",
            "  ihl             = 5  (computed)",
            "  len             = 46  (computed)",
            "  proto           = 6 (tcp)  (computed)",
            "  dst             = \"192.0.2.1\"",
            "  dataofs         = 6  (computed)",
            "  flags           = \"S\"  (default)",
            "  options         = [(\"MSS\", 1460)]",
            "  load            = b\"hi\"",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
        }
    }

    #[test]
    fn bytes() {
        let packet = Ether::new().r#type(0x1234) / "hello";
        let line = "0000  ff ff ff ff ff ff 00 00 00 00 00 00 12 34 68 65  .............4he";
        assert_eq!(packet.hexdump().unwrap().lines().next(), Some(line));
        let last = (Ether::new().r#type(0x1234) / "hel").hexdump().unwrap();
        assert_eq!(last.lines().nth(1), Some("0010  6c                                               l"));
        assert_eq!(packet.layout().unwrap(), [("Ether", 0..14), ("Raw", 14..19)]);
    }

    #[test]
    fn json() {
        let json = (Ip::to("192.0.2.1").ttl(3) / Tcp::to(80)).to_json().unwrap();
        assert_eq!(json["layers"][0]["layer"], "IP");
        assert_eq!(json["layers"][0]["fields"]["ttl"], 3);
        assert_eq!(json["layers"][0]["fields"]["len"], 40);
        assert!(json["layers"][0]["unset"].as_array().unwrap().contains(&"len".into()));
        assert_eq!(json["layers"][1]["offset"], 20);
        assert_eq!(json["expression"], "IP(ttl=3, dst=\"192.0.2.1\")/TCP(dport=80)");
    }
}
