//! The errors of leasing.

use crate::{Error, policy::Decision, protocol::wire::Fault};

/// Why a lease was not granted.
#[derive(Debug)]
pub(super) enum LeaseError {
    Refused(Decision),
    Fault(Fault),
}

impl LeaseError {
    /// Converts the error for the wire; `refused` records a refusal of the policy.
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

impl From<Decision> for LeaseError {
    fn from(decision: Decision) -> Self {
        Self::Refused(decision)
    }
}

impl From<Error> for LeaseError {
    fn from(error: Error) -> Self {
        Self::Fault(error.into())
    }
}

impl From<Fault> for LeaseError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}
