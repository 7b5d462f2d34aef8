//! What `flows` and `counters` share: which crafters to report on, and a section for each.

use crafter::{
    Error, Result,
    datapath::running::{Process, RunningMaps},
    protocol::{control::Control, wire::InfoCall},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{print, service};

/// Which running crafters to report on.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Report only on the crafter of this process, read from its maps as with --direct [default: all on this kernel]
    #[arg(long, value_name = "PID", conflicts_with = "socket")]
    pid: Option<i32>,
    /// Report only on this interface of the service
    #[arg(long, short, visible_alias = "iface", value_name = "IF", conflicts_with_all = ["direct", "pid"])]
    pub interface: Option<String>,
    #[command(flatten)]
    service: service::Args,
}

impl Args {
    /// A connection to the service; `None` if the maps are to be read: for `--direct` and `--pid`, and if no service
    /// runs.
    ///
    /// # Errors
    /// Those of [`service::Args::open`].
    pub async fn control(&self) -> Result<Option<Control>> {
        if self.pid.is_some() { Ok(None) } else { self.service.open().await }
    }

    /// The maps of running crafters, by map id. Reports on stderr if there are none.
    ///
    /// # Errors
    /// Those of [`RunningMaps::find`]; [`Error::Invalid`] for `--interface`, which maps do not record.
    pub fn find(&self) -> Result<Vec<RunningMaps>> {
        if self.interface.is_some() {
            let reason =
                "no service is running, and only a service reports by interface; use --pid, or start the service";
            return Err(Error::invalid("--interface", reason));
        }
        let mut found = RunningMaps::find()?;
        if let Some(pid) = self.pid {
            found.retain(|maps| maps.holders.iter().any(|holder| holder.pid == pid));
        }
        found.sort_by_key(|maps| maps.map_id);
        if found.is_empty() {
            let which = self.pid.map(|pid| format!(" with process id {pid}")).unwrap_or_default();
            print::message(format_args!("no crafter{which} is running"));
        }
        Ok(found)
    }
}

/// Flows or counters of one crafter, or of one interface of the service.
pub struct Section<T> {
    pub origin: Origin,
    /// Processes that hold the map.
    pub holders: Vec<Process>,
    pub content: T,
}

/// What a section reports on.
pub enum Origin {
    /// The map of a crafter that runs without the service.
    MapId(u32),
    /// An interface of the service.
    Interface(String),
}

/// Sections as an object.
///
/// # Errors
/// Those of serializing.
pub fn object<T: Serialize>(sections: &[Section<T>]) -> serde_json::Result<Value> {
    let section = |section: &Section<T>| {
        let mut object = serde_json::to_value(&section.content)?;
        let (map_id, interface) = match &section.origin {
            Origin::MapId(id) => (Some(id), None),
            Origin::Interface(name) => (None, Some(name)),
        };
        object["map_id"] = json!(map_id);
        object["interface"] = json!(interface);
        object["holders"] = json!(section.holders);
        Ok(object)
    };
    Ok(json!({ "sections": sections.iter().map(section).collect::<serde_json::Result<Vec<_>>>()? }))
}

impl<T> Section<T> {
    /// The section's text: its title, then `table` of its content.
    pub fn text(&self, table: impl FnOnce(&T) -> String) -> String {
        let interface = match &self.origin {
            Origin::MapId(_) => String::new(),
            Origin::Interface(interface) => format!("{interface}, "),
        };
        let holders: Vec<String> = self.holders.iter().map(Process::to_string).collect();
        let holders = if holders.is_empty() { "held by an unknown process".to_owned() } else { holders.join(", ") };
        format!("{interface}{holders}\n{}", table(&self.content))
    }
}

/// The service's process.
///
/// # Errors
/// Those of [`Control::call`].
pub async fn service(control: &Control) -> Result<Vec<Process>> {
    let pid = control.call(&InfoCall {}).await?.pid;
    let name = "crafter".to_owned();
    Ok(i32::try_from(pid).map(|pid| vec![Process { pid, name }]).unwrap_or_default())
}
