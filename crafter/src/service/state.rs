//! The state of the service: the policy, the attached interfaces, the leases.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
    path::PathBuf,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::{Notify, broadcast};

use super::{
    accept::Spare,
    admission::Connections,
    attachment::{Attachment, Slot},
    call_turns::CallTurns,
    caller::Caller,
    clock::{Moment, now_us},
    closer::Closer,
    descriptors::Descriptors,
    dispatch::Dispatcher,
    host::audit::{Audit, Record},
    interfaces::InterfaceNames,
    leasing, names,
    next_hops::NextHops,
    peer_socket::PeerSocket,
    policy_file::{Loaded, PolicyFile},
    quota::Users,
    records,
    served_lease::{Closing, ServedLease},
    snapshots::{Selection, Snapshots, Source},
    transmit::Transmitter,
};
use crate::{
    Error, Options, Result,
    mmsg::Inbox,
    policy::{Host, Policy},
    protocol::{record::Code, wire::Event},
};

/// The longest message of a client: an IP packet of 65,535 bytes after an Ethernet header with two VLAN tags.
const LONGEST: usize = 65_535 + 22;

/// The maximum number of events that a monitor may lag behind.
const EVENTS: usize = 1024;

/// The host's addresses and broadcast addresses.
type Addresses = (Vec<IpAddr>, Vec<Ipv4Addr>);

/// The options of the service.
#[derive(Debug, Clone, Default)]
pub struct ServeOptions {
    /// The policy's file; `None`: [`POLICY`](super::POLICY), or the shipped policy if that file does not exist.
    pub policy: Option<PathBuf>,
    /// How interfaces are opened.
    pub open: Options,
    /// Stop after this time without leases and connections; `None`: never.
    pub idle: Option<Duration>,
    /// How long an interface stays attached after the last lease on it ends, if the policy does not set it; `None`:
    /// [`KEEP_ATTACHED`](super::KEEP_ATTACHED).
    pub keep_attached: Option<Duration>,
    /// Whether to run without the system call filter.
    pub without_filter: bool,
}

/// The service.
pub(super) struct Service {
    pub(super) options: ServeOptions,
    policy_file: PolicyFile,
    policy: RefCell<Rc<Policy>>,
    /// The path of the policy in force, or `shipped`.
    policy_source: RefCell<String>,
    /// Notified when the policy is reloaded.
    pub(super) reloaded: Notify,
    pub(super) users: Users,
    pub(super) descriptors: Descriptors,
    /// Searches for ports.
    pub(super) searches: leasing::SearchTurns,
    pub(super) turns: CallTurns,
    pub(super) snapshots: Snapshots,
    pub(super) closer: Closer,
    pub(super) spare: Spare,
    pub(super) leases: RefCell<BTreeMap<u64, Rc<ServedLease>>>,
    pub(super) closing: Closing,
    pub(super) attachments: RefCell<HashMap<String, Rc<Slot>>>,
    /// All slots, with those that are being detached.
    pub(super) slots: RefCell<Vec<Weak<Slot>>>,
    pub(super) interface_names: InterfaceNames,
    /// The numbers of each user's leases.
    leases_by_user: RefCell<BTreeSet<(u32, u64)>>,
    /// This host's addresses and broadcast addresses.
    host: RefCell<Option<Rc<Addresses>>>,
    next: Cell<u64>,
    events: broadcast::Sender<Event>,
    /// Buffers for messages from clients; `None` while they are in use.
    pub(super) inbox: RefCell<Option<Inbox>>,
    /// Open control connections.
    pub(super) connections: Rc<Connections>,
    /// Notified when the service may have become idle.
    pub(super) quiet: Notify,
    pub(super) started: Moment,
    pub(super) dispatcher: Dispatcher,
    pub(super) transmitter: Rc<Transmitter>,
    pub(super) next_hops: Rc<NextHops>,
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
    pub(super) async fn new(options: ServeOptions) -> Result<Rc<Self>> {
        let policy_file = PolicyFile::new(options.policy.clone());
        let Loaded { policy, source, owners } = policy_file.load().await?;
        let users = Users::default();
        users.set_owners(owners);
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        for warning in policy.warnings() {
            log::warn!("policy: {warning}");
        }
        Ok(Rc::new(Self {
            options,
            policy_file,
            policy: RefCell::new(Rc::new(policy)),
            descriptors: Descriptors::default(),
            searches: leasing::SearchTurns::default(),
            policy_source: RefCell::new(source),
            users,
            turns: CallTurns::default(),
            snapshots: Snapshots::default(),
            closer: Closer::default(),
            spare: Spare::default(),
            reloaded: Notify::new(),
            leases: RefCell::default(),
            leases_by_user: RefCell::default(),
            closing: Closing::default(),
            attachments: RefCell::default(),
            slots: RefCell::default(),
            interface_names: InterfaceNames::open()?,
            host: RefCell::default(),
            next: Cell::new(1),
            events: broadcast::channel(EVENTS).0,
            inbox: RefCell::new(Some(Inbox::new(LONGEST))),
            connections: Connections::new(descriptors),
            quiet: Notify::new(),
            started: Moment::now(),
            dispatcher: Dispatcher::default(),
            transmitter: Rc::default(),
            next_hops: Rc::default(),
            audit: Audit::open()?,
            activity: Cell::new(0),
            busy: Notify::new(),
        }))
    }

    /// The policy in force.
    pub(super) fn policy(&self) -> Rc<Policy> {
        self.policy.borrow().clone()
    }

    /// The path of the policy in force, or `shipped`.
    pub(super) fn policy_source(&self) -> String {
        self.policy_source.borrow().clone()
    }

    /// Reloads the policy, ends the leases that it does not allow, and returns their numbers.
    ///
    /// # Errors
    /// Those of the policy; the previous policy remains in force then.
    pub(super) async fn reload(&self) -> Result<Vec<u64>> {
        let mut loaded = self.policy_file.load().await;
        if let Err(Error::Io { source, .. }) = &loaded
            && [Some(libc::EMFILE), Some(libc::ENFILE)].contains(&source.raw_os_error())
            && self.spare.release()
        {
            loaded = self.policy_file.load().await;
        }
        let Loaded { policy, source, owners } = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                self.record(&Record::ReloadFailed { reason: &error.to_string() });
                return Err(error);
            }
        };
        let policy = Rc::new(policy);
        self.policy.replace(policy.clone());
        self.policy_source.replace(source);
        self.users.set_owners(owners);
        self.reloaded.notify_waiters();
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

    /// Like [`host`](Self::host). Without a list, every address is foreign.
    fn host_now(&self) -> Host {
        self.host(0).unwrap_or_default()
    }

    /// Handles a change of the host's addresses: clears them and all cached routes, and renews the grants of leases.
    pub(super) fn handle_addresses(&self) {
        self.host.replace(None);
        let (policy, host) = (self.policy(), self.host_now());
        self.leases.borrow().values().for_each(|lease| lease.renew(&policy, &host));
        self.attached().iter().for_each(|attachment| attachment.forget_routes());
        self.next_hops.forget_absent();
    }

    /// The service's end of a new lease's socket, before the client has the other end.
    pub(super) fn peer_socket(&self, ours: OwnedFd, caller: &Caller) -> PeerSocket {
        PeerSocket::of_pair(ours, &self.closer, self.users.account(caller.subject.user))
    }

    /// Buffers for messages from clients: new ones while the others are in use.
    pub(super) fn take_inbox(&self) -> Inbox {
        self.inbox.take().unwrap_or_else(|| Inbox::new(LONGEST))
    }

    /// An unused number for a lease.
    pub(super) fn number(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        number
    }

    /// Adds a lease.
    pub(super) fn begin(&self, lease: Rc<ServedLease>) {
        self.emit_of("lease-begun", &lease);
        let policy = self.policy();
        // The addresses may have changed since the lease was planned.
        lease.renew(&policy, &self.host_now());
        let rule = policy.rule_of(lease.subject()).map(|rule| rule.number);
        records::begin(&self.audit, &lease, rule);
        self.leases_by_user.borrow_mut().insert((lease.subject().user, lease.terms.number));
        self.leases.borrow_mut().insert(lease.terms.number, lease);
    }

    /// Removes a lease, returns its ports and closes its socket.
    pub(super) fn forget(&self, lease: &Rc<ServedLease>) {
        if self.leases.borrow_mut().remove(&lease.terms.number).is_none() {
            return;
        }
        self.leases_by_user.borrow_mut().remove(&(lease.subject().user, lease.terms.number));
        if !lease.backlog.borrow().is_empty() {
            self.transmitter.give_up(lease);
        }
        records::end(&self.audit, lease, lease.close(&self.closing));
        self.emit_of("lease-ended", lease);
        self.quiet.notify_one();
    }

    /// Notes a call or a packet of a client: the next one is usually in flight already.
    pub(super) fn note_activity(&self) {
        self.activity.set(self.activity.get() + 1);
        self.busy.notify_one();
    }

    /// Whether there are no leases and connections, and no interface is in use or being attached.
    pub(super) fn is_idle(&self) -> bool {
        let is_unused = |slot: &Rc<Slot>| slot.attachment.get().is_some_and(|attachment| attachment.users() == 0);
        let attachments = self.attachments.borrow();
        self.connections.is_empty() && self.leases.borrow().is_empty() && attachments.values().all(is_unused)
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

    /// At most `most` leases after `after`, sorted by number.
    pub(super) fn leases_after(&self, after: u64, most: usize) -> Vec<Rc<ServedLease>> {
        let leases = self.leases.borrow();
        leases.range(after.saturating_add(1)..).take(most).map(|(_, lease)| lease.clone()).collect()
    }

    /// The leases of a user, sorted by number; `None`: of all users.
    pub(super) fn leases_of(&self, user: Option<u32>) -> Vec<Rc<ServedLease>> {
        let leases = self.leases.borrow();
        let Some(user) = user else { return leases.values().cloned().collect() };
        let by_user = self.leases_by_user.borrow();
        let numbers = by_user.range((user, 0)..=(user, u64::MAX)).map(|(_, number)| number);
        numbers.filter_map(|number| leases.get(number).cloned()).collect()
    }

    /// The maps of an interface; `None`: of all attached ones.
    pub(super) fn map_sources(&self, interface: Option<&str>) -> Vec<Source> {
        let attached = self.attached().into_iter();
        let wanted = attached.filter(|attachment| interface.is_none_or(|name| *attachment.name() == *name));
        let source = |attachment: Rc<Attachment>| {
            let reader = attachment.crafter().ok()?.map_reader()?;
            Some(Source { name: attachment.name().to_string(), reader, leases: Vec::new() })
        };
        wanted.filter_map(source).collect()
    }

    /// The maps to read the selected flows from, with the ports of the selected user.
    pub(super) fn flow_sources(&self, selection: &Selection) -> Vec<Source> {
        let mut sources = self.map_sources(selection.interface.as_deref());
        let Some(user) = selection.whose else { return sources };
        for lease in self.leases_of(Some(user)) {
            let name = lease.attachment.name();
            let Some(source) = sources.iter_mut().find(|source| *source.name == *name) else { continue };
            source.leases.extend(lease.driver_lease().map(|lease| lease.0));
        }
        sources
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

    /// Removes the leases that have not ended by themselves.
    pub(super) fn forget_all(&self) {
        let leases: Vec<_> = self.leases.borrow().values().cloned().collect();
        leases.iter().for_each(|lease| self.forget(lease));
    }

    /// Sends an event of a lease to all monitors, if there are any.
    fn emit_of(&self, event: &str, lease: &ServedLease) {
        if self.events.receiver_count() > 0 {
            self.emit(Event { event: event.to_owned(), ..event_of(lease) });
        }
    }

    /// Sends an event to all monitors.
    pub(super) fn emit(&self, event: Event) {
        // Fails if no client monitors events.
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
