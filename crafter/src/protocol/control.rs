//! A client of the service's control socket.

use std::{
    net::IpAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, time::timeout};
use zlink::{Call, Reply, tokio::unix};

use super::wire::{Fault, Method};
use crate::error::{Error, Result};

/// The service's socket.
pub const SOCKET: &str = "/run/crafter/crafter.sock";

/// How long the service may take to answer a call. The slowest ones attach an interface, or resolve a next hop within 3
/// s.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// How long to retry while the service's queue of connections is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The delay between two of these attempts.
const CONNECT_RETRY_DELAY: Duration = Duration::from_millis(5);

/// The environment variable that names another socket.
pub const SOCKET_VARIABLE: &str = "CRAFTER_SOCKET";

/// The socket that the environment names, or [`SOCKET`].
pub fn socket_path() -> PathBuf {
    std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty()).map_or_else(|| SOCKET.into(), PathBuf::from)
}

/// A method and its parameters in a message.
#[derive(Debug, Serialize)]
struct Envelope<'c, C> {
    method: &'static str,
    parameters: &'c C,
}

/// The parameters of a reply. Transparent, so that a reply without parameters is not an error.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Parameters<R>(R);

/// A connection to the service.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    connection: unix::Connection,
    /// Replies to cancelled calls that are still to be read.
    stale: usize,
}

impl Control {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`Error::NoService`] if no service listens there, or if this user may not connect.
    pub async fn connect(path: &Path) -> Result<Self> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let connected = loop {
            match unix::connect(path).await {
                // Others connect faster than the service accepts.
                Err(zlink::Error::Io(error))
                    if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline =>
                {
                    tokio::time::sleep(CONNECT_RETRY_DELAY).await;
                }
                connected => break connected,
            }
        };
        let connection = connected.map_err(|error| {
            let (reason, is_denied) = match error {
                zlink::Error::Io(error) => (error.to_string(), error.kind() == std::io::ErrorKind::PermissionDenied),
                other => (other.to_string(), false),
            };
            let hint = match is_denied {
                true => "join the group that may use it, `crafter` by default",
                false => "start it with `systemctl start crafter.socket` or `crafter serve`",
            };
            Error::NoService { path: path.display().to_string(), reason, hint }
        })?;
        Ok(Self { path: path.to_owned(), inner: Mutex::new(Inner { connection, stale: 0 }) })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls a method.
    ///
    /// # Errors
    /// The service's error; [`Error::Service`] if it sends no reply within [`CALL_TIMEOUT`].
    pub async fn call<M: Method>(&self, call: &M) -> Result<M::Reply> {
        self.call_for_descriptors(call).await.map(|(reply, _)| reply)
    }

    /// Calls a method whose reply contains descriptors.
    ///
    /// # Errors
    /// As [`Control::call`].
    pub async fn call_for_descriptors<M: Method>(&self, call: &M) -> Result<(M::Reply, Vec<OwnedFd>)> {
        let mut inner = self.inner.lock().await;
        timeout(CALL_TIMEOUT, self.exchange(&mut inner, call)).await.unwrap_or_else(|_| {
            let (name, hint) = (M::NAME, "it may be stopped: see `systemctl status crafter`");
            Err(self.broken(&format_args!("no reply to {name} within {CALL_TIMEOUT:?}; {hint}")))
        })
    }

    /// Sends a call and receives its reply. If it is dropped in between, the next call skips the reply.
    async fn exchange<M: Method>(&self, inner: &mut Inner, call: &M) -> Result<(M::Reply, Vec<OwnedFd>)> {
        let Inner { connection, stale } = inner;
        while *stale > 0 {
            // The reply's descriptors are closed here.
            let _ = connection.receive_reply::<serde_json::Value, Fault>().await.map_err(|e| self.broken(&e))?;
            *stale -= 1;
        }
        let envelope = Call::new(Envelope { method: M::NAME, parameters: call });
        connection.send_call(&envelope, Vec::new()).await.map_err(|e| self.broken(&e))?;
        *stale += 1;
        let answer = connection.receive_reply::<Parameters<M::Reply>, Fault>().await;
        *stale -= 1;
        let (reply, descriptors) = answer.map_err(|e| self.broken(&e))?;
        let parameters = reply.map_err(error)?.into_parameters();
        let Some(Parameters(reply)) = parameters else {
            return Err(self.broken(&"it sent a reply without parameters"));
        };
        Ok((reply, descriptors))
    }

    /// Calls a method whose reply has one descriptor; `index` reads its index from the reply.
    ///
    /// # Errors
    /// As [`Control::call`].
    pub async fn call_for_descriptor<M: Method>(
        &self,
        call: &M,
        index: impl FnOnce(&M::Reply) -> u32,
    ) -> Result<(M::Reply, OwnedFd)> {
        let (reply, descriptors) = self.call_for_descriptors(call).await?;
        let descriptor = descriptors.into_iter().nth(index(&reply) as usize);
        let missing = || self.broken(&format_args!("the reply to {} has no descriptor", M::NAME));
        descriptor.ok_or_else(missing).map(|descriptor| (reply, descriptor))
    }

    /// Calls a method that sends several replies.
    ///
    /// # Errors
    /// [`Error::Service`] if the connection fails.
    pub async fn subscribe<M: Method>(self, call: &M) -> Result<Subscription<M>> {
        let mut inner = self.inner.into_inner();
        let envelope = Call::new(Envelope { method: M::NAME, parameters: call }).set_more(true);
        let subscription = |connection| Subscription {
            connection,
            path: self.path.clone(),
            is_over: false,
            method: std::marker::PhantomData,
        };
        match inner.connection.send_call(&envelope, Vec::new()).await {
            Ok(()) => Ok(subscription(inner.connection)),
            Err(error) => Err(broken(&self.path, &error)),
        }
    }

    fn broken(&self, reason: &dyn std::fmt::Display) -> Error {
        broken(&self.path, reason)
    }
}

/// The replies to one call.
#[derive(Debug)]
pub struct Subscription<M> {
    connection: unix::Connection,
    path: PathBuf,
    is_over: bool,
    method: std::marker::PhantomData<M>,
}

impl<M: Method> Subscription<M> {
    /// The next reply; `None` after the last one. Cancel-safe.
    ///
    /// # Errors
    /// The service's error; [`Error::Service`] if the connection fails.
    pub async fn next(&mut self) -> Result<Option<M::Reply>> {
        if self.is_over {
            return Ok(None);
        }
        let answer = self.connection.receive_reply::<Parameters<M::Reply>, Fault>().await;
        let (reply, _) = answer.map_err(|e| broken(&self.path, &e))?;
        let reply: Reply<Parameters<M::Reply>> = reply.map_err(error)?;
        self.is_over = reply.continues() != Some(true);
        Ok(reply.into_parameters().map(|Parameters(reply)| reply))
    }
}

fn broken(path: &Path, reason: &dyn std::fmt::Display) -> Error {
    Error::Service { path: path.display().to_string(), reason: reason.to_string() }
}

/// Converts an error of the service.
fn error(fault: Fault) -> Error {
    let address = |text: &str| text.parse::<IpAddr>().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let name = |protocol: &str| match protocol {
        "TCP" => "TCP",
        "UDP" => "UDP",
        _ => "ICMP",
    };
    match fault {
        Fault::Refused { rule, verdict, message } => Error::Forbidden { rule, verdict, message },
        Fault::Invalid { field, message } => Error::Invalid { what: field, reason: message },
        Fault::PortTaken { protocol, address: at, port, holder, .. } => {
            Error::PortTaken { protocol: name(&protocol), address: address(&at), port, holder }
        }
        Fault::NoFreePorts { protocol, address: at, count, reason, .. } => {
            Error::NoFreePorts { protocol: name(&protocol), address: address(&at), count, reason }
        }
        Fault::UnknownInterface { interface, .. } => Error::UnknownInterface { name: interface },
        Fault::NoRoute { destination, message } => {
            Error::NoRoute { destination: address(&destination), reason: message }
        }
        Fault::NoNeighbour { address: at, interface, .. } => {
            Error::NoNeighbour { address: address(&at), interface, after: Duration::from_secs(3) }
        }
        Fault::NoSuchLease { message, .. } => Error::invalid("lease", message),
        Fault::BadPolicy { message, .. } => Error::invalid("policy", message),
        Fault::Failed { message } => Error::Io { action: "the service".into(), source: std::io::Error::other(message) },
    }
}
