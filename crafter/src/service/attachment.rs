//! An interface that the service is attached to, as long as something is leased on it.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    rc::{Rc, Weak},
    sync::Arc,
};

use tokio::{sync::Notify, task::spawn_local};

use super::{
    backlog::{Bound, Packet},
    served_lease::ServedLease,
};
use crate::{
    Crafter, Error, Options, Result,
    datapath::{interface::Interface, program::Report, route::Route},
    driver::{LeaseId, NoRoom, Received, TxPacket, routes::Routes},
    protocol::record::Code,
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
    leases: RefCell<HashMap<LeaseId, Rc<ServedLease>>>,
    /// What is gathered, kept for its room.
    gathered: RefCell<Vec<(LeaseId, Received)>>,
    /// Packets whose next hop is being looked for.
    waiting: RefCell<HashMap<Bound, Vec<Waiting>>>,
    /// Ways that are being looked for again.
    renewed: RefCell<HashSet<Bound>>,
    /// Leases of any kind on it.
    pub(super) users: Cell<u64>,
    is_gone: Cell<bool>,
}

struct Waiting {
    lease: Rc<ServedLease>,
    packet: Vec<u8>,
}

impl Attachment {
    /// Attaches, and begins to hand on what comes; `gone` is called once if the interface goes away.
    pub(super) async fn open(name: &str, options: Options, gone: impl FnOnce(Rc<Self>) + 'static) -> Result<Rc<Self>> {
        let crafter = Crafter::open_off_thread(name, options).await?;
        let arrived = Arc::new(Notify::new());
        crafter.watch(arrived.clone());
        let attachment = Rc::new(Self {
            interface: crafter.interface().clone(),
            report: crafter.report().clone(),
            crafter: RefCell::new(Some(crafter)),
            arrived,
            routes: Routes::default(),
            leases: RefCell::default(),
            gathered: RefCell::default(),
            waiting: RefCell::default(),
            renewed: RefCell::default(),
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

    /// The interface's name now.
    pub(super) fn name(&self) -> Arc<str> {
        self.crafter.borrow().as_ref().map_or_else(|| self.interface.name.as_str().into(), Crafter::name)
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
    pub(super) fn list(&self, number: LeaseId, lease: Rc<ServedLease>) {
        self.leases.borrow_mut().insert(number, lease);
    }

    /// Takes it from the list.
    pub(super) fn unlist(&self, number: LeaseId) {
        self.leases.borrow_mut().remove(&number);
    }

    /// The lease of `user` with a port.
    pub(super) fn owner(&self, user: u32, owns: impl Fn(&ServedLease) -> bool) -> Option<Rc<ServedLease>> {
        self.leases.borrow().values().find(|lease| lease.subject().user == user && owns(lease)).cloned()
    }

    /// All listed leases.
    pub(super) fn leases(&self) -> Vec<Rc<ServedLease>> {
        self.leases.borrow().values().cloned().collect()
    }

    /// Has the kernel asked again for every route.
    pub(super) fn forget_routes(&self) {
        self.routes.forget();
    }

    /// The way to `destination` if it was found lately. Before that is too long ago it is looked for again, beside what
    /// is sent: nothing has to wait for what is known already.
    fn known_route(self: &Rc<Self>, bound: Bound) -> Option<Arc<Route>> {
        let (destination, source) = bound;
        let (route, is_old) = self.routes.known_or_old(destination, source)?;
        if is_old && self.renewed.borrow_mut().insert(bound) {
            let attachment = self.clone();
            spawn_local(async move {
                let found = attachment.routes.find(Some(&attachment.name()), destination, source).await;
                if found.is_err() {
                    attachment.routes.forget_one(destination, source);
                }
                attachment.renewed.borrow_mut().remove(&bound);
            });
        }
        Some(route)
    }

    /// Looks for the way of a packet, and sends it then; whether there is room for it until then.
    fn send_later(self: &Rc<Self>, lease: &Rc<ServedLease>, bound: Bound, packet: &[u8]) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let is_new = !waiting.contains_key(&bound);
        let queue = waiting.entry(bound).or_default();
        if queue.len() >= WAITING {
            return false;
        }
        queue.push(Waiting { lease: lease.clone(), packet: packet.to_vec() });
        drop(waiting);
        if is_new {
            let attachment = self.clone();
            spawn_local(async move {
                let found = attachment.routes.find(Some(&attachment.name()), bound.0, bound.1).await;
                let mut queue = attachment.waiting.borrow_mut().remove(&bound).unwrap_or_default();
                // Lease by lease, each in its order.
                queue.sort_by_key(|waiting| Rc::as_ptr(&waiting.lease));
                for run in queue.chunk_by(|a, b| Rc::ptr_eq(&a.lease, &b.lease)) {
                    let lease = &run[0].lease;
                    let packets = run.iter().map(|waiting| &waiting.packet[..]);
                    match &found {
                        Ok(route) => {
                            let packets: Vec<_> = packets.map(|bytes| Packet::Ip(route.clone(), bytes)).collect();
                            let tried = attachment.send(lease, &packets, NoRoom::Stop);
                            // What is kept already came later.
                            lease.keep_first(&packets[tried..]);
                        }
                        Err(error) => {
                            let sentence = error.to_string();
                            packets.for_each(|packet| lease.refuse(code(error), 0, &sentence, packet));
                        }
                    }
                }
            });
        }
        true
    }

    /// Sends packets of one lease, and hands on at once what comes back. Those that there is no room for are kept, and all
    /// that come behind them.
    pub(super) fn transmit(self: &Rc<Self>, lease: &Rc<ServedLease>, packets: &[Packet<'_>]) {
        let tried = if lease.backlog.borrow().is_empty() { self.send(lease, packets, NoRoom::Stop) } else { 0 };
        if tried < packets.len() {
            lease.keep(&packets[tried..]);
        }
    }

    /// Tries again to send what is kept; as `no_room` says where there is still no room.
    pub(super) fn retry(self: &Rc<Self>, lease: &Rc<ServedLease>, no_room: NoRoom) {
        let backlog = lease.backlog.take();
        let tried = self.send(lease, &backlog.packets(), no_room);
        lease.backlog.replace(backlog.without(tried));
    }

    /// How many of the packets were tried; all where nothing is attached any more.
    fn send(self: &Rc<Self>, lease: &Rc<ServedLease>, packets: &[Packet<'_>], no_room: NoRoom) -> usize {
        let Ok(crafter) = self.crafter() else { return packets.len() };
        let mut done = 0;
        while let Some(packet) = packets.get(done) {
            let ready: Vec<_> = packets[done..].iter().map_while(|packet| self.ready(packet)).collect();
            if ready.is_empty() {
                let Packet::Wanted(bound, bytes) = packet else { break };
                match (self.send_later(lease, *bound, bytes), no_room) {
                    (true, _) => {}
                    (false, NoRoom::Stop) => break,
                    (false, NoRoom::Refuse) => {
                        let sentence = format!("{WAITING} packets wait for the next hop towards {} already", bound.0);
                        lease.refuse(Code::NoNeighbour, 0, &sentence, bytes);
                    }
                }
                done += 1;
                continue;
            }
            let outgoing = ready.iter().filter_map(|packet| match packet {
                Packet::Ip(route, bytes) => Some(TxPacket::Ip(route, bytes)),
                Packet::Frame(bytes) => Some(TxPacket::Frame(bytes)),
                Packet::Wanted(..) => None,
            });
            let sent = crafter.transmit_or(outgoing, no_room);
            lease.handle_sent(&ready[..sent.tried], &sent);
            done += sent.tried;
            if sent.tried < ready.len() {
                break;
            }
        }
        drop(crafter);
        self.relay();
        done
    }

    /// A packet whose way is known.
    fn ready<'p>(self: &Rc<Self>, packet: &Packet<'p>) -> Option<Packet<'p>> {
        match packet {
            Packet::Ip(route, bytes) => Some(Packet::Ip(route.clone(), bytes)),
            Packet::Frame(bytes) => Some(Packet::Frame(bytes)),
            Packet::Wanted(bound, bytes) => self.known_route(*bound).map(|route| Packet::Ip(route, bytes)),
        }
    }

    /// Hands on what has come; whether the interface is still there.
    pub(super) fn relay(&self) -> bool {
        let Ok(crafter) = self.crafter() else { return false };
        let mut gathered = self.gathered.take();
        let result = crafter.gather(&mut gathered);
        let leases = self.leases.borrow();
        let mut rest = &gathered[..];
        while let Some((number, _)) = rest.first() {
            let count = rest.iter().take_while(|(other, _)| other == number).count();
            let (run, behind) = rest.split_at(count);
            if let Some(lease) = leases.get(number) {
                lease.deliver(run);
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
