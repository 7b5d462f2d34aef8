//! Reads addresses and ports of a packet, and fills in those that it leaves unset.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    error::{Error, Result},
    layer::{AnyLayer, Arp, Ether, Icmp, Icmpv6EchoRequest, Ip, Ipv6, Kind, Mac, Packet, Tcp, Udp},
    packet::Transport,
};

/// Addresses and port of a packet to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outline {
    /// Whether it begins with an Ethernet header.
    pub(super) frame: bool,
    /// Destination of its outermost IP or ARP layer.
    pub(super) destination: Option<IpAddr>,
    /// Source of that layer, if it is set.
    pub(super) source: Option<IpAddr>,
    /// The transport to lease a port for, and the source port or identifier, if it is set.
    pub(super) local_port: Option<(Transport, Option<u16>)>,
}

/// Reads the outline of a packet; inserts an Ethernet header before ARP.
///
/// # Errors
/// [`Error::Invalid`] for a packet that begins with another layer.
pub(super) fn outline(packet: &mut Packet) -> Result<Outline> {
    if matches!(packet.layers().first(), Some(AnyLayer::Arp(_))) {
        packet.layers_mut().insert(0, Ether::new().into());
    }
    let frame = match packet.layers().first() {
        Some(AnyLayer::Ether(_)) => true,
        Some(AnyLayer::Ip(_) | AnyLayer::Ipv6(_)) => false,
        first => {
            let found = first.map_or("nothing", |layer| layer.kind().name());
            let reason = format_args!("it begins with {found}: IP, IPv6, Ether or ARP is needed");
            return Err(Error::invalid("packet", reason));
        }
    };
    let mut outline = Outline { frame, destination: None, source: None, local_port: None };
    let mut layers = packet.layers().iter();
    let is_link = |layer: &&AnyLayer| matches!(layer, AnyLayer::Ether(_) | AnyLayer::Dot1Q(_) | AnyLayer::Dot1AD(_));
    let mut has_header = true;
    match layers.find(|layer| !is_link(layer)) {
        Some(AnyLayer::Arp(arp)) => {
            outline.destination = arp.pdst.map(IpAddr::V4);
            outline.source = arp.psrc.map(IpAddr::V4);
            return Ok(outline);
        }
        Some(AnyLayer::Ip(ip)) => {
            outline.destination = Some(ip.dst.unwrap_or(Ipv4Addr::LOCALHOST).into());
            outline.source = ip.src.map(IpAddr::V4);
            has_header = ip.frag.is_none_or(|offset| offset == 0);
        }
        Some(AnyLayer::Ipv6(ip)) => {
            outline.destination = Some(ip.dst.unwrap_or(Ipv6Addr::LOCALHOST).into());
            outline.source = ip.src.map(IpAddr::V6);
        }
        _ => return Ok(outline),
    }
    let is_extension = |layer: &&AnyLayer| {
        matches!(layer.kind(), Kind::Ipv6HopByHop | Kind::Ipv6Destination | Kind::Ipv6Routing | Kind::Ipv6Fragment)
    };
    let transport = layers.find(|layer| {
        if let AnyLayer::Ipv6Fragment(fragment) = layer {
            has_header &= fragment.offset.is_none_or(|offset| offset == 0);
        }
        !is_extension(layer)
    });
    // Fragments after the first have no transport header.
    outline.local_port = match transport.filter(|_| has_header) {
        Some(AnyLayer::Tcp(tcp)) => Some((Transport::Tcp, tcp.sport)),
        Some(AnyLayer::Udp(udp)) => Some((Transport::Udp, udp.sport)),
        Some(AnyLayer::Icmp(icmp)) if matches!(icmp.r#type.unwrap_or(8), 8 | 13 | 15 | 17) => {
            Some((Transport::Icmp, icmp.id))
        }
        Some(AnyLayer::Icmpv6EchoRequest(echo)) => Some((Transport::Icmp, echo.id)),
        _ => None,
    };
    // Port 0 cannot be leased, but it can be sent.
    outline.local_port = outline.local_port.filter(|(_, port)| *port != Some(0));
    Ok(outline)
}

/// Sets the source address of the outermost IP or ARP layer, if it is unset.
pub(super) fn fill_source(packet: &mut Packet, source: IpAddr) {
    let layer = packet.layers_mut().iter_mut().find(|layer| {
        matches!(layer, AnyLayer::Ip(Ip { .. }) | AnyLayer::Ipv6(Ipv6 { .. }) | AnyLayer::Arp(Arp { .. }))
    });
    match (layer, source) {
        (Some(AnyLayer::Ip(ip)), IpAddr::V4(source)) => ip.src = ip.src.or(Some(source)),
        (Some(AnyLayer::Ipv6(ip)), IpAddr::V6(source)) => ip.src = ip.src.or(Some(source)),
        (Some(AnyLayer::Arp(arp)), IpAddr::V4(source)) => arp.psrc = arp.psrc.or(Some(source)),
        _ => {}
    }
}

/// Sets the source port or identifier of the outermost transport, if it is unset.
pub(super) fn fill_port(packet: &mut Packet, port: u16) {
    for layer in packet.layers_mut() {
        let field = match layer {
            AnyLayer::Tcp(Tcp { sport, .. }) | AnyLayer::Udp(Udp { sport, .. }) => sport,
            AnyLayer::Icmp(Icmp { id, .. }) | AnyLayer::Icmpv6EchoRequest(Icmpv6EchoRequest { id, .. }) => id,
            _ => continue,
        };
        *field = field.or(Some(port));
        return;
    }
}

/// Sets the Ethernet addresses of the Ethernet header and of ARP that are unset.
pub(super) fn fill_link(packet: &mut Packet, source: [u8; 6], destination: [u8; 6]) {
    if let Some(AnyLayer::Ether(ether)) = packet.layers_mut().first_mut() {
        ether.src = ether.src.or(Some(Mac(source)));
        ether.dst = ether.dst.or(Some(Mac(destination)));
    }
    if let Some(arp) = packet.get_mut::<Arp>() {
        arp.hwsrc = arp.hwsrc.or(Some(Mac(source)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Outline, Packet) {
        let mut packet: Packet = text.parse().unwrap();
        (outline(&mut packet).unwrap(), packet)
    }

    #[test]
    fn leased_ports_by_packet() {
        for (text, local_port) in [
            (r#"IP(dst="192.0.2.1")/TCP(sport=5000)"#, Some((Transport::Tcp, Some(5000)))),
            (r#"IP(dst="192.0.2.1")/UDP()"#, Some((Transport::Udp, None))),
            (r#"IP(dst="192.0.2.1")/UDP(sport=0)"#, None),
            (r#"IP(dst="192.0.2.1")/ICMP(id=7)"#, Some((Transport::Icmp, Some(7)))),
            (r#"IP(dst="192.0.2.1")/ICMP(type=3)/IP()/UDP()"#, None),
            (r#"IP(dst="192.0.2.1", frag=2)/UDP()"#, None),
            (r#"Ether()/Dot1Q(vlan=5)/IPv6(dst="2001:db8::1")/TCP()"#, Some((Transport::Tcp, None))),
            (r#"IP(dst="192.0.2.1")/GRE()/IP()/TCP()"#, None),
            (r#"ARP(pdst="192.0.2.1")"#, None),
        ] {
            assert_eq!(read(text).0.local_port, local_port, "{text}");
        }
    }

    #[test]
    fn set_fields_are_kept() {
        let (_, mut packet) = read(r#"Ether(dst="02:00:00:00:00:09")/IP(dst="192.0.2.1")/TCP(sport=5000)"#);
        fill_source(&mut packet, "192.0.2.2".parse().unwrap());
        fill_port(&mut packet, 1);
        fill_link(&mut packet, [2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        assert_eq!(packet.get::<Ip>().unwrap().src, Some([192, 0, 2, 2].into()));
        assert_eq!(packet.get::<Tcp>().unwrap().sport, Some(5000));
        let ether = packet.get::<Ether>().unwrap();
        assert_eq!((ether.src, ether.dst), (Some(Mac([2, 0, 0, 0, 0, 1])), Some(Mac([2, 0, 0, 0, 0, 9]))));
        let (arp, mut packet) = read(r#"ARP(pdst="192.0.2.1")"#);
        assert_eq!((arp.frame, arp.destination), (true, Some("192.0.2.1".parse().unwrap())));
        fill_source(&mut packet, "192.0.2.2".parse().unwrap());
        fill_link(&mut packet, [2, 0, 0, 0, 0, 1], [0xff; 6]);
        let arp = packet.get::<Arp>().unwrap();
        assert_eq!((arp.psrc, arp.hwsrc), (Some([192, 0, 2, 2].into()), Some(Mac([2, 0, 0, 0, 0, 1]))));
    }

    #[test]
    fn packets_of_other_first_layers_are_rejected() {
        let error = outline(&mut "TCP(dport=80)".parse().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "packet: it begins with TCP: IP, IPv6, Ether or ARP is needed");
    }
}
