//! The maps of crafters that run elsewhere: read, never written.

use std::collections::HashSet;

use aya::{
    maps::{Array, HashMap, Map, MapData, MapError, MapInfo, MapType, PerCpuArray},
    programs::loaded_programs,
};
use crafter_common::{
    attached::Attached,
    flow::{FlowKey, FlowValue},
    map,
    reason::REASONS,
};
use serde::Serialize;

pub use super::holder::Process;
use super::{
    failure::{bpf_error, os_error},
    holder::holders_of_programs,
    maps::{Counters, Flow, read_counters, read_flows},
    program::Hook,
};
use crate::error::{Error, Result};

/// The maps of a running crafter, which all its interfaces share; found through its program on the egress hook.
pub struct RunningMaps {
    /// Kernel id of the flow map.
    pub map_id: u32,
    /// Processes that hold its attachments, if they could be found out.
    pub holders: Vec<Process>,
    maps: Maps,
}

struct Maps {
    flows: HashMap<MapData, FlowKey, FlowValue>,
    counters: PerCpuArray<MapData, u64>,
    links: Array<MapData, Attached>,
}

/// A running crafter whose maps have the layout of another version, so that this version cannot read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OtherVersion {
    /// Kernel id of its program on the egress hook.
    pub program_id: u32,
    /// Processes that hold its attachments, if they could be found out.
    pub holders: Vec<Process>,
}

impl RunningMaps {
    /// The maps of every crafter that runs on this kernel, in any network namespace; and those crafters whose maps have
    /// the layout of another version.
    ///
    /// # Errors
    /// [`Error::Permission`] without CAP_SYS_ADMIN, which is needed to open programs and maps by id.
    pub fn find() -> Result<(Vec<Self>, Vec<OtherVersion>)> {
        const ACTION: &str = "read the maps of another process";
        // Before anything is opened here, which would make this process a holder too.
        let holders = holders_of_programs();
        let (mut found, mut others) = (Vec::new(), Vec::new());
        for program in loaded_programs() {
            // Every crafter has exactly one of these, whatever its ingress hook is, and it uses all these maps.
            let maps = program.and_then(|program| match program.name_as_str() {
                Some(name) if name == Hook::Egress.program() => Ok(program.map_ids()?.map(|maps| (program.id(), maps))),
                _ => Ok(None),
            });
            let (program_id, maps) = match maps {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                // Unloaded after it was listed.
                Err(e) if is_unloaded(&e) => continue,
                Err(e) => return Err(foreign_error(ACTION, &e)),
            };
            let holders = holders.get(&program_id).cloned().unwrap_or_default();
            match Self::open(&maps) {
                Ok(Some((map_id, maps))) => found.push(Self { map_id, holders, maps }),
                Ok(None) => others.push(OtherVersion { program_id, holders }),
                Err(e) if is_other_layout(&e) => others.push(OtherVersion { program_id, holders }),
                Err(e) if is_unloaded(&e) => {}
                Err(e) => return Err(foreign_error(ACTION, &e)),
            }
        }
        Ok((found, others))
    }

    /// Opens the maps needed here from `ids`, the map ids of one program, and returns them and the id of the flow map.
    /// `None` if a map is missing, or if the number of counters differs.
    fn open(ids: &[u32]) -> std::result::Result<Option<(u32, Maps)>, MapError> {
        let [mut flows, mut counters, mut links] = [None; 3];
        for &id in ids {
            let info = MapInfo::from_id(id)?;
            match (info.name_as_str(), info.map_type()) {
                (Some(map::FLOWS), Ok(MapType::LruHash)) => flows = Some(id),
                (Some(map::COUNTERS), Ok(MapType::PerCpuArray)) => counters = Some(id),
                (Some(map::LINKS), Ok(MapType::Array)) => links = Some(id),
                _ => {}
            }
        }
        let (Some(id), Some(counters), Some(links)) = (flows, counters, links) else { return Ok(None) };
        let maps = Maps {
            flows: HashMap::try_from(Map::LruHashMap(MapData::from_id(id)?))?,
            counters: PerCpuArray::try_from(Map::PerCpuArray(MapData::from_id(counters)?))?,
            links: Array::try_from(Map::Array(MapData::from_id(links)?))?,
        };
        let is_known = maps.counters.len() == maps.links.len() * REASONS;
        Ok(is_known.then_some((id, maps)))
    }

    /// The flows of its interfaces, in no order.
    pub fn flows(&self) -> Vec<Flow> {
        let attached: HashSet<u32> = self.maps.links.iter().flatten().map(|attached| attached.link).collect();
        read_flows(&self.maps.flows, |link| attached.contains(&link))
    }

    /// Its counters, summed over its interfaces.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub fn counters(&self) -> Result<Counters> {
        read_counters(&self.maps.counters, 0..self.maps.links.len())
    }
}

/// Whether the sizes of a map's keys or values are not those of this version.
fn is_other_layout(error: &MapError) -> bool {
    matches!(error, MapError::InvalidKeySize { .. } | MapError::InvalidValueSize { .. })
}

fn is_unloaded(error: &(dyn std::error::Error + 'static)) -> bool {
    os_error(error).is_some_and(|e| e.raw_os_error() == Some(libc::ENOENT))
}

fn foreign_error(action: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    match os_error(error) {
        Some(error) => Error::io(action, "CAP_SYS_ADMIN", error),
        None => bpf_error(action, error),
    }
}
