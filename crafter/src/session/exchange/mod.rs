//! One exchange: prepares packets, sends them, matches the replies.

mod finish;
mod pace;
mod prepare;
mod receive;
mod rounds;
mod scripted;
mod state;
mod transmit;

pub(super) use state::Exchange;
