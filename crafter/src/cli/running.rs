//! Which running crafters `flows` and `counters` look at.

use std::io::{self, Write as _};

use crafter::{
    Result,
    datapath::running::{Process, RunningMaps},
    protocol::{control::Control, wire::InfoCall},
};

/// Which running crafters to look at.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Only the crafter that this process holds, read from its maps as with --direct [default: all on this kernel]
    #[arg(long, value_name = "PID", conflicts_with = "socket")]
    pid: Option<i32>,
}

impl Args {
    /// Whether one process is asked for, which the service knows nothing of.
    pub fn is_one(&self) -> bool {
        self.pid.is_some()
    }

    /// The maps; says on stderr if there are none.
    ///
    /// # Errors
    /// Those of [`RunningMaps::find`].
    pub fn find(&self) -> Result<Vec<RunningMaps>> {
        let mut found = RunningMaps::find()?;
        if let Some(pid) = self.pid {
            found.retain(|maps| maps.holders.iter().any(|holder| holder.pid == pid));
        }
        found.sort_by_key(|maps| maps.map_id);
        if found.is_empty() {
            let which = self.pid.map(|pid| format!(" with process id {pid}")).unwrap_or_default();
            say(&format!("no crafter{which} is running"));
        }
        Ok(found)
    }
}

/// The line above a table.
pub fn title(holders: &[Process]) -> String {
    let names: Vec<String> = holders.iter().map(Process::to_string).collect();
    match names.is_empty() {
        true => "held by a process that cannot be found out\n".to_owned(),
        false => format!("{}\n", names.join(", ")),
    }
}

/// The line above a table of the service.
pub fn served_title(interface: &str, holders: &[Process]) -> String {
    format!("{interface}, {}", title(holders))
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

/// Says something that is no result.
pub fn say(line: &str) {
    // Nothing is left to complain to when stderr is gone.
    let _ = writeln!(io::stderr().lock(), "crafter: {line}");
}
