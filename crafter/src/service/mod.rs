//! The service: one privileged process that owns the hooks, and leases ports to others.
//!
//! One thread does it all, on a runtime of its own: a packet goes from a client's socket through the policy to the
//! kernel, and a reply from the driver to a client's socket, without a lock or a hand-over in between. What takes the
//! kernel long (attaching, detaching) happens on threads beside it.
//!
//! - `connection`: a control connection, method by method (`methods`, `leasing`, `monitor`).
//! - `state`: the policy, the attachments, the leases.
//! - `attachment`: an interface that is attached, and the relay from the driver to the leases' sockets.
//! - `lease`: a lease; `outgoing`: what its client sends; `observe`: looking on.

mod attachment;
mod backlog;
mod call;
mod caller;
mod clock;
mod coalesce;
mod connection;
mod fault;
pub mod host;
mod leasing;
mod methods;
mod monitor;
pub mod names;
mod observe;
mod outgoing;
mod records;
mod served_lease;
mod state;
mod transmit;
mod users;

use std::{
    os::unix::net::UnixListener,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::{LocalSet, spawn_local},
};

pub use self::state::{POLICY, ServeOptions};
use self::{
    host::{audit::Record, seccomp, systemd::Notifier},
    state::Service,
};
use crate::{Error, Result, datapath::address::AddressWatch};

/// Control connections at once; one more is closed.
const MAX_CONNECTIONS: usize = 4096;

/// Control connections of one user; those of root and of the service's own user are as many as there may be.
const MAX_CONNECTIONS_PER_USER: usize = 512;

/// How often the audit log tells of refusals that it only counted.
const AUDIT_FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// How long to stay awake for the next packet.
const BUSY_POLL_TIME: Duration = Duration::from_micros(100);

/// How long clients may take to notice that the service stops.
const STOP_TIMEOUT: Duration = Duration::from_millis(50);

/// The signals by which the service is told what to do. From here on they no longer end the process; what comes before
/// [`serve`] listens to them is kept for it.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// To be called before the socket can be seen, because who sees it takes the service for one that can be told to end.
    ///
    /// # Errors
    /// Those of `sigaction(2)`.
    pub fn listen() -> Result<Self> {
        let of = |kind| signal(kind).map_err(|source| Error::Io { action: "listen to signals".to_owned(), source });
        Ok(Self {
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
            hang_up: of(SignalKind::hangup())?,
        })
    }
}

/// Serves on `listener` until SIGTERM or SIGINT comes, or it was idle for long enough. SIGHUP reads the policy again.
///
/// # Errors
/// Those of the policy, and of listening.
pub async fn serve(options: ServeOptions, listener: UnixListener, signals: Signals, status: Notifier) -> Result<()> {
    LocalSet::new().run_until(run(options, listener, signals, status)).await
}

async fn run(
    options: ServeOptions,
    listener: UnixListener,
    Signals { mut terminate, mut interrupt, mut hang_up }: Signals,
    status: Notifier,
) -> Result<()> {
    let failed = |source| Error::Io { action: "serve".to_owned(), source };
    let service = Service::new(options)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
    let mut addresses = AddressWatch::open()?;
    let mut beat = tokio::time::interval(status.interval().unwrap_or(Duration::from_secs(3600)));
    let mut audit_flush = tokio::time::interval(AUDIT_FLUSH_INTERVAL);
    if !service.options.without_filter {
        seccomp::install()?;
    }
    spawn_local(busy_poll(service.clone()));
    let rules = service.policy().rules().len();
    service.record(&Record::Start { version: env!("CARGO_PKG_VERSION"), rules });
    status.ready("serving");
    let mut idle = std::pin::pin!(idle_for(&service));
    let reason = loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => accept(&service, stream),
                // Descriptors may have run out: others give theirs back.
                Err(error) => {
                    log::warn!("a connection was not taken: {error}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            _ = hang_up.recv() => {
                status.reloading();
                match service.reload() {
                    Ok(ended) => log::info!("a new policy is in force; {} leases ended by it", ended.len()),
                    Err(error) => log::error!("{error}; the former policy stays in force"),
                }
                status.ready("serving");
            }
            changed = addresses.changed() => match changed {
                Ok(()) => service.handle_addresses(),
                Err(error) => {
                    log::error!("{error}");
                    break "failure";
                }
            },
            _ = beat.tick() => status.beat(),
            _ = audit_flush.tick() => service.audit.flush_counts(Instant::now()),
            () = &mut idle => break "idle",
        }
    };
    status.stopping(reason);
    service.record(&Record::Stop { reason });
    service.stop();
    // Their sockets say why before they close.
    let deadline = tokio::time::Instant::now() + STOP_TIMEOUT;
    while service.lease_count() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Keeps the thread awake for a moment behind each packet: the next one is mostly under way already, and to sleep and
/// be woken takes longer than it takes to come.
async fn busy_poll(service: Rc<Service>) {
    loop {
        service.busy.notified().await;
        let mut seen = service.activity.get();
        let mut until = Instant::now() + BUSY_POLL_TIME;
        while Instant::now() < until {
            // To a client on this processor, then to the other tasks.
            std::thread::yield_now();
            tokio::task::yield_now().await;
            let now = service.activity.get();
            if now != seen {
                (seen, until) = (now, Instant::now() + BUSY_POLL_TIME);
            }
        }
    }
}

fn accept(service: &Rc<Service>, stream: tokio::net::UnixStream) {
    if service.connections.get() >= MAX_CONNECTIONS {
        log::warn!("{MAX_CONNECTIONS} control connections are open: one more is closed");
        return;
    }
    let Ok(user) = stream.peer_cred().map(|peer| peer.uid()) else { return };
    let is_trusted = [0, nix::unistd::Uid::effective().as_raw()].contains(&user);
    let Some(connected) =
        service.users.connect(user, if is_trusted { MAX_CONNECTIONS } else { MAX_CONNECTIONS_PER_USER })
    else {
        log::debug!("user {user} has {MAX_CONNECTIONS_PER_USER} control connections: one more is closed");
        return;
    };
    service.connections.set(service.connections.get() + 1);
    let service = service.clone();
    spawn_local(async move {
        connection::run(service.clone(), stream).await;
        drop(connected);
        service.connections.set(service.connections.get() - 1);
        service.quiet.notify_one();
    });
}

/// Returns once nothing was to be done for as long as the options say.
async fn idle_for(service: &Rc<Service>) {
    let Some(patience) = service.options.idle else { return std::future::pending().await };
    loop {
        while !service.is_idle() {
            service.quiet.notified().await;
        }
        tokio::select! {
            () = tokio::time::sleep(patience) => {
                if service.is_idle() {
                    return;
                }
            }
            () = service.quiet.notified() => {}
        }
    }
}
