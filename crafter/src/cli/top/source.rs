//! Polls the service.

use std::time::Duration;

use crafter::{
    Error, Result,
    protocol::{
        control::Control,
        wire::{CountersCall, InfoCall, ListFlowsCall, ListLeasesCall},
    },
};
use tokio::sync::{mpsc, watch};

use super::model::{Snapshot, Tab};
use crate::cli::{leases, pages, service::Socket, who::Users};

/// Largest number of flows that are shown.
const MAX_FLOWS: usize = 20_000;

/// Time limit for the replies of the service.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to the service, which is opened again after an error.
pub struct Source {
    socket: Socket,
    control: Option<Control>,
    users: Users,
}

impl Source {
    /// Connects to the service.
    ///
    /// # Errors
    /// Those of [`Socket::open`].
    pub async fn open(socket: Socket) -> Result<Self> {
        let control = socket.open().await?;
        Ok(Self { socket, control: Some(control), users: Users::default() })
    }

    /// A snapshot of what `tab` shows. Connects again after an error.
    ///
    /// # Errors
    /// Those of the service.
    pub async fn snapshot(&mut self, tab: Tab) -> Result<Snapshot> {
        // Kept only if it still works.
        let control = match self.control.take() {
            Some(control) => control,
            None => self.socket.open().await?,
        };
        let query = query(&control, tab, &mut self.users);
        let snapshot = tokio::time::timeout(REPLY_TIMEOUT, query).await.unwrap_or_else(|_| {
            let reason = format!("no answer within {REPLY_TIMEOUT:?}");
            Err(Error::Service { path: control.path().display().to_string(), reason })
        });
        if !matches!(snapshot, Err(Error::Service { .. })) {
            self.control = Some(control);
        }
        snapshot
    }
}

async fn query(control: &Control, tab: Tab, users: &mut Users) -> Result<Snapshot> {
    let info = control.call(&InfoCall {}).await?;
    let leases = leases::list(control, ListLeasesCall::default(), users).await?;
    let mut snapshot = Snapshot { info, leases, ..Snapshot::default() };
    match tab {
        Tab::Leases => {}
        Tab::Flows => snapshot.flows = Some(pages::flows(control, ListFlowsCall::default(), MAX_FLOWS).await?),
        Tab::Interfaces => snapshot.counters = Some(control.call(&CountersCall::default()).await?.interfaces),
    }
    Ok(snapshot)
}

/// Sends a snapshot every `interval`, and at once when the tab changes, until the receiver is dropped.
pub async fn watch(
    mut source: Source,
    interval: Duration,
    mut tab: watch::Receiver<Tab>,
    snapshots: mpsc::Sender<Result<Snapshot>>,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            changed = tab.changed() => if changed.is_err() { return },
        }
        let wanted = *tab.borrow_and_update();
        if snapshots.send(source.snapshot(wanted).await).await.is_err() {
            return;
        }
    }
}
