//! Relays captured frames of an interface to a client.

use std::{rc::Rc, time::Duration};

use super::{clock::Timestamps, served_lease::ServedLease, state::Service};
use crate::{
    capture::Link,
    datapath::tap::{Tap, TapOptions},
    protocol::record::{CUT, Code, ETHERNET, OUTGOING},
};

/// Packets to relay before other tasks run.
const BURST: usize = 64;

/// The options of a tap of the service, with a buffer of `buffer` bytes.
pub(super) fn options(filter: Option<String>, direction: Option<crate::capture::Direction>, buffer: u32) -> TapOptions {
    TapOptions { filter, direction, buffer, gather: Duration::ZERO, ..TapOptions::default() }
}

/// Relays captured frames until the client closes its socket or the lease is ended.
pub(super) async fn run(service: Rc<Service>, lease: Rc<ServedLease>, mut tap: Tap, outgoing: bool) {
    let mut flags = if tap.link() == Link::ETHERNET { ETHERNET } else { 0 };
    if outgoing {
        flags |= OUTGOING;
    }
    let (mut count, mut timestamps) = (0, Timestamps::begin());
    loop {
        let captured = tokio::select! {
            biased;
            () = lease.ended() => break,
            // Clients send nothing here: a readable socket means that it was closed, or ends the lease.
            _ = lease.socket.readable() => break,
            captured = tap.next() => captured,
        };
        let captured = match captured {
            Ok(captured) => captured,
            Err(error) => {
                lease.end(Code::InterfaceRemoved, &error.to_string());
                break;
            }
        };
        let time = timestamps.monotonic_ns(captured.time);
        let cut = if (captured.bytes.len() as u64) < u64::from(captured.original_length) { CUT } else { 0 };
        lease.show(&captured.bytes, captured.original_length, time, flags | cut);
        count += 1;
        if count % BURST == 0 {
            tokio::task::yield_now().await;
        }
    }
    service.forget(&lease);
}
