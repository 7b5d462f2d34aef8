//! Why a request leads to no lease.

use crate::{Error, policy::Decision, protocol::wire::Fault};

/// Why there is no lease.
#[derive(Debug)]
pub(super) enum NoLease {
    Refused(Decision),
    Fault(Fault),
}

impl NoLease {
    /// On the wire; `refused` is told what the policy refused.
    pub(super) fn into_fault(self, refused: impl FnOnce(Decision)) -> Fault {
        match self {
            Self::Refused(decision) => {
                refused(decision);
                decision.into()
            }
            Self::Fault(fault) => fault,
        }
    }
}

impl From<Decision> for NoLease {
    fn from(decision: Decision) -> Self {
        Self::Refused(decision)
    }
}

impl From<Error> for NoLease {
    fn from(error: Error) -> Self {
        Self::Fault(error.into())
    }
}

impl From<Fault> for NoLease {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}
