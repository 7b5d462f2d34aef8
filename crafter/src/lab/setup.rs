//! [`Lab`]: sets up the two namespaces, the link between them and the servers.

use std::{ffi::OsStr, process::Command, sync::Arc};

use super::{
    dns,
    netns::NetNs,
    options::{INTERFACE, LabOptions, SERVER_V4, SERVER_V6},
    rst_tap::RstTap,
    server_thread::ServerThread,
    veth, web,
};
use crate::Result;

/// A running lab. Dropping it stops the servers and closes the namespaces; the kernel removes them once no other
/// process is in them.
#[derive(Debug)]
pub struct Lab {
    // Declared first, dropped first: the servers' sockets keep the namespaces.
    _servers: Vec<ServerThread>,
    tap: Arc<RstTap>,
    client: NetNs,
    server: NetNs,
    /// Whether its DNS server runs.
    pub(super) dns: bool,
}

impl Lab {
    /// Sets the network up and starts the servers; when it returns, both ends have carrier and the servers listen.
    ///
    /// # Errors
    /// [`crate::Error::Permission`] without CAP_SYS_ADMIN and CAP_NET_ADMIN,
    /// [`crate::Error::Invalid`] for an MTU out of range, [`crate::Error::Io`] otherwise.
    pub fn new(options: &LabOptions) -> Result<Self> {
        veth::check(options)?;
        let client = NetNs::new()?;
        let server = NetNs::new()?;
        veth::connect(&client, &server, options)?;
        let tap = Arc::new(server.run(|| RstTap::open(INTERFACE))??);
        let mut servers = Vec::new();
        if options.web {
            servers.push(web::start(&server, Arc::clone(&tap))?);
        }
        if options.dns {
            servers.push(dns::start(&server)?);
        }
        Ok(Self { _servers: servers, tap, client, server, dns: options.dns })
    }

    /// The namespace of the programs under test.
    pub fn client(&self) -> &NetNs {
        &self.client
    }

    /// The namespace of the servers.
    pub fn server(&self) -> &NetNs {
        &self.server
    }

    /// The tap that collects the TCP RSTs that the server receives.
    pub fn tap(&self) -> &RstTap {
        &self.tap
    }

    /// A command to run in the client namespace with [`environment`] set; see [`NetNs::command`].
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.client.command(program);
        command.envs(environment());
        command
    }
}

/// Environment variables for commands in the client namespace: addresses of the servers, name of the interface.
pub fn environment() -> [(&'static str, String); 5] {
    [
        ("CRAFTER_LAB_WEB", format!("http://{SERVER_V4}")),
        ("CRAFTER_LAB_WEB6", format!("http://[{SERVER_V6}]")),
        ("CRAFTER_LAB_DNS", SERVER_V4.to_string()),
        ("CRAFTER_LAB_DNS6", SERVER_V6.to_string()),
        ("CRAFTER_LAB_INTERFACE", INTERFACE.to_owned()),
    ]
}
