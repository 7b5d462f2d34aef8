//! The service and its host: start-up, privileges and logs.
//!
//! - [`systemd`]: readiness, watchdog, and the socket that the service manager opened.
//! - [`privileges`]: four capabilities, a fifth if locked memory is limited, and an unprivileged user.
//! - [`seccomp`]: the system call filter.
//! - [`audit`]: records of leases and refusals in the journal.
//!
//! In the order of a start: [`systemd::listener`], [`privileges::confine`] (before there are threads), operations that
//! the filter forbids, [`seccomp::install`], [`systemd::Notifier::ready`].

pub mod audit;
pub mod privileges;
pub mod seccomp;
pub mod systemd;

#[cfg(test)]
mod child;
