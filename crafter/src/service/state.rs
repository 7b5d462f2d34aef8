//! The state of the service: the policy, the attached interfaces, the leases.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use nix::net::if_::{if_indextoname, if_nametoindex};
use tokio::sync::{Notify, OnceCell, broadcast};

use super::{
    attachment::{Attachment, AttachmentGuard, Change},
    clock::{Moment, now_us},
    dispatch::Dispatcher,
    host::audit::{Audit, Record},
    names::{self, HostNames},
    quota::Users,
    records,
    served_lease::ServedLease,
    transmit::Transmitter,
};
use crate::{
    Error, Options, Result,
    mmsg::Inbox,
    policy::{Host, Policy, SHIPPED},
    protocol::{record::Code, wire::Event},
};

/// The longest message of a client: an IP packet of 65,535 bytes after an Ethernet header with two VLAN tags.
const LONGEST: usize = 65_535 + 22;

/// How long an interface stays attached after its last lease, so that a client that leases again at once need not wait
/// for the kernel.
const DETACH_DELAY: Duration = Duration::from_secs(1);

/// The most events that a monitor may lag behind.
const EVENTS: usize = 1024;

type Slot = Rc<OnceCell<Rc<Attachment>>>;

/// The host's addresses and broadcast addresses.
type Addresses = (Vec<IpAddr>, Vec<Ipv4Addr>);

/// The default file of the policy.
pub const POLICY: &str = "/etc/crafter/crafter.toml";

/// The options of the service.
#[derive(Debug, Clone, Default)]
pub struct ServeOptions {
    /// The policy's file; `None`: [`POLICY`], or the shipped policy if that file does not exist.
    pub policy: Option<PathBuf>,
    /// How interfaces are opened.
    pub open: Options,
    /// Stop after this time without leases, attachments and connections; `None`: never.
    pub idle: Option<Duration>,
    /// Without the system call filter.
    pub without_filter: bool,
}

/// The service.
pub(super) struct Service {
    pub(super) options: ServeOptions,
    policy: RefCell<Rc<Policy>>,
    pub(super) users: Users,
    pub(super) leases: RefCell<BTreeMap<u64, Rc<ServedLease>>>,
    attachments: RefCell<HashMap<String, Slot>>,
    /// This host's addresses and broadcast addresses.
    host: RefCell<Option<Rc<Addresses>>>,
    next: Cell<u64>,
    events: broadcast::Sender<Event>,
    /// Buffers for messages from clients.
    pub(super) inbox: RefCell<Inbox>,
    /// Open control connections.
    pub(super) connections: Cell<usize>,
    /// Notified when the service may have become idle.
    pub(super) quiet: Notify,
    pub(super) started: Moment,
    pub(super) dispatcher: Dispatcher,
    pub(super) transmitter: Rc<Transmitter>,
    pub(super) audit: Audit,
    /// Counts calls of clients, and batches of their packets.
    pub(super) activity: Cell<u64>,
    /// Notified of activity.
    pub(super) busy: Notify,
}

impl Service {
    /// Makes a service with the policy of `options`.
    ///
    /// # Errors
    /// Those of the policy.
    pub(super) fn new(options: ServeOptions) -> Result<Rc<Self>> {
        let policy = load(options.policy.as_ref())?;
        for warning in policy.warnings() {
            log::warn!("policy: {warning}");
        }
        Ok(Rc::new(Self {
            options,
            policy: RefCell::new(Rc::new(policy)),
            users: Users::default(),
            leases: RefCell::default(),
            attachments: RefCell::default(),
            host: RefCell::default(),
            next: Cell::new(1),
            events: broadcast::channel(EVENTS).0,
            inbox: RefCell::new(Inbox::new(LONGEST)),
            connections: Cell::new(0),
            quiet: Notify::new(),
            started: Moment::now(),
            dispatcher: Dispatcher::default(),
            transmitter: Rc::default(),
            audit: Audit::open()?,
            activity: Cell::new(0),
            busy: Notify::new(),
        }))
    }

    /// The policy in force.
    pub(super) fn policy(&self) -> Rc<Policy> {
        self.policy.borrow().clone()
    }

    /// Reloads the policy, ends the leases that it does not allow, and returns their numbers.
    ///
    /// # Errors
    /// Those of the policy; the previous policy remains in force then.
    pub(super) fn reload(&self) -> Result<Vec<u64>> {
        let policy = match load(self.options.policy.as_ref()) {
            Ok(policy) => Rc::new(policy),
            Err(error) => {
                self.record(&Record::ReloadFailed { reason: &error.to_string() });
                return Err(error);
            }
        };
        self.policy.replace(policy.clone());
        let mut ended = Vec::new();
        for (&number, lease) in &*self.leases.borrow() {
            let decision = policy.review(&lease.terms.grant);
            if !decision.is_allowed() {
                lease.end(Code::Policy, &decision.to_string());
                ended.push(number);
            }
        }
        let (rules, warnings) = (policy.rules().len(), policy.warnings().len());
        self.record(&Record::Reload { rules, warnings, ended: ended.len() });
        Ok(ended)
    }

    /// The facts about the host for the policy, for an interface with this MTU.
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel does not list its addresses.
    pub(super) fn host(&self, mtu: u32) -> Result<Host> {
        let known = self.host.borrow().clone();
        let known = match known {
            Some(known) => known,
            None => self.host.borrow_mut().insert(Rc::new(names::addresses()?)).clone(),
        };
        let (addresses, broadcasts) = &*known;
        // The length field limits packets over `lo`.
        let mtu = (mtu as usize).min(usize::from(u16::MAX));
        Ok(Host { addresses: addresses.clone(), broadcasts: broadcasts.clone(), mtu })
    }

    /// Handles a change of the host's addresses: clears them and all cached routes.
    pub(super) fn handle_addresses(&self) {
        self.host.replace(None);
        self.attached().iter().for_each(|attachment| attachment.forget_routes());
    }

    /// Updates the names of attached interfaces as far as `name` is concerned: one may have been renamed or removed.
    fn rename(&self, name: &str) {
        let index = if_nametoindex(name).ok();
        let mut attachments = self.attachments.borrow_mut();
        let is_at = |slot: &Slot, index| slot.get().is_some_and(|there| Some(there.interface().ifindex) == index);
        if attachments.get(name).is_some_and(|slot| slot.initialized() && !is_at(slot, index))
            && let Some(slot) = attachments.remove(name)
            && let Some(now) = slot.get().and_then(|there| if_indextoname(there.interface().ifindex).ok())
        {
            attachments.insert(now.to_string_lossy().into_owned(), slot);
        }
        if index.is_some() && !attachments.contains_key(name) {
            let before = attachments.iter().find(|(_, slot)| is_at(slot, index)).map(|(before, _)| before.clone());
            if let Some(slot) = before.and_then(|before| attachments.remove(&before)) {
                attachments.insert(name.to_owned(), slot);
            }
        }
    }

    /// The attachment to an interface; attaches if necessary.
    ///
    /// # Errors
    /// Those of [`crate::Crafter::open`].
    async fn attachment(self: &Rc<Self>, name: &str) -> Result<Rc<Attachment>> {
        self.rename(name);
        let slot = self.attachments.borrow_mut().entry(name.to_owned()).or_default().clone();
        let result = slot
            .get_or_try_init(|| async {
                let weak = Rc::downgrade(self);
                let on_change = move |attachment: &Rc<Attachment>, change| {
                    let Some(service) = weak.upgrade() else { return };
                    match change {
                        Change::Unused => service.detach_later(attachment),
                        Change::Removed => service.handle_removed(attachment),
                    }
                };
                let attachment = Attachment::open(name, self.options.open.clone(), on_change).await?;
                let message = Some(attachment.report().to_string());
                self.emit(Event { event: "attached".to_owned(), interface: Some(name.to_owned()), message, ..event() });
                Ok(attachment)
            })
            .await
            .cloned();
        if result.is_err() && !slot.initialized() && Rc::strong_count(&slot) <= 2 {
            // No other task waits for it.
            self.attachments.borrow_mut().remove(name);
        }
        result
    }

    /// Attaches to an interface if necessary, and keeps it attached.
    ///
    /// # Errors
    /// Those of [`crate::Crafter::open`].
    pub(super) async fn guard(self: &Rc<Self>, name: &str) -> Result<AttachmentGuard> {
        Ok(AttachmentGuard::new(self.attachment(name).await?))
    }

    /// All attached interfaces.
    pub(super) fn attached(&self) -> Vec<Rc<Attachment>> {
        let mut attached: Vec<_> = self.attachments.borrow().values().filter_map(|slot| slot.get().cloned()).collect();
        attached.sort_by_key(|attachment| attachment.name());
        attached
    }

    fn handle_removed(&self, attachment: &Rc<Attachment>) {
        let name = attachment.name().to_string();
        let sentence = format!("the interface {name} was removed");
        self.emit(Event {
            event: "hook-lost".to_owned(),
            interface: Some(name.clone()),
            message: Some(sentence.clone()),
            ..event()
        });
        let is_this = |slot: &Slot| slot.get().is_some_and(|there| Rc::ptr_eq(there, attachment));
        self.attachments.borrow_mut().retain(|_, slot| !is_this(slot));
        for lease in self.leases_on(attachment) {
            lease.end(Code::InterfaceRemoved, &sentence);
        }
        attachment.detach();
        self.quiet.notify_one();
    }

    /// An unused number for a lease.
    pub(super) fn number(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        number
    }

    /// Adds a lease.
    pub(super) fn begin(&self, lease: Rc<ServedLease>) {
        self.emit(Event { event: "lease-begun".to_owned(), ..event_of(&lease) });
        let rule = self.policy().rule_of(lease.subject()).map(|rule| rule.number);
        records::begin(&self.audit, &lease, rule);
        self.leases.borrow_mut().insert(lease.terms.number, lease);
    }

    /// Removes a lease, returns its ports and closes its socket.
    pub(super) fn forget(&self, lease: &Rc<ServedLease>) {
        if self.leases.borrow_mut().remove(&lease.terms.number).is_none() {
            return;
        }
        if !lease.backlog.borrow().is_empty() {
            self.transmitter.give_up(lease);
        }
        records::end(&self.audit, lease, lease.close());
        self.emit(Event { event: "lease-ended".to_owned(), ..event_of(lease) });
        self.quiet.notify_one();
    }

    /// Detaches from an unused interface after [`DETACH_DELAY`], unless it is used again by then.
    fn detach_later(self: &Rc<Self>, attachment: &Rc<Attachment>) {
        let (service, attachment) = (self.clone(), attachment.clone());
        tokio::task::spawn_local(async move {
            tokio::time::sleep(DETACH_DELAY).await;
            let name = attachment.name().to_string();
            let mut attachments = service.attachments.borrow_mut();
            let is_this = |slot: &Slot| slot.get().is_some_and(|there| Rc::ptr_eq(there, &attachment));
            if attachment.users() == 0 && attachments.values().any(is_this) {
                attachments.retain(|_, slot| !is_this(slot));
                attachment.detach();
                drop(attachments);
                service.emit(Event { event: "detached".to_owned(), interface: Some(name), ..event() });
                service.quiet.notify_one();
            }
        });
    }

    /// Notes a call or a packet of a client: the next one is usually in flight already.
    pub(super) fn note_activity(&self) {
        self.activity.set(self.activity.get() + 1);
        self.busy.notify_one();
    }

    /// Whether there are no leases, attachments and connections.
    pub(super) fn is_idle(&self) -> bool {
        self.connections.get() == 0 && self.leases.borrow().is_empty() && self.attachments.borrow().is_empty()
    }

    /// The leases on an interface.
    pub(super) fn leases_on(&self, attachment: &Rc<Attachment>) -> Vec<Rc<ServedLease>> {
        let leases = self.leases.borrow();
        leases.values().filter(|lease| Rc::ptr_eq(&lease.attachment, attachment)).cloned().collect()
    }

    /// Writes an audit record.
    pub(super) fn record(&self, record: &Record<'_>) {
        self.audit.record(record, Instant::now());
    }

    /// A lease by its number.
    pub(super) fn lease(&self, number: u64) -> Option<Rc<ServedLease>> {
        self.leases.borrow().get(&number).cloned()
    }

    /// The leases after `after`, sorted by number.
    pub(super) fn leases_after(&self, after: u64) -> Vec<Rc<ServedLease>> {
        self.leases.borrow().range(after.saturating_add(1)..).map(|(_, lease)| lease.clone()).collect()
    }

    /// The number of leases.
    pub(super) fn lease_count(&self) -> usize {
        self.leases.borrow().len()
    }

    /// Ends all leases; the clients receive the reason.
    pub(super) fn stop(&self) {
        for lease in self.leases.borrow().values() {
            lease.end(Code::Stops, "the service stops");
        }
    }

    /// Sends an event to all monitors.
    pub(super) fn emit(&self, event: Event) {
        // There may be no monitor.
        let _ = self.events.send(event);
    }

    /// Subscribes to events.
    pub(super) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

/// An event of the current time.
pub(super) fn event() -> Event {
    Event { time: now_us(), ..Event::default() }
}

/// An event of a lease.
pub(super) fn event_of(lease: &ServedLease) -> Event {
    let lease = lease.describe();
    Event {
        interface: Some(lease.interface),
        lease: Some(lease.lease),
        user: Some(lease.user),
        protocol: Some(lease.protocol),
        first_port: lease.first_port,
        last_port: lease.last_port,
        ..event()
    }
}

/// Loads the policy from its file; the shipped policy if no file is named and the default file does not exist.
fn load(path: Option<&PathBuf>) -> Result<Policy> {
    let text = match path {
        None => match std::fs::read_to_string(POLICY) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => SHIPPED.to_owned(),
            read => read.map_err(|source| Error::Io { action: format!("read {}", POLICY), source })?,
        },
        Some(path) => std::fs::read_to_string(path)
            .map_err(|source| Error::Io { action: format!("read {}", path.display()), source })?,
    };
    Policy::load(&text, &HostNames)
}
