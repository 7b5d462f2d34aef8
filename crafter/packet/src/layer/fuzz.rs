//! Random values for unset fields.

use super::{AnyLayer, FieldInfo, FieldKind, Layer as _, Packet, Value};

/// SplitMix64 (Steele, Lea and Flood, 2014): the same seed gives the same packets on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let length = self.below(most + 1);
        (0..length).map(|_| self.next() as u8).collect()
    }
}

impl Packet {
    /// Sets unset fields to random values, valid or not, derived from `seed`. Lengths, checksums, next protocols and
    /// the addresses of IP and Ethernet stay unset, so that the packets are delivered; with `all` they are set too.
    pub fn fuzz(&mut self, seed: u64, all: bool) {
        let mut random = Random(seed);
        for layer in self.layers_mut() {
            let is_addressing = matches!(layer, AnyLayer::Ether(_) | AnyLayer::Ip(_) | AnyLayer::Ipv6(_));
            let fields = layer.info().fields;
            for (index, field) in fields.iter().enumerate() {
                let is_address = is_addressing && matches!(field.name, "src" | "dst" | "version");
                if layer.value(index).is_some() || (!all && (field.default.is_none() || is_address)) {
                    continue;
                }
                if let Some(value) = value(&mut random, field) {
                    // A value that the field rejects leaves it unset.
                    let _ = layer.set_value(index, &value);
                }
            }
        }
    }
}

fn value(random: &mut Random, field: &FieldInfo) -> Option<Value> {
    // Fields of the tail stay unset; the elements of a list are known only to its layer.
    Some(match field.kind {
        FieldKind::Uint | FieldKind::Flags if field.bits > 0 => {
            let most = field.max();
            // Errors are most likely at the limits.
            Value::Uint(match random.below(8) {
                0 => 0,
                1 => most,
                2 => most / 2 + 1,
                _ => random.next() & most,
            })
        }
        FieldKind::Ipv4 if field.bits > 0 => Value::Text(std::net::Ipv4Addr::from(random.next() as u32).to_string()),
        FieldKind::Ipv6 if field.bits > 0 => {
            let address = u128::from(random.next()) << 64 | u128::from(random.next());
            Value::Text(std::net::Ipv6Addr::from(address).to_string())
        }
        FieldKind::Mac => {
            let [a, b, c, d, e, g, ..] = random.next().to_be_bytes();
            Value::Text(super::Mac([a, b, c, d, e, g]).to_string())
        }
        FieldKind::Bytes => Value::Bytes(random.bytes(64)),
        // Options: kinds with data, well-formed or not.
        FieldKind::List if field.name == "options" => {
            let count = random.below(4);
            let rest = |random: &mut Random| {
                let bytes = random.bytes(6);
                Value::Tuple(vec![Value::Text("Rest".to_owned()), Value::Bytes(bytes)])
            };
            let kind = |random: &mut Random| {
                let (kind, data) = (2 + random.below(254), random.bytes(6));
                Value::Tuple(vec![Value::Uint(kind), Value::Bytes(data)])
            };
            Value::List((0..count).map(|_| if random.below(4) == 0 { rest(random) } else { kind(random) }).collect())
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use crate::layer::{Ip, Packet, Tcp, samples::stacks};

    #[test]
    fn fuzz_depends_on_seed_and_keeps_set_fields() {
        let fuzzed = |seed| {
            let mut packet = Ip::to("192.0.2.1") / Tcp::to(80);
            packet.fuzz(seed, false);
            packet
        };
        assert_eq!(fuzzed(1), fuzzed(1));
        assert_ne!(fuzzed(1), fuzzed(2));
        for seed in 0..1000 {
            let packet = fuzzed(seed);
            let (ip, tcp) = (packet.get::<Ip>().unwrap(), packet.get::<Tcp>().unwrap());
            assert_eq!((tcp.dport, ip.len, ip.chksum, ip.src), (Some(80), None, None, None));
            let bytes = packet.build().unwrap();
            assert_eq!(usize::from(bytes[2]) << 8 | usize::from(bytes[3]), bytes.len());
        }
        let flags: std::collections::HashSet<_> =
            (0..100).map(|seed| fuzzed(seed).get::<Tcp>().unwrap().flags).collect();
        assert!(flags.len() > 20);
    }

    #[test]
    fn every_layer_builds_with_every_field_random() {
        for seed in 0..200 {
            for mut packet in stacks() {
                packet.fuzz(seed, true);
                let bytes = packet.build().unwrap_or_else(|e| panic!("{packet}: {e}"));
                let first = packet.layers()[0].kind();
                assert_eq!(Packet::parse(first, &bytes).build().unwrap(), bytes, "{packet}");
                assert_eq!(packet.to_string().parse::<Packet>().unwrap(), packet);
            }
        }
    }
}
