//! The repair shop: what makes up for defects of smoltcp 0.14, beside the device that smoltcp sees.
//!
//! One function per defect. Its documentation says what smoltcp does, what the RFC asks for, what breaks without the
//! function, and when it can go. `tests.rs` has a test per defect that fails without the function; so to see after an
//! upgrade of smoltcp which functions can go, disable one and run its test.
//!
//! | defect of smoltcp | function |
//! |---|---|
//! | **received segments** | |
//! | takes any RST in the window | [`repair::is_inexact_reset`] |
//! | does not answer a SYN on an open connection | [`repair::is_late_syn`] |
//! | sends a challenge ACK only for reasons of its own | [`repair::Repair::challenged`] |
//! | stops its timer after repeated ACKs of a FIN alone | [`repair::is_repeated_ack_of_fin`] |
//! | repeats a whole segment into a smaller window | [`repair::Repair::is_repeated_ack_without_room`] |
//! | ignores an ACK at the right edge of the window | [`repair::ack_at_right_edge`] |
//! | takes the window of an overtaken ACK | [`repair::Repair::newest_window`] |
//! | neither repeats nor probes data in a window that the shift rounds to 0 | [`repair::Repair::window_in_flight`] |
//! | reads no IPv6 extension headers but hop-by-hop options | [`plain::without_extension_headers`] |
//! | reads no super-frame longer than the length fields tell | [`plain::in_pieces`] |
//! | **sent segments** | |
//! | sends an ACK or RST without data with a number wound back | [`repair::send_next`] |
//! | misreads its own window until it has sent the ACK of the handshake | [`socket::owes_handshake_ack`] |
//! | cannot end an attempt to connect without a RST | `StreamEngine::fail_silently` |
//! | never learns of another MTU | [`device::interface`] |
//! | **timestamps** | |
//! | takes segments with old timestamps | [`timestamps::Timestamps::is_timely`] |
//! | echoes whatever timestamp it has received last | [`timestamps::Timestamps::echoed`] |
//! | asks a function without a state for the time | [`timestamps::Timestamps::set_clock`] |
//! | **time** | |
//! | counts no attempts before it gives a peer up | [`timers::Attempts::give_up_at`] |
//! | ends TIME-WAIT after 10 s, not sooner | [`timers::time_wait_end`] |
//! | uses time 0 for "now" where it does not know the time | [`timers::Clock::new`] |
//! | **state that smoltcp keeps to itself** | |
//! | SND.UNA and SND.NXT | [`socket::SendSequence`] |
//! | RCV.NXT | [`socket::receive_next`] |
//!
//! Settings on which smoltcp panics are no defects in this sense; `StreamConfig::check` refuses them.

pub(crate) mod device;
pub(crate) mod plain;
pub(crate) mod repair;
pub(crate) mod socket;
#[cfg(test)]
mod tests;
pub(crate) mod timers;
pub(crate) mod timestamps;

/// What becomes of a received segment before smoltcp reads it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rewrite {
    /// smoltcp reads the segment as it is.
    Keep,
    /// smoltcp reads this IP packet instead. Its checksums are wrong; [`device::OneShot`] has smoltcp ignore them.
    Replace(Vec<u8>),
    /// smoltcp does not see the segment.
    Drop,
}
