//! What the service has to do with the host that it runs on, beside packets.
//!
//! - [`systemd`]: readiness, watchdog, the socket that the service manager opened.
//! - [`privileges`]: four capabilities and no other, and a user that is not root.
//!
//! In the order in which a service starts: [`systemd::listener`], [`privileges::confine`] (before there is any thread),
//! what opens files and loads programs for the first time, [`systemd::Notifier::ready`].

pub mod privileges;
pub mod systemd;

#[cfg(test)]
mod child;
