//! Workarounds for defects of smoltcp 0.14, and the device that smoltcp sees.
//!
//! One function per defect. Its documentation says what smoltcp does, what the RFC requires, what fails without the
//! function, and when it can be removed. `tests.rs` has a test per defect that fails without the function: after an
//! upgrade of smoltcp, disable a function and run its test.
//!
//! | defect of smoltcp | function |
//! |---|---|
//! | **received segments** | |
//! | accepts any RST in the window | [`segment_fixups::is_inexact_reset`] |
//! | does not answer a SYN on an open connection | [`segment_fixups::is_late_syn`] |
//! | sends a challenge ACK in too few cases | [`segment_fixups::SegmentFixups::challenged`] |
//! | stops its timer after duplicate ACKs while only a FIN is unacknowledged | [`segment_fixups::is_repeated_ack_of_fin`] |
//! | retransmits a full segment into a smaller window | [`segment_fixups::SegmentFixups::is_repeated_ack_without_room`] |
//! | ignores an ACK at the right edge of the window | [`segment_fixups::ack_at_right_edge`] |
//! | uses the window of a reordered ACK | [`segment_fixups::SegmentFixups::newest_window`] |
//! | neither retransmits nor probes data in a window that the scale rounds to 0 | [`segment_fixups::SegmentFixups::window_in_flight`] |
//! | reads no IPv6 extension headers except hop-by-hop options | [`plain::without_extension_headers`] |
//! | reads no super-frame that exceeds the length field | [`plain::in_pieces`] |
//! | **sent segments** | |
//! | sends an ACK or RST without data with SND.UNA instead of SND.NXT | [`segment_fixups::send_next`] |
//! | misreads its own window until it has sent the ACK of the handshake | [`socket::owes_handshake_ack`] |
//! | cannot abort a connection attempt without a RST | `StreamEngine::fail_silently` |
//! | cannot change the MTU | [`device::interface`] |
//! | **timestamps** | |
//! | accepts segments with old timestamps | [`timestamps::Timestamps::is_timely`] |
//! | echoes the last received timestamp instead of TS.Recent | [`timestamps::Timestamps::echoed`] |
//! | gets the time from a function without state | [`timestamps::Timestamps::set_clock`] |
//! | **time** | |
//! | does not count attempts before it times out | [`timers::Attempts::give_up_at`] |
//! | ends TIME-WAIT only after 10 s | [`timers::time_wait_end`] |
//! | uses time 0 where it does not know the time | [`timers::Clock::new`] |
//! | **private state of smoltcp** | |
//! | SND.UNA and SND.NXT | [`socket::SendSequence`] |
//! | RCV.NXT | [`socket::receive_next`] |
//!
//! Settings on which smoltcp panics are not listed; `StreamConfig::check` rejects them.

pub(crate) mod device;
pub(crate) mod plain;
pub(crate) mod segment_fixups;
pub(crate) mod socket;
#[cfg(test)]
mod tests;
pub(crate) mod timers;
pub(crate) mod timestamps;

/// How a received segment is rewritten for smoltcp.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rewrite {
    /// smoltcp reads the segment as it is.
    Keep,
    /// smoltcp reads this IP packet instead. Its checksums are wrong; [`device::OneShot`] has smoltcp ignore them.
    Replace(Vec<u8>),
    /// smoltcp does not see the segment.
    Drop,
}
