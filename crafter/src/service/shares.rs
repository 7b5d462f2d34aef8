//! Memory that users share, and the charge of a lease.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use crafter_common::map::PEER_ENTRIES;

use super::{descriptors::DescriptorCharge, quota::Users};
use crate::{datapath::program::LoadOptions, policy::Usage};

/// Bytes of packets of all users that wait for next hops, or for room in the kernel's queues.
const WAITING_BYTES: usize = 32 << 20;
/// Waiting bytes of one user: the maximum, and the minimum that each user gets even if nothing is left.
const WAITING_BYTES_OF_USER: [usize; 2] = [8 << 20, 256 << 10];
/// Waiting bytes of one lease: the maximum.
const WAITING_BYTES_PER_LEASE: usize = 4 << 20;
/// What a waiting packet costs in addition to its bytes: its entries in queues, and the allocator's part.
const WAITING_OVERHEAD: usize = 256;

/// Bytes of messages that wait in the sockets of all users' leases until the clients read them.
const SOCKET_BYTES: usize = 256 << 20;
/// The maximum of these bytes for one user.
const SOCKET_BYTES_PER_USER: usize = 32 << 20;
/// The maximum and the minimum size of the buffer of one lease's socket, in bytes as the kernel counts them: with its
/// overhead, about 1 KiB for a small message.
const SOCKET_BYTES_OF_LEASE: [usize; 2] = [4 << 20, 128 << 10];
/// Divisor: a lease gets an eighth of the bytes that its user can still have.
const SOCKET_PART: usize = 8;

/// Bytes of AF_XDP frames over all interfaces: for all users; the maximum for one user; the minimum for an interface,
/// which otherwise gets a part of what its user can still have.
const FRAME_BYTES: [usize; 3] = [128 << 20, 64 << 20, 1 << 20];
/// The same for ring buffers and the buffers of captures.
const RING_BYTES: [usize; 3] = [64 << 20, 32 << 20, 256 << 10];
/// The minimum number of bytes of the buffer of a capture: some frames of the longest kind.
const CAPTURE_BYTES: usize = 1 << 20;
/// Divisor: an interface gets a quarter of the bytes that its user can still have.
const INTERFACE_PART: usize = 4;

/// Flows of all users, and of one user.
const FLOWS: [usize; 2] = [PEER_ENTRIES as usize, PEER_ENTRIES as usize / 2];

/// What users share. Users are accounts: a subordinate id is its owner.
pub(super) struct Pools {
    waiting: Rc<Pool>,
    sockets: Rc<Pool>,
    frames: Rc<Pool>,
    rings: Rc<Pool>,
    pub(super) flows: Rc<Pool>,
}

impl Default for Pools {
    fn default() -> Self {
        Self {
            waiting: Pool::new(WAITING_BYTES, WAITING_BYTES_OF_USER),
            sockets: Pool::new(SOCKET_BYTES, [SOCKET_BYTES_PER_USER, 0]),
            frames: Pool::new(FRAME_BYTES[0], [FRAME_BYTES[1], 0]),
            rings: Pool::new(RING_BYTES[0], [RING_BYTES[1], 0]),
            flows: Pool::new(FLOWS[0], [FLOWS[1], 0]),
        }
    }
}

impl Pools {
    /// Memory for an interface that is attached for a user.
    pub(super) fn interface_memory(&self, user: u32) -> InterfaceMemory {
        let frames = (self.frames.room(user) / INTERFACE_PART).max(FRAME_BYTES[2]);
        InterfaceMemory { frames: self.frames.take_anyway(user, frames), ring: self.ring(user, RING_BYTES[2]) }
    }

    /// Memory for a ring buffer: at least `least`, and a power of two.
    fn ring(&self, user: u32, least: usize) -> Share {
        let bytes = (self.rings.room(user) / INTERFACE_PART).max(least);
        self.rings.take_anyway(user, (bytes + 1).next_power_of_two() / 2)
    }
}

/// An amount that users share. Each may take as much as is left for others, up to a limit: the first user gets at most
/// half. Each gets a least amount even if nothing is left, until all have twice the total.
#[derive(Debug)]
pub(super) struct Pool {
    total: usize,
    most: usize,
    least: usize,
    taken: Cell<usize>,
    of: RefCell<HashMap<u32, usize>>,
}

impl Pool {
    /// `total` for all users, for each at most `most` and at least `least`.
    pub(super) fn new(total: usize, [most, least]: [usize; 2]) -> Rc<Self> {
        Rc::new(Self { total, most, least, taken: Cell::new(0), of: RefCell::default() })
    }

    /// What a user has.
    pub(super) fn held(&self, user: u32) -> usize {
        self.of.borrow().get(&user).copied().unwrap_or(0)
    }

    /// What a user can take now.
    pub(super) fn room(&self, user: u32) -> usize {
        let left = self.total.saturating_sub(self.taken.get());
        let least = if self.taken.get() / 2 < self.total { self.least } else { 0 };
        self.most.min(left).max(least).saturating_sub(self.held(user))
    }

    /// Takes `amount` for a user; `None` if there is less room.
    pub(super) fn take(self: &Rc<Self>, user: u32, amount: usize) -> Option<Share> {
        (amount <= self.room(user)).then(|| self.take_anyway(user, amount))
    }

    /// Takes `amount` for a user even without room.
    fn take_anyway(self: &Rc<Self>, user: u32, amount: usize) -> Share {
        self.taken.set(self.taken.get() + amount);
        *self.of.borrow_mut().entry(user).or_default() += amount;
        Share { pool: self.clone(), user, amount }
    }
}

/// What a user took from a [`Pool`], until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    pool: Rc<Pool>,
    user: u32,
    amount: usize,
}

impl Share {
    /// The amount.
    pub(super) fn amount(&self) -> usize {
        self.amount
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.pool.taken.set(self.pool.taken.get() - self.amount);
        let mut of = self.pool.of.borrow_mut();
        if let Some(held) = of.get_mut(&self.user) {
            *held -= self.amount;
            if *held == 0 {
                of.remove(&self.user);
            }
        }
    }
}

/// The memory of an attached interface, until it is dropped.
#[derive(Debug)]
pub(super) struct InterfaceMemory {
    frames: Share,
    ring: Share,
}

impl InterfaceMemory {
    /// The sizes to load with.
    pub(super) fn apply(&self, load: &mut LoadOptions) {
        load.frame_bytes = load.frame_bytes.min(self.frames.amount() as u32);
        load.ring_bytes = load.ring_bytes.min(self.ring.amount() as u32);
    }
}

/// Counts a lease, its ports and its socket while it exists.
pub(super) struct Charge {
    usage: Rc<RefCell<Usage>>,
    ports: u32,
    socket: Share,
    capture: Option<Share>,
    _descriptors: Option<DescriptorCharge>,
    user: u32,
    /// Bytes of packets that wait: of this lease, and of all.
    waiting: [Rc<Pool>; 2],
}

/// Bytes of a packet that waits, until they are dropped.
pub(super) type WaitingBytes = [Share; 2];

impl Charge {
    /// Counts a lease of `user` with `ports` ports.
    pub(super) fn new(users: &Users, user: u32, ports: u32) -> Self {
        let usage = users.of(user);
        let user = users.account(user);
        {
            let mut usage = usage.borrow_mut();
            usage.leases += 1;
            usage.ports += ports;
        }
        let [most, least] = SOCKET_BYTES_OF_LEASE;
        let bytes = (users.pools.sockets.room(user) / SOCKET_PART).clamp(least, most);
        let socket = users.pools.sockets.take_anyway(user, bytes);
        // A pool of one user: all but the limit for each is left.
        let waiting = [Pool::new(usize::MAX, [WAITING_BYTES_PER_LEASE, 0]), users.pools.waiting.clone()];
        Self { usage, ports, socket, capture: None, _descriptors: None, user, waiting }
    }

    /// Counts these descriptors too.
    pub(super) fn with(mut self, descriptors: DescriptorCharge) -> Self {
        self._descriptors = Some(descriptors);
        self
    }

    /// The account of its user.
    pub(super) fn account(&self) -> u32 {
        self.user
    }

    /// The usage that includes it.
    pub(super) fn usage(&self) -> &Rc<RefCell<Usage>> {
        &self.usage
    }

    /// Bytes for messages in each direction of the lease's socket, as the kernel counts them.
    pub(super) fn socket_bytes(&self) -> usize {
        self.socket.amount()
    }

    /// Takes memory for the kernel's buffer of captured frames; returns its bytes.
    pub(super) fn take_capture(&mut self, users: &Users) -> u32 {
        self.capture.insert(users.pools.ring(self.user, CAPTURE_BYTES)).amount() as u32
    }

    /// Counts a packet of `bytes` that waits. `None` if too many bytes of the lease, or of its user, wait already.
    pub(super) fn wait(&self, bytes: usize) -> Option<WaitingBytes> {
        let [own, all] = self.waiting.each_ref().map(|pool| pool.take(self.user, bytes + WAITING_OVERHEAD));
        Some([own?, all?])
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut usage = self.usage.borrow_mut();
        usage.leases -= 1;
        usage.ports -= self.ports;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_takes_at_most_what_is_left_for_others() {
        let pool = Pool::new(48, [48, 1]);
        let take_all = |user| std::iter::from_fn(|| pool.take(user, 1)).collect::<Vec<_>>();
        let first = take_all(1);
        assert_eq!((first.len(), pool.room(1)), (24, 0));
        let others: Vec<_> = (2..=20).map(take_all).collect();
        assert!(others.iter().all(|taken| !taken.is_empty()), "each user gets at least one");
        assert_eq!((others[0].len(), pool.taken.get() > 48, pool.room(99)), (12, true, 1));
        let more: Vec<_> = (100..200).filter_map(|user| pool.take(user, 1)).collect();
        assert_eq!(pool.taken.get(), 96, "the end");
        drop(more);
        drop((first, others));
        assert_eq!((pool.taken.get(), pool.of.borrow().len()), (0, 0));
    }

    #[test]
    fn memory_of_many_interfaces_stays_within_the_users_share() {
        let users = Users::default();
        let all: Vec<_> = (0..60).map(|_| users.pools.interface_memory(1000)).collect();
        let sizes = |memory: &InterfaceMemory| {
            let mut load = LoadOptions::default();
            memory.apply(&mut load);
            [load.frame_bytes, load.ring_bytes]
        };
        assert_eq!(sizes(&all[0]), [16 << 20, 8 << 20]);
        assert_eq!(sizes(&all[59]), [1 << 20, 256 << 10]);
        let [frames, rings] = all.iter().map(sizes).fold([0, 0], |[a, b], [c, d]| [a + c as usize, b + d as usize]);
        assert!(frames <= FRAME_BYTES[1] + 60 * FRAME_BYTES[2], "{frames}");
        assert!(rings <= RING_BYTES[1] + 60 * RING_BYTES[2], "{rings}");
        let [frames, ring] = sizes(&users.pools.interface_memory(1001));
        assert!(frames >= 4 << 20 && ring >= 1 << 20, "another user's first interface: {frames} and {ring}");
        drop(all);
        assert_eq!([users.pools.frames.taken.get(), users.pools.rings.taken.get()], [0, 0]);
    }

    #[test]
    fn sockets_of_many_leases_stay_within_the_users_share() {
        let users = Users::default();
        let leases: Vec<_> = (0..64).map(|_| Charge::new(&users, 1000, 1)).collect();
        let [most, least] = SOCKET_BYTES_OF_LEASE;
        assert_eq!((leases[0].socket_bytes(), leases[63].socket_bytes()), (most, least));
        let all: usize = leases.iter().map(Charge::socket_bytes).sum();
        assert!(all <= SOCKET_BYTES_PER_USER + 64 * least, "{all}");
        assert_eq!(Charge::new(&users, 1001, 1).socket_bytes(), most, "another user's first lease");
        drop(leases);
        assert_eq!(users.pools.sockets.taken.get(), 0);
    }

    #[test]
    fn waiting_packets_are_limited_in_bytes_per_lease_and_user() {
        let users = Users::default();
        let leases: Vec<_> = (0..8).map(|_| Charge::new(&users, 1000, 1)).collect();
        let fill = |lease: &Charge| std::iter::from_fn(|| lease.wait(1500)).collect::<Vec<_>>();
        let bytes = |packets: &[WaitingBytes]| packets.len() * (1500 + WAITING_OVERHEAD);
        let first = fill(&leases[0]);
        assert!(bytes(&first).abs_diff(WAITING_BYTES_PER_LEASE) < 2000, "{}", bytes(&first));
        let others: Vec<_> = leases[1..].iter().flat_map(fill).collect();
        assert!((bytes(&first) + bytes(&others)).abs_diff(WAITING_BYTES_OF_USER[0]) < 2000, "{}", bytes(&others));
        assert!(Charge::new(&users, 1001, 1).wait(1500).is_some(), "another user");
        drop((first, others));
        assert_eq!(users.pools.waiting.taken.get(), 0);
    }

    /// The value of a setting of the unit, in bytes if it has the suffix M.
    fn setting(name: &str) -> usize {
        const UNIT: &str = include_str!("../../data/systemd/crafter.service");
        let value = UNIT.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).expect(name);
        match value.strip_suffix('M') {
            Some(mebibytes) => mebibytes.parse::<usize>().expect(name) << 20,
            None => value.parse().expect(name),
        }
    }

    #[test]
    fn limits_of_the_unit_exceed_what_all_users_may_hold() {
        /// The program, its heap, and the maps of two loads of the programs.
        const BASE: usize = 96 << 20;
        /// Leases that have only the least bytes of a socket.
        const LEASES: usize = 1000;
        const INTERFACES: usize = super::super::interfaces::MAX_INTERFACES;
        let parts = [
            BASE,
            super::super::admission::MOST * (64 << 10),
            SOCKET_BYTES + LEASES * SOCKET_BYTES_OF_LEASE[1],
            2 * WAITING_BYTES,
            FRAME_BYTES[0] + INTERFACES * FRAME_BYTES[2],
            RING_BYTES[0] + INTERFACES * RING_BYTES[2],
        ];
        let all: usize = parts.iter().sum();
        let [high, max] = ["MemoryHigh", "MemoryMax"].map(setting);
        assert!((all..all + (64 << 20)).contains(&high), "{parts:?}: {all}, and MemoryHigh is {high}");
        assert!(max >= high + high / 4, "{high} and {max}: between them the kernel slows the service down");
        // Each blocking thread may start three more; the main thread, and some of the libraries.
        assert!(setting("TasksMax") >= super::super::MAX_BLOCKING_THREADS * 4 + 16);
    }
}
