//! Craft TCP and UDP by hand on Linux without the kernel answering with a RST.

pub mod datapath;
pub mod driver;
pub mod engine;
pub mod error;
pub mod packet;

pub use driver::{Crafter, Lease, LeaseRequest, Options, PortChoice, Stream, StreamOptions};
pub use error::{Error, Result};
