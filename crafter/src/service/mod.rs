//! The service: one privileged process that owns the hooks, and leases ports to others.
//!
//! It runs on one thread: packets pass from a client's socket through the policy to the kernel, and replies from the
//! driver to a client's socket, without locks. Slow operations of the kernel (attaching, detaching) run on other
//! threads.
//!
//! Each user has a share of that thread's time (`call_turns`), of the connections (`admission`) and of memory (`call`,
//! `snapshots`). What may block runs on other threads: reading the policy (`policy_file`), reading maps (`snapshots`),
//! closing what clients passed (`closer`).
//!
//! - `accept`: new control connections.
//! - `connection`: a control connection and its methods (`methods`, `leasing`, `monitor`).
//! - `descriptors`, `quota`: what each user has of the service.
//! - `state`: the policy, the attachments, the leases.
//! - `dispatch`: serves the packets of clients in turn (`fair_queue`); `transmit`: sends them.
//! - `served_lease`: a lease; `outgoing`: packets from its client; `observe`: captures for a client.
//! - `next_hops`: routes and neighbours for clients; `quota`: what each user has.
//! - `interfaces`: the attached ones and their users; `attachment`: one of them, and the relay from the driver to the leases.

mod accept;
mod admission;
mod attachment;
mod backlog;
mod call;
mod call_turns;
mod caller;
mod clock;
mod closer;
mod coalesce;
mod connection;
mod descriptors;
mod dispatch;
mod fair_queue;
mod fault;
pub mod host;
mod interfaces;
mod leasing;
mod methods;
mod monitor;
pub mod names;
mod next_hops;
mod observe;
mod outgoing;
mod peer_socket;
mod policy_file;
mod quota;
mod records;
mod served_lease;
mod shares;
mod snapshots;
mod state;
mod transmit;

use std::{
    os::unix::net::UnixListener,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::{LocalSet, spawn_local},
};

use self::{
    host::{audit::Record, seccomp, systemd::Notifier},
    state::Service,
};
pub use self::{interfaces::KEEP_ATTACHED, policy_file::POLICY, state::ServeOptions};
use crate::{Error, Result, datapath::address::AddressWatch};

/// The maximum number of threads for calls that block, such as attaching. Each may start three threads that load
/// programs.
pub const MAX_BLOCKING_THREADS: usize = 32;

/// Interval at which the audit log records events that were only counted.
const AUDIT_FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// Interval at which entries of the kernel's neighbour table that the service no longer uses are removed.
const NEIGHBOUR_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// How long to busy-poll for the next packet.
const BUSY_POLL_TIME: Duration = Duration::from_micros(100);

/// How long to wait for clients to close their leases when the service stops.
const STOP_TIMEOUT: Duration = Duration::from_millis(50);

/// The signals that stop or reload the service. After [`Signals::listen`] they no longer end the process; a signal
/// before [`serve`] is kept.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Registers the handlers. Call it before the socket exists: a process that sees the socket may already send a
    /// signal.
    ///
    /// # Errors
    /// Those of `sigaction(2)`.
    pub fn listen() -> Result<Self> {
        let of =
            |kind| signal(kind).map_err(|source| Error::Io { action: "register signal handlers".to_owned(), source });
        Ok(Self {
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
            hang_up: of(SignalKind::hangup())?,
        })
    }
}

/// Serves on `listener` until SIGTERM, SIGINT or the idle timeout. SIGHUP reloads the policy.
///
/// # Errors
/// Those of the policy, of the listener and of the system call filter.
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
    // Loading the policy may take seconds.
    let service = tokio::select! {
        service = Service::new(options) => service?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    listener.set_nonblocking(true).map_err(failed)?;
    if !peer_socket::refuse_descriptors(&listener) {
        log::info!("this kernel accepts descriptors from clients; they are closed on other threads");
    }
    let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
    let mut addresses = AddressWatch::open()?;
    let mut beat = tokio::time::interval(status.interval().unwrap_or(Duration::from_secs(3600)));
    let mut audit_flush = tokio::time::interval(AUDIT_FLUSH_INTERVAL);
    let mut neighbour_check = tokio::time::interval(NEIGHBOUR_CHECK_INTERVAL);
    if !service.options.without_filter {
        seccomp::install()?;
    }
    spawn_local(busy_poll(service.clone()));
    spawn_local(accept::run(service.clone(), listener));
    spawn_local({
        let service = service.clone();
        async move { service.turns.run().await }
    });
    spawn_local(dispatch::run(service.clone()));
    spawn_local(outgoing::end_silent_exchanges(service.clone()));
    let rules = service.policy().rules().len();
    service.record(&Record::Start { version: env!("CARGO_PKG_VERSION"), rules });
    status.ready("serving");
    let mut idle = std::pin::pin!(idle_for(&service));
    let reason = loop {
        tokio::select! {
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            _ = hang_up.recv() => drop(spawn_local(reload(service.clone(), status))),
            changed = addresses.changed() => match changed {
                Ok(()) => service.handle_addresses(),
                Err(error) => {
                    log::error!("{error}");
                    break "failure";
                }
            },
            _ = beat.tick() => status.beat(),
            _ = audit_flush.tick() => service.audit.flush_counts(Instant::now()),
            _ = neighbour_check.tick() => {
                let next_hops = service.next_hops.clone();
                spawn_local(async move { next_hops.remove_entries(false).await });
            }
            () = &mut idle => break "idle",
        }
    };
    status.stopping(reason);
    service.stop();
    // Leases send the reason before they close.
    let deadline = tokio::time::Instant::now() + STOP_TIMEOUT;
    while service.lease_count() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let _ = tokio::time::timeout(STOP_TIMEOUT, service.next_hops.remove_entries(true)).await;
    service.forget_all();
    // The last record, after the ends of all leases and the last counts.
    service.record(&Record::Stop { reason });
    Ok(())
}

/// Busy-polls after each packet: the next one is usually in flight already, and a context switch takes longer than its
/// arrival.
async fn busy_poll(service: Rc<Service>) {
    loop {
        service.busy.notified().await;
        let mut seen = service.activity.get();
        let mut until = Instant::now() + BUSY_POLL_TIME;
        while Instant::now() < until {
            // Yield to clients on this CPU, then to the other tasks.
            std::thread::yield_now();
            tokio::task::yield_now().await;
            let now = service.activity.get();
            if now != seen {
                (seen, until) = (now, Instant::now() + BUSY_POLL_TIME);
            }
        }
    }
}

/// Reloads the policy on SIGHUP.
async fn reload(service: Rc<Service>, status: Notifier) {
    status.reloading();
    match service.reload().await {
        Ok(ended) => log::info!("reloaded the policy; {} leases ended", ended.len()),
        Err(error) => log::error!("{error}; the previous policy remains in force"),
    }
    status.ready("serving");
}

/// Returns after the service was idle for the configured time.
async fn idle_for(service: &Rc<Service>) {
    let Some(idle_timeout) = service.options.idle else { return std::future::pending().await };
    loop {
        while !service.is_idle() {
            service.quiet.notified().await;
        }
        tokio::select! {
            () = tokio::time::sleep(idle_timeout) => {
                if service.is_idle() {
                    return;
                }
            }
            () = service.quiet.notified() => {}
        }
    }
}
