//! The caller of a method, by the credentials of the socket.

use std::rc::Rc;

use super::served_lease::Tally;
use crate::policy::Subject;

/// The caller.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) subject: Subject,
    pub(super) pid: Option<u32>,
    /// Counters of all leases of this connection.
    pub(super) total: Rc<Tally>,
}
