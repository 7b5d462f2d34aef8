//! The options of every command that sends: where, from where, and how to receive.

use std::{net::IpAddr, sync::Arc, time::Duration};

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

use super::service;

/// How long leases and streams that are no longer wanted may take to go.
const CLOSING: Duration = Duration::from_secs(2);

/// Which interface to use, and how.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Interface and port")]
pub struct Link {
    /// Send and receive on this interface [default: the one that the route leaves by]
    #[arg(long, short, visible_alias = "iface", value_name = "IF")]
    pub interface: Option<String>,
    /// Ingress hook: native or generic XDP, tc, or the fastest that can be had
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = attach())]
    attach: Attach,
    /// Send from this address of this host [default: the one that the route prefers]
    #[arg(long, value_name = "ADDR")]
    pub source: Option<IpAddr>,
    /// Entries of the flow map, which the kernel allocates at the start: a million takes it
    /// some 150 ms, and one command has a handful of flows
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    flows: u32,
    #[command(flatten)]
    service: service::Args,
}

/// What happens to packets of owned ports, beside their coming here.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Interface and port")]
pub struct Policy {
    /// Let the kernel see the packets for the ports in use too (copies come here)
    #[arg(long)]
    observe: bool,
    /// What happens to the kernel's own RSTs from those ports, and to its port-unreachables
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = RstPolicy::Suppress)]
    rst: RstPolicy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum RstPolicy {
    /// They are dropped and counted.
    Suppress,
    /// They leave.
    Pass,
}

impl Policy {
    /// The terms of a lease.
    pub fn terms(&self) -> Terms {
        Terms { observe: self.observe, suppress: self.rst == RstPolicy::Suppress, ..Terms::default() }
    }
}

/// What becomes of connections that a command leaves half open.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Interface and port")]
pub struct HalfOpen {
    /// Do not reset half-open connections, those whose SYN-ACK was not acknowledged, at the end: the
    /// kernel resets each when the peer sends its SYN-ACK again
    #[arg(long)]
    leave_open: bool,
}

/// Where to send and how to receive, from one port.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Interface and port")]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    pub link: Link,
    #[command(flatten)]
    policy: Policy,
    /// Send from this port, 1 to 65535 [default: a free one from 49152 on]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    source_port: Option<u16>,
}

/// Modes by their names.
pub fn attach() -> impl TypedValueParser<Value = Attach> {
    PossibleValuesParser::new(["auto", "native", "generic", "tc"]).try_map(|mode| mode.parse::<Attach>())
}

impl Link {
    /// Attaches to the interface that leads to `destination`.
    ///
    /// # Errors
    /// Those of [`Crafter::open`] and of the route, which comes first: without one nothing is attached.
    pub async fn open(&self, destination: IpAddr) -> Result<Crafter> {
        let local = local_addresses().await?;
        let is_local = |address: IpAddr| address.is_loopback() || local.contains(&address);
        if let Some(source) = self.source.filter(|source| !is_local(*source)) {
            return Err(Error::invalid("--source", format_args!("{source} is not an address of this host")));
        }
        let service = self.service().await?;
        let route = match &service {
            // It finds the next hop, for which this process may lack the privileges.
            Some(_) => route::without_hop(destination, self.interface.as_deref(), self.source).await?,
            None => route::resolve(destination, self.interface.as_deref(), self.source).await?,
        };
        let there = &route.interface;
        let reason = match self.interface.as_deref() {
            Some(asked) if asked != there => {
                format!("it is an address of this host, reached by {there}, not by {asked}")
            }
            Some(lo) if interface::interface(lo).await?.loopback && !is_local(destination) => {
                format!("{lo} leads to addresses of this host only")
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

    /// The service, if it is to be used.
    ///
    /// # Errors
    /// Those of [`service::Args::open`]; [`Error::Invalid`] for options that are the service's own matter.
    pub async fn service(&self) -> Result<Option<Arc<Control>>> {
        if self.attach != Attach::Auto {
            if self.service.is_asked() {
                let reason = "the service chooses how it attaches; --direct leaves the choice to you";
                return Err(Error::invalid("--attach", reason));
            }
            return Ok(None);
        }
        Ok(self.service.open().await?.map(Arc::new))
    }

    /// How to open an interface.
    fn options(&self) -> Options {
        // With `--log debug` the kernel half logs each packet that it consumes or drops.
        let debug = log::log_enabled!(log::Level::Debug);
        let load = LoadOptions { flow_entries: self.flows, debug, ..LoadOptions::default() };
        Options { attach: self.attach, load }
    }

    /// A session with these interfaces and terms, and what becomes of the connections that it leaves half open.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a source that is not an address of this host.
    pub async fn session(&self, terms: Terms, half_open: &HalfOpen) -> Result<Session> {
        raise_descriptors();
        if let Some(source) = self.source
            && !source.is_loopback()
            && !local_addresses().await?.contains(&source)
        {
            let reason = format_args!("{source} is not an address of this host (a packet's src may be any)");
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
        }))
    }
}

/// Each port that is owned takes a descriptor, and the usual soft limit is 1,024: programs that know what they do may
/// go to the hard one.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

impl Args {
    /// What to lease.
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

/// Detaches when what is left has closed.
pub async fn close(crafter: Crafter) {
    if !crafter.close(CLOSING).await {
        log::info!("streams are still closing after {CLOSING:?}: they end with this process");
    }
}

/// Runs `work` unless Ctrl-C or SIGTERM comes first: then it is dropped, with all that it holds,
/// and the exit code is the one that shells give for the signal.
///
/// # Errors
/// Only that no signal can be listened to.
pub async fn until_signal<T>(work: impl Future<Output = T>) -> std::io::Result<Ended<T>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let signal = tokio::select! {
        result = work => return Ok(Ended::Itself(result)),
        _ = interrupt.recv() => libc::SIGINT,
        _ = terminate.recv() => libc::SIGTERM,
    };
    // Streams that were cut off have sent their RST; whoever still holds a lease lets go of it now.
    tokio::time::sleep(Duration::from_millis(10)).await;
    Ok(Ended::Signal(128 + signal as u8))
}

/// How work ended.
pub enum Ended<T> {
    /// With this result.
    Itself(T),
    /// By a signal; the exit code.
    Signal(u8),
}

/// Seconds, with decimals, more than 0.
///
/// # Errors
/// A sentence for clap.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    // A month; beyond some centuries, adding it to the clock would overflow.
    seconds
        .filter(|time| !time.is_zero() && time.as_secs() <= 30 * 24 * 3600)
        .ok_or_else(|| "a number of seconds is needed, more than 0 and at most a month".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_checked() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for text in ["0", "-1", "x", "", "inf", "NaN", "1e30", "2592001"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
