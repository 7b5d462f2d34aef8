//! Properties of all layers.

use proptest::prelude::*;

use super::{
    samples::{damaged, stacks},
    *,
};

/// Bytes that resemble headers, so that parsing continues.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let telling = prop_oneof![
        4 => any::<u8>(),
        4 => Just(0_u8),
        1 => prop::sample::select(vec![1_u8, 4, 5, 6, 17, 41, 43, 44, 47, 53, 58, 60, 0x45, 0x46, 0x60, 0x81, 128, 135]),
    ];
    prop::collection::vec(telling, 0..160)
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL)
}

fn keeps(first: Kind, bytes: &[u8]) -> Result<(), TestCaseError> {
    let packet = Packet::parse(first, bytes);
    prop_assert_eq!(&packet.build().unwrap(), bytes, "{}", packet);
    let _ = (packet.summary(), packet.show().unwrap(), packet.hexdump().unwrap(), packet.to_json().unwrap());
    let _ = packet.answers(&packet);
    let mut again = packet.clone();
    again.recompute();
    // A computed value may exceed its field; no other error is possible.
    let _ = again.build();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(1000)))]

    #[test]
    fn any_bytes_are_kept(first in kind(), bytes in bytes()) {
        keeps(first, &bytes)?;
    }

    #[test]
    fn damaged_packets_are_kept((first, bytes) in damaged()) {
        keeps(first, &bytes)?;
        let mut packet = Packet::parse(first, &bytes);
        packet.simplify().unwrap();
        prop_assert_eq!(packet.build().unwrap(), bytes);
    }

    #[test]
    fn any_layer_follows_any_other(kinds in prop::collection::vec(kind(), 1..8)) {
        let mut packet = Packet::new();
        for kind in &kinds {
            packet.push(kind.layer());
        }
        let bytes = packet.build().unwrap();
        prop_assert_eq!(Packet::parse(kinds[0], &bytes).build().unwrap(), bytes);
    }
}

#[test]
fn parse_returns_built_layers() {
    for packet in stacks() {
        let bytes = packet.build().unwrap();
        let mut read = Packet::parse(packet.layers()[0].kind(), &bytes);
        let kinds = |packet: &Packet| packet.layers().iter().map(AnyLayer::kind).collect::<Vec<_>>();
        assert_eq!(kinds(&read), kinds(&packet), "{packet}");
        read.recompute();
        assert_eq!(read.build().unwrap(), bytes, "{packet}");
        for layer in read.layers_mut() {
            for index in 0..layer.info().fields.len() {
                if let Some(value) = layer.value(index) {
                    assert_eq!(layer.set_value(index, &value), Ok(()), "{layer} field {index}");
                }
            }
        }
        assert_eq!(read.build().unwrap(), bytes, "{packet}");
    }
}

#[test]
fn edited_field_changes_only_its_bytes() {
    let bytes = stacks()[0].build().unwrap();
    let mut packet = Packet::from_ethernet(&bytes);
    packet.get_mut::<Tcp>().unwrap().dport = Some(81);
    let edited = packet.build().unwrap();
    let differ: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != edited[*at]).collect();
    assert_eq!(differ, [14 + 20 + 3], "the checksum, too, is kept");
    packet.recompute();
    let edited = packet.build().unwrap();
    assert_eq!(crate::view::checksum::verify(&edited[14..], false), crate::view::Checksum::Valid);
}

#[test]
fn fields_by_name() {
    let mut packet = stacks()[0].clone();
    packet.set_field("TCP", "dport", &Value::Uint(443)).unwrap();
    assert_eq!(packet.field("TCP", "dport").unwrap(), Some(Value::Uint(443)));
    assert_eq!(packet.field("IP", "len").unwrap(), None);
    packet.set_field("IP", "proto", &Value::Text("udp".into())).unwrap();
    assert_eq!(packet.get::<Ip>().unwrap().proto, Some(17));
    for (layer, field, value, said) in [
        ("TCP", "dprt", Value::None, "TCP: TCP has no field 'dprt'; did you mean dport?"),
        ("TPC", "dport", Value::None, "layer: there is no layer 'TPC'; did you mean TCP"),
        ("IP", "ttl", Value::Uint(256), "IP.ttl: 256 does not fit 8 bits, the largest is 255"),
        ("IP", "dst", Value::Text("x".into()), "IP.dst: 'x' is not an IPv4 address"),
        ("TCP", "flags", Value::Text("X".into()), "TCP.flags: unknown flag 'X'; flags are FSRPAUECN"),
        ("UDP", "len", Value::None, "UDP: the packet has no such layer"),
    ] {
        let error = packet.set_field(layer, field, &value).unwrap_err().to_string();
        assert!(error.starts_with(said), "{error}");
    }
}

#[test]
fn every_field_is_described() {
    for kind in Kind::ALL {
        let info = kind.layer().info();
        assert!(!info.doc.is_empty() && !info.source.is_empty(), "{}", info.name);
        for field in info.fields {
            assert!(field.doc.len() > 2, "{}.{}", info.name, field.name);
            if let Some(default) = field.default {
                let mut layer = kind.layer();
                let (index, _) = info.field(field.name).unwrap();
                assert_eq!(layer.set_value(index, &default()), Ok(()), "{}.{}", info.name, field.name);
            }
        }
    }
}
