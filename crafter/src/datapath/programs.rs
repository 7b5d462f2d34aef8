//! One load of the eBPF object, which several interfaces share: verifying the programs takes tens of milliseconds, and
//! the maps take megabytes.

use std::{
    collections::HashMap as StdHashMap,
    fs,
    os::{fd::RawFd, unix::fs::MetadataExt as _},
    sync::{Arc, Mutex, Once, Weak},
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, HashMap, HashOfMaps, Map, MapData, PerCpuArray, PerCpuValues, RingBuf, XskMap},
    programs::{Program, SchedClassifier, SkLookup, Xdp},
    util::nr_cpus,
};
use crafter_common::{
    ANY, Address, UDP,
    attached::Attached,
    flow::{FlowKey, FlowValue},
    map,
    port::{FILTER_WORDS, FilterWord, OwnedKey, OwnedPort, filter_position, held_position},
    reason::REASONS,
};

use super::{
    failure::{bpf_error, os_error},
    lock,
    maps::{Counters, read_counters},
    program::{Hook, LoadOptions, OBJECT},
    shares::ShareMap,
};
use crate::error::{Error, Result};

/// `BPF_MAP_TYPE_RINGBUF` (linux/bpf.h).
const RING_BUFFER: u32 = 27;

/// A limit that no number of packets reaches.
const UNLIMITED: u32 = u32::MAX;

/// Loads of this process that may have a free slot.
static LOADED: Mutex<Vec<Weak<Programs>>> = Mutex::new(Vec::new());

/// What interfaces that share a load have in common.
#[derive(PartialEq)]
struct Common {
    /// The inode of the network namespace, in which an interface's index is unique.
    namespace: u64,
    link_header: u32,
    options: LoadOptions,
}

/// The programs and maps. Only file descriptors hold them, so the kernel removes them when this is dropped or the
/// process exits.
pub(super) struct Programs {
    /// `None` if the load must not be shared.
    common: Option<Common>,
    ebpf: Mutex<Ebpf>,
    maps: Mutex<Maps>,
    pub(super) flows: HashMap<MapData, FlowKey, FlowValue>,
    pub(super) shares: Arc<ShareMap>,
    slots: Mutex<Slots>,
    /// The program for lookups of sockets is attached to the network namespace, or was refused.
    lookup: Once,
    /// Prints what the programs log.
    log: Option<tokio::task::JoinHandle<()>>,
}

/// The maps that are written here, except for those that belong to one interface.
struct Maps {
    owned: HashMap<MapData, OwnedKey, OwnedPort>,
    filter: Array<MapData, FilterWord>,
    links: Array<MapData, Attached>,
    held: Array<MapData, u64>,
    rings: HashOfMaps<MapData, u32, RingBuf<MapData>>,
    sockets: XskMap<MapData>,
    counters: PerCpuArray<MapData, u64>,
    local: HashMap<MapData, Address, u8>,
    /// The keys of `local`.
    listed: Vec<Address>,
}

struct Slots {
    /// How many there are; a power of two.
    count: u32,
    /// A bit for each that is taken.
    taken: u64,
    /// Attachments so far.
    links: u32,
}

/// The programs that can be attached.
pub(super) struct Hooks<'a> {
    pub(super) xdp: &'a mut Xdp,
    pub(super) ingress: &'a mut SchedClassifier,
    pub(super) egress: &'a mut SchedClassifier,
}

impl Programs {
    /// Creates the maps; the programs are loaded when they are first used. `slots`: interfaces that can share them.
    fn load(options: &LoadOptions, link_header: u32, slots: u32, common: Option<Common>) -> Result<Self> {
        let slot_mask = slots - 1;
        let mut loader = EbpfLoader::new();
        loader
            .verifier_log_level(VerifierLogLevel::STATS)
            .override_global(map::LINK_HEADER, &link_header, true)
            .override_global(map::SLOT_MASK, &slot_mask, true)
            .override_global(map::MARK, &options.mark, true)
            // aya-log's level: 0 compiles to nothing, 5 is everything.
            .override_global("AYA_LOG_LEVEL", if options.debug { &5_u8 } else { &0_u8 }, true)
            .map_max_entries(map::OWNED, options.owned_entries)
            .map_max_entries(map::FLOWS, options.flow_entries)
            .map_max_entries(map::LINKS, slots)
            .map_max_entries(map::FILTER, slots * FILTER_WORDS)
            .map_max_entries(map::COUNTERS, slots * REASONS)
            .map_max_entries(map::SOCKETS, slots * map::SOCKET_ENTRIES);
        let mut ebpf = loader.load(OBJECT).map_err(|e| bpf_error("load the eBPF maps", &e))?;
        let log = if options.debug { log_task(&mut ebpf)? } else { None };
        let maps = Maps {
            owned: open(&mut ebpf, map::OWNED)?,
            filter: open(&mut ebpf, map::FILTER)?,
            links: open(&mut ebpf, map::LINKS)?,
            held: open(&mut ebpf, map::HELD)?,
            rings: open(&mut ebpf, map::RINGS)?,
            sockets: open(&mut ebpf, map::SOCKETS)?,
            counters: open(&mut ebpf, map::COUNTERS)?,
            local: open(&mut ebpf, map::LOCAL)?,
            listed: Vec::new(),
        };
        Ok(Self {
            common,
            flows: open(&mut ebpf, map::FLOWS)?,
            shares: Arc::new(open_shares(&mut ebpf)?),
            maps: Mutex::new(maps),
            ebpf: Mutex::new(ebpf),
            slots: Mutex::new(Slots { count: slots, taken: 0, links: 0 }),
            lookup: Once::new(),
            log,
        })
    }

    /// Has `work` use the programs, which may not be loaded yet.
    ///
    /// # Errors
    /// Those of `work`.
    pub(super) fn with_hooks<T>(&self, work: impl FnOnce(Hooks<'_>) -> Result<T>) -> Result<T> {
        let mut ebpf = lock(&self.ebpf);
        let (mut xdp, mut ingress, mut egress) = (None, None, None);
        for (name, program) in ebpf.programs_mut() {
            match program {
                Program::Xdp(program) if name == Hook::Xdp.program() => xdp = Some(program),
                Program::SchedClassifier(program) => {
                    let hook = if name == Hook::Ingress.program() { &mut ingress } else { &mut egress };
                    *hook = Some(program);
                }
                _ => {}
            }
        }
        work(Hooks {
            xdp: xdp.ok_or_else(|| missing(Hook::Xdp.program()))?,
            ingress: ingress.ok_or_else(|| missing(Hook::Ingress.program()))?,
            egress: egress.ok_or_else(|| missing(Hook::Egress.program()))?,
        })
    }

    /// Has `work` use the program that does nothing, loaded.
    ///
    /// # Errors
    /// [`Error::Bpf`]; those of `work`.
    pub(super) fn with_empty<T>(&self, work: impl FnOnce(&mut Xdp) -> Result<T>) -> Result<T> {
        let mut ebpf = lock(&self.ebpf);
        match ebpf.program_mut(Hook::Empty.program()) {
            Some(Program::Xdp(program)) => {
                load_xdp(program, Hook::Empty)?;
                work(program)
            }
            _ => Err(missing(Hook::Empty.program())),
        }
    }
}

impl Programs {
    /// Attaches the program for lookups of sockets to the network namespace of this thread, for as long as the load
    /// exists. Without it the kernel sends no port-unreachable for a UDP port that is leased on any address.
    fn attach_lookup(&self) {
        self.lookup.call_once(|| {
            if let Err(error) = attach_lookup(&mut lock(&self.ebpf)) {
                log::warn!("the kernel sends no port-unreachable for leased UDP ports: {error}");
            }
        });
    }
}

fn attach_lookup(ebpf: &mut Ebpf) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::Bpf {
        action: "attach the program for lookups of sockets".to_owned(),
        reason: e.to_string(),
    };
    let program: &mut SkLookup = ebpf
        .program_mut("crafter_lookup")
        .ok_or_else(|| missing("crafter_lookup"))?
        .try_into()
        .map_err(|e: aya::programs::ProgramError| failed(&e))?;
    let namespace = fs::File::open("/proc/thread-self/ns/net").map_err(|e| failed(&e))?;
    program.load().map_err(|e| failed(&e))?;
    program.attach(namespace).map_err(|e| failed(&e))?;
    Ok(())
}

impl Drop for Programs {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            log.abort();
        }
    }
}

/// Loads `program` into the kernel, which verifies it, unless that was done before.
///
/// # Errors
/// [`Error::Permission`], [`Error::Bpf`] with the verifier's words.
pub(super) fn load_xdp(program: &mut Xdp, hook: Hook) -> Result<()> {
    match program.fd() {
        Ok(_) => Ok(()),
        Err(_) => program.load().map_err(|e| bpf_error(&format!("load {}", hook.program()), &e)),
    }
}

/// As [`load_xdp`], for a classifier.
///
/// # Errors
/// [`Error::Permission`], [`Error::Bpf`] with the verifier's words.
pub(super) fn load_classifier(program: &mut SchedClassifier, hook: Hook) -> Result<()> {
    match program.fd() {
        Ok(_) => Ok(()),
        Err(_) => program.load().map_err(|e| bpf_error(&format!("load {}", hook.program()), &e)),
    }
}

/// The place of one interface in a load, and all its entries in the maps: they are removed when this is dropped.
pub(super) struct Slot {
    pub(super) programs: Arc<Programs>,
    number: u32,
    /// Number of the attachment, unique within this load.
    pub(super) link: u32,
    ring_bytes: u32,
    /// Addresses on which a port of a transport protocol is owned: [`ANY`] and particular ones.
    ports: Mutex<StdHashMap<(u8, u16), Vec<Address>>>,
}

impl Slot {
    /// A slot for the interface `ifindex` of this network namespace: in an existing load of this process if one has
    /// the same options and a free slot, else in a new load.
    ///
    /// # Errors
    /// [`Error::Permission`], [`Error::Bpf`].
    pub(super) fn shared(options: &LoadOptions, link_header: u32, ifindex: u32, socket_frame: u32) -> Result<Self> {
        let Ok(namespace) = fs::metadata("/proc/thread-self/ns/net").map(|file| file.ino()) else {
            return Self::alone(options, link_header, socket_frame);
        };
        // Each interface has its own ring buffer and frames.
        let shared = LoadOptions { ring_bytes: 0, frame_bytes: 0, ..options.clone() };
        let common = Common { namespace, link_header, options: shared };
        let mut loaded = lock(&LOADED);
        loaded.retain(|programs| programs.strong_count() > 0);
        let fitting = loaded.iter().filter_map(Weak::upgrade).filter(|other| other.common.as_ref() == Some(&common));
        for programs in fitting {
            if let Some(slot) = Self::take(&programs, options, ifindex, socket_frame)? {
                return Ok(slot);
            }
        }
        let programs = Arc::new(Programs::load(options, link_header, options.interfaces, Some(common))?);
        loaded.push(Arc::downgrade(&programs));
        Self::first(&programs, options, ifindex, socket_frame)
    }

    /// The only slot of a new load, whose programs treat every frame as one of this interface, whatever its ifindex.
    ///
    /// # Errors
    /// [`Error::Permission`], [`Error::Bpf`].
    pub(super) fn alone(options: &LoadOptions, link_header: u32, socket_frame: u32) -> Result<Self> {
        Self::first(&Arc::new(Programs::load(options, link_header, 1, None)?), options, 0, socket_frame)
    }

    fn first(programs: &Arc<Programs>, options: &LoadOptions, ifindex: u32, socket_frame: u32) -> Result<Self> {
        Self::take(programs, options, ifindex, socket_frame)?.ok_or_else(|| missing("slot that is free"))
    }

    /// `None` if another interface already has the slot.
    fn take(programs: &Arc<Programs>, options: &LoadOptions, ifindex: u32, socket_frame: u32) -> Result<Option<Self>> {
        let mut slots = lock(&programs.slots);
        let number = ifindex & (slots.count - 1);
        if slots.taken & (1 << number) != 0 {
            return Ok(None);
        }
        slots.taken |= 1 << number;
        slots.links += 1;
        let link = slots.links;
        drop(slots);
        let ports = Mutex::default();
        let slot = Self { programs: programs.clone(), number, link, ring_bytes: options.ring_bytes, ports };
        let failed = |e| bpf_error("list the interface for the eBPF programs", &e);
        let attached = Attached { link, socket_frame, frames: UNLIMITED, ring: UNLIMITED, ..Attached::default() };
        lock(&programs.maps).links.set(number, attached, 0).map_err(failed)?;
        Ok(Some(slot))
    }

    /// Limits what waits in the pools of this interface, at `pools` in the map of shares: `frames` in each AF_XDP
    /// socket, `ring` units in the ring buffer. Unlimited before, when nothing needs to be released.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub(super) fn limit(&self, pools: u32, frames: u32, ring: u32) -> Result<()> {
        let failed = |e| bpf_error("limit the packets that wait", &e);
        let links = &mut lock(&self.programs.maps).links;
        let attached = links.get(&self.number, 0).map_err(failed)?;
        links.set(self.number, Attached { pools, frames, ring, ..attached }, 0).map_err(failed)
    }

    /// The counters of this interface.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub(super) fn counters(&self) -> Result<Counters> {
        read_counters(&lock(&self.programs.maps).counters, self.number..self.number + 1)
    }

    /// A new ring buffer, into which the programs copy packets of this interface from now on.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub(super) fn ring(&self) -> Result<RingBuf<MapData>> {
        let failed = |e| bpf_error("create the ring buffer", &e);
        let ring = aya_obj::Map::new_from_params(RING_BUFFER, 0, 0, self.ring_bytes, 0);
        let ring = MapData::create(ring, map::RING, None).map_err(failed)?;
        let ring = RingBuf::try_from(Map::RingBuf(ring)).map_err(failed)?;
        lock(&self.programs.maps).rings.insert(self.link, &ring, 0).map_err(failed)?;
        Ok(ring)
    }

    /// Has the programs redirect packets of `queue` into an AF_XDP socket, until it is closed.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub(super) fn set_socket(&self, queue: u32, socket: RawFd) -> Result<()> {
        let index = self.number * map::SOCKET_ENTRIES + queue;
        let set = lock(&self.programs.maps).sockets.set(index, socket, 0);
        set.map_err(|e| bpf_error("list an AF_XDP socket", &e))
    }

    /// Takes a UDP port out of, or puts it back into, what the kernel looks up sockets for. Without it the socket that
    /// reserves the port on any address would receive its datagrams.
    fn set_held(&self, maps: &mut Maps, port: u16, is_held: bool) -> Result<()> {
        let failed = |e| bpf_error("write the set of reserved ports", &e);
        let (index, bit) = held_position(port);
        let word = maps.held.get(&index, 0).map_err(failed)?;
        maps.held.set(index, if is_held { word | bit } else { word & !bit }, 0).map_err(failed)
    }

    /// Owns a port on `address`: the entry first, then the filter bit that makes the programs look at it.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the map is full.
    pub(super) fn own(&self, protocol: u8, address: Address, port: u16, value: OwnedPort) -> Result<()> {
        let is_held = protocol == UDP && address == ANY;
        if is_held {
            self.programs.attach_lookup();
        }
        let (mut maps, mut ports) = (lock(&self.programs.maps), lock(&self.ports));
        maps.owned.insert(self.key(protocol, address, port), value, 0).map_err(|e| match os_error(&e) {
            // htab_map_alloc_elem() has none left.
            Some(error) if error.raw_os_error() == Some(libc::E2BIG) => {
                let count: usize = ports.values().map(Vec::len).sum();
                let reason = "are owned on this interface, and the map has no room for more; release some first";
                Error::invalid("port", format_args!("{count} {reason}"))
            }
            _ => bpf_error("own a port", &e),
        })?;
        let addresses = ports.entry((protocol, port)).or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
        if is_held {
            self.set_held(&mut maps, port, true)?;
        }
        self.set_filter(&mut maps, protocol, port, addresses)
    }

    /// Gives a port back: the filter bit first.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub(super) fn disown(&self, protocol: u8, address: Address, port: u16) -> Result<()> {
        let (mut maps, mut ports) = (lock(&self.programs.maps), lock(&self.ports));
        let Some(addresses) = ports.get_mut(&(protocol, port)) else { return Ok(()) };
        let Some(at) = addresses.iter().position(|other| *other == address) else { return Ok(()) };
        addresses.swap_remove(at);
        if protocol == UDP && address == ANY {
            // The next owner of the port must find its datagrams.
            self.set_held(&mut maps, port, false)?;
        }
        self.set_filter(&mut maps, protocol, port, addresses)?;
        if addresses.is_empty() {
            ports.remove(&(protocol, port));
        }
        maps.owned.remove(&self.key(protocol, address, port)).map_err(|e| bpf_error("give a port back", &e))
    }

    fn key(&self, protocol: u8, address: Address, port: u16) -> OwnedKey {
        OwnedKey { link: self.link, address, port: port.to_be_bytes(), protocol, pad: 0 }
    }

    fn set_filter(&self, maps: &mut Maps, protocol: u8, port: u16, addresses: &[Address]) -> Result<()> {
        let (index, bit) = filter_position(protocol, port);
        let index = self.number * FILTER_WORDS + index;
        let mut word = maps.filter.get(&index, 0).map_err(|e| bpf_error("read the port filter", &e))?;
        let with = |word: u64, is_set: bool| if is_set { word | bit } else { word & !bit };
        word.exact = with(word.exact, addresses.iter().any(|address| *address != ANY));
        word.any = with(word.any, addresses.contains(&ANY));
        maps.filter.set(index, word, 0).map_err(|e| bpf_error("write the port filter", &e))
    }

    /// Sets the local addresses in the map, which all interfaces of the namespace share. Addresses that are not in
    /// `wanted` are removed.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub(super) fn set_local(&self, wanted: &[Address]) -> Result<()> {
        let maps = &mut *lock(&self.programs.maps);
        for address in wanted {
            maps.local.insert(address, 1, 0).map_err(|e| bpf_error("list the local addresses", &e))?;
        }
        for stale in maps.listed.iter().filter(|address| !wanted.contains(address)) {
            let _ = maps.local.remove(stale);
        }
        wanted.clone_into(&mut maps.listed);
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut slots = lock(&self.programs.slots);
        if slots.taken == 1 << self.number {
            // The last slot: no interface can take a slot of this load any more, and its maps are dropped as they are.
            slots.taken = u64::MAX;
            return;
        }
        drop(slots);
        let maps = &mut *lock(&self.programs.maps);
        for ((protocol, port), addresses) in lock(&self.ports).drain() {
            // The kernel refuses none of these requests. An entry that stayed would never be looked up again.
            let _ = self.set_filter(maps, protocol, port, &[]);
            if protocol == UDP && addresses.contains(&ANY) {
                let _ = self.set_held(maps, port, false);
            }
            for address in addresses {
                let _ = maps.owned.remove(&self.key(protocol, address, port));
            }
        }
        let _ = maps.rings.remove(&self.link);
        let _ = maps.links.set(self.number, Attached::default(), 0);
        let cpus = nr_cpus().unwrap_or(0);
        for reason in 0..REASONS {
            let zeros = PerCpuValues::try_from(vec![0_u64; cpus]);
            let _ = zeros.map(|zeros| maps.counters.set(self.number * REASONS + reason, zeros, 0));
        }
        lock(&self.programs.slots).taken &= !(1 << self.number);
    }
}

/// Takes the map `name` out of the object. Programs refer to it by its descriptor until they are loaded.
fn open<T>(ebpf: &mut Ebpf, name: &str) -> Result<T>
where
    T: TryFrom<Map>,
    T::Error: std::error::Error + 'static,
{
    let map = ebpf.take_map(name).ok_or_else(|| missing(name))?;
    T::try_from(map).map_err(|e| bpf_error(&format!("open the map {name}"), &e))
}

/// Takes the map of shares out of the object, and maps it into memory.
fn open_shares(ebpf: &mut Ebpf) -> Result<ShareMap> {
    match ebpf.take_map(map::SHARES) {
        Some(Map::Array(map)) => ShareMap::open(map),
        _ => Err(missing(map::SHARES)),
    }
}

fn missing(name: &str) -> Error {
    Error::Bpf { action: "open the eBPF object".into(), reason: format!("it holds no {name}") }
}

/// Prints what the programs log, until they are dropped.
fn log_task(ebpf: &mut Ebpf) -> Result<Option<tokio::task::JoinHandle<()>>> {
    let logger = aya_log::EbpfLogger::init(ebpf).map_err(|e| bpf_error("open the log of the eBPF programs", &e))?;
    let mut logger = super::watch(logger, "the log of the eBPF programs")?;
    Ok(Some(tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    })))
}
