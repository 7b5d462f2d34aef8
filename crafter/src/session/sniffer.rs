//! Captures packets of an interface with a tap of this process, or through the service.

use std::{collections::VecDeque, io, os::fd::OwnedFd, time::Duration};

use socket2::SockRef;
use tokio::io::unix::AsyncFd;

use super::clock::{monotonic, wall_clock};
use crate::{
    capture::{Captured, Direction, Link},
    datapath::{
        tap::{Tap, TapOptions},
        watch,
    },
    error::{Error, Result},
    mmsg::Inbox,
    protocol::{
        Control,
        record::{Header, Kind},
        wire::ObserveCall,
    },
};

/// Length of the longest message in bytes: a header, and libpcap's largest capture.
const MAX_MESSAGE: usize = 262_144 + 64;

/// Captures all packets of an interface.
pub enum Sniffer {
    /// Captured by this process.
    Tap(Box<Tap>),
    /// Captured by the service.
    Service(Box<ServiceTap>),
}

/// The socket of an `Observe` call to the service.
pub struct ServiceTap {
    socket: AsyncFd<OwnedFd>,
    interface: String,
    link: Link,
    inbox: Inbox,
    /// Received, not yet returned.
    queue: VecDeque<Captured>,
    lost: u64,
    received: u32,
    /// Bytes of a packet to keep.
    snaplen: usize,
}

impl Sniffer {
    /// Starts to capture, through `service` if it is given. The service applies the filter and the direction of
    /// `options`, this process the length.
    ///
    /// # Errors
    /// Those of [`Tap::open`]; [`Error::Forbidden`] if the service's policy does not allow it.
    pub async fn open(service: Option<&Control>, interface: &str, options: &TapOptions) -> Result<Self> {
        let Some(control) = service else { return Ok(Self::Tap(Box::new(Tap::open(interface, options).await?))) };
        options.check()?;
        let direction = options.direction.map(|direction| match direction {
            Direction::In => "in".to_owned(),
            Direction::Out => "out".to_owned(),
        });
        let call = ObserveCall { interface: interface.to_owned(), filter: options.filter.clone(), direction };
        let (observing, socket) = control.call_for_descriptor(&call, |observing| observing.socket).await?;
        SockRef::from(&socket).set_nonblocking(true).map_err(|source| failed(interface, source))?;
        Ok(Self::Service(Box::new(ServiceTap {
            socket: watch(socket, "the service's capture socket")?,
            interface: interface.to_owned(),
            link: Link(observing.link_type),
            inbox: Inbox::new(MAX_MESSAGE),
            queue: VecDeque::new(),
            lost: 0,
            received: 0,
            snaplen: options.snaplen as usize,
        })))
    }

    /// Name of the interface.
    pub fn interface(&self) -> &str {
        match self {
            Self::Tap(tap) => tap.interface(),
            Self::Service(tap) => &tap.interface,
        }
    }

    /// Link type of the packets.
    pub fn link(&self) -> Link {
        match self {
            Self::Tap(tap) => tap.link(),
            Self::Service(tap) => tap.link,
        }
    }

    /// Waits for the next packet. Safe to cancel.
    ///
    /// # Errors
    /// [`Error::Io`] once the interface is removed or the service ends the capture.
    pub async fn next(&mut self) -> Result<Captured> {
        match self {
            Self::Tap(tap) => tap.next().await,
            Self::Service(tap) => loop {
                if let Some(captured) = tap.try_next()? {
                    return Ok(captured);
                }
                let ready = tap.socket.readable().await;
                ready.map_err(|source| Error::Io { action: "wait for packets".to_owned(), source })?.clear_ready();
                // A packet may have arrived before the readiness was cleared.
                if let Some(captured) = tap.try_next()? {
                    return Ok(captured);
                }
            },
        }
    }

    /// The next packet if one is queued.
    ///
    /// # Errors
    /// As [`Sniffer::next`].
    pub fn try_next(&mut self) -> Result<Option<Captured>> {
        match self {
            Self::Tap(tap) => tap.try_next(),
            Self::Service(tap) => tap.try_next(),
        }
    }

    /// How many packets passed the filter, and how many of them were dropped.
    ///
    /// # Errors
    /// As [`Tap::stats`].
    pub fn counts(&mut self) -> Result<(u64, u64)> {
        match self {
            Self::Tap(tap) => tap.stats().map(|stats| (stats.received, stats.dropped)),
            Self::Service(tap) => Ok((u64::from(tap.received) + tap.lost, tap.lost)),
        }
    }
}

impl ServiceTap {
    fn try_next(&mut self) -> Result<Option<Captured>> {
        if self.queue.is_empty() {
            self.receive()?;
        }
        Ok(self.queue.pop_front())
    }

    fn receive(&mut self) -> Result<()> {
        match self.inbox.receive(self.socket.get_ref()) {
            Ok(Some(_)) => {}
            Ok(None) => return Err(failed(&self.interface, io::Error::other("the service closed the capture"))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(failed(&self.interface, error)),
        }
        let (wall, monotonic) = (wall_clock(), monotonic());
        for (message, _) in self.inbox.messages() {
            let Some((header, rest)) = Header::decode(message) else { continue };
            self.lost = self.lost.max(header.lost.into());
            match header.kind {
                Kind::Packet { .. } => {
                    self.received = self.received.wrapping_add(1);
                    let stamp = Duration::from_nanos(header.time_ns);
                    let age = monotonic.map_or(Duration::ZERO, |now| now.saturating_sub(stamp));
                    self.queue.push_back(Captured {
                        time: Some(wall.saturating_sub(age)),
                        link: self.link,
                        original_length: header.length,
                        interface: Some(self.interface.clone()),
                        ..Captured::of(self.link.first(rest), rest[..rest.len().min(self.snaplen)].to_vec())
                    });
                }
                Kind::End { .. } => {
                    let (sentence, _) = header.sentence(rest);
                    return Err(failed(&self.interface, io::Error::other(sentence.into_owned())));
                }
                Kind::Refusal { .. } => {}
            }
        }
        Ok(())
    }
}

fn failed(interface: &str, source: io::Error) -> Error {
    Error::Io { action: format!("capture on {interface} through the service"), source }
}
