//! One end: an engine with an application that writes, reads, stalls, closes or aborts.

use std::time::{Duration, Instant};

use crafter::engine::{Error, StreamEngine, StreamState};

use super::random::Random;

/// When the application ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Closes when all data is written.
    Written,
    /// Closes when the peer has closed and all data is written.
    AfterPeer,
    /// Closes when all data is written and all data of the peer is read, so both ends close at about the same time.
    AllDone,
    /// Aborts after `after` bytes written and read, or when everything is done, whichever is first.
    Abort { after: u64 },
}

/// One end of the pair.
pub struct End {
    pub engine: StreamEngine,
    rng: Random,
    /// The bytes to write.
    out: Vec<u8>,
    /// The bytes that the peer writes.
    expected: Vec<u8>,
    pub written: usize,
    pub read: usize,
    ending: Ending,
    /// Offsets in the peer's bytes at which the application stops reading, and for how long.
    stalls: Vec<(usize, Duration)>,
    stalled_until: Option<Instant>,
    pub closed: bool,
    pub aborted: bool,
    pub eof: bool,
    pub error: Option<Error>,
    /// When the engine last accepted a segment of the peer.
    pub last_received: Instant,
    /// When the engine sent segments that occupy sequence space, in order.
    pub sent: Vec<Instant>,
    /// When the connection failed.
    pub failed_at: Option<Instant>,
    buffer: Vec<u8>,
}

impl End {
    pub fn new(
        engine: StreamEngine,
        mut rng: Random,
        [out, expected]: [Vec<u8>; 2],
        ending: Ending,
        stalls: usize,
        now: Instant,
    ) -> Self {
        let mut stalls: Vec<_> = (0..stalls)
            .map(|_| {
                let offset = rng.below(expected.len() as u64 + 1) as usize;
                (offset, Duration::from_millis(rng.pick(&[1, 100, 3000, 20_000])))
            })
            .collect();
        stalls.sort_unstable_by(|one, other| other.cmp(one));
        let buffer = vec![0; rng.pick(&[1, 100, 4096, 70_000])];
        Self {
            engine,
            rng,
            out,
            expected,
            written: 0,
            read: 0,
            ending,
            stalls,
            stalled_until: None,
            closed: false,
            aborted: false,
            eof: false,
            error: None,
            last_received: now,
            sent: Vec::new(),
            failed_at: None,
            buffer,
        }
    }

    /// Runs the application until it blocks.
    pub fn work(&mut self, now: Instant) {
        self.write();
        self.receive(now);
        let all_read = self.read == self.expected.len();
        let all_written = self.written == self.out.len();
        let connecting = self.engine.state() == StreamState::Connecting;
        if self.closed || self.aborted || self.error.is_some() || connecting {
            return;
        }
        match self.ending {
            Ending::Written if all_written => self.close(now),
            Ending::AfterPeer if all_written && self.eof => self.close(now),
            Ending::AllDone if all_written && all_read => self.close(now),
            Ending::Abort { after } if (self.written + self.read) as u64 >= after || all_written && all_read => {
                self.engine.abort(now);
                self.aborted = true;
            }
            _ => {}
        }
    }

    fn close(&mut self, now: Instant) {
        self.engine.close(now);
        self.closed = true;
    }

    fn write(&mut self) {
        while self.written < self.out.len() && self.error.is_none() && !self.closed && !self.aborted {
            let piece = 1 + self.rng.below(20_000) as usize;
            let end = self.out.len().min(self.written + piece);
            match self.engine.send(&self.out[self.written..end]) {
                Ok(0) => break,
                Ok(count) => self.written += count,
                Err(error) => self.error = Some(error),
            }
        }
    }

    fn receive(&mut self, now: Instant) {
        if self.stalled_until.is_some_and(|until| until > now) {
            return;
        }
        self.stalled_until = None;
        while !self.eof && self.error.is_none() && !self.aborted {
            let mut most = self.buffer.len();
            if let Some(&(offset, pause)) = self.stalls.last() {
                if offset <= self.read {
                    self.stalls.pop();
                    self.stalled_until = Some(now + pause);
                    return;
                }
                most = most.min(offset - self.read);
            }
            match self.engine.recv(&mut self.buffer[..most]) {
                Ok(Some(0)) => self.eof = true,
                Ok(Some(count)) => {
                    let expected = self.expected.get(self.read..self.read + count);
                    assert!(expected == Some(&self.buffer[..count]), "wrong bytes at {}", self.read);
                    self.read += count;
                }
                Ok(None) => break,
                Err(error) => self.error = Some(error),
            }
        }
    }

    /// When the application acts next without an event.
    pub fn next_at(&self) -> Option<Instant> {
        self.stalled_until
    }

    /// How often it sent something that must be acknowledged, since `since`.
    pub fn sent_since(&self, since: Instant) -> usize {
        self.sent.iter().rev().take_while(|at| **at >= since).count()
    }

    /// The error of its connection.
    pub fn failure(&self) -> Option<Error> {
        self.engine.error()
    }

    /// Whether it will do nothing more.
    pub fn is_done(&self) -> bool {
        self.engine.is_finished() && (self.eof || self.error.is_some() || self.aborted)
    }
}
