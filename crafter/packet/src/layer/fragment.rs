//! Fragments of IP packets.

use super::{
    AnyLayer, Ip, IpFlags, IpOption, Ipv6, Ipv6Fragment, Packet, Raw,
    build::{self, Offsets},
    described::Family,
};
use crate::error::{Error, Result};

/// A fragment as a part of the datagram's payload, in units of 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Offset, in units of 8 bytes.
    pub offset: u16,
    /// Length, in units of 8 bytes; the payload may end earlier.
    pub length: u16,
    /// The more-fragments flag; `None`: set if payload follows.
    pub more: Option<bool>,
}

impl Cut {
    /// The part from `offset`, `length` long, both in units of 8 bytes.
    pub fn new(offset: u16, length: u16) -> Self {
        Self { offset, length, more: None }
    }

    /// Sets the more-fragments flag.
    #[must_use]
    pub fn more(self, more: bool) -> Self {
        Self { more: Some(more), ..self }
    }
}

impl From<(u16, u16)> for Cut {
    fn from((offset, length): (u16, u16)) -> Self {
        Self::new(offset, length)
    }
}

/// A packet to be fragmented.
struct Whole {
    /// Layers before the payload of each fragment; the first `at` precede the IP header.
    head: Vec<AnyLayer>,
    at: usize,
    /// Length of the head from the IP header on, in bytes.
    header: usize,
    payload: Vec<u8>,
}

impl Packet {
    /// Fragments the packet to at most `mtu` bytes, from its outermost IP header on. The layers before it precede each
    /// fragment; padding is dropped. A packet that fits is returned unchanged. `id` is the identification, unless the
    /// IPv4 header has one. For overlapping fragments see [`fragment_at`](Self::fragment_at).
    ///
    /// IPv4 options with the copied flag are repeated (RFC 791, section 3.1), IPv6 extension headers up to the last one
    /// that routers process (RFC 8200, section 4.5). The don't-fragment flag is cleared.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no IP layer, the packet is a fragment, `mtu` leaves less than 8 bytes for
    /// payload, or an offset exceeds 13 bits; else those of [`build`](Self::build).
    pub fn fragment(&self, mtu: usize, id: u32) -> Result<Vec<Packet>> {
        let Some(whole) = self.whole(mtu, id)? else {
            return Ok(vec![self.clone()]);
        };
        let room = mtu.saturating_sub(whole.header) / 8;
        if room == 0 {
            return Err(invalid("the MTU leaves less than 8 bytes for payload"));
        }
        let units = whole.payload.len().div_ceil(8);
        let cuts = (0..units).step_by(room).map(|offset| {
            let offset = u16::try_from(offset).ok().filter(|offset| *offset < 1 << 13);
            let offset = offset.ok_or_else(|| invalid("the packet is too long: a fragment offset exceeds 13 bits"))?;
            Ok(Cut::new(offset, u16::try_from(room).unwrap_or(u16::MAX)))
        });
        cuts.map(|cut: Result<Cut>| whole.cut(cut?)).collect()
    }

    /// Fragments the packet at `cuts`, in their order. Fragments may overlap, leave gaps, repeat, and have a wrong
    /// more-fragments flag. Otherwise like [`fragment`](Self::fragment), which computes the cuts from an MTU.
    ///
    /// ```
    /// use crafter_packet::layer::{Cut, Ip, Udp};
    ///
    /// let packet = Ip::to("192.0.2.2") / Udp::to(9) / vec![1; 40];
    /// // The second begins within the first; the last says that there is more.
    /// let fragments = packet.fragment_at(&[Cut::new(0, 3), Cut::new(2, 3), Cut::new(5, 1).more(true)], 7)?;
    /// assert_eq!(fragments[1].get::<Ip>().unwrap().frag, Some(2));
    /// # Ok::<(), crafter_packet::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no IP layer, the packet is a fragment, or a cut has length 0, begins after the
    /// end of the packet or exceeds 13 bits; else those of [`build`](Self::build).
    pub fn fragment_at(&self, cuts: &[Cut], id: u32) -> Result<Vec<Packet>> {
        let whole = self.whole(0, id)?.ok_or_else(|| invalid("the packet has no bytes"))?;
        cuts.iter().map(|cut| whole.cut(*cut)).collect()
    }

    /// The packet to be fragmented; `None` if it is not longer than `mtu`.
    fn whole(&self, mtu: usize, id: u32) -> Result<Option<Whole>> {
        let layers = self.layers();
        let at = layers.iter().position(|layer| matches!(layer, AnyLayer::Ip(_) | AnyLayer::Ipv6(_)));
        let at = at.ok_or_else(|| invalid("the packet has no IP layer"))?;
        let (mut bytes, mut places) = (Vec::new(), Offsets::new());
        build::build(layers, &mut bytes, &mut places)?;
        let padding = layers.iter().rev().take_while(|layer| matches!(layer, AnyLayer::Padding(_))).count();
        places.push(bytes.len());
        let end = places[layers.len() - padding];
        if end - places[at] <= mtu {
            return Ok(None);
        }
        let first = at + 1 + repeated(&layers[at..]);
        let is_fragment = |layer: &AnyLayer| match layer {
            AnyLayer::Ip(ip) => ip.frag.unwrap_or(0) > 0 || ip.flags.unwrap_or_default().0 & IpFlags::MF.0 != 0,
            AnyLayer::Ipv6Fragment(_) => true,
            _ => false,
        };
        if layers[at..layers.len().min(first + 1)].iter().any(is_fragment) {
            return Err(invalid("the packet is a fragment itself"));
        }
        let mut head: Vec<AnyLayer> = layers[..first].to_vec();
        let mut header = places[first] - places[at];
        if let AnyLayer::Ipv6(_) = layers[at] {
            let names_next = if first == at + 1 { places[at] + Ipv6::AT.nh } else { places[first - 1] };
            match &mut head[first - 1] {
                AnyLayer::Ipv6(ip) => ip.nh = None,
                AnyLayer::Ipv6HopByHop(options) => options.nh = None,
                AnyLayer::Ipv6Routing(routing) => routing.nh = None,
                _ => {}
            }
            head.push(Ipv6Fragment::new().id(id).nh(bytes[names_next]).into());
            header += Ipv6Fragment::FIXED;
        } else if let AnyLayer::Ip(ip) = &mut head[at] {
            ip.proto = Some(bytes[places[at] + Ip::AT.proto]);
            ip.id = ip.id.or(Some(id as u16));
        }
        let payload = bytes[places[first].min(end)..end].to_vec();
        Ok(Some(Whole { head, at, header, payload }))
    }
}

fn invalid(reason: impl std::fmt::Display) -> Error {
    Error::invalid("fragment", reason)
}

impl Whole {
    fn cut(&self, cut: Cut) -> Result<Packet> {
        let (offset, length) = (usize::from(cut.offset) * 8, self.payload.len());
        if cut.offset >= 1 << 13 {
            return Err(invalid("the packet is too long: a fragment offset exceeds 13 bits"));
        }
        if offset >= length {
            let reason = format!("the cut at {} begins after the end of the payload ({length} bytes)", cut.offset);
            return Err(invalid(reason));
        }
        if cut.length == 0 {
            return Err(invalid(format!("the cut at {} has no length", cut.offset)));
        }
        let end = length.min(offset + usize::from(cut.length) * 8);
        let mut fragment = Packet::new();
        *fragment.layers_mut() = self.head.clone();
        for layer in &mut fragment.layers_mut()[self.at..] {
            place(layer, cut.offset, cut.more.unwrap_or(end < length));
        }
        fragment.push(Raw::of(&self.payload[offset..end]));
        Ok(fragment)
    }
}

/// Number of layers after the IP header that every fragment repeats.
fn repeated(layers: &[AnyLayer]) -> usize {
    let is_read_by_routers = |layer: &AnyLayer| match layer {
        AnyLayer::Ipv6HopByHop(_) | AnyLayer::Ipv6Routing(_) => true,
        AnyLayer::Described(layer) => layer.family() == Family::SegmentRouting,
        _ => false,
    };
    let is_extension = |layer: &&AnyLayer| is_read_by_routers(layer) || matches!(layer, AnyLayer::Ipv6Destination(_));
    match layers {
        [AnyLayer::Ipv6(_), above @ ..] => {
            let chain = &above[..above.iter().take_while(is_extension).count()];
            chain.iter().rposition(is_read_by_routers).map_or(0, |last| last + 1)
        }
        _ => 0,
    }
}

/// Sets the fragment fields of a header; `offset` is in units of 8 bytes.
fn place(layer: &mut AnyLayer, offset: u16, more: bool) {
    match layer {
        AnyLayer::Ip(ip) => {
            let flags = ip.flags.unwrap_or_default().0 & !(IpFlags::DF.0 | IpFlags::MF.0);
            ip.flags = Some(IpFlags(flags | if more { IpFlags::MF.0 } else { 0 }));
            ip.frag = Some(offset);
            (ip.len, ip.chksum) = (None, None);
            if offset > 0 && ip.options.is_some() {
                ip.ihl = None;
                ip.options.iter_mut().for_each(|options| options.retain(is_copied));
            }
        }
        AnyLayer::Ipv6(ip) => ip.plen = None,
        AnyLayer::Ipv6Fragment(header) => (header.offset, header.m) = (Some(offset), Some(more.into())),
        _ => {}
    }
}

/// Whether an option's kind has the copied flag.
fn is_copied(option: &IpOption) -> bool {
    match option {
        IpOption::LooseRoute(..) | IpOption::StrictRoute(..) | IpOption::RouterAlert(_) | IpOption::StreamId(_) => true,
        IpOption::Other(kind, _) => kind & 0x80 != 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{
        layer::{Ether, Ip, Ipv6, Ipv6Destination, Ipv6HopByHop, Ipv6Routing, Udp},
        reassembly::Reassembler,
    };

    /// Reassembled by [`Reassembler`](crate::Reassembler), which does not use layers.
    fn reassembled(fragments: &[Packet]) -> Vec<u8> {
        let mut reassembler = Reassembler::default();
        let now = Instant::now();
        let mut whole = fragments.iter().filter_map(|fragment| reassembler.handle(now, &fragment.build().unwrap()));
        whole.next().expect("all fragments are there")
    }

    #[test]
    fn fragments_reassemble_to_packet() {
        let load: Vec<u8> = (0..3000).map(|byte| byte as u8).collect();
        let address = "2001:db8::3".parse().unwrap();
        for packet in [
            Ip::to("192.0.2.2").src("192.0.2.1").id(7) / Udp::to(9).sport(9) / load.clone(),
            Ipv6::to("2001:db8::2").src("2001:db8::1") / Udp::to(9).sport(9) / load.clone(),
            Ipv6::to("2001:db8::2").src("2001:db8::1")
                / Ipv6HopByHop::new()
                / Ipv6Routing::new().addresses([address])
                / Ipv6Destination::new()
                / Udp::to(9).sport(9)
                / load.clone(),
        ] {
            let whole = packet.build().unwrap();
            for mtu in [600, 1280, 1499] {
                for packet in [packet.clone(), packet.resolved().unwrap()] {
                    let fragments = packet.fragment(mtu, 7).unwrap();
                    assert!(fragments.len() > 2 && fragments.iter().all(|part| part.build().unwrap().len() <= mtu));
                    assert_eq!(reassembled(&fragments), whole, "{mtu}: {packet}");
                }
            }
            assert_eq!(packet.fragment(4000, 7).unwrap(), [packet]);
        }
    }

    #[test]
    fn options_with_copied_flag_are_repeated() {
        let options = [IpOption::RouterAlert(0), IpOption::RecordRoute(4, vec![[0; 4].into()])];
        let packet =
            Ether::new() / Ip::to("192.0.2.2").flags("DF").options(options.clone()) / Udp::to(9) / vec![0; 100];
        let fragments = packet.fragment(80, 9).unwrap();
        let ip = |at: usize| fragments[at].get::<Ip>().unwrap();
        assert_eq!((fragments.len(), ip(0).options.as_deref()), (3, Some(&options[..])));
        assert_eq!((ip(1).options.as_deref(), ip(1).id, ip(1).proto), (Some(&options[..1]), Some(9), Some(17)));
        assert_eq!((ip(0).flags, ip(2).flags), (Some(IpFlags::MF), Some(IpFlags(0))));
        let error = |packet: &Packet, mtu| packet.fragment(mtu, 1).unwrap_err().to_string();
        assert_eq!(error(&fragments[0], 60), "fragment: the packet is a fragment itself");
        assert_eq!(error(&packet, 35), "fragment: the MTU leaves less than 8 bytes for payload");
        assert_eq!(error(&Packet::from("x"), 35), "fragment: the packet has no IP layer");
    }
}
