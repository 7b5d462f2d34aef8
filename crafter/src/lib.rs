//! crafter: craft TCP and UDP by hand without the kernel answering with a RST.

pub mod datapath;
pub mod engine;
pub mod error;
pub mod lab;
pub mod packet;

pub use error::{Error, Result};
