//! One load of the eBPF object, which several interfaces share: verifying the programs takes tens of milliseconds, and
//! the maps take megabytes.

mod loader;
mod slot;
mod word_map;

use std::{
    fs,
    sync::{Arc, Mutex, Once, Weak},
};

use aya::{
    Ebpf, VerifierLogLevel,
    maps::{Array, HashMap, HashOfMaps, Map, MapData, PerCpuArray, RingBuf, XskMap},
    programs::{Program, SchedClassifier, SkLookup, Xdp},
};
use crafter_common::{
    Address,
    attached::Attached,
    flow::{FlowKey, FlowValue, Peer},
    map,
    port::{FILTER_WORDS, FilterWord, OwnedKey, OwnedPort},
    reason::REASONS,
};

pub(super) use self::slot::Slot;
use self::word_map::WordMap;
use super::{
    failure::bpf_error,
    lock,
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

/// What must be equal for interfaces to share a load.
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
    /// Apart from the others: written for each new peer.
    peers: Mutex<HashMap<MapData, FlowKey, Peer>>,
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
    filter: WordMap<FilterWord>,
    links: Array<MapData, Attached>,
    held: WordMap<u64>,
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
        let mut loader = loader::loader();
        loader
            .verifier_log_level(VerifierLogLevel::STATS)
            .override_global(map::LINK_HEADER, &link_header, true)
            .override_global(map::SLOT_MASK, &slot_mask, true)
            .override_global(map::MARK, &options.mark, true)
            // aya-log's level: 0 compiles to nothing, 5 is everything.
            .override_global("AYA_LOG_LEVEL", if options.debug { &5_u8 } else { &0_u8 }, true)
            .map_max_entries(map::OWNED, options.owned_entries)
            .map_max_entries(map::FLOWS, options.flow_entries)
            .map_max_entries(map::PEERS, options.peer_entries)
            .map_max_entries(map::LINKS, slots)
            .map_max_entries(map::FILTER, slots * FILTER_WORDS)
            .map_max_entries(map::COUNTERS, slots * REASONS)
            .map_max_entries(map::SOCKETS, slots * map::SOCKET_ENTRIES);
        let mut ebpf = loader.load(OBJECT).map_err(|e| bpf_error("load the eBPF maps", &e))?;
        let log = if options.debug { log_task(&mut ebpf)? } else { None };
        let maps = Maps {
            owned: open(&mut ebpf, map::OWNED)?,
            filter: WordMap::new(open(&mut ebpf, map::FILTER)?),
            links: open(&mut ebpf, map::LINKS)?,
            held: WordMap::new(open(&mut ebpf, map::HELD)?),
            rings: open(&mut ebpf, map::RINGS)?,
            sockets: open(&mut ebpf, map::SOCKETS)?,
            counters: open(&mut ebpf, map::COUNTERS)?,
            local: open(&mut ebpf, map::LOCAL)?,
            listed: Vec::new(),
        };
        Ok(Self {
            common,
            flows: open(&mut ebpf, map::FLOWS)?,
            peers: Mutex::new(open(&mut ebpf, map::PEERS)?),
            shares: Arc::new(open_shares(&mut ebpf)?),
            maps: Mutex::new(maps),
            ebpf: Mutex::new(ebpf),
            slots: Mutex::new(Slots { count: slots, taken: 0, links: 0 }),
            lookup: Once::new(),
            log,
        })
    }

    /// Calls `work` with the programs, which may not be loaded into the kernel yet.
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

    /// Calls `work` with the program that does nothing, loaded into the kernel.
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
