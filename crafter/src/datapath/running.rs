//! The maps of crafters that run elsewhere: read, never written.

use aya::{
    maps::{HashMap, Map, MapData, MapError, MapInfo, MapType, PerCpuArray},
    programs::loaded_programs,
};
use crafter_common::{
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

/// The maps of one running crafter, found through its program on the egress hook.
pub struct RunningMaps {
    /// Kernel id of the flow map.
    pub map_id: u32,
    /// Processes that hold its attachments, if they could be found out.
    pub holders: Vec<Process>,
    flows: HashMap<MapData, FlowKey, FlowValue>,
    counters: PerCpuArray<MapData, u64>,
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
    /// [`Error::Permission`] without CAP_SYS_ADMIN, which looking programs and maps up by id takes.
    pub fn find() -> Result<(Vec<Self>, Vec<OtherVersion>)> {
        const ACTION: &str = "read the maps of another process";
        // Before anything is opened here, which would make this process a holder too.
        let holders = holders_of_programs();
        let (mut found, mut others) = (Vec::new(), Vec::new());
        for program in loaded_programs() {
            // Every crafter has exactly one of these, whatever its ingress hook is, and it uses both maps.
            let maps = program.and_then(|program| match program.name_as_str() {
                Some(name) if name == Hook::Egress.program() => Ok(program.map_ids()?.map(|maps| (program.id(), maps))),
                _ => Ok(None),
            });
            let (program_id, maps) = match maps {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                // Gone between being listed and being opened.
                Err(e) if gone(&e) => continue,
                Err(e) => return Err(foreign_error(ACTION, &e)),
            };
            let holders = holders.get(&program_id).cloned().unwrap_or_default();
            match Self::open(&maps) {
                Ok(Some((map_id, flows, counters))) => found.push(Self { map_id, holders, flows, counters }),
                Ok(None) => others.push(OtherVersion { program_id, holders }),
                Err(e) if is_other_layout(&e) => others.push(OtherVersion { program_id, holders }),
                Err(e) if gone(&e) => {}
                Err(e) => return Err(foreign_error(ACTION, &e)),
            }
        }
        Ok((found, others))
    }

    /// Opens the flow and the counter map among `maps`, the maps of one program. `None` if one is missing, or if there is
    /// another number of counters.
    #[expect(clippy::type_complexity, reason = "named where it is taken apart, a few lines above")]
    fn open(
        maps: &[u32],
    ) -> std::result::Result<Option<(u32, HashMap<MapData, FlowKey, FlowValue>, PerCpuArray<MapData, u64>)>, MapError>
    {
        let (mut flows, mut counters) = (None, None);
        for &id in maps {
            let info = MapInfo::from_id(id)?;
            match info.name_as_str() {
                Some(map::FLOWS) if info.map_type()? == MapType::LruHash => flows = Some(id),
                Some(map::COUNTERS) if info.map_type()? == MapType::PerCpuArray && info.max_entries() == REASONS => {
                    counters = Some(id);
                }
                _ => {}
            }
        }
        let (Some(flows), Some(counters)) = (flows, counters) else { return Ok(None) };
        Ok(Some((
            flows,
            HashMap::try_from(Map::LruHashMap(MapData::from_id(flows)?))?,
            PerCpuArray::try_from(Map::PerCpuArray(MapData::from_id(counters)?))?,
        )))
    }

    /// Its flows, in no order.
    pub fn flows(&self) -> Vec<Flow> {
        read_flows(&self.flows)
    }

    /// Its counters.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub fn counters(&self) -> Result<Counters> {
        read_counters(&self.counters)
    }
}

/// Whether the sizes of a map's keys or values are not those of this version.
fn is_other_layout(error: &MapError) -> bool {
    matches!(error, MapError::InvalidKeySize { .. } | MapError::InvalidValueSize { .. })
}

fn gone(error: &(dyn std::error::Error + 'static)) -> bool {
    os_error(error).is_some_and(|e| e.raw_os_error() == Some(libc::ENOENT))
}

fn foreign_error(action: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    match os_error(error) {
        Some(error) => Error::io(action, "CAP_SYS_ADMIN", error),
        None => bpf_error(action, error),
    }
}
