//! The types of `org.crafter.v1` in JSON. Names and fields are those of `org.crafter.v1.varlink`.

use serde::{Serialize, de::DeserializeOwned};

/// The interface.
pub const INTERFACE: &str = "org.crafter.v1";

/// The version of the header on lease sockets and of the methods.
pub const ABI: u32 = 1;

/// The interface description.
pub const DESCRIPTION: &str = include_str!("org.crafter.v1.varlink");

/// The parameters of a method.
pub trait Method: Serialize + DeserializeOwned + std::fmt::Debug {
    /// Its full name.
    const NAME: &'static str;
    /// The reply.
    type Reply: Serialize + DeserializeOwned + std::fmt::Debug;
}

macro_rules! methods {
    ($($name:literal $call:ident -> $reply:ident;)*) => {
        $(impl Method for $call {
            const NAME: &'static str = concat!("org.crafter.v1.", $name);
            type Reply = $reply;
        })*
        /// The names of all methods.
        pub const METHODS: &[&str] = &[$(<$call as Method>::NAME,)*];
    };
}

methods! {
    "Info" InfoCall -> Info;
    "Interfaces" InterfacesCall -> Interfaces;
    "Policy" PolicyCall -> Allowance;
    "Reload" ReloadCall -> Reloaded;
    "Route" RouteCall -> RouteReply;
    "Lease" LeaseCall -> Leased;
    "Observe" ObserveCall -> Observing;
    "Release" ReleaseCall -> Nothing;
    "Account" AccountCall -> Account;
    "ListLeases" ListLeasesCall -> Leases;
    "ListFlows" ListFlowsCall -> Flows;
    "Counters" CountersCall -> Counters;
    "Monitor" MonitorCall -> Events;
}

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
            #[serde(default)]
            pub struct $name {
                $($(#[$field_doc])* pub $field: $type,)*
            }
        )*
    };
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
            #[serde(deny_unknown_fields)]
            pub struct $name {
                $($(#[$field_doc])*
                #[serde(skip_serializing_if = "crate::protocol::wire::is_null")]
                pub $field: $type,)*
            }
        )*
    };
}

/// Whether a parameter may be left out.
pub(crate) trait Absent {
    fn is_absent(&self) -> bool;
}

impl<T> Absent for Option<T> {
    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

macro_rules! never_absent {
    ($($type:ty)*) => { $(impl Absent for $type { fn is_absent(&self) -> bool { false } })* };
}

never_absent! { String u32 u64 }

pub(crate) fn is_null(value: &impl Absent) -> bool {
    value.is_absent()
}

mod call;
mod fault;
mod reply;

pub use self::{call::*, fault::Fault, reply::*};
