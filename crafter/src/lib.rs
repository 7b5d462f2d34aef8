//! Craft TCP and UDP by hand on Linux without the kernel answering with a RST.
//!
//! - [`driver`]: open an interface, lease ports, send and receive, whole TCP streams. Start here:
//!   [`Crafter::open`].
//! - [`packet`]: headers to bytes and back, no IO.
//! - [`layer`]: packets of any layers with any fields, as Scapy has them, no IO.
//! - [`expr`]: their text form, and sets of packets. [`shell`]: a language around it. [`capture`]: files of them.
//! - [`session`]: send packets of any layers and have their answers matched: `send`, `sr`, `sr1`.
//! - [`probe`]: ping and traceroute, as scripts for a session.
//! - [`engine`]: conversations without IO: a cursor for segments by hand, streams, reassembly.
//! - [`policy`]: who may do what with the service, no IO.
//! - [`protocol`]: the wire between the service and its clients. [`service`]: the privileged process.
//! - [`datapath`]: all that touches the kernel: programs, maps, sockets, routes.
//! - [`lab`]: a throw-away network with a web and a DNS server to try things in.
//!
//! Features, all of them on by default: `lab`, `service` (the privileged process; its clients are always there),
//! `shell`, and `cli` for the program. A library user without them compiles no command line, no HTTP and no DNS server.
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

pub mod datapath;
#[cfg_attr(not(feature = "service"), allow(dead_code, reason = "the service uses the rest"))]
pub mod driver;
pub mod error;
#[cfg(feature = "lab")]
pub mod lab;
mod mmsg;
#[cfg_attr(not(feature = "service"), allow(dead_code, unused_imports, reason = "the service uses the rest"))]
pub mod policy;
pub mod probe;
pub mod protocol;
#[cfg(feature = "service")]
pub mod service;
pub mod session;
#[cfg(feature = "shell")]
pub mod shell;

pub use crafter_engine as engine;
pub use crafter_packet::{capture, expr, layer};

/// Headers of packets, and what is wrong with one that does not fit.
pub mod packet {
    pub use crafter_packet::{Error, header::*};
}

pub use driver::{Crafter, Lease, LeaseRequest, Options, PortChoice, Stream, StreamOptions};
pub use error::{Error, Result};

#[doc = include_str!("../docs/embedding.md")]
#[cfg(doctest)]
struct Embedding;

#[doc = include_str!("../docs/from-scapy.md")]
#[cfg(doctest)]
struct FromScapy;
