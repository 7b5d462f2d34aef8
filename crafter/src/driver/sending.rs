//! Packets of a task that waits until each has found room.

use std::{io, sync::Arc, time::Instant};

use smallvec::SmallVec;

use super::{
    ROOM_TIMEOUT,
    backend::{NoRoom, TxPacket},
    core::Core,
};
use crate::{datapath::route::Route, error::Error, error::Result};

/// The remaining packets, and the first error of the others.
pub(super) struct Sending<'p> {
    rest: &'p [(Arc<Route>, &'p [u8])],
    /// When a packet last found room.
    progress: Instant,
    error: Option<Error>,
}

impl<'p> Sending<'p> {
    pub(super) fn new(now: Instant, packets: &'p [(Arc<Route>, &'p [u8])]) -> Self {
        Self { rest: packets, progress: now, error: None }
    }

    /// Sends the packets that find room. `None` while packets remain: call it again after
    /// [`ROOM_RETRY_DELAY`](super::ROOM_RETRY_DELAY). After [`ROOM_TIMEOUT`] without room, the packets are refused.
    ///
    /// # Errors
    /// The first error of a packet; all others were sent. [`Error::Io`] for packets that found no room.
    pub(super) fn send(&mut self, now: Instant, core: &mut Core, interface: &str) -> Option<Result<()>> {
        let waited = now.saturating_duration_since(self.progress);
        let on_no_room = if waited < ROOM_TIMEOUT { NoRoom::Stop } else { NoRoom::Refuse };
        let packets: SmallVec<[TxPacket<'_>; 8]> =
            self.rest.iter().map(|(route, ip)| TxPacket::Ip(route, ip)).collect();
        let sent = core.backend.send_batch(&packets, on_no_room);
        if on_no_room == NoRoom::Refuse && sent.refused > 0 && sent.error.is_none() {
            self.error.get_or_insert_with(|| no_room(interface, sent.refused));
        }
        if let Some(error) = sent.error {
            self.error.get_or_insert(error);
        }
        self.rest = &self.rest[sent.tried..];
        if sent.tried > 0 {
            self.progress = now;
        }
        self.rest.is_empty().then(|| self.error.take().map_or(Ok(()), Err))
    }
}

fn no_room(interface: &str, packets: u64) -> Error {
    let within = ROOM_TIMEOUT.as_secs_f32();
    let reason = format!("{packets} packets found no room in the transmit queue within {within} s; send more slowly");
    Error::Io { action: format!("send through {interface}"), source: io::Error::new(io::ErrorKind::WouldBlock, reason) }
}
