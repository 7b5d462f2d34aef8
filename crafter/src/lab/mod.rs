//! A temporary network with real servers.
//!
//! ```text
//!   client namespace              server namespace
//!   lab0 192.0.2.2/24      <veth>  lab0 192.0.2.1/24     port 80  web (web.rs)
//!        2001:db8::2/64                 2001:db8::1/64   port 53  DNS (dns.rs)
//!                                                        tap of every RST that arrives (rst_tap.rs)
//! ```
//!
//! Both namespaces are anonymous: only file descriptors and threads of this process, and of the commands in them, refer
//! to them. When the process ends, even by SIGKILL, the kernel removes everything.

mod dns;
mod jail;
mod mounts;
mod netns;
mod options;
mod resolver_files;
mod rst_tap;
mod run;
mod server_thread;
mod setup;
mod shell_prompt;
mod veth;
mod web;
mod web_content;

pub use dns::{BIG_TXT_BYTES, LONG_TXT_BYTES, ZONE};
pub use netns::NetNs;
pub use options::{CLIENT_V4, CLIENT_V6, INTERFACE, LabOptions, SERVER_V4, SERVER_V6};
pub use rst_tap::{Rst, RstTap};
pub use run::{Ending, SignalForwarding, run, run_shell};
pub use setup::{Lab, environment};
pub use web_content::{Content, parse_size, sha256};
