//! What stands between the engine and smoltcp.

pub(crate) mod device;
pub(crate) mod repair;
pub(crate) mod timestamps;
