//! `map::ABI` and the layout of the maps change together: `crafter-common/abi.txt` records both.

use std::{any::type_name_of_val, env, fmt::Write as _, fs, mem::offset_of, path::Path};

use aya_obj::{Map, Object};
use crafter_common::{
    Address,
    attached::{ACCEPT_LOCAL, Attached, CHECK_SOURCE, CHECK_STATION, ROUTE_LOCALNET, SLOTS},
    flow::{FirstFragment, FlowKey, FlowValue, FragmentKey, Peer},
    map,
    port::{FILTER_WORDS, FilterWord, OBSERVE, OwnedKey, OwnedPort, PEER_ADDRESS, PEERS, REPORT, SUPPRESS},
    reason::Reason,
    reply::{CLASSES, ReplyHeader},
    share::Share,
};

use crate::datapath::program::OBJECT;

/// The environment variable that makes the test record the layout.
const RECORD: &str = "CRAFTER_RECORD_ABI";

/// The map types that crafter uses, by number (`enum bpf_map_type`).
const TYPES: [(u32, &str); 7] = [
    (1, "hash"),
    (2, "array"),
    (6, "per-CPU array"),
    (9, "LRU hash"),
    (13, "hash of maps"),
    (17, "AF_XDP sockets"),
    (27, "ring buffer"),
];

/// Describes a struct: its size and alignment, and type and offset of each field.
macro_rules! describe {
    ($text:ident, $name:ident { $($field:ident),+ }) => {{
        // Without `..`: a field that is not listed is a compile error.
        let value = $name { $($field: Default::default()),+ };
        let _ = writeln!($text, "struct {}: {} bytes, alignment {}", stringify!($name), size_of_val(&value), align_of_val(&value));
        $(
            let _ = writeln!($text, "  {:>2} {}: {}", offset_of!($name, $field), stringify!($field), type_name_of_val(&value.$field));
        )+
    }};
}

fn describe_map(name: &str, map: &Map) -> String {
    let (kind, flags) = (map.map_type(), map.map_flags());
    let kind = TYPES.iter().find(|(number, _)| *number == kind).map_or("unknown type", |(_, name)| *name);
    let (key, value, entries) = (map.key_size(), map.value_size(), map.max_entries());
    let inner = map.inner().map(|inner| describe_map(", each", &inner)).unwrap_or_default();
    format!("{name}: {kind}, key {key} bytes, value {value} bytes, {entries} entries, flags {flags}{inner}")
}

/// The layout of everything that two crafters may read of each other's maps.
fn layout() -> String {
    let mut text = String::new();
    // Writing to a String cannot fail, here and in the macro.
    let object = Object::parse(OBJECT).expect("the object can be read");
    // Maps of the compiler and of aya-log are not read by other processes.
    let mut maps: Vec<_> = object.maps.iter().filter(|(name, _)| name.starts_with("CRAFTER_")).collect();
    maps.sort_by_key(|(name, _)| *name);
    for (name, map) in maps {
        let _ = writeln!(text, "map {}", describe_map(name, map));
    }
    describe!(text, OwnedKey { link, address, port, protocol, pad });
    describe!(text, OwnedPort { lease, flags });
    describe!(text, FilterWord { exact, any });
    describe!(text, FlowKey { link, lease, local, remote, local_port, remote_port, protocol });
    describe!(
        text,
        FlowValue {
            rx_packets,
            rx_bytes,
            tx_packets,
            tx_bytes,
            first_seen,
            last_seen,
            suppressed,
            last_seq,
            last_ack,
            last_flags,
            pad
        }
    );
    describe!(text, Peer { heard });
    describe!(text, FragmentKey { link, source, destination, identification, protocol });
    describe!(text, FirstFragment { since, lease, local_port, remote_port, protocol, pad });
    describe!(text, Attached { link, socket_frame, pools, frames, ring, checks, station });
    describe!(text, Share { taken, released, lost, user });
    describe!(text, ReplyHeader { timestamp, captured, length, ifindex, reason, share, pad });
    let _ = writeln!(text, "address: {} bytes", size_of::<Address>());
    let _ = writeln!(text, "slots: {SLOTS}; words of the filter: {FILTER_WORDS}; records: {CLASSES:?} bytes");
    let flags = format!("observe {OBSERVE}, suppress {SUPPRESS}, report {REPORT}, peers {PEERS}");
    let _ = writeln!(text, "flags of a port: {flags}, by address {PEER_ADDRESS}");
    let _ = writeln!(
        text,
        "checks of an interface: station {CHECK_STATION}, source {CHECK_SOURCE}, accept_local {ACCEPT_LOCAL}, \
         route_localnet {ROUTE_LOCALNET}"
    );
    for reason in Reason::ALL {
        let _ = writeln!(text, "reason {}: {}", reason as u32, reason.name());
    }
    text
}

#[test]
fn layout_changes_only_with_the_abi() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crafter-common/abi.txt");
    let (abi, layout) = (map::ABI, layout());
    let now = format!("ABI {abi}\n{layout}");
    let recorded = fs::read_to_string(&path).unwrap_or_default();
    if recorded == now {
        return;
    }
    let (head, old) = recorded.split_once('\n').unwrap_or_default();
    let how = format!("{RECORD}=1 cargo test -p crafter --lib layout_changes_only_with_the_abi");
    let is_raised = head.strip_prefix("ABI ").and_then(|number| number.parse::<u32>().ok()).is_none_or(|was| abi > was);
    if !is_raised {
        let changed = |from: &str, to: &str, sign: &str| -> String {
            let lines = from.lines().filter(|line| !to.lines().any(|other| other == *line));
            lines.map(|line| format!("{sign} {line}\n")).collect()
        };
        panic!(
            "the layout of the maps has changed, but crafter_common::map::ABI is still {abi}: raise it, then run \
             `{how}`\n{}{}",
            changed(old, &layout, "-"),
            changed(&layout, old, "+")
        );
    }
    if env::var_os(RECORD).is_none() {
        panic!("crafter_common::map::ABI is {abi}, but crafter-common/abi.txt records '{head}': run `{how}`");
    }
    fs::write(&path, now).expect("abi.txt can be written");
}
