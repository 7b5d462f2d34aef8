//! The slot of one interface in a load of the programs, and its entries in the maps.

use std::{
    collections::HashMap as StdHashMap,
    fs,
    net::Ipv4Addr,
    os::{fd::RawFd, unix::fs::MetadataExt as _},
    sync::{Arc, Mutex, Weak},
};

use aya::{
    maps::{Map, MapData, PerCpuValues, RingBuf},
    util::nr_cpus,
};
use crafter_common::{
    ANY, Address, UDP,
    attached::Attached,
    flow::{FlowKey, Peer},
    map,
    port::{FILTER_WORDS, FilterWord, OwnedKey, OwnedPort, filter_position, held_position},
    reason::REASONS,
};

use super::{Common, LOADED, Maps, Programs, RING_BUFFER, UNLIMITED, missing};
use crate::{
    datapath::{
        accepted::Accepted,
        failure::{bpf_error, os_error},
        lock,
        maps::{Counters, from_map, read_counters},
        program::LoadOptions,
    },
    error::{Error, Result},
    packet::Transport,
};

/// Inserts, and fails if the key exists (linux/bpf.h).
const BPF_NOEXIST: u64 = 1;

/// The address on which a port is owned, and the lease that owns it.
type PortOwner = (Address, u32);

/// The slot of one interface in a load. Dropping it removes all its entries from the maps.
pub(in crate::datapath) struct Slot {
    pub(in crate::datapath) programs: Arc<Programs>,
    number: u32,
    /// Number of the attachment, unique within this load.
    pub(in crate::datapath) link: u32,
    ring_bytes: u32,
    /// Addresses on which a port of a transport protocol is owned, [`ANY`] and particular ones, each with its lease.
    ports: Mutex<StdHashMap<(u8, u16), Vec<PortOwner>>>,
}

impl Slot {
    /// A slot for the interface `ifindex` of this network namespace: in an existing load of this process if one has
    /// the same options and a free slot, else in a new load.
    ///
    /// # Errors
    /// [`Error::Permission`], [`Error::Bpf`].
    pub(in crate::datapath) fn shared(
        options: &LoadOptions,
        link_header: u32,
        ifindex: u32,
        socket_frame: u32,
    ) -> Result<Self> {
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
    pub(in crate::datapath) fn alone(options: &LoadOptions, link_header: u32, socket_frame: u32) -> Result<Self> {
        Self::first(&Arc::new(Programs::load(options, link_header, 1, None)?), options, 0, socket_frame)
    }

    fn first(programs: &Arc<Programs>, options: &LoadOptions, ifindex: u32, socket_frame: u32) -> Result<Self> {
        Self::take(programs, options, ifindex, socket_frame)?.ok_or_else(|| missing("slot that is free"))
    }

    /// `None` if another interface has the slot that `ifindex` selects.
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

    /// Limits the received packets that wait for their owners: `frames` in each AF_XDP socket, `ring` units in the ring
    /// buffer. `pools` is the position of the interface's pools in the map of shares. Before the first call there is no
    /// limit, and packets need not be released.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub(in crate::datapath) fn limit(&self, pools: u32, frames: u32, ring: u32) -> Result<()> {
        let failed = |e| bpf_error("limit the packets that wait", &e);
        let links = &mut lock(&self.programs.maps).links;
        let attached = links.get(&self.number, 0).map_err(failed)?;
        links.set(self.number, Attached { pools, frames, ring, ..attached }, 0).map_err(failed)
    }

    /// Sets what the kernel takes on this interface.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub(in crate::datapath) fn set_accepted(&self, accepted: &Accepted) -> Result<()> {
        let failed = |e| bpf_error("set what the interface accepts", &e);
        let (checks, station) = accepted.for_map();
        let links = &mut lock(&self.programs.maps).links;
        let attached = links.get(&self.number, 0).map_err(failed)?;
        links.set(self.number, Attached { checks, station, ..attached }, 0).map_err(failed)
    }

    /// The counters of this interface.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub(in crate::datapath) fn counters(&self) -> Result<Counters> {
        read_counters(&lock(&self.programs.maps).counters, self.number..self.number + 1)
    }

    /// A new ring buffer, into which the programs copy packets of this interface from now on.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub(in crate::datapath) fn ring(&self) -> Result<RingBuf<MapData>> {
        let failed = |e| bpf_error("create the ring buffer", &e);
        let ring = aya_obj::Map::new_from_params(RING_BUFFER, 0, 0, self.ring_bytes, 0);
        let ring = MapData::create(ring, map::RING, None).map_err(failed)?;
        let ring = RingBuf::try_from(Map::RingBuf(ring)).map_err(failed)?;
        lock(&self.programs.maps).rings.insert(self.link, &ring, 0).map_err(failed)?;
        Ok(ring)
    }

    /// Makes the programs redirect packets of `queue` into an AF_XDP socket, until it is closed.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub(in crate::datapath) fn set_socket(&self, queue: u32, socket: RawFd) -> Result<()> {
        let index = self.number * map::SOCKET_ENTRIES + queue;
        let set = lock(&self.programs.maps).sockets.set(index, socket, 0);
        set.map_err(|e| bpf_error("list an AF_XDP socket", &e))
    }

    /// Excludes a UDP port from the kernel's lookup of sockets, or includes it again. Otherwise the socket that
    /// reserves the port on any address would receive its datagrams.
    fn set_held(&self, maps: &mut Maps, port: u16, is_held: bool) -> Result<()> {
        let failed = |e| bpf_error("write the set of reserved ports", &e);
        let (index, bit) = held_position(port);
        maps.held.change(index, |word| if is_held { word | bit } else { word & !bit }).map_err(failed)
    }

    /// Adds an owned port on `address`: first the entry, then the filter bit that makes the programs look it up.
    ///
    /// # Errors
    /// [`Error::PortTaken`] if it is owned already; [`Error::Invalid`] when the map is full.
    pub(in crate::datapath) fn own(
        &self,
        transport: Transport,
        address: Address,
        port: u16,
        value: OwnedPort,
    ) -> Result<()> {
        let protocol = transport.number();
        let is_held = protocol == UDP && address == ANY;
        if is_held {
            self.programs.attach_lookup();
        }
        let (mut maps, mut ports) = (lock(&self.programs.maps), lock(&self.ports));
        let listed = maps.owned.insert(self.key(protocol, address, port), value, BPF_NOEXIST);
        listed.map_err(|e| match os_error(&e).and_then(|error| error.raw_os_error()) {
            Some(libc::EEXIST) => {
                let holder = Some("another lease of this process".to_owned());
                let address = if address == ANY { Ipv4Addr::UNSPECIFIED.into() } else { from_map(address) };
                Error::PortTaken { protocol: transport.name(), address, port, holder }
            }
            // htab_map_alloc_elem() has none left.
            Some(libc::E2BIG) => {
                let count: usize = ports.values().map(Vec::len).sum();
                let reason = "are owned on this interface, and the map has no room for more; release some first";
                Error::invalid("port", format_args!("{count} {reason}"))
            }
            _ => bpf_error("own a port", &e),
        })?;
        let addresses = ports.entry((protocol, port)).or_default();
        addresses.push((address, value.lease));
        if is_held {
            self.set_held(&mut maps, port, true)?;
        }
        self.set_filter(&mut maps, protocol, port, addresses)
    }

    /// Gives a port of a lease back: the filter bit first. Does nothing where another lease owns it.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub(in crate::datapath) fn disown(&self, lease: u32, protocol: u8, address: Address, port: u16) -> Result<()> {
        let (mut maps, mut ports) = (lock(&self.programs.maps), lock(&self.ports));
        let Some(addresses) = ports.get_mut(&(protocol, port)) else { return Ok(()) };
        let Some(at) = addresses.iter().position(|other| *other == (address, lease)) else { return Ok(()) };
        addresses.swap_remove(at);
        if protocol == UDP && address == ANY {
            // The next socket on the port must receive its datagrams.
            self.set_held(&mut maps, port, false)?;
        }
        self.set_filter(&mut maps, protocol, port, addresses)?;
        if addresses.is_empty() {
            ports.remove(&(protocol, port));
        }
        maps.owned.remove(&self.key(protocol, address, port)).map_err(|e| bpf_error("give a port back", &e))
    }

    /// Adds a peer of a lease.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the map is full.
    pub(in crate::datapath) fn add_peer(&self, key: &FlowKey) -> Result<()> {
        lock(&self.programs.peers).insert(key, Peer::default(), 0).map_err(|e| {
            match os_error(&e).and_then(|error| error.raw_os_error()) {
                Some(libc::E2BIG) => {
                    let reason = "the map of all leases' peers has no room for more; wait until others are silent";
                    Error::invalid("peer", reason)
                }
                _ => bpf_error("add a peer of a lease", &e),
            }
        })
    }

    /// Removes a peer of a lease.
    pub(in crate::datapath) fn remove_peer(&self, key: &FlowKey) {
        // Fails only if there is no such entry.
        let _ = lock(&self.programs.peers).remove(key);
    }

    /// When the latest packet of a peer was received; 0: none was.
    pub(in crate::datapath) fn heard(&self, key: &FlowKey) -> u64 {
        lock(&self.programs.peers).get(key, 0).map_or(0, |peer| peer.heard)
    }

    fn key(&self, protocol: u8, address: Address, port: u16) -> OwnedKey {
        OwnedKey { link: self.link, address, port: port.to_be_bytes(), protocol, pad: 0 }
    }

    fn set_filter(&self, maps: &mut Maps, protocol: u8, port: u16, addresses: &[PortOwner]) -> Result<()> {
        let (index, bit) = filter_position(protocol, port);
        let index = self.number * FILTER_WORDS + index;
        let with = |word: u64, is_set: bool| if is_set { word | bit } else { word & !bit };
        let change = |word: FilterWord| FilterWord {
            exact: with(word.exact, addresses.iter().any(|(address, _)| *address != ANY)),
            any: with(word.any, addresses.iter().any(|(address, _)| *address == ANY)),
        };
        maps.filter.change(index, change).map_err(|e| bpf_error("write the port filter", &e))
    }

    /// Sets the local addresses in the map, which all interfaces of the namespace share. Addresses that are not in
    /// `wanted` are removed.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub(in crate::datapath) fn set_local(&self, wanted: &[Address]) -> Result<()> {
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
            // This was the last slot in use: the load takes no further interface, and its maps are dropped without
            // being emptied.
            slots.taken = u64::MAX;
            return;
        }
        drop(slots);
        let maps = &mut *lock(&self.programs.maps);
        for ((protocol, port), addresses) in lock(&self.ports).drain() {
            // The kernel refuses none of these requests. An entry that remained would never be looked up again, since
            // its attachment number is not reused.
            let _ = self.set_filter(maps, protocol, port, &[]);
            if protocol == UDP && addresses.iter().any(|(address, _)| *address == ANY) {
                let _ = self.set_held(maps, port, false);
            }
            for (address, _) in addresses {
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
