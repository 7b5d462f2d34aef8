//! Sets of address prefixes, each with all ports or some, that are asked for every packet.
//!
//! Prefixes either nest or are apart. So each knows the next one around it, and the addresses fall into intervals,
//! each with the innermost prefix that covers it: a binary search, then a walk outwards. Memory is linear in the
//! number of prefixes, time logarithmic, plus their nesting.

use std::net::IpAddr;

use ipnet::IpNet;

use super::ports::Ports;

/// Stands for no prefix.
const NONE: u32 = u32::MAX;

/// A prefix as the policy's text has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The addresses.
    pub prefix: IpNet,
    /// Ports at these addresses; `None`: all, and what has no ports.
    pub ports: Option<Ports>,
    /// The line of the text, from 1.
    pub line: usize,
}

/// What a packet says of its port at the far end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FarPort {
    /// This one.
    Known(u16),
    /// Its protocol has no ports.
    Without,
    /// It has one that a fragment does not tell: any, when it is about denying, and none, when about allowing.
    Hidden {
        /// About denying.
        matches: bool,
    },
}

#[derive(Debug, Clone)]
struct Node {
    around: u32,
    /// The length of its prefix.
    length: u8,
    /// All ports, and what has none.
    any: bool,
    ports: Ports,
}

/// The prefixes of one address family.
#[derive(Debug, Clone, Default)]
struct Table {
    /// Where intervals begin, each reaching to the next.
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
        // Prefixes that the one at hand is in, each with its last address.
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

    /// Ends the prefixes that are over before `first`, or all.
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

    /// The prefixes that cover an address, from the inside.
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
    /// The set of these.
    pub fn new(list: Vec<Target>) -> Self {
        let of = |v4: bool| Table::new(list.iter().filter(|target| target.prefix.addr().is_ipv4() == v4));
        Self { v4: of(true), v6: of(false), list }
    }

    /// As written.
    pub fn list(&self) -> &[Target] {
        &self.list
    }

    /// Whether the address belongs to a prefix, whatever the ports.
    pub fn covers(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.table(address).around(number(address)).next().is_some()
    }

    /// Whether the set has what a packet goes to.
    pub(crate) fn has(&self, address: IpAddr, port: FarPort) -> bool {
        let address = address.to_canonical();
        self.table(address).around(number(address)).any(|node| match port {
            _ if node.any => true,
            FarPort::Known(port) => node.ports.contains(port),
            FarPort::Without => false,
            FarPort::Hidden { matches } => matches,
        })
    }

    /// The first as written that [`has`](Self::has) it: slow, for explanations.
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

    /// Whether all of `target` is in one prefix of the set that is wider, or, unless `wider`, as wide.
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

    /// Addresses and prefixes close together, so that they meet, at both ends of the space.
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
        fn the_tree_finds_what_a_search_finds(targets in targets(), address in address(), port in 0u16..12) {
            let set = Targets::new(targets);
            let hidden = [true, false].map(|matches| FarPort::Hidden { matches });
            for port in [FarPort::Known(port), FarPort::Without, hidden[0], hidden[1]] {
                prop_assert_eq!(set.has(address, port), set.first(address, port).is_some(), "{:?}", port);
            }
            prop_assert_eq!(set.covers(address), set.list().iter().any(|target| target.prefix.contains(&address)));
        }
    }

    #[test]
    fn mapped_addresses_are_those_they_stand_for() {
        let set = Targets::new(vec![target("10.0.0.0/8".parse().unwrap(), None)]);
        assert!(set.covers("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!set.covers("::ffff:11.1.2.3".parse().unwrap()));
    }
}
