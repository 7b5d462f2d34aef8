//! Craft TCP and UDP by hand on Linux without the kernel answering with a RST.

pub mod datapath;
pub mod engine;
pub mod error;
pub mod packet;

pub use error::{Error, Result};
