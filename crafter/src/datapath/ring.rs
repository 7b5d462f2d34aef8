//! The ring buffer: replies that no AF_XDP socket receives.

use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{MapData, RingBuf};
use crafter_common::reply::ReplyHeader;

/// Records handed out per call of [`Ring::drain`] at most.
const BATCH: usize = 256;

/// The user half of the ring buffer.
pub struct Ring {
    ring: RingBuf<MapData>,
}

impl Ring {
    /// Reads from `ring`.
    pub fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// Hands up to 256 waiting packets (from the IP header on) to `handle`, oldest first. Returns
    /// how many there were.
    pub fn drain(&mut self, mut handle: impl FnMut(&ReplyHeader, &[u8])) -> usize {
        let mut count = 0;
        while count < BATCH {
            let Some(record) = self.ring.next() else { break };
            count += 1;
            if let Some((header, packet)) = split(&record) {
                handle(&header, packet);
            }
        }
        count
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsRawFd as _;
        // SAFETY: the descriptor stays open as long as the borrow of the map.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

/// Splits a record into its header and the packet after it; `None` if the record is shorter than the header says.
fn split(record: &[u8]) -> Option<(ReplyHeader, &[u8])> {
    let u32_at = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let header = ReplyHeader {
        timestamp: u64::from_ne_bytes(record.get(..8)?.try_into().ok()?),
        captured: u32_at(8)?,
        length: u32_at(12)?,
        ifindex: u32_at(16)?,
        reason: u32_at(20)?,
        share: u32_at(24)?,
        pad: 0,
    };
    let packet = record.get(size_of::<ReplyHeader>()..)?.get(..header.captured as usize)?;
    Some((header, packet))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_cut_to_the_captured_length() {
        let mut record = vec![0; 32 + 256];
        record[0] = 7;
        record[8] = 3;
        record[12] = 9;
        record[32..35].copy_from_slice(b"abc");
        let (header, packet) = split(&record).expect("whole record");
        assert_eq!((header.captured, header.length, packet), (3, 9, &b"abc"[..]));
        record[8..12].copy_from_slice(&257_u32.to_ne_bytes());
        assert!(split(&record).is_none());
        assert!(split(&record[..31]).is_none());
    }
}
