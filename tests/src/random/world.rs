//! Random owners, and the addresses and ports of packets: few, so that packets hit owned ports often.

use std::net::{IpAddr, SocketAddr};

use crafter::datapath::peers::Peers;

use super::Rng;
use crate::oracle::{FlowId, Oracle, Owned};

/// Protocols whose ports or identifiers can be owned.
pub const PROTOCOLS: [u8; 3] = [6, 17, 1];

/// Addresses by IP version: local ones, a foreign one that can be owned, remote hosts, and special addresses.
const ADDRESSES: [&[&str]; 2] = [
    &[
        "192.0.2.2",
        "192.0.2.3",
        "198.51.100.7",
        "192.0.2.1",
        "203.0.113.9",
        "255.255.255.255",
        "224.0.0.1",
        "0.0.0.0",
        "127.0.0.1",
    ],
    &[
        "2001:db8::2",
        "fe80::2",
        "2001:db8:7::7",
        "2001:db8::1",
        "2001:db8:1::9",
        "ff02::1",
        "::1",
        "::",
        "::ffff:192.0.2.2",
        "::192.0.2.2",
        "::ffff:0.0.0.0",
    ],
];

/// Number of local addresses, and of addresses that can be owned, at the start of each list.
const LOCAL: usize = 2;
const OWNABLE: usize = 3;

/// Ports at the boundaries of the filter's words, and common ones.
const PORTS: [u16; 14] = [0, 1, 53, 63, 64, 80, 127, 128, 1024, 32_768, 40_000, 40_064, 65_472, 65_535];

/// An owned port: protocol, address (`None`: any local address), port, terms.
pub type Holding = (u8, Option<IpAddr>, u16, Owned);

/// Owners, and the addresses and ports from which packets are built.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Owned ports.
    pub holdings: Vec<Holding>,
    /// Peers that leases have sent to.
    pub peers: Vec<FlowId>,
    /// Addresses by IP version.
    pub addresses: [Vec<IpAddr>; 2],
    /// Ports and identifiers.
    pub ports: Vec<u16>,
}

impl World {
    /// Random owners for about a third of the ports.
    pub fn new(rng: &mut Rng) -> Self {
        let addresses = ADDRESSES.map(|all| all.iter().map(|text| text.parse().expect("an address")).collect());
        let mut world = Self { holdings: Vec::new(), peers: Vec::new(), addresses, ports: PORTS.to_vec() };
        for _ in 0..2 {
            let port = rng.bits() as u16;
            if !world.ports.contains(&port) {
                world.ports.push(port);
            }
        }
        let ownable: Vec<IpAddr> = world.addresses.iter().flat_map(|all| all[..OWNABLE].to_vec()).collect();
        let mut lease = 0;
        for protocol in PROTOCOLS {
            for port in world.ports.clone() {
                let mut places = Vec::new();
                if rng.chance(25) {
                    places.push(None);
                }
                if rng.chance(25) {
                    places.extend(ownable.iter().filter(|_| rng.chance(40)).map(|&address| Some(address)));
                }
                for place in places {
                    lease += 1;
                    let (observe, suppress, report) = (rng.chance(25), rng.chance(75), rng.chance(30));
                    let peers = rng.pick(&[Peers::Any, Peers::Any, Peers::Flow, Peers::Address]);
                    let owned = Owned { lease, observe, suppress, report, peers };
                    world.holdings.push((protocol, place, port, owned));
                    world.add_peers(rng, &(protocol, place, port, owned));
                }
            }
        }
        world
    }

    /// Some of the peers that packets come from, for an owner that receives those of known peers only.
    fn add_peers(&mut self, rng: &mut Rng, (protocol, place, port, owned): &Holding) {
        for version in 0..2 {
            let local = place.map_or_else(|| self.addresses[version][..LOCAL].to_vec(), |address| vec![address]);
            let local = local.into_iter().filter(|address| address.is_ipv6() == (version == 1));
            for (local, remote) in local.flat_map(|local| {
                self.addresses[version][OWNABLE..OWNABLE + 2].iter().map(move |remote| (local, *remote))
            }) {
                let ports: &[u16] = if owned.peers == Peers::Flow && *protocol != 1 { &self.ports } else { &[0] };
                let known = ports.iter().filter(|_| owned.peers != Peers::Any && rng.chance(50));
                let peer = |remote_port: &u16| FlowId {
                    lease: owned.lease,
                    protocol: *protocol,
                    local: SocketAddr::new(local, *port),
                    remote: SocketAddr::new(remote, *remote_port),
                };
                self.peers.extend(known.map(peer));
            }
        }
    }

    /// The local addresses.
    pub fn local(&self) -> Vec<IpAddr> {
        self.addresses.iter().flat_map(|all| all.iter().take(LOCAL).copied()).collect()
    }

    /// Copies the owners into the oracle.
    pub fn copy_to(&self, oracle: &mut Oracle) {
        oracle.local = self.local().into_iter().collect();
        oracle.peers = self.peers.iter().copied().collect();
        oracle.owned =
            self.holdings.iter().map(|&(protocol, place, port, owned)| ((protocol, place, port), owned)).collect();
    }

    /// Usually an address that can be owned.
    pub fn near(&self, rng: &mut Rng, v6: bool) -> IpAddr {
        let all = &self.addresses[usize::from(v6)];
        if rng.chance(80) { rng.pick(&all[..OWNABLE]) } else { rng.pick(all) }
    }

    /// Usually the address of a peer.
    pub fn far(&self, rng: &mut Rng, v6: bool) -> IpAddr {
        let all = &self.addresses[usize::from(v6)];
        if rng.chance(80) { rng.pick(&all[OWNABLE..OWNABLE + 2]) } else { rng.pick(all) }
    }

    /// A port, which is owned for `protocol` in most cases.
    pub fn port(&self, rng: &mut Rng, protocol: u8) -> u16 {
        if rng.chance(60) && !self.holdings.is_empty() {
            // The first holding of this protocol, searched from a random position.
            let start = rng.below(self.holdings.len());
            let (before, behind) = self.holdings.split_at(start);
            if let Some(holding) = behind.iter().chain(before).find(|holding| holding.0 == protocol) {
                return holding.2;
            }
        }
        if rng.chance(95) { rng.pick(&self.ports) } else { rng.bits() as u16 }
    }
}
