//! Scripts: exchanges that decide step by step what to send.

use std::time::Instant;

use super::Event;
use crate::layer::Packet;

/// An exchange whose next packet depends on the replies. Sans-IO: its input is times and packets, its output steps, which
/// [`Session::run`](super::Session::run) executes.
pub trait Script {
    /// The next step. Called again after each step, and when a wait ends or a packet arrives.
    fn next(&mut self, now: Instant) -> Step;

    /// A packet was sent, received or suppressed. Sent packets are numbered from 0 in the order of their steps.
    fn handle(&mut self, event: &Event<'_>, now: Instant);

    /// The number of the oldest packet that may still be answered: replies to earlier ones are unmatched.
    fn oldest(&self) -> usize {
        0
    }

    /// Whether each packet that leaves its source port, or identifier, unset gets a new one instead of one for all. A
    /// session keeps the 256 most recent ports that it chose.
    fn fresh_ports(&self) -> bool {
        false
    }
}

/// A step of a script.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Send this packet; it may be answered.
    Send(Packet),
    /// Send this packet, to which no reply is expected, such as a RST.
    SendUnanswered(Packet),
    /// Wait until this time, or until a packet arrives.
    Wait(Instant),
    /// The script has ended.
    Done,
}
