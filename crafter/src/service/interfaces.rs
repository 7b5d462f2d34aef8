//! The interfaces that the service is attached to, and the users for whom they count.

use std::{
    os::fd::OwnedFd,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType,
    netdevice::{index_to_name, name_to_index},
    socket_with,
};
use tokio::task::JoinHandle;

use super::{
    attachment::{Attachment, AttachmentGuard, Change, Slot, SlotGuard},
    shares::InterfaceMemory,
    state::{Service, event},
};
use crate::{
    Error, Result,
    policy::{Decision, Subject, Verdict},
    protocol::{record::Code, wire::Event},
};

/// How long an interface stays attached after its last lease, if neither the policy nor the options set it.
pub const KEEP_ATTACHED: Duration = Duration::from_secs(30);

/// The maximum number of interfaces attached for users with a limit of interfaces. A user may have at most as many as
/// are left, so that a few users do not use all.
pub(super) const MAX_INTERFACES: usize = 128;

/// Looks up names and indices of interfaces through one socket. if_nametoindex(3) opens and closes one for each lookup,
/// and finds nothing while the process has no descriptor left.
pub(super) struct InterfaceNames(OwnedFd);

impl InterfaceNames {
    /// Opens the socket.
    ///
    /// # Errors
    /// [`Error::Io`] if the process is out of descriptors.
    pub(super) fn open() -> Result<Self> {
        socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .map(Self)
            .map_err(|errno| Error::Io { action: "look up interfaces".to_owned(), source: errno.into() })
    }

    /// The index of an interface; `None` if there is none of this name.
    fn index(&self, name: &str) -> Option<u32> {
        name_to_index(&self.0, name).ok()
    }

    /// The name of an interface; `None` if it was removed.
    fn name(&self, index: u32) -> Option<String> {
        index_to_name(&self.0, index).ok()
    }
}

impl Service {
    /// Updates the names of attached interfaces as far as `name` is concerned: one may have been renamed or removed.
    fn rename(&self, name: &str) {
        let index = self.interface_names.index(name);
        let mut attachments = self.attachments.borrow_mut();
        let is_at = |slot: &Rc<Slot>, index| {
            slot.attachment.get().is_some_and(|there| Some(there.interface().ifindex) == index)
        };
        if attachments.get(name).is_some_and(|slot| slot.attachment.initialized() && !is_at(slot, index))
            && let Some(slot) = attachments.remove(name)
            && let Some(now) =
                slot.attachment.get().and_then(|there| self.interface_names.name(there.interface().ifindex))
        {
            attachments.insert(now, slot);
        }
        if index.is_some() && !attachments.contains_key(name) {
            let before = attachments.iter().find(|(_, slot)| is_at(slot, index)).map(|(before, _)| before.clone());
            if let Some(slot) = before.and_then(|before| attachments.remove(&before)) {
                attachments.insert(name.to_owned(), slot);
            }
        }
    }

    /// Attaches to an interface.
    ///
    /// # Errors
    /// Those of [`crate::Crafter::open`].
    async fn attach(self: &Rc<Self>, name: &str, memory: &InterfaceMemory) -> Result<Rc<Attachment>> {
        let weak = Rc::downgrade(self);
        let on_change = move |attachment: &Rc<Attachment>, change| {
            let Some(service) = weak.upgrade() else { return };
            match change {
                Change::Unused => service.watch_unused(attachment),
                Change::Removed => service.handle_removed(attachment),
            }
        };
        let mut options = self.options.open.clone();
        memory.apply(&mut options.load);
        let attachment = Attachment::open(name, options, self.next_hops.clone(), on_change).await?;
        let message = Some(attachment.report().to_string());
        self.emit(Event { event: "attached".to_owned(), interface: Some(name.to_owned()), message, ..event() });
        Ok(attachment)
    }

    /// Attaches to an interface if necessary, and keeps it attached for `subject`.
    ///
    /// # Errors
    /// The decision of the policy if the user has leases on too many interfaces; those of [`crate::Crafter::open`].
    pub(super) async fn guard<E: From<Decision> + From<Error>>(
        self: &Rc<Self>,
        subject: &Subject,
        name: &str,
    ) -> Result<AttachmentGuard, E> {
        let account = self.users.account(subject.user);
        let known = loop {
            self.rename(name);
            let known = self.attachments.borrow().get(name).cloned();
            if known.as_ref().is_some_and(|slot| slot.is_of(account)) {
                break known;
            }
            let Err(decision) = self.admit(subject) else { break known };
            // Detaches an interface without leases, which was only kept attached, to make room for this one.
            match self.detach_unused(account) {
                Some(detached) => _ = detached.await,
                None => return Err(decision.into()),
            }
        };
        let slot = known.unwrap_or_else(|| {
            let slot = Rc::<Slot>::default();
            self.slots.borrow_mut().push(Rc::downgrade(&slot));
            self.attachments.borrow_mut().insert(name.to_owned(), slot.clone());
            slot
        });
        let used = SlotGuard::new(slot.clone(), account);
        let attach = async || {
            let memory = self.users.pools.interface_memory(account);
            let attachment = self.attach(name, &memory).await?;
            slot.memory.replace(Some(memory));
            Ok::<_, Error>(attachment)
        };
        match slot.attachment.get_or_try_init(attach).await {
            Ok(attachment) => Ok(AttachmentGuard::new(attachment.clone(), used)),
            Err(error) => {
                drop(used);
                if slot.is_unused() && !slot.attachment.initialized() {
                    // No other task waits for it.
                    self.attachments.borrow_mut().retain(|_, other| !Rc::ptr_eq(other, &slot));
                }
                Err(error.into())
            }
        }
    }

    /// Decides whether a user may lease on another interface.
    ///
    /// # Errors
    /// The decision that refuses it.
    fn admit(&self, subject: &Subject) -> Result<(), Decision> {
        let held = self.interfaces_of(self.users.account(subject.user));
        let policy = self.policy();
        let decision = policy.interfaces(subject, held);
        let is_limited = policy.rule_of(subject).is_some_and(|rule| rule.max_interfaces.is_some());
        let left = MAX_INTERFACES.saturating_sub(self.slots.borrow().len());
        match decision.is_allowed() {
            true if is_limited && held as usize >= left => Err(Decision { verdict: Verdict::Interfaces, ..decision }),
            true => Ok(()),
            false => Err(decision),
        }
    }

    /// The interfaces that count for a user: those with leases of the user, and until they are detached those whose
    /// last lease was the user's.
    pub(super) fn interfaces_of(&self, user: u32) -> u32 {
        let mut slots = self.slots.borrow_mut();
        slots.retain(|slot| slot.strong_count() > 0);
        slots.iter().filter_map(Weak::upgrade).filter(|slot| slot.is_of(user)).count() as u32
    }

    /// All attached interfaces.
    pub(super) fn attached(&self) -> Vec<Rc<Attachment>> {
        let mut attached: Vec<_> =
            self.attachments.borrow().values().filter_map(|slot| slot.attachment.get().cloned()).collect();
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
        for lease in self.leases_on(attachment) {
            lease.end(Code::InterfaceRemoved, &sentence);
        }
        self.detach(attachment);
        self.quiet.notify_one();
    }

    /// Detaches from an interface once it is unused for as long as the policy says. One task for each interface watches
    /// it until then, or until it is used again.
    fn watch_unused(self: &Rc<Self>, attachment: &Rc<Attachment>) {
        if attachment.is_watched.replace(true) {
            return;
        }
        let (service, attachment) = (self.clone(), attachment.clone());
        tokio::task::spawn_local(async move {
            while let Some(since) = attachment.unused_since() {
                let until = since + service.keep_attached();
                if Instant::now() >= until {
                    let name = attachment.name().to_string();
                    if service.detach(&attachment).is_some() {
                        service.emit(Event { event: "detached".to_owned(), interface: Some(name), ..event() });
                        service.quiet.notify_one();
                    }
                    break;
                }
                tokio::select! {
                    () = tokio::time::sleep_until(until.into()) => {}
                    () = service.reloaded.notified() => {}
                }
            }
            attachment.is_watched.set(false);
        });
    }

    fn keep_attached(&self) -> Duration {
        self.policy().keep_attached().or(self.options.keep_attached).unwrap_or(KEEP_ATTACHED)
    }

    /// Begins to detach an interface that has no leases and counts for a user, if there is one.
    fn detach_unused(&self, user: u32) -> Option<JoinHandle<()>> {
        let is_unused = |slot: &&Rc<Slot>| slot.is_unused() && slot.is_of(user);
        let attachment = self.attachments.borrow().values().find(is_unused)?.attachment.get().cloned();
        self.detach(&attachment?)
    }

    /// Begins to detach an interface. It counts for its users until the task ends. `None` if it was detached before.
    fn detach(&self, attachment: &Rc<Attachment>) -> Option<JoinHandle<()>> {
        let is_this = |slot: &Slot| slot.attachment.get().is_some_and(|there| Rc::ptr_eq(there, attachment));
        let removed = self.attachments.borrow_mut().extract_if(|_, slot| is_this(slot)).next();
        let ((_, slot), detached) = (removed?, attachment.detach()?);
        Some(tokio::task::spawn_local(async move {
            let _ = detached.await;
            drop(slot);
        }))
    }
}
