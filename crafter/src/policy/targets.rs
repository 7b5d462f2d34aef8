//! Sets of address prefixes, each with all ports or some, with fast lookup.
//!
//! Two prefixes are either nested or disjoint. Each prefix refers to the next one around it, and the addresses are
//! divided into intervals, each with its innermost prefix. A lookup is a binary search and a walk outwards. Memory is
//! linear in the number of prefixes; time is logarithmic, plus the nesting depth.

use std::net::IpAddr;

use ipnet::IpNet;

use super::ports::Ports;

/// No prefix.
const NONE: u32 = u32::MAX;

/// A prefix of the policy's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The addresses.
    pub prefix: IpNet,
    /// Ports at these addresses; `None`: all ports, and protocols without ports.
    pub ports: Option<Ports>,
    /// The line in the text, from 1.
    pub line: usize,
}

/// The destination port of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FarPort {
    /// A readable port.
    Known(u16),
    /// Its protocol has no ports.
    Without,
    /// A port that a later fragment does not contain: it matches every denied port, and no allowed one.
    Hidden {
        /// Whether denied ports are compared.
        matches: bool,
    },
}

#[derive(Debug, Clone)]
struct Node {
    around: u32,
    /// The length of the prefix.
    length: u8,
    /// All ports, and protocols without ports.
    any: bool,
    ports: Ports,
}

/// The prefixes of one address family.
#[derive(Debug, Clone, Default)]
struct Table {
    /// Sorted starts of intervals; each interval ends at the next start.
    starts: Vec<u128>,
    /// The innermost prefix of each interval.
    inner: Vec<u32>,
    nodes: Vec<Node>,
}

impl Table {
    fn new<'t>(targets: impl Iterator<Item = &'t Target>) -> Self {
        let mut sorted: Vec<(u128, u8, u128, &Target)> = targets
            .map(|target| {
                let prefix = target.prefix;
                (number(prefix.network()), prefix.prefix_len(), number(prefix.broadcast()), target)
            })
            .collect();
        sorted.sort_by_key(|&(first, length, ..)| (first, length));
        let mut table = Self::default();
        // Open prefixes, each with its last address.
        let mut open: Vec<(u128, u32)> = Vec::new();
        for group in sorted.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let (first, length, last, _) = group[0];
            table.close(&mut open, Some(first));
            let ports = group.iter().filter_map(|(.., target)| target.ports.as_ref()).flat_map(Ports::ranges);
            let node = Node {
                around: open.last().map_or(NONE, |&(_, node)| node),
                length,
                any: group.iter().any(|(.., target)| target.ports.is_none()),
                ports: Ports::new(ports),
            };
            let number = table.nodes.len() as u32;
            table.nodes.push(node);
            table.begin(first, number);
            open.push((last, number));
        }
        table.close(&mut open, None);
        table
    }

    /// Closes the prefixes that end before `first`, or all.
    fn close(&mut self, open: &mut Vec<(u128, u32)>, first: Option<u128>) {
        while let Some((last, _)) = open.pop_if(|&mut (last, _)| first.is_none_or(|first| last < first)) {
            if let Some(next) = last.checked_add(1) {
                self.begin(next, open.last().map_or(NONE, |&(_, node)| node));
            }
        }
    }

    fn begin(&mut self, start: u128, inner: u32) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.inner.pop();
        }
        self.starts.push(start);
        self.inner.push(inner);
    }

    /// The prefixes that contain an address, from the innermost outwards.
    fn around(&self, address: u128) -> impl Iterator<Item = &Node> {
        let after = self.starts.partition_point(|&start| start <= address);
        let inner = if after == 0 { NONE } else { self.inner[after - 1] };
        let node = |at: u32| self.nodes.get(at as usize);
        std::iter::successors(node(inner), move |inner| node(inner.around))
    }
}

/// A set of [`Target`]s.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    v4: Table,
    v6: Table,
    list: Vec<Target>,
}

impl Targets {
    /// Makes the set of `list`.
    pub fn new(list: Vec<Target>) -> Self {
        let of = |v4: bool| Table::new(list.iter().filter(|target| target.prefix.addr().is_ipv4() == v4));
        Self { v4: of(true), v6: of(false), list }
    }

    /// The prefixes in the order of the text.
    pub fn list(&self) -> &[Target] {
        &self.list
    }

    /// Whether a prefix contains the address, for any ports.
    pub fn covers(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.table(address).around(number(address)).next().is_some()
    }

    /// Whether the set contains the destination of a packet.
    pub(crate) fn has(&self, address: IpAddr, port: FarPort) -> bool {
        let address = address.to_canonical();
        self.table(address).around(number(address)).any(|node| match port {
            _ if node.any => true,
            FarPort::Known(port) => node.ports.contains(port),
            FarPort::Without => false,
            FarPort::Hidden { matches } => matches,
        })
    }

    /// The first prefix of the text that [`has`](Self::has) the destination. Linear time; for explanations.
    pub(crate) fn first(&self, address: IpAddr, port: FarPort) -> Option<&Target> {
        let address = address.to_canonical();
        self.list.iter().find(|target| {
            target.prefix.contains(&address)
                && match (&target.ports, port) {
                    (None, _) => true,
                    (Some(ports), FarPort::Known(port)) => ports.contains(port),
                    (Some(_), FarPort::Without) => false,
                    (Some(_), FarPort::Hidden { matches }) => matches,
                }
        })
    }

    /// Whether another prefix of the set contains all of `target`: a wider one, or, unless `wider`, an equal one.
    pub(crate) fn encloses(&self, target: &Target, wider: bool) -> bool {
        let (prefix, address) = (target.prefix, target.prefix.network());
        self.table(address).around(number(address)).any(|node| {
            let around = node.length < prefix.prefix_len() || !wider && node.length == prefix.prefix_len();
            let has = |ports: &Ports| ports.ranges().all(|range| node.ports.contains_all(&range));
            around && (node.any || target.ports.as_ref().is_some_and(has))
        })
    }

    fn table(&self, address: IpAddr) -> &Table {
        if address.is_ipv4() { &self.v4 } else { &self.v6 }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use proptest::prelude::*;

    fn target(prefix: IpNet, ports: Option<(u16, u16)>) -> Target {
        Target { prefix: prefix.trunc(), ports: ports.map(|(a, b)| Ports::new([a..=b])), line: 1 }
    }

    /// Addresses and prefixes close together at both ends of the address space, so that they overlap.
    fn address() -> impl Strategy<Value = IpAddr> {
        (any::<bool>(), 0u8..40, any::<bool>()).prop_map(|(v4, low, end)| match (v4, end) {
            (true, false) => Ipv4Addr::from(u32::from(low)).into(),
            (true, true) => Ipv4Addr::from(u32::MAX - u32::from(low)).into(),
            (false, false) => Ipv6Addr::from(u128::from(low)).into(),
            (false, true) => Ipv6Addr::from(u128::MAX - u128::from(low)).into(),
        })
    }

    fn targets() -> impl Strategy<Value = Vec<Target>> {
        let ports = proptest::option::of((0u16..10, 0u16..10));
        let one = (address(), 0u8..8, any::<bool>(), ports).prop_map(|(address, up, wide, ports)| {
            let most = if address.is_ipv4() { 32 } else { 128 };
            let length = if wide { up } else { most - up };
            target(IpNet::new(address, length).expect("a length that fits"), ports)
        });
        proptest::collection::vec(one, 0..12)
    }

    proptest! {
        #[test]
        fn lookup_agrees_with_linear_search(targets in targets(), address in address(), port in 0u16..12) {
            let set = Targets::new(targets);
            let hidden = [true, false].map(|matches| FarPort::Hidden { matches });
            for port in [FarPort::Known(port), FarPort::Without, hidden[0], hidden[1]] {
                prop_assert_eq!(set.has(address, port), set.first(address, port).is_some(), "{:?}", port);
            }
            prop_assert_eq!(set.covers(address), set.list().iter().any(|target| target.prefix.contains(&address)));
        }
    }

    #[test]
    fn ipv4_mapped_addresses_match_ipv4_prefixes() {
        let set = Targets::new(vec![target("10.0.0.0/8".parse().unwrap(), None)]);
        assert!(set.covers("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!set.covers("::ffff:11.1.2.3".parse().unwrap()));
    }
}
