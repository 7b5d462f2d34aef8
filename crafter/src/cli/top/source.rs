//! What the service tells, again and again.

use std::time::Duration;

use crafter::{
    Error, Result,
    protocol::{
        control::Control,
        wire::{CountersCall, InfoCall, ListFlowsCall, ListLeasesCall},
    },
};
use tokio::sync::{mpsc, watch};

use super::model::{Named, Tab, Told};
use crate::cli::{
    pages,
    service::Socket,
    who::{Processes, Users},
};

/// More flows than anybody scrolls through.
const FLOWS: usize = 20_000;

/// How long the service may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The service, whether it is there or not.
pub struct Source {
    socket: Socket,
    control: Option<Control>,
    users: Users,
}

impl Source {
    /// A service that answers.
    ///
    /// # Errors
    /// Those of [`Socket::open`].
    pub async fn open(socket: Socket) -> Result<Self> {
        let control = socket.open().await?;
        Ok(Self { socket, control: Some(control), users: Users::default() })
    }

    /// What there is to tell now, once more after an error.
    ///
    /// # Errors
    /// Those of the service.
    pub async fn look(&mut self, tab: Tab) -> Result<Told> {
        // Put back only if all went well: with any doubt a new connection is made.
        let control = match self.control.take() {
            Some(control) => control,
            None => self.socket.open().await?,
        };
        let look = look(&control, tab, &mut self.users);
        let told = tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| {
            let reason = format!("no answer within {PATIENCE:?}");
            Err(Error::Service { path: control.path().display().to_string(), reason })
        });
        if !matches!(told, Err(Error::Service { .. })) {
            self.control = Some(control);
        }
        told
    }
}

async fn look(control: &Control, tab: Tab, users: &mut Users) -> Result<Told> {
    let info = control.call(&InfoCall {}).await?;
    let mut processes = Processes::default();
    let leases = pages::leases(control, ListLeasesCall::default()).await?;
    let leases = leases.into_iter().map(|lease| Named {
        user: users.label(lease.user),
        process: lease.pid.and_then(|pid| processes.name(pid, lease.began)),
        lease,
    });
    let mut told = Told { info, leases: leases.collect(), ..Told::default() };
    match tab {
        Tab::Leases => {}
        Tab::Flows => told.flows = Some(pages::flows(control, ListFlowsCall::default(), FLOWS).await?),
        Tab::Interfaces => told.counters = Some(control.call(&CountersCall::default()).await?.interfaces),
    }
    Ok(told)
}

/// Looks every `interval`, and at once when there is another tab to look at, for as long as anybody listens.
pub async fn watch(
    mut source: Source,
    interval: Duration,
    mut tab: watch::Receiver<Tab>,
    told: mpsc::Sender<Result<Told>>,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            changed = tab.changed() => if changed.is_err() { return },
        }
        let wanted = *tab.borrow_and_update();
        if told.send(source.look(wanted).await).await.is_err() {
            return;
        }
    }
}
