//! Reassembly of parsed packets.

use std::{collections::HashMap, net::IpAddr, time::Duration, time::Instant};

use super::{
    AnyLayer, Packet,
    build::{self, Offsets},
};
use crate::{reassembly::Reassembler, view::IpPacket};

/// Identifies the datagram of a fragment; the protocol is used only for IPv4 (RFC 791, section 3.2; RFC 8200, section
/// 4.5).
type Datagram = (IpAddr, IpAddr, u32, u8);

/// Reassembles the fragments among packets, by their outermost IP header. A datagram replaces the fragment that
/// completed it and has its Ethernet and VLAN headers; all other packets stay unchanged and in order.
///
/// Fragments of an incomplete datagram stay, as do those of a datagram with overlapping fragments, which is not
/// reassembled (RFC 5722, section 4; Linux does the same for IPv4). An exact duplicate is not an overlap. No timeout
/// applies.
///
/// ```
/// use crafter_packet::layer::{Ip, Udp, reassemble};
///
/// let packet = Ip::to("192.0.2.2").src("192.0.2.1").id(7) / Udp::to(9).sport(9) / vec![1; 3000];
/// let fragments = packet.fragment(1500, 7)?;
/// assert_eq!(fragments.len(), 3);
/// let [whole] = &reassemble(fragments)[..] else { panic!() };
/// assert_eq!(whole.build()?, packet.build()?);
/// # Ok::<(), crafter_packet::Error>(())
/// ```
pub fn reassemble(packets: impl IntoIterator<Item = Packet>) -> Vec<Packet> {
    let mut reassembler = Reassembler::new(Duration::MAX, usize::MAX, usize::MAX);
    let now = Instant::now();
    let mut pending: HashMap<Datagram, Vec<usize>> = HashMap::new();
    let mut all: Vec<Option<Packet>> = Vec::new();
    let mut bytes = Vec::new();
    for packet in packets {
        let at = all.len();
        let Some((layer, datagram, start)) = fragment(&packet, &mut bytes) else {
            all.push(Some(packet));
            continue;
        };
        all.push(Some(packet));
        let parts = pending.entry(datagram).or_default();
        parts.push(at);
        if let Some(whole) = reassembler.handle(now, &bytes[start..]) {
            let mut packet = Packet::from_ip(&whole);
            if let Some(last) = &all[at] {
                packet.layers_mut().splice(..0, last.layers()[..layer].iter().cloned());
            }
            for part in pending.remove(&datagram).unwrap_or_default() {
                all[part] = None;
            }
            all[at] = Some(packet);
        }
    }
    all.into_iter().flatten().collect()
}

/// If the packet is a fragment: index of its IP layer, its datagram, and the offset of the IP header in bytes.
fn fragment(packet: &Packet, bytes: &mut Vec<u8>) -> Option<(usize, Datagram, usize)> {
    let layers = packet.layers();
    let layer = layers.iter().position(|layer| matches!(layer, AnyLayer::Ip(_) | AnyLayer::Ipv6(_)))?;
    let mut places = Offsets::new();
    build::build(layers, bytes, &mut places).ok()?;
    let start = places[layer];
    let ip = IpPacket::read(&bytes[start..]).ok()?;
    let fragment = ip.fragment?;
    let protocol = if ip.version() == 4 { ip.protocol } else { 0 };
    Some((layer, (ip.source, ip.destination, fragment.id, protocol), start))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layer::{Cut, Dot1Q, Ether, Ip, IpFlags, Ipv6, Ipv6Fragment, Padding, Raw, Udp};

    fn datagram(v6: bool, length: usize) -> Packet {
        let load: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
        let frame = Ether::new() / Dot1Q::new();
        if v6 {
            frame / Ipv6::to("2001:db8::2").src("2001:db8::1") / Udp::to(9).sport(9) / load
        } else {
            frame / Ip::to("192.0.2.2").src("192.0.2.1").id(77) / Udp::to(9).sport(9) / load
        }
    }

    proptest! {
        #[test]
        fn any_cuts_that_do_not_overlap(
            v6 in any::<bool>(), length in 100usize..3000,
            sizes in prop::collection::vec(1u16..40, 400), order in any::<prop::sample::Index>(), swap in any::<bool>(),
        ) {
            let packet = datagram(v6, length);
            let (mut cuts, mut offset) = (Vec::new(), 0);
            for size in sizes {
                if usize::from(offset) * 8 < length + 8 {
                    cuts.push(Cut::new(offset, size));
                    offset += size;
                }
            }
            prop_assume!(cuts.len() > 1);
            if swap {
                cuts.reverse();
            }
            let again = order.index(cuts.len());
            cuts.insert(0, cuts[again]);
            let mut fragments = packet.fragment_at(&cuts, 77).unwrap();
            prop_assert_eq!(fragments.len(), cuts.len());
            let other = datagram(v6, 5) / Padding::of([0; 3]);
            fragments.insert(1, other.clone());
            let last = fragments[fragments.len() - 1].clone();
            let all = reassemble(fragments);
            prop_assert_eq!(&all[0], &other);
            prop_assert_eq!(all[1].build().unwrap(), packet.build().unwrap());
            // A repeated fragment of a completed datagram begins a new one.
            let rest = if again + 1 == cuts.len() - 1 { vec![last] } else { Vec::new() };
            prop_assert_eq!(&all[2..], &rest);
        }
    }

    #[test]
    fn incomplete_datagrams_stay_fragments() {
        for v6 in [false, true] {
            let packet = datagram(v6, 200);
            // 208 bytes in 26 units: with a gap, without an end, overlapping, contradictory.
            for cuts in [
                vec![Cut::new(0, 10), Cut::new(11, 15)],
                vec![Cut::new(0, 10), Cut::new(10, 10)],
                vec![Cut::new(0, 12), Cut::new(10, 16)],
                vec![Cut::new(0, 10), Cut::new(10, 16).more(true)],
                vec![Cut::new(0, 10).more(false), Cut::new(10, 16)],
            ] {
                let fragments = packet.fragment_at(&cuts, 77).unwrap();
                assert_eq!(reassemble(fragments.clone()), fragments, "{cuts:?}");
            }
        }
    }

    #[test]
    fn fragment_at_follows_cuts() {
        let packet = datagram(false, 200);
        let cuts = [Cut::new(10, 16), Cut::new(0, 12).more(false), Cut::new(25, 100)];
        let fragments = packet.fragment_at(&cuts, 5).unwrap();
        let shape = |packet: &Packet| {
            let ip = packet.get::<Ip>().unwrap();
            (ip.frag.unwrap(), ip.flags.unwrap(), packet.get::<Raw>().unwrap().load.as_ref().unwrap().len(), ip.id)
        };
        let all: Vec<_> = fragments.iter().map(shape).collect();
        let none = IpFlags(0);
        assert_eq!(all, [(10, none, 128, Some(77)), (0, none, 96, Some(77)), (25, none, 8, Some(77))]);
        let six = datagram(true, 200).fragment_at(&[Cut::new(0, 2), (2, 1).into()], 5).unwrap();
        let header = six[1].get::<Ipv6Fragment>().unwrap();
        assert_eq!((header.offset, header.m, header.id, header.nh), (Some(2), Some(1), Some(5), Some(17)));
        let error = |cut: Cut| packet.fragment_at(&[cut], 5).unwrap_err().to_string();
        assert_eq!(error(Cut::new(26, 1)), "fragment: the cut at 26 begins after the end of the payload (208 bytes)");
        assert_eq!(error(Cut::new(1, 0)), "fragment: the cut at 1 has no length");
        assert!(fragments[0].fragment_at(&cuts, 5).is_err(), "a fragment is none again");
    }
}
