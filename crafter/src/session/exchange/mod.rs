//! One exchange: prepares packets, sends them, matches the replies.

mod fragments;
mod prepare;
mod receive;
mod run;
mod state;
mod transmit;

pub(super) use state::Exchange;
