//! Craft TCP and UDP by hand on Linux without the kernel answering with a RST.
//!
//! - [`driver`]: opens an interface, leases ports, sends and receives packets, and opens TCP streams. Start here:
//!   [`Crafter::open`].
//! - [`packet`]: reads and builds headers, without IO.
//! - [`layer`]: packets of any layers with any fields, as in Scapy, without IO.
//! - [`expr`]: the text form of packets, and sets of packets. [`shell`]: the language of the prompt. [`capture`]:
//!   capture files.
//! - [`session`]: sends packets of any layers and matches their replies: `send`, `sr`, `sr1`.
//! - [`probe`]: ping and traceroute on a session.
//! - [`engine`]: TCP streams, conversations by hand and reassembly, without IO.
//! - [`policy`]: decides which user may do what through the service, without IO.
//! - [`protocol`]: the protocol between the service and its clients. [`service`]: the privileged process.
//! - [`datapath`]: the only module that touches the kernel: programs, maps, sockets, routes.
//! - [`lab`]: a throw-away network with a web and a DNS server.
//!
//! Features, all on by default: `lab`, `service` (the privileged process and its policy; clients need no feature),
//! `shell`, and `cli` for the program. A library user without them compiles no command line, no TOML, no HTTP and no
//! DNS server.
//!
//! One crafted handshake, and a page:
//!
//! ```no_run
//! use crafter::{Crafter, LeaseRequest, Options, StreamOptions};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # async fn page() -> Result<(), Box<dyn std::error::Error>> {
//! let crafter = Crafter::open("eth0", Options::default()).await?;
//! println!("{}", crafter.report());
//! let lease = crafter.lease(LeaseRequest::tcp()).await?;
//! let mut stream = lease.connect("192.0.2.1:80".parse()?, StreamOptions::default()).await?;
//! stream.write_all(b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\nConnection: close\r\n\r\n").await?;
//! let mut page = Vec::new();
//! stream.read_to_end(&mut page).await?;
//! stream.shutdown().await?;
//! stream.closed().await?;
//! # Ok(()) }
//! ```

#![deny(missing_docs)]

pub mod datapath;
#[cfg_attr(not(feature = "service"), allow(dead_code, unused_imports, reason = "the service uses the rest"))]
pub mod driver;
pub mod error;
#[cfg(feature = "lab")]
pub mod lab;
mod mmsg;
#[cfg(feature = "service")]
pub mod policy;
pub mod probe;
pub mod protocol;
mod scoped;
#[cfg(feature = "service")]
pub mod service;
pub mod session;
#[cfg(feature = "shell")]
pub mod shell;

pub use crafter_engine as engine;
pub use crafter_packet::{capture, expr, layer};

/// Reading and building headers, and the errors of it.
pub mod packet {
    pub use crafter_packet::{Error, Excerpt, view::*};
}

pub use driver::{Crafter, Lease, LeaseRequest, Options, PortChoice, Stream, StreamOptions};
pub use error::{Error, Result};

#[doc = include_str!("../docs/embedding.md")]
#[cfg(doctest)]
struct Embedding;

#[doc = include_str!("../docs/from-scapy.md")]
#[cfg(doctest)]
struct FromScapy;
