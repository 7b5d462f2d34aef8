//! Messages of IPv6 neighbour discovery.

use std::{fmt, net::Ipv6Addr};

use super::{
    icmpv6::icmpv6_message,
    nd_option::option,
    table::layer,
    value::IntoField,
};

const UNSPECIFIED: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

layer! {
    /// Neighbour discovery: router solicitation
    pub struct NdRouterSolicitation: "ICMPv6ND_RS", "RFC 4861, section 4.1" {
        /// Type
        r#type: u8, 8, (133);
        /// Code
        code: u8, 8, (0);
        /// Checksum over pseudo-header, header and payload
        cksum: u16, 16, computed;
        /// Reserved
        res: u32, 32, (0);
    }
    tail {}
}

layer! {
    /// Neighbour discovery: router advertisement
    pub struct NdRouterAdvertisement: "ICMPv6ND_RA", "RFC 4861, section 4.2" {
        /// Type
        r#type: u8, 8, (134);
        /// Code
        code: u8, 8, (0);
        /// Checksum over pseudo-header, header and payload
        cksum: u16, 16, computed;
        /// Hop limit for hosts to use; 0: unspecified
        chlim: u8, 8, (0);
        /// Addresses by DHCPv6
        m: u8, 1, (0);
        /// Other configuration by DHCPv6
        o: u8, 1, (0);
        /// Home agent (RFC 6275)
        h: u8, 1, (0);
        /// Preference (RFC 4191)
        prf: u8, 2, (1);
        /// Proxied (RFC 4389)
        p: u8, 1, (0);
        /// Reserved
        res: u8, 2, (0);
        /// Lifetime as default router in seconds
        routerlifetime: u16, 16, (1800);
        /// Reachable time in milliseconds
        reachabletime: u32, 32, (0);
        /// Time between retransmissions in milliseconds
        retranstimer: u32, 32, (0);
    }
    tail {}
}

layer! {
    /// Neighbour discovery: neighbour solicitation
    pub struct NdNeighborSolicitation: "ICMPv6ND_NS", "RFC 4861, section 4.3" {
        /// Type
        r#type: u8, 8, (135);
        /// Code
        code: u8, 8, (0);
        /// Checksum over pseudo-header, header and payload
        cksum: u16, 16, computed;
        /// Reserved
        res: u32, 32, (0);
        /// The requested address
        tgt: Ipv6Addr, 128, (UNSPECIFIED);
    }
    tail {}
}

layer! {
    /// Neighbour discovery: neighbour advertisement
    pub struct NdNeighborAdvertisement: "ICMPv6ND_NA", "RFC 4861, section 4.4" {
        /// Type
        r#type: u8, 8, (136);
        /// Code
        code: u8, 8, (0);
        /// Checksum over pseudo-header, header and payload
        cksum: u16, 16, computed;
        /// The sender is a router
        r: u8, 1, (1);
        /// An answer to a solicitation
        s: u8, 1, (0);
        /// Override a cached address
        o: u8, 1, (1);
        /// Reserved
        res: u32, 29, (0);
        /// The address
        tgt: Ipv6Addr, 128, (UNSPECIFIED);
    }
    tail {}
}

layer! {
    /// Neighbour discovery: redirect to a better first hop
    pub struct NdRedirect: "ICMPv6ND_Redirect", "RFC 4861, section 4.5" {
        /// Type
        r#type: u8, 8, (137);
        /// Code
        code: u8, 8, (0);
        /// Checksum over pseudo-header, header and payload
        cksum: u16, 16, computed;
        /// Reserved
        res: u32, 32, (0);
        /// The better first hop
        tgt: Ipv6Addr, 128, (UNSPECIFIED);
        /// The redirected destination
        dst: Ipv6Addr, 128, (UNSPECIFIED);
    }
    tail {}
}

icmpv6_message! {
    NdRouterSolicitation: "ND router solicitation", option;
    NdRouterAdvertisement: "ND router advertisement", option;
    NdNeighborSolicitation: "ND neighbor solicitation", option;
    NdNeighborAdvertisement: "ND neighbor advertisement", option;
    NdRedirect: "ND redirect", option;
}

impl NdRouterSolicitation {
    fn details(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl NdRouterAdvertisement {
    fn details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " lifetime {}", self.routerlifetime.unwrap_or(1800))
    }
}

impl NdNeighborSolicitation {
    /// A request for the owner of an address.
    pub fn who_has(tgt: impl IntoField<Ipv6Addr>) -> Self {
        Self::new().tgt(tgt)
    }

    fn details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " who has {}", self.tgt.unwrap_or(UNSPECIFIED))
    }
}

impl NdNeighborAdvertisement {
    fn details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " {}", self.tgt.unwrap_or(UNSPECIFIED))
    }
}

impl NdRedirect {
    fn details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " {} by {}", self.dst.unwrap_or(UNSPECIFIED), self.tgt.unwrap_or(UNSPECIFIED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Ipv6, NdSourceLinkLayer, NdTargetLinkLayer, Packet};
    use crate::view::checksum::{Checksum, verify};

    #[test]
    fn solicitation_and_advertisement() {
        let ask = Ipv6::to("ff02::1:ff00:2").src("fe80::1").hlim(255)
            / NdNeighborSolicitation::who_has("fe80::2")
            / NdSourceLinkLayer::new().lladdr("02:00:00:00:00:01");
        let bytes = ask.build().unwrap();
        assert_eq!(bytes.len(), 40 + 24 + 8);
        assert_eq!(verify(&bytes, false), Checksum::Valid);
        let read = Packet::from_ip(&bytes);
        assert!(read.get::<NdSourceLinkLayer>().is_some());
        assert_eq!(read.build().unwrap(), bytes);
        let advertised = Ipv6::to("fe80::1").src("fe80::2")
            / NdNeighborAdvertisement::new().s(1).tgt("fe80::2")
            / NdTargetLinkLayer::new();
        assert!(advertised.answers(&read));
        let other = Ipv6::to("fe80::1").src("fe80::2") / NdNeighborAdvertisement::new().tgt("fe80::3");
        assert!(!other.answers(&ask));
    }
}
