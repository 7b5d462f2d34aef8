//! Who says, during an exchange, what is sent when.

use std::time::Instant;

use super::Event;
use crate::layer::Packet;

/// An exchange that decides as it goes: what to send next depends on what came back. Sans-IO: times and packets come
/// in, steps go out; [`Session::run`](super::Session::run) carries them out.
pub trait Script {
    /// What to do next. Asked again after each step, after each wait, and after whatever has come.
    fn next(&mut self, now: Instant) -> Step;

    /// A packet was sent, has come, or was suppressed. Packets to send are numbered from 0 in the order of the steps
    /// that gave them.
    fn handle(&mut self, event: &Event<'_>, now: Instant);

    /// Answers to packets before this number are no longer waited for: they answer nothing.
    fn oldest(&self) -> usize {
        0
    }

    /// Whether each packet that names no source port, or identifier, gets one of its own, not one for all. A session
    /// keeps the latest 256 that it chose.
    fn fresh_ports(&self) -> bool {
        false
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Send this packet, which may be answered.
    Send(Packet),
    /// Send this packet, which nothing answers, such as a RST.
    Tell(Packet),
    /// Wait until this time, or until something comes.
    Wait(Instant),
    /// It is over.
    Done,
}
