//! The tokio side: one [`Crafter`] per interface owns the hooks, leases ports, and carries packets
//! between the kernel and whoever leased.
//!
//! Replies are looked for in two places. Whoever sent a packet and waits for its answer looks
//! first: on most paths the answer is there when the system call of sending returns, and no
//! scheduler stands between. What nobody waits for, and every deadline, is the driver task's.

mod core;
mod entry;
mod lease;
pub(crate) mod routes;
pub(crate) mod service;
mod stream;
mod table;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::{Duration, Instant},
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use tokio::{io::unix::AsyncFd, sync::Notify};

use self::{
    core::{Core, Side},
    service::Served,
};
pub use self::{
    entry::{Received, Stats},
    lease::{Lease, LeaseRequest, PortChoice},
    stream::{Stream, StreamOptions},
};
pub(crate) use crate::datapath::tx::{NoRoom, Outgoing, Transmitted};
use crate::{
    datapath::{
        address::{AddressWatch, local_addresses},
        interface::{Interface, interface, interfaces},
        maps::{Counters, Flow},
        program::{Attach, LoadOptions, Mode, Report},
        route::{self, Route},
    },
    error::{Error, Result},
    protocol::{Control, wire::LeaseCall},
};

/// How long a packet may wait for room without any progress before it counts as not sent. Far more than a link at full
/// rate needs for its queue, and little enough for who waits.
pub(crate) const ROOM_WITHIN: Duration = Duration::from_secs(1);

/// How long to wait until room is asked for again; who has it does not tell.
pub(crate) const ROOM_AGAIN: Duration = Duration::from_millis(1);

/// How long to look for the next burst before sleeping.
const LINGER: Duration = Duration::from_micros(50);

/// How to open an interface.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which ingress hook to use.
    pub attach: Attach,
    /// Sizes and constants of the kernel half.
    pub load: LoadOptions,
}

/// The hooks of one interface, and the leases on it. Clones share them; when the last clone, lease
/// and stream is gone, nothing is left attached.
#[derive(Clone)]
pub struct Crafter {
    shared: Arc<Shared>,
}

/// What a [`Crafter`], its leases, its streams and the driver task share.
pub(crate) struct Shared {
    core: Mutex<Core>,
    /// As it was when it was opened.
    interface: Interface,
    /// Its name now.
    name: Mutex<Arc<str>>,
    report: Report,
    routes: routes::Routes,
    /// Wakes the driver when a deadline came nearer.
    rearm: Arc<Notify>,
    /// Others wait for the processor that this one looks for packets on: the clients of the service.
    is_polite: bool,
    /// Keeps the driver's end: dropping it ends the driver.
    driver: std::sync::OnceLock<tokio::task::AbortHandle>,
}

impl Shared {
    /// The state. A panic elsewhere while it was held leaves counters at worst one behind.
    fn lock(&self) -> Locked<'_> {
        Locked(Some(self.core.lock().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }

    /// The interface's name, which may have changed.
    fn name(&self) -> Arc<str> {
        self.name.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The network has changed: these are the host's addresses, and this the interface, if it is there.
    fn handle_change(&self, addresses: &[IpAddr], interface: Option<&Interface>) {
        if let Some(interface) = interface {
            *self.name.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = interface.name.as_str().into();
        }
        self.routes.forget();
        self.lock().handle_addresses(Instant::now(), addresses, interface.map(|interface| interface.mtu));
    }

    /// The service, where it is used.
    fn control(&self) -> Option<Arc<Control>> {
        match &self.lock().side {
            Side::Kernel(_) => None,
            Side::Service(served) => Some(served.control().clone()),
        }
    }

    /// Whether a lease was closed so lately that the service may not know it yet.
    fn is_closing(&self) -> bool {
        matches!(&self.lock().side, Side::Service(served) if served.is_closing())
    }

    /// Whether the driver is there, to see to deadlines and to what nobody waits for.
    fn is_driven(&self) -> bool {
        self.driver.get().is_some_and(|driver| !driver.is_finished())
    }

    /// Tells the driver if `core` now has a deadline before the one it sleeps for.
    fn rearm_if_nearer(&self, core: &Core) {
        if core.nearer_than_armed() {
            self.rearm.notify_one();
        }
    }
}

/// The state, locked. What finished streams kept alive is dropped behind the lock, which it may want
/// itself: the last holder of a lease gives its ports back.
struct Locked<'a>(Option<MutexGuard<'a, Core>>);

impl std::ops::Deref for Locked<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        self.0.as_deref().expect("locked until dropped")
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        self.0.as_deref_mut().expect("locked until dropped")
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let released = std::mem::take(&mut self.table.released);
        self.0 = None;
        drop(released);
    }
}

/// Lives in the driver task, and so notices its end: also when the runtime goes first. Streams that
/// close by themselves keep their lease, and with it all that is shared; nobody would end them now.
struct Driving(Weak<Shared>);

impl Drop for Driving {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.lock().table.give_up_orphans();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.get() {
            driver.abort();
        }
    }
}

impl Crafter {
    /// Loads the kernel half, attaches it to `interface` and opens what receives and sends.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::UnknownInterface`], [`Error::Permission`], [`Error::Attach`], [`Error::KernelTooOld`],
    /// [`Error::Bpf`]. Nothing is left attached after an error.
    pub async fn open(name: &str, options: Options) -> Result<Self> {
        Self::open_with(name, options, false, async |interface, options| Core::open(&interface, &options)).await
    }

    /// As [`Crafter::open`], but loading and attaching, which takes tens of milliseconds, happens on another thread:
    /// one of this network namespace.
    pub(crate) async fn open_beside(name: &str, options: Options) -> Result<Self> {
        let open = async |interface: Interface, options: Options| {
            let opened = tokio::task::spawn_blocking(move || Core::open(&interface, &options)).await;
            opened.unwrap_or_else(|error| Err(Error::Io { action: format!("open {name}"), source: error.into() }))
        };
        Self::open_with(name, options, true, open).await
    }

    async fn open_with(
        name: &str,
        options: Options,
        is_polite: bool,
        open: impl AsyncFnOnce(Interface, Options) -> Result<(Core, Report)>,
    ) -> Result<Self> {
        let interface = usable(name).await?;
        let (core, report) = open(interface.clone(), options).await?;
        Self::start(core, report, interface, routes::Resolver::Kernel, is_polite).await
    }

    /// Uses an interface through the service, which takes no privilege. Everything else is as with [`Crafter::open`];
    /// what of it the policy does not allow ends with [`Error::Forbidden`].
    ///
    /// # Errors
    /// [`Error::UnknownInterface`], [`Error::Forbidden`], [`Error::Service`], and what the service says on attaching.
    pub async fn through(control: Arc<Control>, name: &str) -> Result<Self> {
        let interface = usable(name).await?;
        let (served, leased) = Served::open(control, name, interface.ifindex).await?;
        let mode = [Mode::Native, Mode::Generic].into_iter().find(|mode| mode.name() == leased.mode);
        let report = Report {
            interface: interface.name.clone(),
            mode: mode.unwrap_or(Mode::Tc),
            classifier: if leased.classifier == "clsact" { "clsact" } else { "tcx" },
            sockets: leased.sockets as usize,
            notes: leased.notes,
        };
        let core = Core::served(&interface, served);
        Self::start(core, report, interface, routes::Resolver::WithoutHop, true).await
    }

    async fn start(
        mut core: Core,
        report: Report,
        interface: Interface,
        resolver: routes::Resolver,
        is_polite: bool,
    ) -> Result<Self> {
        core.set_local(&local_addresses().await?)?;
        let ready = epoll(&core)?;
        let shared = Arc::new(Shared {
            core: Mutex::new(core),
            name: Mutex::new(interface.name.as_str().into()),
            interface,
            report,
            routes: routes::Routes::new(resolver),
            rearm: Arc::new(Notify::new()),
            is_polite,
            driver: std::sync::OnceLock::new(),
        });
        let watch = AddressWatch::open()?;
        let driver = tokio::spawn(drive(Arc::downgrade(&shared), shared.rearm.clone(), ready, watch));
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
        let control = match &self.shared.lock().side {
            Side::Service(served) if !served.has_frames() => served.control().clone(),
            _ => return Ok(()),
        };
        let interface = Some(self.shared.name().to_string());
        let call = LeaseCall { interface, protocol: "none".into(), frames: Some(true), ..LeaseCall::default() };
        let (_, socket) = service::lease(&control, &call).await?;
        let mut core = self.shared.lock();
        let number = core.table.number();
        match &mut core.side {
            Side::Service(served) => served.add_frames(number, socket),
            Side::Kernel(_) => Ok(()),
        }
    }

    /// How many packets the service refused since this was asked last, and why the first of them.
    pub(crate) fn take_refusals(&self) -> (u64, Option<Error>) {
        match &mut self.shared.lock().side {
            Side::Kernel(_) => (0, None),
            Side::Service(served) => served.take_refusals(),
        }
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

    /// As [`Crafter::lease`], but what comes is [gathered](Self::gather), and told by a notification that several
    /// leases share.
    pub(crate) async fn lease_gathered(&self, request: LeaseRequest, arrived: Arc<Notify>) -> Result<Lease> {
        Lease::take(&self.shared, request, Some(arrived)).await
    }

    /// The interface's name now.
    pub(crate) fn name(&self) -> Arc<str> {
        self.shared.name()
    }

    /// Has `watcher` notified once the interface is gone, also where nothing is leased.
    pub(crate) fn watch(&self, watcher: Arc<Notify>) {
        let mut core = self.shared.lock();
        if core.table.link_gone {
            watcher.notify_one();
        }
        core.table.watcher = Some(watcher);
    }

    /// How long [`Crafter::transmit`] waits where the kernel has no room.
    pub(crate) fn set_patience(&self, patience: Duration) {
        self.shared.lock().set_patience(patience);
    }

    /// Sends packets and frames in as few system calls as it takes, and looks at once for what comes back.
    pub(crate) fn transmit<'p>(&self, packets: impl IntoIterator<Item = Outgoing<'p>>) -> Transmitted {
        self.transmit_or(packets, NoRoom::Refuse)
    }

    /// The same, where `on` says what to do without room.
    pub(crate) fn transmit_or<'p>(&self, packets: impl IntoIterator<Item = Outgoing<'p>>, on: NoRoom) -> Transmitted {
        let mut core = self.shared.lock();
        let sent = core.send(packets, on);
        core.drain(Instant::now());
        sent
    }

    /// Looks for what comes, for at most so long, without giving the processor away: to sleep and to be woken takes
    /// longer than the service does. Whether something came; at once no, where there is no service.
    pub(crate) fn look(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            let now = Instant::now();
            let mut core = self.shared.lock();
            if matches!(core.side, Side::Kernel(_)) {
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
    pub(crate) fn gather(&self, sink: &mut Vec<(u32, Received)>) -> Result<()> {
        let mut core = self.shared.lock();
        // Bounded: who sends without end would keep us here without end.
        for _ in 0..64 {
            if core.drain(Instant::now()) == 0 {
                break;
            }
        }
        core.table.gather(sink);
        core.table.fate(&self.shared.name())
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

/// One descriptor that is readable when any source of replies is: a network card can have more
/// queues than a task should watch one by one.
fn epoll(core: &Core) -> Result<AsyncFd<std::os::fd::OwnedFd>> {
    let failed = |e: nix::Error| Error::Io { action: "watch the sockets for replies".into(), source: e.into() };
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
    for (index, source) in core.sources().into_iter().enumerate() {
        epoll.add(source, EpollEvent::new(EpollFlags::EPOLLIN, index as u64)).map_err(failed)?;
    }
    crate::datapath::watch(epoll.0, "the sockets for replies")
}

/// The driver: replies first, then what is due, then sleep until one of both. Holds no strong
/// reference while it sleeps, or nothing would ever be dropped.
async fn drive(shared: Weak<Shared>, rearm: Arc<Notify>, ready: AsyncFd<std::os::fd::OwnedFd>, watch: AddressWatch) {
    let mut watch = Some(watch);
    let _driving = Driving(shared.clone());
    // Whether the latest look found something.
    let mut busy = false;
    loop {
        let deadline = {
            let Some(shared) = shared.upgrade() else { return };
            let mut core = shared.lock();
            core.handle_timeouts(Instant::now());
            core.arm()
        };
        let deadline = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            biased;
            guard = ready.readable() => {
                let Ok(mut guard) = guard else { return };
                let Some(shared) = shared.upgrade() else { return };
                // Readiness is given back only once all is drained: what comes later says so anew.
                let count = shared.lock().drain(Instant::now());
                if count == 0 && !(busy && linger(&shared)) {
                    busy = false;
                    guard.clear_ready();
                } else {
                    busy = true;
                }
            }
            () = tokio::time::sleep_until(deadline.into()) => {}
            () = rearm.notified() => {}
            changed = changed(&mut watch) => {
                if changed
                    && let (Ok(addresses), Ok(interfaces)) = (local_addresses().await, interfaces().await)
                    && let Some(shared) = shared.upgrade()
                {
                    let ifindex = shared.interface.ifindex;
                    shared.handle_change(&addresses, interfaces.iter().find(|one| one.ifindex == ifindex));
                }
            }
        }
        // Between two batches others on this thread get their turn.
        tokio::task::yield_now().await;
    }
}

/// Looks again for a moment after a burst: the next one is mostly under way already, and to sleep and
/// be woken, on a virtual machine above all, takes longer than it takes to come. Whether it came.
fn linger(shared: &Shared) -> bool {
    let until = Instant::now() + LINGER;
    loop {
        let now = Instant::now();
        if shared.lock().drain(now) > 0 {
            return true;
        }
        if now >= until {
            return false;
        }
        if shared.is_polite {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}

/// Waits for a change of addresses or links; a watch that fails is given up.
async fn changed(watch: &mut Option<AddressWatch>) -> bool {
    let ok = match watch {
        Some(watch) => watch.changed().await.is_ok(),
        None => std::future::pending().await,
    };
    if !ok {
        *watch = None;
    }
    ok
}
