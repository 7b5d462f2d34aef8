//! An interface that the service is attached to, as long as something is leased on it.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    rc::{Rc, Weak},
    sync::Arc,
};

use tokio::{sync::Notify, task::spawn_local};

use super::hold::{Hold, Packet};
use crate::{
    Crafter, Error, Options, Result,
    datapath::{interface::Interface, program::Report, route::Route},
    driver::{Outgoing, Received, routes::Routes},
    service::record::Code,
};

/// Packets that wait for one next hop at most.
const WAITING: usize = 256;

/// An attached interface.
pub(super) struct Attachment {
    crafter: RefCell<Option<Crafter>>,
    interface: Interface,
    report: Report,
    /// Notified of whatever comes to any lease.
    pub(super) arrived: Arc<Notify>,
    routes: Routes,
    /// Leases by the driver's number.
    holds: RefCell<HashMap<u32, Rc<Hold>>>,
    /// What is gathered, kept for its room.
    gathered: RefCell<Vec<(u32, Received)>>,
    /// Packets whose next hop is being looked for.
    waiting: RefCell<HashMap<Bound, Vec<Waiting>>>,
    /// Leases of any kind on it.
    pub(super) users: Cell<u64>,
    is_gone: Cell<bool>,
}

/// Where a packet goes, and the source address that its way is asked for with.
type Bound = (IpAddr, Option<IpAddr>);

struct Waiting {
    hold: Rc<Hold>,
    packet: Vec<u8>,
}

impl Attachment {
    /// Attaches, and begins to hand on what comes; `gone` is called once if the interface goes away.
    pub(super) async fn open(name: &str, options: Options, gone: impl FnOnce(Rc<Self>) + 'static) -> Result<Rc<Self>> {
        let crafter = Crafter::open_beside(name, options).await?;
        let arrived = Arc::new(Notify::new());
        crafter.watch(arrived.clone());
        let attachment = Rc::new(Self {
            interface: crafter.interface().clone(),
            report: crafter.report().clone(),
            crafter: RefCell::new(Some(crafter)),
            arrived,
            routes: Routes::default(),
            holds: RefCell::default(),
            gathered: RefCell::default(),
            waiting: RefCell::default(),
            users: Cell::new(0),
            is_gone: Cell::new(false),
        });
        spawn_local(relay(Rc::downgrade(&attachment), attachment.arrived.clone(), gone));
        Ok(attachment)
    }

    /// The interface as it was when it was attached.
    pub(super) fn interface(&self) -> &Interface {
        &self.interface
    }

    /// How it is attached.
    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    /// Whether the interface went away.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.get()
    }

    /// The driver; none any more while it is being detached.
    pub(super) fn crafter(&self) -> Result<Crafter> {
        let gone = || Error::UnknownInterface { name: self.interface.name.clone() };
        self.crafter.borrow().clone().ok_or_else(gone)
    }

    /// Detaches. That takes the kernel a while, which nobody else has to wait for.
    pub(super) fn detach(&self) {
        if let Some(crafter) = self.crafter.take() {
            tokio::task::spawn_blocking(move || {
                drop(crafter);
                give_back();
            });
        }
    }

    /// Lists a lease for what comes to it.
    pub(super) fn list(&self, number: u32, hold: Rc<Hold>) {
        self.holds.borrow_mut().insert(number, hold);
    }

    /// Takes it from the list.
    pub(super) fn unlist(&self, number: u32) {
        self.holds.borrow_mut().remove(&number);
    }

    /// The lease of `user` with a port.
    pub(super) fn owner(&self, user: u32, owns: impl Fn(&Hold) -> bool) -> Option<Rc<Hold>> {
        self.holds.borrow().values().find(|hold| hold.subject().user == user && owns(hold)).cloned()
    }

    /// All listed leases.
    pub(super) fn holds(&self) -> Vec<Rc<Hold>> {
        self.holds.borrow().values().cloned().collect()
    }

    /// Has the kernel asked again for every route.
    pub(super) fn forget_routes(&self) {
        self.routes.forget();
    }

    /// The way to `destination` if it was found lately.
    pub(super) fn known_route(&self, destination: IpAddr, source: Option<IpAddr>) -> Option<Arc<Route>> {
        self.routes.known(destination, source)
    }

    /// Looks for the way to `destination`, and sends the packet then.
    pub(super) fn send_later(
        self: &Rc<Self>,
        hold: &Rc<Hold>,
        destination: IpAddr,
        source: Option<IpAddr>,
        packet: &[u8],
    ) {
        let key = (destination, source);
        let mut waiting = self.waiting.borrow_mut();
        let is_new = !waiting.contains_key(&key);
        let queue = waiting.entry(key).or_default();
        if queue.len() >= WAITING {
            let sentence = format!("{WAITING} packets wait for the next hop towards {destination} already");
            return hold.refuse(Code::NoNeighbour, 0, &sentence, packet);
        }
        queue.push(Waiting { hold: hold.clone(), packet: packet.to_vec() });
        drop(waiting);
        if is_new {
            let attachment = self.clone();
            spawn_local(async move {
                let found = attachment.routes.find(Some(&attachment.interface.name), destination, source).await;
                let queue = attachment.waiting.borrow_mut().remove(&key).unwrap_or_default();
                for Waiting { hold, packet } in queue {
                    match &found {
                        Ok(route) => attachment.transmit(&hold, &[Packet::Ip(route.clone(), &packet)]),
                        Err(error) => hold.refuse(code(error), 0, &error.to_string(), &packet),
                    }
                }
            });
        }
    }

    /// Sends packets of one lease, and hands on at once what comes back.
    pub(super) fn transmit(&self, hold: &Hold, packets: &[Packet<'_>]) {
        let Ok(crafter) = self.crafter() else { return };
        let sent = crafter.transmit(packets.iter().map(|packet| match packet {
            Packet::Ip(route, bytes) => Outgoing::Ip(route, bytes),
            Packet::Frame(bytes) => Outgoing::Frame(bytes),
        }));
        hold.handle_sent(packets, &sent);
        drop(crafter);
        self.relay();
    }

    /// Hands on what has come; whether the interface is still there.
    pub(super) fn relay(&self) -> bool {
        let Ok(crafter) = self.crafter() else { return false };
        let mut gathered = self.gathered.take();
        let result = crafter.gather(&mut gathered);
        let holds = self.holds.borrow();
        let mut rest = &gathered[..];
        while let Some((number, _)) = rest.first() {
            let count = rest.iter().take_while(|(other, _)| other == number).count();
            let (run, behind) = rest.split_at(count);
            if let Some(hold) = holds.get(number) {
                hold.deliver(run);
            }
            rest = behind;
        }
        gathered.clear();
        self.gathered.replace(gathered);
        result.is_ok()
    }
}

/// Gives memory that is free back to the kernel: at rest, the service keeps nothing of what it needed under load.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes no pointers, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What a route that was not found is to a client.
pub(super) fn code(error: &Error) -> Code {
    match error {
        Error::NoNeighbour { .. } => Code::NoNeighbour,
        Error::UnknownInterface { .. } => Code::InterfaceGone,
        Error::NoRoute { .. } | Error::Invalid { .. } => Code::NoRoute,
        _ => Code::NotSent,
    }
}

async fn relay(attachment: Weak<Attachment>, arrived: Arc<Notify>, gone: impl FnOnce(Rc<Attachment>)) {
    loop {
        arrived.notified().await;
        let Some(attachment) = attachment.upgrade() else { return };
        if !attachment.relay() {
            attachment.is_gone.set(true);
            return gone(attachment);
        }
    }
}
