//! [`Crafter`]: opens an interface, and gives access to what is there.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use smallvec::SmallVec;
use tokio::sync::Notify;

use super::{
    Options,
    backend::{Backend, NoRoom, Transmitted, TxPacket},
    core::Core,
    entry::{LeaseId, Received, Stats},
    kernel::KernelBackend,
    lease::{Lease, LeaseRequest},
    routes::{Resolver, Routes},
    service::{self, ServiceBackend},
    shared::Shared,
    task,
};
use crate::{
    datapath::{
        address::{AddressWatch, local_addresses},
        interface::{Interface, interface},
        maps::{Counters, Flow},
        program::{Mode, Report},
        route::{self, Route},
    },
    error::{Error, Result},
    protocol::{Control, wire::LeaseCall},
};

/// The hooks of one interface, and the leases on it. Clones share them; when the last clone, lease
/// and stream is gone, nothing is left attached.
#[derive(Clone)]
pub struct Crafter {
    shared: Arc<Shared>,
}

impl Crafter {
    /// Loads the kernel half, attaches it to `interface` and opens what receives and sends.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::UnknownInterface`], [`Error::Permission`], [`Error::Attach`], [`Error::KernelTooOld`],
    /// [`Error::Bpf`]. Nothing is left attached after an error.
    pub async fn open(name: &str, options: Options) -> Result<Self> {
        let interface = usable(name).await?;
        let (kernel, report) = KernelBackend::open(&interface, &options)?;
        Self::start(kernel, report, interface, Resolver::Kernel, false).await
    }

    /// As [`Crafter::open`], but loading and attaching, which takes tens of milliseconds, happens on another thread:
    /// one of this network namespace.
    pub(crate) async fn open_off_thread(name: &str, options: Options) -> Result<Self> {
        let interface = usable(name).await?;
        let opened = {
            let interface = interface.clone();
            tokio::task::spawn_blocking(move || KernelBackend::open(&interface, &options)).await
        };
        let failed = |error: tokio::task::JoinError| Error::Io { action: format!("open {name}"), source: error.into() };
        let (kernel, report) = opened.map_err(failed)??;
        Self::start(kernel, report, interface, Resolver::Kernel, true).await
    }

    /// Uses an interface through the service, which takes no privilege. Everything else is as with [`Crafter::open`];
    /// what of it the policy does not allow ends with [`Error::Forbidden`].
    ///
    /// # Errors
    /// [`Error::UnknownInterface`], [`Error::Forbidden`], [`Error::Service`], and what the service says on attaching.
    pub async fn via_service(control: Arc<Control>, name: &str) -> Result<Self> {
        let interface = usable(name).await?;
        let (service, leased) = ServiceBackend::open(control, name, interface.ifindex).await?;
        let mode = [Mode::Native, Mode::Generic].into_iter().find(|mode| mode.name() == leased.mode);
        let report = Report {
            interface: interface.name.clone(),
            mode: mode.unwrap_or(Mode::Tc),
            classifier: if leased.classifier == "clsact" { "clsact" } else { "tcx" },
            sockets: leased.sockets as usize,
            notes: leased.notes,
        };
        Self::start(service, report, interface, Resolver::WithoutHop, true).await
    }

    async fn start(
        backend: impl Backend + 'static,
        report: Report,
        interface: Interface,
        resolver: Resolver,
        yields: bool,
    ) -> Result<Self> {
        let mut core = Core::new(backend, interface.kind.is_some() || interface.loopback);
        core.set_local(&local_addresses().await?)?;
        let ready = task::epoll(&core)?;
        let shared = Arc::new(Shared {
            core: Mutex::new(core),
            name: Mutex::new(interface.name.as_str().into()),
            interface,
            report,
            routes: Routes::new(resolver),
            rearm: Arc::new(Notify::new()),
            yields,
            driver: OnceLock::new(),
        });
        let watch = AddressWatch::open()?;
        let driver = tokio::spawn(task::drive(Arc::downgrade(&shared), shared.rearm.clone(), ready, watch));
        let _ = shared.driver.set(driver.abort_handle());
        Ok(Self { shared })
    }

    /// The service, where it is used.
    pub(crate) fn control(&self) -> Option<Arc<Control>> {
        self.shared.control()
    }

    /// Makes sure that frames can be sent.
    ///
    /// # Errors
    /// [`Error::Forbidden`] where the service does not allow it.
    pub(crate) async fn enable_frames(&self) -> Result<()> {
        let control = match self.shared.lock().service() {
            Some(service) if !service.has_frames() => service.control().clone(),
            _ => return Ok(()),
        };
        let interface = Some(self.shared.name().to_string());
        let call = LeaseCall { interface, protocol: "none".into(), frames: Some(true), ..LeaseCall::default() };
        let (_, socket) = service::lease(&control, &call).await?;
        let mut core = self.shared.lock();
        let id = core.table.next_lease();
        core.service().map_or(Ok(()), |service| service.add_frames(id, socket))
    }

    /// How many packets the service refused since this was asked last, and why the first of them.
    pub(crate) fn take_refusals(&self) -> (u64, Option<Error>) {
        self.shared.lock().service().map_or((0, None), |service| service.take_refusals())
    }

    /// Opens the interface that the route to `destination` leaves by.
    ///
    /// # Errors
    /// As [`Crafter::open`], and [`Error::NoRoute`], [`Error::NoNeighbour`].
    pub async fn towards(destination: IpAddr, options: Options) -> Result<Self> {
        let route = route::resolve(destination, None, None).await?;
        Self::open(&route.interface, options).await
    }

    /// The interface as it was when it was opened.
    pub fn interface(&self) -> &Interface {
        &self.shared.interface
    }

    /// What is attached, and why nothing faster.
    pub fn report(&self) -> &Report {
        &self.shared.report
    }

    /// Route and link-layer addresses towards `destination` over this interface.
    ///
    /// # Errors
    /// [`Error::NoRoute`], [`Error::NoNeighbour`].
    pub async fn route(&self, destination: IpAddr, source: Option<IpAddr>) -> Result<Route> {
        route::resolve(destination, Some(&self.shared.name()), source).await
    }

    /// Leases a port, or several; see [`LeaseRequest`].
    ///
    /// # Errors
    /// [`Error::PortTaken`], [`Error::Invalid`], also when the map of owned ports is full.
    pub async fn lease(&self, request: LeaseRequest) -> Result<Lease> {
        Lease::take(&self.shared, request, None).await
    }

    /// As [`Crafter::lease`], but what comes is [gathered](Self::gather), and `arrived` is notified, which several leases
    /// share.
    pub(crate) async fn lease_gathered(&self, request: LeaseRequest, arrived: Arc<Notify>) -> Result<Lease> {
        Lease::take(&self.shared, request, Some(arrived)).await
    }

    /// The interface's name now.
    pub(crate) fn name(&self) -> Arc<str> {
        self.shared.name()
    }

    /// Has `watcher` notified once the interface is gone, also where nothing is leased.
    pub(crate) fn watch(&self, watcher: Arc<Notify>) {
        self.shared.lock().watch(watcher);
    }

    /// How long [`Crafter::transmit`] waits where the kernel has no room.
    pub(crate) fn set_patience(&self, patience: Duration) {
        self.shared.lock().set_patience(patience);
    }

    /// Sends packets and frames in as few system calls as it takes, and takes in at once what has come back.
    pub(crate) fn transmit<'p>(&self, packets: impl IntoIterator<Item = TxPacket<'p>>) -> Transmitted {
        self.transmit_or(packets, NoRoom::Refuse)
    }

    /// The same, where `on_no_room` says what to do without room.
    pub(crate) fn transmit_or<'p>(
        &self,
        packets: impl IntoIterator<Item = TxPacket<'p>>,
        on_no_room: NoRoom,
    ) -> Transmitted {
        let packets: SmallVec<[TxPacket<'p>; 8]> = packets.into_iter().collect();
        let mut core = self.shared.lock();
        let sent = core.send_batch(&packets, on_no_room);
        core.drain(Instant::now());
        sent
    }

    /// Busy-polls for replies for up to `timeout`: to sleep and to be woken takes longer than the service does. Whether
    /// something came; `false` at once, where there is no service.
    pub(crate) fn busy_poll(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        loop {
            let now = Instant::now();
            let mut core = self.shared.lock();
            if core.service().is_none() {
                return false;
            }
            if core.drain(now) > 0 {
                return true;
            }
            drop(core);
            if now >= until {
                return false;
            }
            // The service may have been woken on this very processor.
            std::thread::yield_now();
        }
    }

    /// Moves all that has come to gathered leases to `sink`.
    ///
    /// # Errors
    /// [`Error::UnknownInterface`] once the interface is gone.
    pub(crate) fn gather(&self, sink: &mut Vec<(LeaseId, Received)>) -> Result<()> {
        let mut core = self.shared.lock();
        // Bounded: a peer that sends without end would keep this task here without end.
        for _ in 0..64 {
            if core.drain(Instant::now()) == 0 {
                break;
            }
        }
        core.table.gather(sink);
        core.table.check_alive(&self.shared.name())
    }

    /// The kernel half's counters, one per verdict reason; through the service, what of this came here, and as crafted
    /// what it was given to send.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub fn counters(&self) -> Result<Counters> {
        self.shared.lock().counters()
    }

    /// The flows that the kernel half has seen; through the service none, as it lists them itself (`ListFlows`).
    pub fn flows(&self) -> Vec<Flow> {
        self.shared.lock().flows()
    }

    /// What became of packets in user space.
    pub fn stats(&self) -> Stats {
        self.shared.lock().stats()
    }

    /// Waits until nothing else uses the hooks (leases, streams that still close, clones), at most
    /// for `patience`, and detaches them. Says whether they are detached: otherwise that happens
    /// when their last user goes, at the latest with the process.
    ///
    /// Without it, what a stream leaves to the driver ends with the runtime, not after it.
    pub async fn close(self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        // The driver and the tasks that let go of leases get their turn first.
        tokio::task::yield_now().await;
        while Arc::strong_count(&self.shared) > 1 {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        true
    }
}

/// An interface that is up.
async fn usable(name: &str) -> Result<Interface> {
    let interface = interface(name).await?;
    if !interface.up {
        return Err(Error::Io {
            action: format!("use {name}"),
            source: std::io::Error::other(format!("the interface is down (`ip link set {name} up`)")),
        });
    }
    Ok(interface)
}
