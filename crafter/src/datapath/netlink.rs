//! Netlink requests: rtnetlink without a task of its own, and a blocking request for the other families.
//!
//! A connection exists for one call only: a socket belongs to the network namespace of the thread that opened it, so
//! a socket in a static could answer for the wrong namespace. The connection is polled together with the request, not
//! in a separate task, which saves two wake-ups per request. [`SharedNetlink`] is for many requests at once: one socket
//! and one task, however many wait.

use std::{io, pin::Pin, time::Duration};

use futures_util::{
    Stream, StreamExt,
    future::{Either, select},
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt::ReceiveTimeout,
};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    proto::Connection,
    sys::SocketAddr,
};
use std::os::fd::AsRawFd;

/// Limit of the wait for an answer. The kernel answers at once, but netlink-packet-route drops an answer that it cannot
/// decode.
const ANSWER: Duration = Duration::from_secs(5);

type Message = NetlinkMessage<RouteNetlinkMessage>;

/// Requests over an rtnetlink socket in the network namespace of the thread that opened it.
pub(super) struct Netlink {
    handle: Handle,
    /// `None` if the task of a [`SharedNetlink`] drives the socket.
    driver: Option<Driver>,
}

/// Sends the requests of a handle, and receives answers and notifications.
struct Driver {
    connection: Pin<Box<Connection<RouteNetlinkMessage>>>,
    events: Pin<Box<dyn Stream<Item = (Message, SocketAddr)> + Send>>,
}

impl Driver {
    /// Waits for the next notification; requests make progress meanwhile. Cancel safe.
    async fn event(&mut self) -> io::Result<Message> {
        match select(self.events.next(), &mut self.connection).await {
            Either::Left((Some((message, _)), _)) => Ok(message),
            _ => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

impl Netlink {
    /// Opens a socket that only answers requests.
    pub(super) fn open() -> io::Result<Self> {
        Self::listening(&[])
    }

    /// Opens a socket that also receives the notifications of `groups`, from now on.
    pub(super) fn listening(groups: &[MulticastGroup]) -> io::Result<Self> {
        let (connection, handle, events) = rtnetlink::new_multicast_connection(groups)?;
        let driver = Driver { connection: Box::pin(connection), events: Box::pin(events) };
        Ok(Self { handle, driver: Some(driver) })
    }

    /// Sends a `RTM_GET*` request for one object. An errno is returned as the `io::Error`.
    pub(super) async fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let answers = self.request(message, NLM_F_REQUEST).await?;
        answers.into_iter().next().ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }

    /// Sends a `RTM_GET*` request for all objects.
    pub(super) async fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.request(message, NLM_F_REQUEST | NLM_F_DUMP).await
    }

    /// Sends a request that changes something, with `NLM_F_*` flags in addition to REQUEST and ACK.
    pub(super) async fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(message, NLM_F_REQUEST | NLM_F_ACK | flags).await.map(drop)
    }

    /// Waits for the next notification of the groups listened to. Cancel safe.
    pub(super) async fn event(&mut self) -> io::Result<Message> {
        match &mut self.driver {
            Some(driver) => driver.event().await,
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    async fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        let mut answers = self.handle.request(message).map_err(|_| io::ErrorKind::ConnectionAborted)?;
        let collect = async {
            let mut collected = Vec::new();
            while let Some(answer) = answers.next().await {
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => collected.push(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        let errno = error.raw_code().saturating_neg();
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                    _ => {}
                }
            }
            Ok(collected)
        };
        let asked = async {
            let Some(driver) = &mut self.driver else { return collect.await };
            match select(std::pin::pin!(collect), &mut driver.connection).await {
                Either::Left((collected, _)) => collected,
                Either::Right(_) => Err(io::ErrorKind::ConnectionAborted.into()),
            }
        };
        tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// One rtnetlink socket for many requests at once; a task drives it until this is dropped.
pub(super) struct SharedNetlink {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl SharedNetlink {
    /// Opens a socket that receives the notifications of `groups`, and passes each to `on_event`. Call it within a
    /// tokio runtime.
    pub(super) fn listening(
        groups: &[MulticastGroup],
        mut on_event: impl FnMut(Message) + Send + 'static,
    ) -> io::Result<Self> {
        let Netlink { handle, driver } = Netlink::listening(groups)?;
        let task = tokio::spawn(async move {
            let Some(mut driver) = driver else { return };
            while let Ok(message) = driver.event().await {
                on_event(message);
            }
        });
        Ok(Self { handle, task })
    }

    /// A handle for requests, which works while this exists.
    pub(super) fn requests(&self) -> Netlink {
        Netlink { handle: self.handle.clone(), driver: None }
    }
}

impl Drop for SharedNetlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends a request to another netlink family and blocks until it is answered. Returns the payload of each answer,
/// without its `nlmsghdr`. `kind` is `nlmsg_type`; `flags` are `NLM_F_*` in addition to REQUEST.
pub(super) fn exchange(protocol: SockProtocol, kind: u16, flags: u16, payload: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    const HEADER: usize = 16;
    const DONE: u16 = libc::NLMSG_DONE as u16;
    const ERROR: u16 = libc::NLMSG_ERROR as u16;

    let socket = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&socket, ReceiveTimeout, &nix::sys::time::TimeVal::new(1, 0))?;

    let mut request = Vec::with_capacity(HEADER + payload.len());
    request.extend_from_slice(&((HEADER + payload.len()) as u32).to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(payload);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;

    let mut answers = Vec::new();
    // 32 KiB is the kernel's largest dump message (NLMSG_GOODSIZE and netlink_dump()).
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        let mut multipart = false;
        while rest.len() >= HEADER {
            let size = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            let Some(body) = rest.get(HEADER..size) else {
                break;
            };
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            let flags = u16::from_ne_bytes([rest[6], rest[7]]);
            match kind {
                DONE => return Ok(answers),
                ERROR => {
                    let code = body.first_chunk().map_or(-libc::EPROTO, |code| i32::from_ne_bytes(*code));
                    return match code {
                        0 => Ok(answers),
                        _ => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                    };
                }
                _ => answers.push(body.to_vec()),
            }
            multipart |= flags & libc::NLM_F_MULTI as u16 != 0;
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
        if !multipart {
            return Ok(answers);
        }
    }
}
