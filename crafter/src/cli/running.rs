//! What `flows` and `counters` share: which crafters to report on, and a section for each.

use crafter::{
    Error, Result,
    datapath::running::{OtherVersion, Process, RunningMaps},
    protocol::{control::Control, wire::InfoCall},
};
use serde::Serialize;

use super::{complete, print, service};

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

/// An element of the output.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Entry<T> {
    /// A crafter, or an interface of the service.
    Section(Section<T>),
    /// A crafter whose maps cannot be read.
    Skipped {
        #[serde(flatten)]
        crafter: OtherVersion,
        /// Why.
        skipped: &'static str,
    },
}

impl<T> Entry<T> {
    /// The entries of crafters, in the order of the output.
    pub fn all(sections: impl IntoIterator<Item = Section<T>>, skipped: Vec<OtherVersion>) -> Vec<Self> {
        let skipped = skipped.into_iter().map(|crafter| Self::Skipped { crafter, skipped: OTHER_LAYOUT });
        sections.into_iter().map(Self::Section).chain(skipped).collect()
    }

    /// The text of all sections, each as [`Section::text`].
    pub fn text(entries: &[Self], table: impl Fn(&T) -> String) -> String {
        let sections = entries.iter().filter_map(|entry| match entry {
            Self::Section(section) => Some(section.text(&table)),
            Self::Skipped { .. } => None,
        });
        sections.collect::<Vec<_>>().join("\n")
    }
}

/// Flows or counters of one crafter, or of one interface of the service.
#[derive(Serialize)]
pub struct Section<T> {
    #[serde(flatten)]
    pub origin: Origin,
    /// Processes that hold the map.
    pub holders: Vec<Process>,
    #[serde(flatten)]
    pub content: T,
}

/// What a section reports on.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
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
