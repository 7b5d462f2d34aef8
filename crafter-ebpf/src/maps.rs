//! The maps behind functions: what they hold is in `crafter_common`, how they are asked is here.

use aya_ebpf::{
    Global,
    bindings::BPF_NOEXIST,
    helpers::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, XskMap, ring_buf::RingBufEntry},
};
use core::arch::asm;
use crafter_common::{
    ANY, Address, DEFAULT_MARK,
    flow::{FlowKey, FlowValue, FragmentKey},
    map::{FLOW_ENTRIES, FRAGMENT_ENTRIES, LOCAL_ENTRIES, OWNED_ENTRIES, RING_BYTES, SOCKET_ENTRIES},
    port::{FILTER_WORDS, FilterWord, OwnedKey, OwnedPort, filter_position},
    reason::{REASONS, Reason},
};

#[map(name = "CRAFTER_OWNED")]
static OWNED: HashMap<OwnedKey, OwnedPort> = HashMap::with_max_entries(OWNED_ENTRIES, 0);
#[map(name = "CRAFTER_FILTER")]
static FILTER: Array<FilterWord> = Array::with_max_entries(FILTER_WORDS, 0);
#[map(name = "CRAFTER_LOCAL")]
static LOCAL: HashMap<Address, u8> = HashMap::with_max_entries(LOCAL_ENTRIES, 0);
#[map(name = "CRAFTER_FLOWS")]
static FLOWS: LruHashMap<FlowKey, FlowValue> = LruHashMap::with_max_entries(FLOW_ENTRIES, 0);
#[map(name = "CRAFTER_FRAGS")]
static FRAGMENTS: LruHashMap<FragmentKey, OwnedPort> = LruHashMap::with_max_entries(FRAGMENT_ENTRIES, 0);
#[map(name = "CRAFTER_COUNTS")]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(REASONS, 0);
#[map(name = "CRAFTER_XSKS")]
static SOCKETS: XskMap = XskMap::with_max_entries(SOCKET_ENTRIES, 0);
#[map(name = "CRAFTER_RING")]
static RING: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

#[unsafe(no_mangle)]
static LINK_HEADER: Global<u32> = Global::new(14);
#[unsafe(no_mangle)]
static SOCKET_FRAME: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CRAFTED_MARK: Global<u32> = Global::new(DEFAULT_MARK);

/// Length of the link-layer header on this device.
#[inline(always)]
pub fn link_header() -> usize {
    LINK_HEADER.load() as usize
}

/// Longest frame that an AF_XDP socket takes.
#[inline(always)]
pub fn socket_frame() -> u32 {
    SOCKET_FRAME.load()
}

/// The mark of crafted packets.
#[inline(always)]
pub fn crafted_mark() -> u32 {
    CRAFTED_MARK.load()
}

/// Adds one to a reason's counter.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: a per-CPU value of this CPU; a hook is not interrupted by another packet of its hook.
        unsafe { *counter += 1 }
    }
}

/// Who owns `port`, and on which terms; `local` is asked only if the filter says that it matters.
#[inline(always)]
pub fn owner(protocol: u8, port: [u8; 2], local: impl FnOnce() -> Option<Address>) -> Option<OwnedPort> {
    let (index, bit) = filter_position(protocol, u16::from_be_bytes(port));
    let word = FILTER.get(index)?;
    if (word.exact | word.any) & bit == 0 {
        return None;
    }
    let address = local()?;
    let mut key = OwnedKey { address, port, protocol, pad: 0 };
    if word.exact & bit != 0 {
        // SAFETY: the value is copied at once; a change under way may be seen early or late, not torn:
        // user space only inserts and deletes.
        if let Some(owned) = unsafe { OWNED.get(key) } {
            return Some(*owned);
        }
    }
    if word.any & bit != 0 {
        // On a router, packets in transit reach this hook too: they are not for any port of this host.
        // SAFETY: the value is not looked at.
        unsafe { LOCAL.get(address) }?;
        key.address = ANY;
        // SAFETY: as above.
        return unsafe { OWNED.get(key) }.copied();
    }
    None
}

/// Remembers whose the first fragment was.
#[inline(always)]
pub fn remember_fragment(key: &FragmentKey, owned: OwnedPort) {
    let _ = FRAGMENTS.insert(key, owned, 0);
}

/// Whose a later fragment is.
#[inline(always)]
pub fn fragment_owner(key: &FragmentKey) -> Option<OwnedPort> {
    // SAFETY: the value is copied at once.
    unsafe { FRAGMENTS.get(key) }.copied()
}

/// Redirects into the AF_XDP socket of `queue`; false where there is none.
#[inline(always)]
pub fn redirect(queue: u32) -> bool {
    SOCKETS.get(queue).is_some() && SOCKETS.redirect(queue, 0).is_ok()
}

/// Room for a `T` in the ring buffer; `None` where it is full.
#[inline(always)]
pub fn reserve<T: 'static>() -> Option<RingBufEntry<T>> {
    RING.reserve::<T>(0)
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
    // SAFETY: map values live as long as the program runs; counters that two CPUs may touch at
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

/// The key of the flow between `local` and `remote`.
#[inline(always)]
pub fn flow_key(protocol: u8, local: (Address, [u8; 2]), remote: (Address, [u8; 2])) -> FlowKey {
    FlowKey { local: local.0, remote: remote.0, local_port: local.1, remote_port: remote.1, protocol, pad: [0; 3] }
}
