//! [`Crafter`]: opens an interface, and leases ports on it.

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
        reserve::Reservation,
        route::{self, Route},
    },
    error::{Error, Result},
    packet::Transport,
    protocol::{Control, wire::LeaseCall},
};

/// Packets to gather before other tasks run.
const GATHERED: usize = 512;

/// The hooks of one interface, and the leases on it. Clones share them. When the last clone, lease and stream is
/// dropped, the interface is detached.
#[derive(Clone)]
pub struct Crafter {
    shared: Arc<Shared>,
}

impl Crafter {
    /// Loads the kernel half, attaches it to `interface`, and opens the sockets to send and receive. Call it within a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`Error::UnknownInterface`], [`Error::Permission`], [`Error::Attach`], [`Error::KernelTooOld`],
    /// [`Error::Bpf`]. Nothing is left attached after an error.
    pub async fn open(name: &str, options: Options) -> Result<Self> {
        let interface = usable(name).await?;
        let (kernel, report) = KernelBackend::open(&interface, &options)?;
        Self::start(kernel, report, interface, Resolver::Kernel, false).await
    }

    /// Like [`Crafter::open`], but loads and attaches, which takes tens of milliseconds, on another thread of this
    /// network namespace.
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

    /// Opens an interface through the service, without privileges. Behaves like [`Crafter::open`], except that
    /// operations that the policy does not allow fail with [`Error::Forbidden`].
    ///
    /// # Errors
    /// [`Error::UnknownInterface`], [`Error::Forbidden`], [`Error::Service`], and the service's own errors from
    /// attaching.
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
        core.backend.set_local(&local_addresses().await?)?;
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

    /// The connection to the service, if one is used.
    pub(crate) fn control(&self) -> Option<Arc<Control>> {
        self.shared.control()
    }

    /// Leases the right to send Ethernet frames, if the service is used.
    ///
    /// # Errors
    /// [`Error::Forbidden`] if the policy does not allow frames.
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

    /// The number of packets that the service refused since the last call, and the first refusal.
    pub(crate) fn take_refusals(&self) -> (u64, Option<Error>) {
        self.shared.lock().service().map_or((0, None), |service| service.take_refusals())
    }

    /// Opens the interface of the route to `destination`.
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

    /// The attach mode, and why no faster one was possible.
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
    /// [`Error::PortTaken`]; [`Error::Invalid`] for a port that cannot be leased, or if the map of owned ports is full.
    pub async fn lease(&self, request: LeaseRequest) -> Result<Lease> {
        Lease::take(&self.shared, request, None).await
    }

    /// Like [`Crafter::lease`], but packets are [gathered](Self::gather), and `arrived`, which several leases share, is
    /// notified of them.
    pub(crate) async fn lease_gathered(&self, request: LeaseRequest, arrived: Arc<Notify>) -> Result<Lease> {
        Lease::take(&self.shared, request, Some(arrived)).await
    }

    /// Like [`lease_gathered`](Self::lease_gathered), of ports that the caller has reserved.
    pub(crate) async fn lease_reserved(
        &self,
        request: LeaseRequest,
        reservations: Vec<Reservation>,
        arrived: Arc<Notify>,
    ) -> Result<Lease> {
        Lease::take_reserved(&self.shared, request, reservations, arrived).await
    }

    /// Whether a lease of this process has `port` on `address`.
    pub(crate) fn is_leased(&self, transport: Transport, address: IpAddr, port: u16) -> bool {
        self.shared.is_leased(transport, address, port)
    }

    /// The interface's current name.
    pub(crate) fn name(&self) -> Arc<str> {
        self.shared.name()
    }

    /// Notifies `watcher` when the interface is removed, even if nothing is leased.
    pub(crate) fn watch(&self, watcher: Arc<Notify>) {
        self.shared.lock().watch(watcher);
    }

    /// How long [`Crafter::transmit`] waits for room in the kernel's queue.
    pub(crate) fn set_room_timeout(&self, timeout: Duration) {
        self.shared.lock().backend.set_room_timeout(timeout);
    }

    /// Sends packets and frames in as few system calls as possible, and drains replies at once.
    pub(crate) fn transmit<'p>(&self, packets: impl IntoIterator<Item = TxPacket<'p>>) -> Transmitted {
        self.transmit_or(packets, NoRoom::Refuse)
    }

    /// Like [`transmit`](Self::transmit), with a choice of what to do without room.
    pub(crate) fn transmit_or<'p>(
        &self,
        packets: impl IntoIterator<Item = TxPacket<'p>>,
        on_no_room: NoRoom,
    ) -> Transmitted {
        let packets: SmallVec<[TxPacket<'p>; 8]> = packets.into_iter().collect();
        let mut core = self.shared.lock();
        let sent = core.backend.send_batch(&packets, on_no_room);
        core.drain(Instant::now());
        sent
    }

    /// Busy-polls for replies for up to `timeout`: a context switch takes longer than the service. `true` if something
    /// arrived; `false` at once without a service.
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
            // The service may run on this CPU.
            std::thread::yield_now();
        }
    }

    /// Moves the packets of all gathered leases to `sink`. `true` if more may wait: a peer that sends without pause cannot
    /// keep this task here.
    ///
    /// # Errors
    /// [`Error::UnknownInterface`] after the interface was removed.
    pub(crate) fn gather(&self, sink: &mut Vec<(LeaseId, Received)>) -> Result<bool> {
        let mut core = self.shared.lock();
        let mut count = 0;
        let more = loop {
            match core.drain(Instant::now()) {
                0 => break false,
                drained => count += drained,
            }
            if count >= GATHERED {
                break true;
            }
        };
        core.table.gather(sink);
        core.table.check_alive(&self.shared.name()).map(|()| more)
    }

    /// The kernel half's counters by verdict reason. Through the service: the packets delivered to this process by
    /// reason, and as crafted the packets passed to the service.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub fn counters(&self) -> Result<Counters> {
        self.shared.lock().backend.counters()
    }

    /// The flows that the kernel half has seen. Empty through the service, which lists flows itself (`ListFlows`).
    pub fn flows(&self) -> Vec<Flow> {
        self.shared.lock().backend.flows()
    }

    /// Reads the kernel half's flows and counters without the driver's lock; `None` through the service.
    #[cfg(feature = "service")]
    pub(crate) fn map_reader(&self) -> Option<crate::datapath::maps::MapReader> {
        self.shared.lock().backend.map_reader()
    }

    /// Counters of packets in user space.
    pub fn stats(&self) -> Stats {
        self.shared.lock().stats()
    }

    /// Waits up to `timeout` until nothing else uses the hooks (leases, closing streams, clones), and detaches.
    /// `false` if something still uses them: the interface is then detached with their last user, at the latest with
    /// the process.
    ///
    /// Without this call, streams that close in the background end with the runtime.
    pub async fn close(self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        // The driver and the tasks that drop leases run first.
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

/// The interface `name`, if it is up.
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
