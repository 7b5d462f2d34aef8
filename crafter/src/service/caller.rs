//! Who calls, by the kernel's word.

use std::rc::Rc;

use super::served_lease::Tally;
use crate::policy::Subject;

/// Who calls.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) subject: Subject,
    pub(super) pid: Option<u32>,
    /// What became of the packets of all leases of this connection.
    pub(super) total: Rc<Tally>,
}
