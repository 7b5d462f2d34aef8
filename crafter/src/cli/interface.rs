//! Options of every command that sends: interface, addresses, and how replies are received.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use crafter::{
    Crafter, Error, LeaseRequest, Options, Result,
    datapath::{
        address::local_addresses,
        interface,
        maps::Terms,
        program::{Attach, LoadOptions},
        route,
    },
    packet::Transport,
    protocol::Control,
    session::{Session, SessionOptions},
};

use nix::net::if_::if_indextoname;

use super::{complete, service, zone};

/// Time limit for closing streams and releasing leases at the end of a command.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Which interface to use, and how.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Interface and port")]
pub struct Link {
    /// Interface to send and receive on [default: the interface of the route]
    #[arg(long, short, visible_alias = "iface", value_name = "IF", add = complete::interfaces())]
    pub interface: Option<String>,
    /// Source address, one of this host [default: the source address of the route]
    #[arg(long, value_name = "ADDR")]
    pub source: Option<IpAddr>,
    #[command(flatten)]
    engine: Engine,
    #[command(flatten)]
    service: service::Args,
    /// How long to wait for the next hop to answer; `None`: as long as the kernel.
    #[arg(skip)]
    pub hop_timeout: Option<Duration>,
    /// Whether few packets are sent and received, so that less memory is allocated and the command starts earlier.
    #[arg(skip)]
    pub is_small: bool,
}

/// How the kernel half is attached. Only the long help lists these options and those of [`Policy`].
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Engine")]
struct Engine {
    /// Ingress hook: native or generic XDP, tc, or the fastest that is available
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = attach(), hide_short_help = true)]
    attach: Attach,
    /// Entries of the flow map. The kernel allocates them at the start: a million takes about
    /// 150 ms, and one command has few flows
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..), hide_short_help = true)]
    flows: u32,
}

/// What happens to packets of owned ports besides delivery to crafter.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Engine")]
pub struct Policy {
    /// Pass packets for the owned ports to the kernel too; crafter receives copies
    #[arg(long, hide_short_help = true)]
    observe: bool,
    /// What happens to RSTs and port-unreachables that the kernel sends from those ports
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = RstPolicy::Suppress, hide_short_help = true)]
    rst: RstPolicy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum RstPolicy {
    /// Dropped and counted.
    Suppress,
    /// Sent.
    Pass,
}

impl Policy {
    /// The terms of a lease.
    pub fn terms(&self) -> Terms {
        Terms { observe: self.observe, suppress: self.rst == RstPolicy::Suppress, ..Terms::default() }
    }
}

/// Whether half-open connections are reset at the end.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Engine")]
pub struct HalfOpen {
    /// Do not reset half-open connections (SYN-ACK not acknowledged) at the end; the kernel resets each
    /// when the peer repeats its SYN-ACK
    #[arg(long, hide_short_help = true)]
    leave_open: bool,
}

/// Options of commands that use one port.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Interface and port")]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    pub link: Link,
    #[command(flatten)]
    policy: Policy,
    /// Source port, 1 to 65535 [default: a free port from 49152 on]
    #[arg(long, value_name = "PORT", help_heading = "Interface and port", value_parser = clap::value_parser!(u16).range(1..))]
    source_port: Option<u16>,
}

/// Parser of attach modes.
pub fn attach() -> impl TypedValueParser<Value = Attach> {
    PossibleValuesParser::new(["auto", "native", "generic", "tc"]).try_map(|mode| mode.parse::<Attach>())
}

impl Link {
    /// The interface that the options or the zone of an address name.
    ///
    /// # Errors
    /// [`Error::Invalid`] if they name different ones; [`Error::UnknownInterface`] for a zone without an interface.
    pub fn name(&self, remote: SocketAddr) -> Result<Option<String>> {
        let Some(index) = zone::index(remote) else { return Ok(self.interface.clone()) };
        let name = if_indextoname(index).ok().and_then(|name| name.into_string().ok());
        // nix 0.30 returns an empty name instead of the error.
        let name = name.filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Error::UnknownInterface { name: index.to_string() })?;
        match &self.interface {
            Some(given) if *given != name => {
                let reason = format!("the zone of the address is {name}; leave out one of them");
                Err(Error::invalid(format!("--interface {given}"), reason))
            }
            _ => Ok(Some(name)),
        }
    }

    /// Attaches to the interface of the route to `remote`, which is that of its zone if it has one.
    ///
    /// # Errors
    /// Those of [`Crafter::open`], and of the route; without a route nothing is attached.
    pub async fn open(&self, remote: SocketAddr) -> Result<Crafter> {
        let (destination, interface) = (remote.ip(), self.name(remote)?);
        let local = local_addresses().await?;
        let is_local = |address: IpAddr| address.is_loopback() || local.contains(&address);
        if let Some(source) = self.source.filter(|source| !is_local(*source)) {
            let reason = format_args!("{source} is not an address of this host; `ip address` lists them");
            return Err(Error::invalid("--source", reason));
        }
        let service = self.service().await?;
        let route = match &service {
            // The service resolves the next hop; this process may lack the privileges.
            Some(_) => route::without_hop(destination, interface.as_deref(), self.source).await?,
            None => {
                let limit = self.hop_timeout.unwrap_or(Duration::MAX);
                route::resolve_within(destination, interface.as_deref(), self.source, limit).await?
            }
        };
        let actual = &route.interface;
        let reason = match interface.as_deref() {
            Some(given) if given != actual => {
                format!(
                    "it is an address of this host, reached over {actual}, not over {given}; use --interface {actual}"
                )
            }
            Some(lo) if interface::interface(lo).await?.loopback && !is_local(destination) => {
                format!("{lo} reaches only addresses of this host; use another --interface")
            }
            _ => String::new(),
        };
        if !reason.is_empty() {
            return Err(Error::NoRoute { destination, reason });
        }
        match service {
            Some(control) => Crafter::via_service(control, &route.interface).await,
            None => Crafter::open(&route.interface, self.options()).await,
        }
    }

    /// A connection to the service; `None` if this process attaches itself.
    ///
    /// # Errors
    /// Those of [`service::Args::open`]; [`Error::Invalid`] for `--attach` with `--socket`.
    pub async fn service(&self) -> Result<Option<Arc<Control>>> {
        if self.engine.attach != Attach::Auto {
            if self.service.is_requested() {
                let reason = "the service chooses its attach mode; use --direct, or leave --attach out";
                return Err(Error::invalid("--attach", reason));
            }
            return Ok(None);
        }
        Ok(self.service.open().await?.map(Arc::new))
    }

    /// How to open an interface.
    fn options(&self) -> Options {
        // At level debug the kernel half logs each packet that it consumes or drops.
        let debug = log::log_enabled!(log::Level::Debug);
        let sizes = if self.is_small { LoadOptions::small() } else { LoadOptions::default() };
        let load = LoadOptions { flow_entries: self.engine.flows, debug, ..sizes };
        Options { attach: self.engine.attach, load }
    }

    /// A session with these options.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a source that is not an address of this host.
    pub async fn session(&self, terms: Terms, half_open: &HalfOpen) -> Result<Session> {
        raise_descriptors();
        if let Some(source) = self.source
            && !source.is_loopback()
            && !local_addresses().await?.contains(&source)
        {
            let reason =
                format_args!("{source} is not an address of this host; for any other source, set src in the packet");
            return Err(Error::invalid("--source", reason));
        }
        let (interface, source) = (self.interface.clone(), self.source);
        Ok(Session::new(SessionOptions {
            interface,
            source,
            open: self.options(),
            terms,
            service: self.service().await?,
            leave_open: half_open.leave_open,
            hop_timeout: self.hop_timeout,
        }))
    }
}

/// Raises the soft limit of open files to the hard limit. Each owned port costs one file descriptor, and the usual soft
/// limit is 1,024.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

impl Args {
    /// The lease to request.
    pub fn request(&self, transport: Transport) -> LeaseRequest {
        let mut request = LeaseRequest { terms: self.policy.terms(), ..LeaseRequest::new(transport) };
        if let Some(address) = self.link.source {
            request = request.address(address);
        }
        match self.source_port {
            Some(port) => request.port(port),
            None => request,
        }
    }
}

/// Closes streams and leases, then detaches.
pub async fn close(crafter: Crafter) {
    if !crafter.close(CLOSE_TIMEOUT).await {
        log::info!("streams have not closed within {CLOSE_TIMEOUT:?}; the end of this process closes them");
    }
}
