//! Runs packets through the kernel half and through the oracle, and reports every difference.

use std::{collections::HashMap, fmt::Write as _, net::IpAddr};

use crafter::{
    datapath::{
        maps::Terms,
        program::{Hook, LoadOptions},
    },
    packet::Transport,
};
use crafter_common::{
    reason::{REASONS, Reason},
    share::Mark,
};

use crate::{
    bench::Bench,
    oracle::{Action, First, Flow, FlowId, Oracle, Owned, Prediction, Siblings},
    random::world::World,
    views::Views,
};

/// Bytes of the linear part of an XDP buffer under TEST_RUN: one page minus headroom and `struct skb_shared_info`
/// (net/bpf/test_run.c). The rest of a longer packet is in fragments.
const LINEAR: usize = 4096 - 256 - 320;

/// Longest packet, in bytes, that TEST_RUN accepts for an skb, with a margin.
pub const LONGEST_SKB: usize = 3400;

/// Tolerated difference in nanoseconds between CLOCK_MONOTONIC in user space and in the kernel.
const SLACK: u64 = 1_000_000;

/// The kernel half and the oracle, with equal maps.
pub struct Differential {
    bench: Bench,
    views: Views,
    /// The model that predicts each result.
    pub oracle: Oracle,
    owned: Vec<(u32, Transport, IpAddr, u16)>,
    counters: [u64; REASONS as usize],
    out: Vec<u8>,
}

/// `CLOCK_MONOTONIC` in nanoseconds, the clock of `bpf_ktime_get_ns`.
fn now() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

impl Differential {
    /// Loads the programs; `socket`: with an AF_XDP socket.
    pub fn new(options: &LoadOptions, ethernet: bool, socket: bool) -> Self {
        let bench = Bench::new(options, if ethernet { 14 } else { 0 }, socket);
        let views = Views::open(&bench.kernel);
        // Frames::plan(1500, _): half a page less the headroom.
        let oracle = Oracle { ethernet, mark: options.mark, socket: socket.then_some(1792), ..Oracle::default() };
        let counters = views.counters();
        Self { bench, views, oracle, owned: Vec::new(), counters, out: vec![0; 1 << 16] }
    }

    /// Raw access to the loaded maps.
    pub fn views(&self) -> &Views {
        &self.views
    }

    /// Replaces all owners and peers in both. Flows and fragments stay, as they do when a lease ends.
    pub fn set_owners(&mut self, world: &World) {
        for (lease, transport, address, port) in self.owned.drain(..) {
            self.bench.maps.disown(lease, transport, address, port).expect("disown a port");
        }
        self.bench.maps.set_local(&world.local()).expect("set the local addresses");
        for &(protocol, place, port, owned) in &world.holdings {
            let transport = match protocol {
                6 => Transport::Tcp,
                17 => Transport::Udp,
                _ => Transport::Icmp,
            };
            let Owned { observe, suppress, report, peers, .. } = owned;
            let terms = Terms { observe, suppress, report, peers, user: 0 };
            let address = place.unwrap_or(crate::bench::ANY);
            self.bench.maps.own(owned.lease, transport, address, port, terms).expect("own a port");
            self.owned.push((owned.lease, transport, address, port));
        }
        self.views.set_peers(&world.peers);
        world.copy_to(&mut self.oracle);
    }

    /// Removes all flows and fragments from both, and takes the current counters as the baseline.
    pub fn clear(&mut self) {
        self.counters = self.views.counters();
        self.bench.take_delivered();
        self.views.clear();
        self.oracle.flows.clear();
        self.oracle.fragments.clear();
    }

    /// The shortest frame in bytes that TEST_RUN accepts at `hook`: an Ethernet header; for classifiers also the IP
    /// header that the ethertype announces, or one byte of any other payload.
    pub fn shortest(hook: Hook, frame: &[u8]) -> usize {
        match (hook, frame.get(12..14)) {
            (Hook::Xdp, _) => 14,
            (_, Some([0x08, 0x00])) => 14 + 20,
            (_, Some([0x86, 0xdd])) => 14 + 40,
            _ => 15,
        }
    }

    /// Runs one packet through both and compares reason, action, bytes, the owner's copy and the flow entry.
    ///
    /// # Errors
    /// A description of all differences.
    pub fn step(&mut self, hook: Hook, frame: &[u8], mark: u32) -> Result<Prediction, String> {
        self.oracle.linear = if hook == Hook::Xdp { LINEAR } else { usize::MAX };
        let known = |this: &Self, id: &FlowId| this.views.flows.get(&flow_key(id), 0).ok();
        let predicted = self.oracle.predict(hook, frame, mark);
        let before = predicted.flow.and_then(|id| known(self, &id));
        // bpf_ktime_get_ns reads the fast monotonic clock, which may differ slightly while the other is being adjusted.
        let earliest = now() - SLACK;
        let (action, length) = self.bench.execute(hook, frame, mark, &mut self.out);
        let latest = now() + SLACK;

        let counters = self.views.counters();
        let mut rose: Vec<(Reason, u64)> = Vec::new();
        for reason in Reason::ALL {
            let change = counters[reason as usize] - self.counters[reason as usize];
            if change != 0 {
                rose.push((reason, change));
            }
        }
        self.counters = counters;
        let delivered = self.bench.take_delivered();
        let mut differences = String::new();
        let mut differs = |what: &str, got: &dyn std::fmt::Debug, wanted: &dyn std::fmt::Debug| {
            let _ = write!(differences, "{what}: {got:?}, expected {wanted:?}; ");
        };
        if rose != [(predicted.reason, 1)] {
            differs("the reason", &rose, &predicted.reason);
        }
        if action != number(hook, predicted.action) {
            differs("the action", &action, &predicted.action);
        }
        // The place of the lease's share replaces the first bytes of a redirected frame.
        let changed = if predicted.action == Action::Redirect { size_of::<Mark>() } else { 0 };
        if length != frame.len() || self.out[changed..length] != frame[changed..] {
            differs("the bytes after the run", &hex(&self.out[..length]), &"no change");
        }
        match (predicted.copied, delivered.as_slice()) {
            (None, []) => {}
            (Some(start), [(header, packet)]) => {
                let whole = (frame.len() - start) as u32;
                let got = (header.captured, header.length, header.reason, packet.as_slice());
                let wanted = (whole, whole, predicted.reason as u32, &frame[start..]);
                if got != wanted || !(earliest..=latest).contains(&header.timestamp) {
                    differs("the owner's copy", &got, &wanted);
                }
            }
            (wanted, got) => differs("copies for the owner", &got.len(), &wanted),
        }
        if let Some(id) = predicted.flow {
            let wanted = flow_value(&self.oracle.flows[&id]);
            match known(self, &id) {
                None => differs("the flow", &"none", &id),
                Some(got) => {
                    if without_times(&got) != wanted {
                        differs("the flow's counts", &without_times(&got), &wanted);
                    }
                    let (first, last) = times(&got);
                    let in_time = before.map_or((earliest..=latest).contains(&first), |old| times(&old).0 == first);
                    if !in_time || !(earliest..=latest).contains(&last) {
                        differs("the flow's times", &(first, last), &(earliest, latest, before.map(|old| times(&old))));
                    }
                }
            }
        }
        if differences.is_empty() { Ok(predicted) } else { Err(differences) }
    }

    /// Runs one packet and checks that it passes unchanged and undelivered.
    ///
    /// # Errors
    /// The actual action, number of copies and bytes.
    pub fn pass(&mut self, hook: Hook, frame: &[u8], mark: u32) -> Result<(), String> {
        let (action, length) = self.bench.execute(hook, frame, mark, &mut self.out);
        let delivered = self.bench.take_delivered().len();
        let passed = number(if hook == Hook::Empty { Hook::Xdp } else { hook }, Action::Pass);
        match action == passed && self.out[..length] == *frame && delivered == 0 {
            true => Ok(()),
            false => Err(format!("action {action}, {delivered} copies, bytes {}", hex(&self.out[..length]))),
        }
    }

    /// Compares all flows and all fragments of both.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare_maps(&self) -> Result<(), String> {
        let flows: HashMap<[u8; 48], [u8; 72]> = self.views.flows.iter().map(|entry| entry.expect("a flow")).collect();
        let flows: HashMap<_, _> = flows.iter().map(|(key, value)| (*key, without_times(value))).collect();
        let wanted: HashMap<_, _> =
            self.oracle.flows.iter().map(|(id, flow)| (flow_key(id), flow_value(flow))).collect();
        compare("flows", &flows, &wanted)?;
        let fragments = self.views.fragments.iter().map(|entry| entry.expect("a fragment"));
        // Without the time.
        let what = |value: [u8; 24]| <[u8; 16]>::try_from(&value[8..]).expect("the rest");
        let fragments: HashMap<_, _> = fragments.map(|(key, value)| (key, what(value))).collect();
        let wanted: HashMap<_, _> =
            self.oracle.fragments.iter().map(|(id, first)| (fragment_key(id), first_value(first))).collect();
        compare("fragments", &fragments, &wanted)
    }
}

fn compare<const K: usize, V: PartialEq + std::fmt::Debug>(
    what: &str,
    got: &HashMap<[u8; K], V>,
    wanted: &HashMap<[u8; K], V>,
) -> Result<(), String> {
    for (key, value) in got {
        if wanted.get(key) != Some(value) {
            return Err(format!("{what}: {} is {value:?}, expected {:?}", hex(key), wanted.get(key)));
        }
    }
    match wanted.keys().find(|key| !got.contains_key(*key)) {
        Some(key) => Err(format!("{what}: {} is missing", hex(key))),
        None => Ok(()),
    }
}

/// Return value of a program for `action`. linux/bpf.h: XDP_DROP, XDP_PASS, XDP_REDIRECT; TC_ACT_SHOT, TCX_NEXT.
pub fn number(hook: Hook, action: Action) -> i32 {
    match (hook, action) {
        (Hook::Xdp, Action::Drop) => 1,
        (Hook::Xdp, Action::Pass) => 2,
        (_, Action::Redirect) => 4,
        (_, Action::Drop) => 2,
        (_, Action::Pass) => -1,
    }
}

/// `bytes` in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn sixteen(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Number of the only attachment, as keys begin with it.
const LINK: [u8; 4] = 1_u32.to_ne_bytes();

/// `FlowKey`: attachment, lease, local and remote address, their ports, protocol, three zeros.
pub(crate) fn flow_key(id: &FlowId) -> [u8; 48] {
    let mut key = [0; 48];
    key[..4].copy_from_slice(&LINK);
    key[4..8].copy_from_slice(&id.lease.to_ne_bytes());
    key[8..24].copy_from_slice(&sixteen(id.local.ip()));
    key[24..40].copy_from_slice(&sixteen(id.remote.ip()));
    key[40..42].copy_from_slice(&id.local.port().to_be_bytes());
    key[42..44].copy_from_slice(&id.remote.port().to_be_bytes());
    key[44] = id.protocol;
    key
}

/// `FlowValue` without its two times.
fn flow_value(flow: &Flow) -> [u64; 7] {
    let (seq, ack, flags) = flow.last;
    [
        flow.rx.0,
        flow.rx.1,
        flow.tx.0,
        flow.tx.1,
        flow.suppressed,
        u64::from(seq) | u64::from(ack) << 32,
        u64::from(flags),
    ]
}

fn words(value: &[u8; 72]) -> [u64; 9] {
    std::array::from_fn(|at| u64::from_le_bytes(value[at * 8..at * 8 + 8].try_into().expect("eight bytes")))
}

fn without_times(value: &[u8; 72]) -> [u64; 7] {
    let [a, b, c, d, _, _, e, f, g] = words(value);
    [a, b, c, d, e, f, g]
}

fn times(value: &[u8; 72]) -> (u64, u64) {
    (words(value)[4], words(value)[5])
}

/// `FragmentKey`: attachment, source, destination, identification, protocol (IPv4), three zeros.
fn fragment_key((source, destination, id, protocol): &Siblings) -> [u8; 44] {
    let mut key = [0; 44];
    key[..4].copy_from_slice(&LINK);
    key[4..20].copy_from_slice(&sixteen(*source));
    key[20..36].copy_from_slice(&sixteen(*destination));
    key[36..40].copy_from_slice(&id.to_be_bytes());
    key[40] = protocol.unwrap_or(0);
    key
}

/// `FirstFragment` without its time: lease, local and remote port, protocol, seven zeros.
fn first_value(first: &First) -> [u8; 16] {
    let mut value = [0; 16];
    value[..4].copy_from_slice(&first.lease.to_le_bytes());
    value[4..6].copy_from_slice(&first.local.to_be_bytes());
    value[6..8].copy_from_slice(&first.remote.to_be_bytes());
    value[8] = first.protocol;
    value
}
