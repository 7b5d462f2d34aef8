//! What the service has to do with the host that it runs on, beside packets.
//!
//! - [`systemd`]: readiness, watchdog, the socket that the service manager opened.
//! - [`privileges`]: four capabilities, a fifth where locked memory is limited, and a user that is not root.
//! - [`seccomp`]: a filter of system calls.
//! - [`audit`]: who leased what, who was refused what: records in the journal.
//!
//! In the order in which a service starts: [`systemd::listener`], [`privileges::confine`] (before there is any thread),
//! all that needs more than the filter gives, [`seccomp::install`], [`systemd::Notifier::ready`].

pub mod audit;
pub mod privileges;
pub mod seccomp;
pub mod systemd;

#[cfg(test)]
mod child;
