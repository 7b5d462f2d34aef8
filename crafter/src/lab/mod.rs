//! A throw-away network with real servers in it.
//!
//! ```text
//!   client namespace              server namespace
//!   lab0 192.0.2.2/24      <veth>  lab0 192.0.2.1/24     port 80  web (web.rs)
//!        2001:db8::2/64                 2001:db8::1/64   port 53  DNS (dns.rs)
//!                                                        tap of every RST that arrives (rst_tap.rs)
//! ```
//!
//! Both namespaces are anonymous: nothing but file descriptors and threads of
//! this process (and of what runs inside) refers to them. When the process
//! ends, even by SIGKILL, the kernel takes all of it down.

mod dns;
mod jail;
mod mounts;
mod netns;
mod options;
mod resolver_files;
mod rst_tap;
mod run;
mod server_thread;
mod shell_prompt;
mod veth;
mod web;
mod web_content;

use std::{fmt, process::Command, sync::Arc};

pub use dns::{BIG_TXT_BYTES, LONG_TXT_BYTES, ZONE};
pub use netns::NetNs;
pub use options::{CLIENT_V4, CLIENT_V6, INTERFACE, LabOptions, SERVER_V4, SERVER_V6};
pub use rst_tap::{Rst, Tap};
pub use run::{Ending, SignalForwarding, run, run_shell};
pub use web_content::{Content, parse_size, sha256};

use crate::Result;
use server_thread::Service;

/// A running lab. Dropping it stops the servers and lets go of the namespaces,
/// which the kernel then removes as soon as no other process is inside.
pub struct Lab {
    // Declared first, dropped first: the servers' sockets would keep the
    // namespaces alive.
    services: Vec<Service>,
    tap: Arc<Tap>,
    client: NetNs,
    server: NetNs,
    /// Whether its DNS server runs.
    dns: bool,
}

impl Lab {
    /// Sets the network up and starts the servers; when it returns, both ends
    /// have carrier and the servers listen.
    ///
    /// # Errors
    /// [`crate::Error::Permission`] without CAP_SYS_ADMIN and CAP_NET_ADMIN,
    /// [`crate::Error::Invalid`] for an MTU out of range, [`crate::Error::Io`] otherwise.
    pub fn new(options: &LabOptions) -> Result<Self> {
        veth::check(options)?;
        let client = NetNs::new()?;
        let server = NetNs::new()?;
        veth::connect(&client, &server, options)?;
        let tap = Arc::new(server.run(|| Tap::open(INTERFACE))??);
        let mut services = Vec::new();
        if options.web {
            services.push(web::start(&server, Arc::clone(&tap))?);
        }
        if options.dns {
            services.push(dns::start(&server)?);
        }
        Ok(Self { services, tap, client, server, dns: options.dns })
    }

    /// The namespace where the programs under test run.
    pub fn client(&self) -> &NetNs {
        &self.client
    }

    /// The namespace of the servers.
    pub fn server(&self) -> &NetNs {
        &self.server
    }

    /// The tap that collects the TCP RST segments that reach the server.
    pub fn tap(&self) -> &Tap {
        &self.tap
    }

    /// A command that will run in the client namespace with [`environment`] set;
    /// see [`NetNs::command`].
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.client.command(program);
        command.envs(environment());
        command
    }
}

impl fmt::Debug for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lab")
            .field("client", &self.client)
            .field("server", &self.server)
            .field("services", &self.services.len())
            .finish()
    }
}

/// The environment that tells a command in the client namespace where things are.
pub fn environment() -> [(&'static str, String); 5] {
    [
        ("CRAFTER_LAB_WEB", format!("http://{SERVER_V4}")),
        ("CRAFTER_LAB_WEB6", format!("http://[{SERVER_V6}]")),
        ("CRAFTER_LAB_DNS", SERVER_V4.to_string()),
        ("CRAFTER_LAB_DNS6", SERVER_V6.to_string()),
        ("CRAFTER_LAB_INTERFACE", INTERFACE.to_owned()),
    ]
}
