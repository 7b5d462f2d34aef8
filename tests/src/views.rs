//! Raw access to the maps of a loaded kernel half, by map id and independent of crafter's own handles; fast enough to
//! read all counters after each packet.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::{
    maps::{Array, HashMap, Map, MapData, MapInfo},
    util::nr_cpus,
};
use crafter::datapath::program::{Hook, Kernel};
use crafter_common::{map, reason::REASONS};

use crate::{differential::flow_key, oracle::FlowId};

/// `BPF_MAP_LOOKUP_BATCH` (linux/bpf.h): Linux 5.6, for per-CPU arrays 5.13.
const LOOKUP_BATCH: libc::c_int = 24;

/// Arguments of [`LOOKUP_BATCH`], laid out as in `union bpf_attr`.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// All maps, with raw bytes as keys and values.
pub struct Views {
    counters: MapData,
    cpus: usize,
    /// Owned ports: `OwnedKey` to `OwnedPort`.
    pub owned: HashMap<MapData, [u8; 24], [u8; 8]>,
    /// The interface: `Attached`.
    pub links: Array<MapData, [u8; 32]>,
    /// Words of the filter.
    pub filter: Array<MapData, [u8; 16]>,
    /// Local addresses.
    pub local: HashMap<MapData, [u8; 16], u8>,
    /// Flows: `FlowKey` to `FlowValue`.
    pub flows: HashMap<MapData, [u8; 48], [u8; 72]>,
    /// Peers of leases: `FlowKey` to `Peer`.
    pub peers: HashMap<MapData, [u8; 48], u64>,
    /// Owned first fragments: `FragmentKey` to `FirstFragment`.
    pub fragments: HashMap<MapData, [u8; 44], [u8; 24]>,
}

impl Views {
    /// Opens the maps of the XDP program, which uses all maps.
    pub fn open(kernel: &Kernel) -> Self {
        let info = kernel.xdp(Hook::Xdp, |program| Ok(program.info())).expect("crafter_xdp");
        let ids = info.and_then(|info| info.map_ids()).expect("what the program uses").expect("its maps");
        let find = |name: &str| {
            let named = |id: &&u32| {
                let info = MapInfo::from_id(**id).expect("a map's information");
                info.name_as_str() == Some(name)
            };
            let id = ids.iter().find(named).unwrap_or_else(|| panic!("no map {name}"));
            MapData::from_id(*id).expect("a map by its id")
        };
        Self {
            counters: find(map::COUNTERS),
            cpus: nr_cpus().expect("the number of processors"),
            owned: HashMap::try_from(Map::HashMap(find(map::OWNED))).expect("a hash"),
            links: Array::try_from(Map::Array(find(map::LINKS))).expect("an array"),
            filter: Array::try_from(Map::Array(find(map::FILTER))).expect("an array"),
            local: HashMap::try_from(Map::HashMap(find(map::LOCAL))).expect("a hash"),
            flows: HashMap::try_from(Map::LruHashMap(find(map::FLOWS))).expect("a hash"),
            peers: HashMap::try_from(Map::HashMap(find(map::PEERS))).expect("a hash"),
            fragments: HashMap::try_from(Map::LruHashMap(find(map::FRAGMENTS))).expect("a hash"),
        }
    }

    /// All counters, summed over CPUs, read by one system call.
    pub fn counters(&self) -> [u64; REASONS as usize] {
        let mut keys = [0_u32; REASONS as usize];
        let mut values = vec![0_u64; REASONS as usize * self.cpus];
        let mut next = 0_u32;
        let mut batch = Batch {
            in_batch: 0,
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: REASONS,
            map_fd: self.counters.fd().as_fd().as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel writes at most `count` keys of 4 bytes and, for each, 8 bytes per CPU into buffers of that
        // size that outlive the call.
        let result = unsafe { libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut batch, size_of::<Batch>()) };
        // ENOENT means that the batch reached the end of the map.
        let error = std::io::Error::last_os_error();
        assert!(result == 0 || error.raw_os_error() == Some(libc::ENOENT), "read the counters: {error}");
        assert_eq!(batch.count, REASONS);
        std::array::from_fn(|reason| values[reason * self.cpus..(reason + 1) * self.cpus].iter().sum())
    }

    /// Replaces the peers of all leases.
    pub fn set_peers(&mut self, peers: &[FlowId]) {
        let keys: Vec<_> = self.peers.keys().collect::<Result<_, _>>().expect("the peers");
        for key in keys {
            self.peers.remove(&key).expect("remove a peer");
        }
        for peer in peers {
            self.peers.insert(flow_key(peer), 0, 0).expect("add a peer");
        }
    }

    /// Removes all flows and fragments.
    pub fn clear(&mut self) {
        let flows: Vec<_> = self.flows.keys().collect::<Result<_, _>>().expect("the flows");
        for key in flows {
            self.flows.remove(&key).expect("remove a flow");
        }
        let fragments: Vec<_> = self.fragments.keys().collect::<Result<_, _>>().expect("the fragments");
        for key in fragments {
            self.fragments.remove(&key).expect("remove a fragment");
        }
    }
}
