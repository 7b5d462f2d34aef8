//! Which running crafters `flows` and `counters` look at.

use std::io::{self, Write as _};

use crafter::{
    Result,
    datapath::running::{Process, RunningMaps},
};

/// Which running crafters to look at.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only the crafter that this process holds [default: all on this kernel]
    #[arg(long, value_name = "PID")]
    pid: Option<i32>,
}

impl Args {
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
            // Nothing is left to complain to when stderr is gone.
            let _ = writeln!(io::stderr().lock(), "crafter: no crafter{which} is running");
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
