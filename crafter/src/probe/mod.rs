//! Probes a host or a path: [`Ping`] and [`Trace`] are scripts for [`Session::run`](crate::session::Session::run),
//! without IO or a clock of their own; [`TargetReport`] says in one line what the reply to a packet shows.

mod method;
mod ping;
mod probe_reply;
mod target_state;
mod trace;

pub use self::{
    method::Method,
    ping::{Ping, PingOptions, PingOutcome, PingSummary, ProbeOutcome},
    probe_reply::{IcmpError, ProbeReply, ReplyKind},
    target_state::{Port, Target, TargetReport, TargetState},
    trace::{Ending, Hop, HopAnswer, Trace, TraceOptions},
};
