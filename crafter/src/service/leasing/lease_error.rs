//! The errors of leasing.

use super::super::{descriptors::NoDescriptors, host::audit::Cause};
use crate::{Error, policy::Decision, protocol::wire::Fault};

/// Why a lease was not granted.
#[derive(Debug)]
pub(super) enum LeaseError {
    /// The policy refused.
    Refused(Decision),
    /// The driver or the kernel refused.
    Failed(Error),
    /// The service has no descriptors left for this user.
    NoDescriptors(NoDescriptors),
    Fault(Fault),
}

impl LeaseError {
    /// Converts the error for the wire; `refused` records a refusal: of the policy, or one that says that the host or
    /// the service has not enough of something.
    pub(super) fn into_fault(self, refused: impl FnOnce(Cause)) -> Fault {
        match self {
            Self::Refused(decision) => {
                refused(Cause::Policy(decision));
                decision.into()
            }
            Self::Failed(error) => {
                if let Error::NoFreePorts { .. } = error {
                    refused(Cause::Ports(&error.to_string()));
                }
                error.into()
            }
            Self::NoDescriptors(none) => {
                let message = none.to_string();
                refused(Cause::Descriptors(&message));
                Fault::Failed { message }
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
        Self::Failed(error)
    }
}

impl From<NoDescriptors> for LeaseError {
    fn from(none: NoDescriptors) -> Self {
        Self::NoDescriptors(none)
    }
}

impl From<Fault> for LeaseError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}
