//! The wire between the service and its clients: the varlink interface `org.crafter.v1`, and what lease sockets carry.

pub mod control;
pub mod record;
pub mod wire;

pub use control::{Control, Subscription, socket_path};
