//! What `flows` and `counters` share: which crafters to report on, and a section for each.

use crafter::{
    Error, Result,
    datapath::running::{OtherVersion, Process, RunningMaps},
    protocol::{control::Control, wire::InfoCall},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Globals, complete, print, service};

/// Which running crafters to report on.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Report only on the crafter of this process, read from its maps as with --direct [default: all on this kernel]
    #[arg(long, value_name = "PID", conflicts_with = "socket")]
    pid: Option<i32>,
    /// Interface of the service to report on [default: all]
    #[arg(long, short, visible_alias = "iface", value_name = "IF", add = complete::interfaces(), conflicts_with_all = ["direct", "pid"])]
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

    /// The maps of running crafters, by map id, and the crafters of other versions, whose maps cannot be read. Reports
    /// the latter on stderr, or that there are none at all.
    ///
    /// # Errors
    /// Those of [`RunningMaps::find`]; [`Error::Invalid`] for `--interface`, which maps do not record.
    pub fn find(&self) -> Result<(Vec<RunningMaps>, Vec<OtherVersion>)> {
        if self.interface.is_some() {
            let reason =
                "no service is running, and only a service reports by interface; use --pid, or start the service";
            return Err(Error::invalid("--interface", reason));
        }
        let (mut found, mut others) = RunningMaps::find()?;
        if let Some(pid) = self.pid {
            let is_wanted = |holders: &[Process]| holders.iter().any(|holder| holder.pid == pid);
            found.retain(|maps| is_wanted(&maps.holders));
            others.retain(|other| is_wanted(&other.holders));
        }
        found.sort_by_key(|maps| maps.map_id);
        for OtherVersion { holders, .. } in &others {
            let holders = held_by(holders);
            print::message(format_args!(
                "skipped a crafter {holders}: {OTHER_LAYOUT}; use the crafter of that version"
            ));
        }
        if found.is_empty() && others.is_empty() {
            let which = self.pid.map(|pid| format!(" with process id {pid}")).unwrap_or_default();
            print::message(format_args!("no crafter{which} is running"));
        }
        Ok((found, others))
    }
}

/// Why a crafter is skipped.
const OTHER_LAYOUT: &str = "its maps have the layout of another version";

/// The output of a command.
pub struct Report<T> {
    pub sections: Vec<Section<T>>,
    /// Crafters whose maps cannot be read.
    pub skipped: Vec<OtherVersion>,
}

impl<T: Serialize> Report<T> {
    /// Prints an object, or a text for each section: its title, then `table` of its content.
    ///
    /// # Errors
    /// Those of serializing and of writing to stdout.
    pub fn print(&self, globals: &Globals, table: impl Fn(&T) -> String) -> anyhow::Result<()> {
        if globals.json {
            return print::json(&self.object()?);
        }
        Ok(print::table_out(self.sections.iter().map(|section| section.text(&table)).collect::<Vec<_>>().join("\n"))?)
    }

    fn object(&self) -> serde_json::Result<Value> {
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
        let skipped = |OtherVersion { program_id, holders }: &OtherVersion| json!({ "program_id": program_id, "holders": holders, "reason": OTHER_LAYOUT });
        Ok(json!({
            "sections": self.sections.iter().map(section).collect::<serde_json::Result<Vec<_>>>()?,
            "skipped": self.skipped.iter().map(skipped).collect::<Vec<_>>(),
        }))
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

impl<T> Section<T> {
    /// The section's text: its title, then `table` of its content.
    fn text(&self, table: impl FnOnce(&T) -> String) -> String {
        let interface = match &self.origin {
            Origin::MapId(_) => String::new(),
            Origin::Interface(interface) => format!("{interface}, "),
        };
        let holders = match &self.holders[..] {
            [] => held_by(&[]),
            holders => listed(holders),
        };
        format!("{interface}{holders}\n{}", table(&self.content))
    }
}

/// `held by crafter (pid 12)`
fn held_by(holders: &[Process]) -> String {
    if holders.is_empty() { "held by an unknown process".to_owned() } else { format!("held by {}", listed(holders)) }
}

fn listed(holders: &[Process]) -> String {
    holders.iter().map(Process::to_string).collect::<Vec<_>>().join(", ")
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
