//! The protocol between the service and its clients: the varlink interface `org.crafter.v1`, and the messages on lease
//! sockets.

pub mod control;
pub mod record;
pub mod wire;

pub use control::{Control, Subscription, socket_path};
