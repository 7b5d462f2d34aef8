//! Whole batches: sent from the caller's own memory, with the place where the kernel's room ended.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    time::Instant,
};

use smallvec::SmallVec;
use socket2::SockAddr;

use super::{
    BATCH, ETHERNET, Sender,
    socket::{Path, wait_for_room},
};
use crate::{datapath::route::Route, error::Error, mmsg};

/// Further tries for a packet that the kernel has no room for, before it is waited for.
const RETRIES: u32 = 3;

/// A packet to send.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TxPacket<'p> {
    /// From the IP header on.
    Ip(&'p Route, &'p [u8]),
    /// From the Ethernet header on.
    Frame(&'p [u8]),
}

/// What to do where there is no room for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// Count it as refused once patience is over, and go on.
    Refuse,
    /// Try neither it nor any packet behind it: the caller keeps them.
    Stop,
}

/// Result of sending a batch: counts of packets, and where it stopped.
#[derive(Debug, Default)]
pub(crate) struct Transmitted {
    /// Packets that the kernel took.
    pub(crate) sent: u64,
    /// Packets that it did not take. Those that are invalid were never offered to it, and count as neither.
    pub(crate) refused: u64,
    /// How many packets were tried. With [`NoRoom::Stop`] it is the index of the first without room.
    pub(crate) tried: usize,
    /// Why a packet was not taken: the first one's error.
    pub(crate) error: Option<Error>,
}

/// A packet as the kernel gets it.
#[derive(Debug)]
pub(super) struct Ready<'p> {
    /// Its place in the caller's batch.
    pub(super) index: usize,
    /// What goes before the bytes.
    pub(super) header: Option<[u8; ETHERNET]>,
    pub(super) bytes: &'p [u8],
    /// Where raw sockets send it.
    pub(super) to: Option<SocketAddr>,
}

impl Ready<'_> {
    /// The bytes, in two parts of which the second may be empty.
    pub(super) fn parts(&self) -> [&[u8]; 2] {
        match &self.header {
            Some(header) => [header, self.bytes],
            None => [self.bytes, &[]],
        }
    }
}

/// Result of sending consecutive packets of a batch by one socket.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// Packets that the kernel took.
    pub(super) taken: usize,
    /// The index of the first packet without room, if the run stopped there.
    stopped: Option<usize>,
    /// The index of the first packet that the kernel refused, and why.
    pub(super) failure: Option<(usize, Error)>,
}

impl Sender {
    /// Sends packets in their order, in as few system calls as it takes, without blocking longer than the
    /// [patience](Self::set_patience). Nothing is copied in user space. What was [pushed](Self::push) before leaves first.
    ///
    /// Packets behind a refused or invalid one are sent all the same; `on_no_room` says what happens at a full queue.
    /// The errors are those of [`Sender::push`] and [`Sender::flush`].
    pub(crate) fn send_batch(&mut self, packets: &[TxPacket<'_>], on_no_room: NoRoom) -> Transmitted {
        let mut error = self.flush().err();
        let (sent, dropped) = (self.sent, self.dropped);
        let mut tried = packets.len();
        let mut run: SmallVec<[Ready<'_>; 1]> = SmallVec::with_capacity(packets.len().min(BATCH));
        let mut next = 0;
        while next < packets.len() {
            run.clear();
            let (mut path, mut invalid) = (Path::Ethernet, None);
            // One sendmmsg serves one socket; packets of different ones keep their order.
            while run.len() < BATCH
                && let Some(packet) = packets.get(next)
            {
                match self.ready(*packet) {
                    Ok((other, _)) if !run.is_empty() && other != path => break,
                    Ok((its, ready)) => {
                        path = its;
                        run.push(Ready { index: next, ..ready });
                    }
                    Err(error) => {
                        invalid.get_or_insert((next, error));
                    }
                }
                next += 1;
            }
            let Run { stopped, failure, .. } = self.send_run(path, &run, on_no_room);
            tried = stopped.unwrap_or(tried);
            // What is wrong behind the place where it stopped is said when it is tried.
            let first =
                [invalid, failure].into_iter().flatten().filter(|(at, _)| *at < tried).min_by_key(|(at, _)| *at);
            error = error.or(first.map(|(_, error)| error));
            if stopped.is_some() {
                break;
            }
        }
        Transmitted { sent: self.sent - sent, refused: self.dropped - dropped, tried, error }
    }

    /// Sends packets that leave by one socket, at most [`BATCH`] of them.
    pub(super) fn send_run(&mut self, path: Path, run: &[Ready<'_>], on_no_room: NoRoom) -> Run {
        let mut outcome = Run::default();
        let Some(first) = run.first() else { return outcome };
        if let Err(error) = self.socket(path) {
            self.dropped += run.len() as u64;
            return Run { failure: Some((first.index, error)), ..outcome };
        }
        let (mut done, mut tries) = (0, 0);
        let mut since: Option<Instant> = None;
        while done < run.len() {
            match self.offer(path, &run[done..]) {
                Ok(sent) => {
                    // sendmmsg() stops at a packet that was refused and keeps the reason to itself: as a rule, the
                    // queue had no room.
                    self.turned_away += u64::from(sent < run.len() - done);
                    done += sent;
                    outcome.taken += sent;
                    (tries, since) = (0, None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted && tries < RETRIES => tries += 1,
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => {
                    self.turned_away += u64::from(error.raw_os_error() == Some(libc::ENOBUFS));
                    if tries < RETRIES {
                        tries += 1;
                        std::thread::yield_now();
                    } else if on_no_room == NoRoom::Stop {
                        outcome.stopped = Some(run[done].index);
                        break;
                    } else if since.get_or_insert_with(Instant::now).elapsed() < self.patience {
                        self.used(path).iter().for_each(|socket| wait_for_room(socket, &error));
                    } else {
                        self.dropped += 1;
                        done += 1;
                    }
                }
                Err(error) => {
                    let lost = matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO | libc::ENETDOWN));
                    let refused = self.refused(path, &run[done], error);
                    outcome.failure.get_or_insert((run[done].index, refused));
                    // Nothing else can leave by a link that is gone or down.
                    let until = if lost { run.len() } else { done + 1 };
                    self.dropped += (until - done) as u64;
                    done = until;
                }
            }
        }
        self.sent += outcome.taken as u64;
        outcome
    }

    /// One system call for `run`; how many packets the kernel took.
    fn offer(&self, path: Path, run: &[Ready<'_>]) -> io::Result<usize> {
        let socket = self.used(path)?;
        if let [one] = run {
            let sent = match (one.parts(), one.to) {
                ([bytes, []], None) => socket.send_with_flags(bytes, libc::MSG_DONTWAIT),
                ([bytes, _], Some(to)) => socket.send_to_with_flags(bytes, &to.into(), libc::MSG_DONTWAIT),
                (parts, None) => socket.send_vectored_with_flags(&parts.map(IoSlice::new), libc::MSG_DONTWAIT),
            };
            return sent.map(|_| 1);
        }
        let to: Vec<SockAddr> = run.iter().filter_map(|ready| ready.to.map(SockAddr::from)).collect();
        let addressed = path != Path::Ethernet;
        let messages = run.iter().enumerate().map(|(at, ready)| (ready.parts(), addressed.then(|| &to[at])));
        mmsg::send::<BATCH>(socket, messages)
    }
}
