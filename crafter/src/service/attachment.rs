//! An interface that the service is attached to, as long as something is leased on it and for some time after that.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    rc::{Rc, Weak},
    sync::Arc,
    time::Instant,
};

use tokio::{
    sync::{Notify, OnceCell},
    task::{JoinHandle, spawn_local},
};

use super::{backlog::RouteKey, next_hops::NextHops, shares::InterfaceMemory};
use crate::{
    Crafter, Error, Options, Result,
    datapath::{interface::Interface, program::Report, route::Route},
    driver::{LeaseId, Received, routes::Routes},
};

/// Takes the packets that arrive for one lease.
type Receiver = Box<dyn Fn(&[(LeaseId, Received)])>;

type OnChange = Box<dyn Fn(&Rc<Attachment>, Change)>;

/// Why an [`Attachment`] calls its `on_change`.
pub(super) enum Change {
    /// The last guard was dropped.
    Unused,
    /// The interface was removed.
    Removed,
}

/// An attached interface.
pub(super) struct Attachment {
    crafter: RefCell<Option<Crafter>>,
    interface: Interface,
    /// Its notes name no process: clients read them.
    report: Report,
    /// Notified of each packet for any lease.
    pub(super) arrived: Arc<Notify>,
    routes: Routes,
    next_hops: Rc<NextHops>,
    /// Routes that are being looked up again.
    renewed: RefCell<HashSet<RouteKey>>,
    /// The receivers of packets, by the driver's number of their lease.
    receivers: RefCell<HashMap<LeaseId, Receiver>>,
    /// Empty between two calls of `relay`, and kept for its memory.
    gathered: RefCell<Vec<(LeaseId, Received)>>,
    /// Guards held.
    users: Cell<u64>,
    /// When the last guard was dropped.
    unused_since: Cell<Instant>,
    /// Whether a task waits to detach it.
    pub(super) is_watched: Cell<bool>,
    on_change: OnChange,
}

impl Attachment {
    /// Attaches to the interface, and begins to hand arriving packets to receivers.
    pub(super) async fn open(
        name: &str,
        options: Options,
        next_hops: Rc<NextHops>,
        on_change: impl Fn(&Rc<Self>, Change) + 'static,
    ) -> Result<Rc<Self>> {
        let crafter = Crafter::open_off_thread(name, options).await?;
        let mut report = crafter.report().clone();
        let notes = report.notes_without_holder();
        if notes != report.notes {
            log::warn!("{name}: {}", report.notes.join("; "));
        }
        report.notes = notes;
        let arrived = Arc::new(Notify::new());
        crafter.watch(arrived.clone());
        let attachment = Rc::new(Self {
            interface: crafter.interface().clone(),
            report,
            crafter: RefCell::new(Some(crafter)),
            arrived,
            routes: Routes::of_service(),
            next_hops,
            renewed: RefCell::default(),
            receivers: RefCell::default(),
            gathered: RefCell::default(),
            users: Cell::new(0),
            unused_since: Cell::new(Instant::now()),
            is_watched: Cell::new(false),
            on_change: Box::new(on_change),
        });
        spawn_local(relay(Rc::downgrade(&attachment), attachment.arrived.clone()));
        Ok(attachment)
    }

    /// The interface as it was when it was attached.
    pub(super) fn interface(&self) -> &Interface {
        &self.interface
    }

    /// The interface's current name.
    pub(super) fn name(&self) -> Arc<str> {
        self.crafter.borrow().as_ref().map_or_else(|| self.interface.name.as_str().into(), Crafter::name)
    }

    /// The attach mode, and why no faster one was possible.
    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    /// How many guards keep the interface attached.
    pub(super) fn users(&self) -> u64 {
        self.users.get()
    }

    /// When the last guard was dropped; `None` while there are guards.
    pub(super) fn unused_since(&self) -> Option<Instant> {
        (self.users.get() == 0).then(|| self.unused_since.get())
    }

    /// The driver.
    ///
    /// # Errors
    /// [`Error::UnknownInterface`] while the interface is being detached.
    pub(super) fn crafter(&self) -> Result<Crafter> {
        let removed = || Error::UnknownInterface { name: self.interface.name.clone() };
        self.crafter.borrow().clone().ok_or_else(removed)
    }

    /// Detaches on another thread: the kernel takes tens of milliseconds for it. `None` if it was detached before.
    pub(super) fn detach(&self) -> Option<JoinHandle<()>> {
        let crafter = self.crafter.take()?;
        Some(tokio::task::spawn_blocking(move || {
            drop(crafter);
            trim_memory();
        }))
    }

    /// Hands packets that arrive for the lease `id` to `receiver`.
    pub(super) fn add_receiver(&self, id: LeaseId, receiver: impl Fn(&[(LeaseId, Received)]) + 'static) {
        self.receivers.borrow_mut().insert(id, Box::new(receiver));
    }

    /// Undoes [`add_receiver`](Self::add_receiver).
    pub(super) fn remove_receiver(&self, id: LeaseId) {
        let receiver = self.receivers.borrow_mut().remove(&id);
        drop(receiver);
    }

    /// Looks up every route again from now on.
    pub(super) fn forget_routes(&self) {
        self.routes.forget();
    }

    /// The cached route, if there is one. A stale one is returned too, and looked up again in the background for `user`,
    /// so that packets to a known destination never wait.
    pub(super) fn known_route(self: &Rc<Self>, user: u32, key: RouteKey) -> Option<Arc<Route>> {
        let (destination, source) = key;
        let (route, is_old) = self.routes.known_or_old(destination, source)?;
        if is_old && self.renewed.borrow_mut().insert(key) {
            let attachment = self.clone();
            spawn_local(async move {
                if attachment.find_route(user, key).await.is_err() {
                    attachment.routes.forget_one(destination, source);
                }
                attachment.renewed.borrow_mut().remove(&key);
            });
        }
        Some(route)
    }

    /// Whether [`find_route`](Self::find_route) can begin for `user`, or fails because too many lookups wait.
    pub(super) fn can_look_up(&self, user: u32) -> bool {
        self.next_hops.has_room(user)
    }

    /// Looks a route up for `user`.
    ///
    /// # Errors
    /// Those of [`NextHops::find`].
    pub(super) async fn find_route(&self, user: u32, (destination, source): RouteKey) -> Result<Arc<Route>> {
        if let Some(route) = self.routes.known(destination, source) {
            return Ok(route);
        }
        let name = self.name();
        let route: Result<_> = self.next_hops.find(user, Some(&name), destination, source, |_| Ok(())).await;
        Ok(self.routes.insert(destination, source, route?))
    }

    /// Hands arrived packets to the receivers. `false` once the interface is removed or being detached.
    pub(super) fn relay(&self) -> bool {
        let Ok(crafter) = self.crafter() else { return false };
        let mut gathered = self.gathered.take();
        let result = crafter.gather(&mut gathered);
        if matches!(result, Ok(true)) {
            self.arrived.notify_one();
        }
        let receivers = self.receivers.borrow();
        for run in gathered.chunk_by(|(a, _), (b, _)| a == b) {
            if let Some(receiver) = receivers.get(&run[0].0) {
                receiver(run);
            }
        }
        gathered.clear();
        self.gathered.replace(gathered);
        result.is_ok()
    }
}

/// Returns free heap memory to the kernel: an idle service holds none of the memory that it needed under load.
fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes no pointers, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

async fn relay(attachment: Weak<Attachment>, arrived: Arc<Notify>) {
    loop {
        arrived.notified().await;
        let Some(attachment) = attachment.upgrade() else { return };
        if !attachment.relay() {
            return (attachment.on_change)(&attachment, Change::Removed);
        }
        // Control calls and packets of clients are served between two batches.
        tokio::task::yield_now().await;
    }
}

/// An interface that is attached or being attached, and the users to whose limit it counts.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) attachment: OnceCell<Rc<Attachment>>,
    /// The number of guards of each user.
    guards: RefCell<HashMap<u32, usize>>,
    /// The memory of the interface while it is attached.
    pub(super) memory: RefCell<Option<InterfaceMemory>>,
    /// The user of the latest guard; set while there are no guards.
    last: Cell<Option<u32>>,
}

impl Slot {
    /// Whether the interface counts for a user.
    pub(super) fn is_of(&self, user: u32) -> bool {
        self.guards.borrow().contains_key(&user) || self.last.get() == Some(user)
    }

    /// Whether it has no guards.
    pub(super) fn is_unused(&self) -> bool {
        self.guards.borrow().is_empty()
    }
}

/// Counts an interface for a user.
pub(super) struct SlotGuard {
    slot: Rc<Slot>,
    user: u32,
}

impl SlotGuard {
    pub(super) fn new(slot: Rc<Slot>, user: u32) -> Self {
        *slot.guards.borrow_mut().entry(user).or_default() += 1;
        slot.last.set(None);
        Self { slot, user }
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        let mut guards = self.slot.guards.borrow_mut();
        if let Some(count) = guards.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                guards.remove(&self.user);
            }
        }
        self.slot.last.set(guards.is_empty().then_some(self.user));
    }
}

/// Keeps an interface attached.
pub(super) struct AttachmentGuard {
    pub(super) attachment: Rc<Attachment>,
    _slot: SlotGuard,
}

impl AttachmentGuard {
    pub(super) fn new(attachment: Rc<Attachment>, slot: SlotGuard) -> Self {
        attachment.users.set(attachment.users.get() + 1);
        Self { attachment, _slot: slot }
    }
}

impl Drop for AttachmentGuard {
    fn drop(&mut self) {
        let attachment = &self.attachment;
        attachment.users.set(attachment.users.get() - 1);
        if attachment.users() == 0 {
            attachment.unused_since.set(Instant::now());
            (attachment.on_change)(attachment, Change::Unused);
        }
    }
}
