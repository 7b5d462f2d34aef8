//! Looking on: by a tap of our own, or through the service.

use std::{collections::VecDeque, os::fd::OwnedFd, time::Duration};

use socket2::SockRef;
use tokio::io::unix::AsyncFd;

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

/// The longest message: a header and what libpcap captures at most.
const LONGEST: usize = 262_144 + 64;

/// Packets of an interface, as they pass.
pub enum Watch {
    /// Captured by this process.
    Tap(Box<Tap>),
    /// Captured by the service.
    Served(Box<Served>),
}

/// A socket of the service's `Observe`.
pub struct Served {
    socket: AsyncFd<OwnedFd>,
    interface: String,
    link: Link,
    inbox: Inbox,
    waiting: VecDeque<Captured>,
    lost: u64,
    seen: u32,
    /// Bytes of a packet that are kept.
    snaplen: usize,
}

impl Watch {
    /// Begins to look on, through the service if one is given. The service keeps to the filter, the direction and the
    /// length of `options`.
    ///
    /// # Errors
    /// Those of [`Tap::open`]; [`Error::Forbidden`].
    pub async fn open(service: Option<&Control>, interface: &str, options: &TapOptions) -> Result<Self> {
        let Some(control) = service else { return Ok(Self::Tap(Box::new(Tap::open(interface, options).await?))) };
        options.check()?;
        let direction = options.direction.map(|direction| match direction {
            Direction::In => "in".to_owned(),
            Direction::Out => "out".to_owned(),
        });
        let call = ObserveCall { interface: interface.to_owned(), filter: options.filter.clone(), direction };
        let (observing, descriptors) = control.call_for_descriptors(&call).await?;
        let missing = || Error::Service { path: control.path().display().to_string(), reason: "no socket came".into() };
        let socket = descriptors.into_iter().nth(observing.socket as usize).ok_or_else(missing)?;
        let failed = |source| Error::Io { action: format!("look on at {interface}"), source };
        SockRef::from(&socket).set_nonblocking(true).map_err(failed)?;
        Ok(Self::Served(Box::new(Served {
            socket: watch(socket, "what the service sees")?,
            interface: interface.to_owned(),
            link: Link(observing.link_type),
            inbox: Inbox::new(LONGEST),
            waiting: VecDeque::new(),
            lost: 0,
            seen: 0,
            snaplen: options.snaplen as usize,
        })))
    }

    /// The interface.
    pub fn interface(&self) -> &str {
        match self {
            Self::Tap(tap) => tap.interface(),
            Self::Served(served) => &served.interface,
        }
    }

    /// What its packets begin with.
    pub fn link(&self) -> Link {
        match self {
            Self::Tap(tap) => tap.link(),
            Self::Served(served) => served.link,
        }
    }

    /// The next packet. Safe to cancel.
    ///
    /// # Errors
    /// If the interface, or the service, is gone.
    pub async fn next(&mut self) -> Result<Captured> {
        match self {
            Self::Tap(tap) => tap.next().await,
            Self::Served(served) => loop {
                if let Some(captured) = served.try_next()? {
                    return Ok(captured);
                }
                let ready = served.socket.readable().await;
                ready.map_err(|source| Error::Io { action: "wait for packets".to_owned(), source })?.clear_ready();
                // What came between the look and the wait.
                if let Some(captured) = served.try_next()? {
                    return Ok(captured);
                }
            },
        }
    }

    /// A packet that waits, if there is one.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub fn try_next(&mut self) -> Result<Option<Captured>> {
        match self {
            Self::Tap(tap) => tap.try_next(),
            Self::Served(served) => served.try_next(),
        }
    }

    /// Packets that passed the filter, and those of them that were lost.
    ///
    /// # Errors
    /// As [`Tap::stats`].
    pub fn counts(&mut self) -> Result<(u64, u64)> {
        match self {
            Self::Tap(tap) => tap.stats().map(|stats| (stats.received, stats.dropped)),
            Self::Served(served) => Ok((u64::from(served.seen) + served.lost, served.lost)),
        }
    }
}

impl Served {
    fn try_next(&mut self) -> Result<Option<Captured>> {
        if self.waiting.is_empty() {
            self.receive()?;
        }
        Ok(self.waiting.pop_front())
    }

    fn receive(&mut self) -> Result<()> {
        let over = |reason: String| Error::Io {
            action: format!("look on at {}", self.interface),
            source: std::io::Error::other(reason),
        };
        match self.inbox.receive(self.socket.get_ref()) {
            Ok(Some(_)) => {}
            Ok(None) => return Err(over("the service has ended it".to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(over(error.to_string())),
        }
        let (wall, monotonic) = (super::wall_clock(), super::monotonic());
        for (message, _) in self.inbox.messages() {
            let Some((header, rest)) = Header::decode(message) else { continue };
            self.lost = self.lost.max(header.lost.into());
            match header.kind {
                Kind::Packet { .. } => {
                    self.seen = self.seen.wrapping_add(1);
                    let seen = Duration::from_nanos(header.time_ns);
                    let age = monotonic.map_or(Duration::ZERO, |now| now.saturating_sub(seen));
                    self.waiting.push_back(Captured {
                        time: Some(wall.saturating_sub(age)),
                        first: self.link.first(rest),
                        link: self.link,
                        original_length: header.length,
                        bytes: rest[..rest.len().min(self.snaplen)].to_vec(),
                        interface: Some(self.interface.clone()),
                        comment: None,
                        direction: None,
                    });
                }
                Kind::End { .. } => {
                    let (sentence, _) = header.sentence(rest);
                    return Err(over(sentence.into_owned()));
                }
                Kind::Refusal { .. } => {}
            }
        }
        Ok(())
    }
}
