//! Who owns what, at random, and which addresses and ports there are at all: few, so that they meet.

use std::net::IpAddr;

use super::Rng;
use crate::oracle::{Oracle, Owned};

/// Protocols whose ports (or identifiers) can be owned.
pub const PROTOCOLS: [u8; 3] = [6, 17, 1];

/// This host's addresses, a foreign one that is owned all the same, hosts beyond, and those that are no host's.
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

/// How many of the above, from the first on, are this host's, and how many can be owned.
const LOCAL: usize = 2;
const OWNABLE: usize = 3;

/// Ports at the edges of the filter's words, and usual ones.
const PORTS: [u16; 14] = [0, 1, 53, 63, 64, 80, 127, 128, 1024, 32_768, 40_000, 40_064, 65_472, 65_535];

/// One owned port: protocol, address (`None`: any of this host's), port, terms.
pub type Holding = (u8, Option<IpAddr>, u16, Owned);

/// Owners, and the addresses and ports that packets are made of.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// What is owned.
    pub holdings: Vec<Holding>,
    /// Addresses by IP version.
    pub addresses: [Vec<IpAddr>; 2],
    /// Ports and identifiers.
    pub ports: Vec<u16>,
}

impl World {
    /// A world with about a third of its ports owned.
    pub fn new(rng: &mut Rng) -> Self {
        let addresses = ADDRESSES.map(|all| all.iter().map(|text| text.parse().expect("an address")).collect());
        let mut world = Self { holdings: Vec::new(), addresses, ports: PORTS.to_vec() };
        for _ in 0..2 {
            world.ports.push(rng.bits() as u16);
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
                    world.holdings.push((protocol, place, port, Owned { lease, observe, suppress, report }));
                }
            }
        }
        world
    }

    /// This host's addresses.
    pub fn local(&self) -> Vec<IpAddr> {
        self.addresses.iter().flat_map(|all| all.iter().take(LOCAL).copied()).collect()
    }

    /// Tells the oracle who owns what.
    pub fn tell(&self, oracle: &mut Oracle) {
        oracle.local = self.local().into_iter().collect();
        oracle.owned =
            self.holdings.iter().map(|&(protocol, place, port, owned)| ((protocol, place, port), owned)).collect();
    }

    /// An address of this host, mostly.
    pub fn near(&self, rng: &mut Rng, v6: bool) -> IpAddr {
        let all = &self.addresses[usize::from(v6)];
        if rng.chance(80) { rng.pick(&all[..OWNABLE]) } else { rng.pick(all) }
    }

    /// An address of a peer, mostly.
    pub fn far(&self, rng: &mut Rng, v6: bool) -> IpAddr {
        let all = &self.addresses[usize::from(v6)];
        if rng.chance(80) { rng.pick(&all[OWNABLE..OWNABLE + 2]) } else { rng.pick(all) }
    }

    /// A port, owned for `protocol` more often than not.
    pub fn port(&self, rng: &mut Rng, protocol: u8) -> u16 {
        if rng.chance(60) && !self.holdings.is_empty() {
            // Some holding of this protocol: the first from a random one on.
            let start = rng.below(self.holdings.len());
            let (before, behind) = self.holdings.split_at(start);
            if let Some(holding) = behind.iter().chain(before).find(|holding| holding.0 == protocol) {
                return holding.2;
            }
        }
        if rng.chance(95) { rng.pick(&self.ports) } else { rng.bits() as u16 }
    }
}
