//! Functions for all access to the maps. `crafter_common` has the layouts.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{HashOfMaps, RingBuf},
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, XskMap, ring_buf::RingBufEntry},
};
use core::{arch::asm, mem::offset_of};
use crafter_common::{
    Address, DEFAULT_MARK,
    attached::{Attached, SLOTS},
    flow::{FRAGMENT_NS, FirstFragment, FlowKey, FlowValue, FragmentKey, Peer},
    map::{FLOW_ENTRIES, FRAGMENT_ENTRIES, LOCAL_ENTRIES, OWNED_ENTRIES, PEER_ENTRIES, SHARE_ENTRIES, SOCKET_ENTRIES},
    port::{
        FILTER_WORDS, FilterWord, HELD_WORDS, OwnedKey, OwnedPort, PEER_ADDRESS, PEERS as KNOWN, filter_position,
        held_position,
    },
    reason::{REASONS, Reason},
    share::{RING_POOL, Share, fits, queue_pool},
};

#[map(name = "CRAFTER_OWNED")]
static OWNED: HashMap<OwnedKey, OwnedPort> = HashMap::with_max_entries(OWNED_ENTRIES, BPF_F_NO_PREALLOC);
#[map(name = "CRAFTER_FILTER")]
static FILTER: Array<FilterWord> = Array::with_max_entries(SLOTS * FILTER_WORDS, 0);
#[map(name = "CRAFTER_LOCAL")]
static LOCAL: HashMap<Address, u8> = HashMap::with_max_entries(LOCAL_ENTRIES, BPF_F_NO_PREALLOC);
#[map(name = "CRAFTER_FLOWS")]
static FLOWS: LruHashMap<FlowKey, FlowValue> = LruHashMap::with_max_entries(FLOW_ENTRIES, 0);
#[map(name = "CRAFTER_PEERS")]
static PEERS: HashMap<FlowKey, Peer> = HashMap::with_max_entries(PEER_ENTRIES, BPF_F_NO_PREALLOC);
#[map(name = "CRAFTER_FRAGS")]
static FRAGMENTS: LruHashMap<FragmentKey, FirstFragment> = LruHashMap::with_max_entries(FRAGMENT_ENTRIES, 0);
#[map(name = "CRAFTER_COUNTS")]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(SLOTS * REASONS, 0);
#[map(name = "CRAFTER_XSKS")]
static SOCKETS: XskMap = XskMap::with_max_entries(SLOTS * SOCKET_ENTRIES, 0);
#[map(name = "CRAFTER_LINKS")]
static LINKS: Array<Attached> = Array::with_max_entries(SLOTS, 0);
#[map(name = "CRAFTER_HELD")]
static HELD: Array<u64> = Array::with_max_entries(HELD_WORDS, 0);
#[map(name = "CRAFTER_SHARES")]
static SHARES: Array<Share> = Array::with_max_entries(SHARE_ENTRIES, BPF_F_MMAPABLE);
/// The declared ring buffer only describes the type of the values; each interface's has its own size.
#[btf_map]
static CRAFTER_RINGS: HashOfMaps<u32, RingBuf<u64, 65_536>, { SLOTS as usize }> = HashOfMaps::new();

#[unsafe(no_mangle)]
static LINK_HEADER: Global<u32> = Global::new(14);
#[unsafe(no_mangle)]
static SLOT_MASK: Global<u32> = Global::new(SLOTS - 1);
#[unsafe(no_mangle)]
static CRAFTED_MARK: Global<u32> = Global::new(DEFAULT_MARK);

/// Whether a lease has this UDP port on any address.
#[inline(always)]
pub fn is_reserved(port: u16) -> bool {
    let (index, bit) = held_position(port);
    HELD.get(index).is_some_and(|word| word & bit != 0)
}

/// Length of the link-layer header on this device.
#[inline(always)]
pub fn link_header() -> usize {
    LINK_HEADER.load() as usize
}

/// The slot of the interface with this index.
#[inline(always)]
pub fn slot(ifindex: u32) -> u32 {
    ifindex & SLOT_MASK.load()
}

/// The attachment in `slot`; of number 0 if there is none.
#[inline(always)]
pub fn attached(slot: u32) -> Attached {
    LINKS.get(slot).copied().unwrap_or_default()
}

/// Whether this host has `address`.
#[inline(always)]
pub fn is_local(address: &Address) -> bool {
    // SAFETY: the value is not looked at.
    unsafe { LOCAL.get(address) }.is_some()
}

/// The mark of crafted packets.
#[inline(always)]
pub fn crafted_mark() -> u32 {
    CRAFTED_MARK.load()
}

/// Adds one to the counter that `reason` has in `slot`.
#[inline(always)]
pub fn count(slot: u32, reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(slot * REASONS + reason as u32) {
        // SAFETY: a per-CPU value of this CPU; a hook is not interrupted by another packet of its hook.
        unsafe { *counter += 1 }
    }
}

/// An owned port, and the number of the attachment that it is owned on.
#[derive(Clone, Copy)]
pub struct Owner {
    pub link: u32,
    pub port: OwnedPort,
}

/// The owner of `port` on the interface of `slot`. `local` is called only if the filter has the port.
#[inline(always)]
pub fn owner(slot: u32, protocol: u8, port: [u8; 2], local: impl FnOnce() -> Option<Address>) -> Option<Owner> {
    let (index, bit) = filter_position(protocol, u16::from_be_bytes(port));
    let word = FILTER.get(slot * FILTER_WORDS + index)?;
    if (word.exact | word.any) & bit == 0 {
        return None;
    }
    let address = local()?;
    let kinds = if word.exact & bit != 0 { EXACT } else { 0 } | if word.any & bit != 0 { ANY } else { 0 };
    look_up(slot, protocol, port, address, kinds)
}

/// The owner of `port` on this host's `address`, without the filter.
#[inline(always)]
pub fn owner_at(slot: u32, protocol: u8, port: [u8; 2], address: Address) -> Option<Owner> {
    look_up(slot, protocol, port, address, EXACT | ANY)
}

/// Kinds of keys to look up: those of a particular address, and of any local one.
const EXACT: u32 = 1;
/// See [`EXACT`].
const ANY: u32 = 2;

#[inline(always)]
fn look_up(slot: u32, protocol: u8, port: [u8; 2], address: Address, kinds: u32) -> Option<Owner> {
    let address = u128::from_le_bytes(address);
    let port = u32::from(u16::from_le_bytes(port)) | u32::from(protocol) << 16;
    let found = crafter_owner(slot, address as u64, (address >> 64) as u64, port, kinds);
    // No lease has the number 0.
    let owned = OwnedPort { lease: found as u32, flags: (found >> 32) as u32 };
    (owned.lease != 0).then(|| Owner { link: attached(slot).link, port: owned })
}

/// The entry of an owned port, as a number: its lease in the low half; 0 if there is none. The halves of the address,
/// and port and protocol, are little-endian numbers of their bytes. With external linkage, it is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn crafter_owner(slot: u32, begin: u64, end: u64, port: u32, kinds: u32) -> u64 {
    let address = (u128::from(end) << 64 | u128::from(begin)).to_le_bytes();
    let [low, high, protocol, _] = port.to_le_bytes();
    let mut key = OwnedKey { link: attached(slot).link, address, port: [low, high], protocol, pad: 0 };
    let number = |owned: &OwnedPort| u64::from(owned.lease) | u64::from(owned.flags) << 32;
    if kinds & EXACT != 0 {
        // SAFETY: the value is copied at once; a concurrent change may be seen early or late, not torn:
        // user space only inserts and deletes.
        if let Some(owned) = unsafe { OWNED.get(&key) } {
            return number(owned);
        }
    }
    // On a router, packets in transit pass this hook too, and are not for any port of this host.
    // SAFETY: the value is not looked at.
    if kinds & ANY == 0 || unsafe { LOCAL.get(&key.address) }.is_none() {
        return 0;
    }
    // Volatile: otherwise the compiler calls a function that sets the bytes in a loop.
    const _: () = assert!(offset_of!(OwnedKey, address) % 4 == 0 && align_of::<OwnedKey>() == 4);
    let words = (&raw mut key.address).cast::<u32>();
    // SAFETY: the address consists of four aligned words.
    (0..4).for_each(|word| unsafe { words.add(word).write_volatile(0) });
    // SAFETY: as above.
    unsafe { OWNED.get(&key) }.map_or(0, number)
}

/// Whether packets between the ends of `key` are the owner's: of all peers, or only of those that it has sent to.
/// `is_received`: the peer has sent one now.
#[inline(always)]
pub fn is_peer(owner: &Owner, key: &FlowKey, is_received: bool) -> bool {
    owner.port.flags & KNOWN == 0 || is_known(key, owner.port.flags & PEER_ADDRESS != 0, is_received)
}

/// One copy of the code for all callers, which call it for owned ports only.
#[inline(never)]
fn is_known(key: &FlowKey, by_address: bool, is_received: bool) -> bool {
    let mut key = *key;
    if by_address {
        key.remote_port = [0; 2];
    }
    let Some(peer) = PEERS.get_ptr_mut(&key) else { return false };
    if is_received {
        // SAFETY: map values stay allocated as long as the program runs; the latest writer wins. No memory is involved
        // in reading the clock.
        unsafe { (&raw mut (*peer).heard).write_volatile(bpf_ktime_get_ns()) };
    }
    true
}

/// Remembers the owner of a first fragment, of a protocol that is owned, between these ports.
#[inline(always)]
pub fn remember_fragment(key: &FragmentKey, lease: u32, protocol: u8, local_port: [u8; 2], remote_port: [u8; 2]) {
    // SAFETY: no memory is involved.
    let since = unsafe { bpf_ktime_get_ns() };
    let first = FirstFragment { since, lease, local_port, remote_port, protocol: protocol.into(), pad: 0 };
    let _ = FRAGMENTS.insert(key, first, 0);
}

/// Forgets an earlier first fragment with the same key: the sender uses its identification for another datagram now.
#[inline(always)]
pub fn forget_fragment(key: &FragmentKey) {
    let _ = FRAGMENTS.remove(key);
}

/// The first fragment of a later one, if it was owned and not too long ago.
#[inline(always)]
pub fn first_fragment(key: &FragmentKey) -> Option<FirstFragment> {
    // SAFETY: the value is copied at once. A change on another CPU may mix two first fragments of the same key; the
    // owner is looked up again.
    let first = *unsafe { FRAGMENTS.get(key) }?;
    // SAFETY: no memory is involved.
    let age = unsafe { bpf_ktime_get_ns() }.wrapping_sub(first.since);
    if age > FRAGMENT_NS { None } else { Some(first) }
}

/// An AF_XDP socket.
#[derive(Clone, Copy)]
pub struct Socket {
    index: u32,
    pool: u32,
}

/// The AF_XDP socket of `queue` of the interface in `slot`, if there is one.
#[inline(always)]
pub fn socket(slot: u32, queue: u32) -> Option<Socket> {
    if queue >= SOCKET_ENTRIES {
        return None;
    }
    let index = slot * SOCKET_ENTRIES + queue;
    SOCKETS.get(index).map(|_| Socket { index, pool: queue_pool(queue) })
}

/// Redirects a packet of the lease with `share` into `socket`; false where that share of its frames is used up.
#[inline(always)]
pub fn redirect(slot: u32, socket: Socket, share: u32) -> bool {
    admit(slot, share, socket.pool, 1) && SOCKETS.redirect(socket.index, 0).is_ok()
}

/// Admits a packet that takes `cost` units of `pool`, if it fits into the shares of its lease and user.
#[inline(always)]
pub fn admit(slot: u32, share: u32, pool: u32, cost: u32) -> bool {
    crafter_share(slot, share, pool, cost as i32) != 0
}

/// Undoes [`admit`] for a packet that was admitted, but found no room in the socket or the ring buffer.
#[inline(always)]
pub fn withdraw(slot: u32, share: u32, pool: u32, cost: u32) {
    crafter_share(slot, share, pool, -(cost as i32));
}

/// Counts a packet that its lease does not get.
#[inline(always)]
pub fn lose(slot: u32, share: u32) {
    crafter_share(slot, share, RING_POOL, 0);
}

/// [`admit`] with a positive `cost`, [`withdraw`] with a negative one, [`lose`] with none; 1 unless the packet does not
/// fit. With external linkage, it is verified once, and its stack is its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn crafter_share(slot: u32, share: u32, pool: u32, cost: i32) -> u32 {
    let Some(attached) = LINKS.get(slot) else { return 0 };
    let capacity = if pool == RING_POOL { attached.ring } else { attached.frames };
    let (Some(all), Some(lease)) = (SHARES.get_ptr_mut(attached.pools + pool), SHARES.get_ptr_mut(share + pool)) else {
        return 0;
    };
    // SAFETY: values of a map, which stay allocated as long as the program runs. The user half changes `released` at
    // any time; `taken` and `lost` are only added to, atomically.
    unsafe {
        if cost == 0 {
            add(&raw mut (*all).lost, 1);
            add(&raw mut (*lease).lost, 1);
            return 1;
        }
        let Some(user) = SHARES.get_ptr_mut((*lease).user as u32) else { return 0 };
        if cost > 0 && !fits(capacity, waiting(all), waiting(user), waiting(lease), cost as u32) {
            return 0;
        }
        let cost = i64::from(cost) as u64;
        add(&raw mut (*all).taken, cost);
        add(&raw mut (*user).taken, cost);
        add(&raw mut (*lease).taken, cost);
    }
    1
}

/// Units that wait in a share.
///
/// # Safety
/// `share` points to a value of the map of shares.
#[inline(always)]
unsafe fn waiting(share: *const Share) -> i64 {
    // SAFETY: by the caller; volatile, because other CPUs and the user half write.
    unsafe {
        (&raw const (*share).taken).read_volatile().wrapping_sub((&raw const (*share).released).read_volatile()) as i64
    }
}

/// Room for a `T` in the ring buffer of the interface in `slot`; `None` where it is full.
#[inline(always)]
pub fn reserve<T: 'static>(slot: u32) -> Option<RingBufEntry<T>> {
    // SAFETY: the kernel frees a ring buffer that was removed after all programs that run have returned.
    unsafe { CRAFTER_RINGS.get(&attached(slot).link) }?.reserve_untyped::<T>(0)
}

/// What one packet adds to its flow.
pub enum Event {
    /// Received for the owner; sequence, acknowledgement and flags are zero for UDP.
    Received { bytes: u64, seq: u32, ack: u32, flags: u8 },
    /// Crafted and sent.
    Sent { bytes: u64 },
    /// The kernel's answer was dropped.
    Suppressed,
}

/// Where every flow begins. In a map of its own, not on the stack: what a program and the functions that it calls have
/// on their stacks together, each rounded up, must stay below 512 bytes, and kernels before 6.8 round up the most.
static EMPTY: FlowValue = FlowValue {
    rx_packets: 0,
    rx_bytes: 0,
    tx_packets: 0,
    tx_bytes: 0,
    first_seen: 0,
    last_seen: 0,
    suppressed: 0,
    last_seq: 0,
    last_ack: 0,
    last_flags: 0,
    pad: 0,
};

/// A new flow; that of another CPU, if that one was quicker.
#[inline(always)]
fn begin(key: &FlowKey, now: u64) -> Option<*mut FlowValue> {
    let _ = FLOWS.insert(key, &EMPTY, u64::from(BPF_NOEXIST));
    let flow = FLOWS.get_ptr_mut(key)?;
    // SAFETY: as in `record`.
    unsafe { (*flow).first_seen = now };
    Some(flow)
}

/// Adds `event` to the flow of `key`, which begins with it if it is new.
#[inline(always)]
pub fn record(key: &FlowKey, event: Event) {
    // SAFETY: no memory is involved.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(flow) = FLOWS.get_ptr_mut(key).or_else(|| begin(key, now)) else {
        return;
    };
    // SAFETY: map values stay allocated as long as the program runs; counters that two CPUs may touch at
    // once are added to atomically, the rest is last-writer-wins by its meaning.
    unsafe {
        (*flow).last_seen = now;
        match event {
            Event::Received { bytes, seq, ack, flags } => {
                add(&raw mut (*flow).rx_packets, 1);
                add(&raw mut (*flow).rx_bytes, bytes);
                (*flow).last_seq = seq;
                (*flow).last_ack = ack;
                (*flow).last_flags = flags as u32;
            }
            Event::Sent { bytes } => {
                add(&raw mut (*flow).tx_packets, 1);
                add(&raw mut (*flow).tx_bytes, bytes);
            }
            Event::Suppressed => add(&raw mut (*flow).suppressed, 1),
        }
    }
}

/// # Safety
/// `counter` points to an aligned u64 of a map value.
#[inline(always)]
unsafe fn add(counter: *mut u64, amount: u64) {
    // core offers this target no atomic read-modify-write; the instruction (BPF_ATOMIC | BPF_ADD
    // without BPF_FETCH) exists on every kernel.
    // SAFETY: by the caller.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) amount) }
}

/// The key of the owner's flow between `local` and `remote`.
#[inline(always)]
pub fn flow_key(owner: &Owner, protocol: u8, local: (Address, [u8; 2]), remote: (Address, [u8; 2])) -> FlowKey {
    FlowKey {
        link: owner.link,
        lease: owner.port.lease,
        local: local.0,
        remote: remote.0,
        local_port: local.1,
        remote_port: remote.1,
        // As one number: the compiler would call a function to set the last bytes.
        protocol: u32::from(protocol).to_le_bytes(),
    }
}
