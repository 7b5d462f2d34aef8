//! One end: an engine, and a program that writes, reads, stalls, closes or aborts.

use std::time::{Duration, Instant};

use crafter::engine::{Error, StreamEngine, StreamState};

use super::random::Random;

/// When the program ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Closes once all is written.
    Written,
    /// Closes once the peer has closed and all is written.
    AfterPeer,
    /// Closes once all is written and all of the peer's is read: both at about the same time.
    AllDone,
    /// Aborts when it has moved so many bytes, or when all is done, whatever is first.
    Abort { after: u64 },
}

/// One end of the pair.
pub struct End {
    pub engine: StreamEngine,
    rng: Random,
    /// What it writes.
    out: Vec<u8>,
    /// What the peer writes.
    expected: Vec<u8>,
    pub written: usize,
    pub read: usize,
    ending: Ending,
    /// Places in the peer's bytes where the program stops to read for a while.
    stalls: Vec<(usize, Duration)>,
    stalled_until: Option<Instant>,
    pub closed: bool,
    pub aborted: bool,
    pub eof: bool,
    pub error: Option<Error>,
    /// When something of the peer's last reached the engine.
    pub heard: Instant,
    /// When the engine sent something that has to be acknowledged; the latest at the end.
    pub spoke: Vec<Instant>,
    /// When it failed.
    pub over: Option<Instant>,
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
                let place = rng.below(expected.len() as u64 + 1) as usize;
                (place, Duration::from_millis(rng.pick(&[1, 100, 3000, 20_000])))
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
            heard: now,
            spoke: Vec::new(),
            over: None,
            buffer,
        }
    }

    /// Lets the program do what it can.
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
            if let Some(&(place, pause)) = self.stalls.last() {
                if place <= self.read {
                    self.stalls.pop();
                    self.stalled_until = Some(now + pause);
                    return;
                }
                most = most.min(place - self.read);
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

    /// When the program does something by itself.
    pub fn next_at(&self) -> Option<Instant> {
        self.stalled_until
    }

    /// How often it sent something that has to be acknowledged, since then.
    pub fn spoken_since(&self, since: Instant) -> usize {
        self.spoke.iter().rev().take_while(|at| **at >= since).count()
    }

    /// Why its connection failed, if it did.
    pub fn failure(&self) -> Option<Error> {
        self.engine.error()
    }

    /// Whether it has done all that it ever will.
    pub fn is_done(&self) -> bool {
        self.engine.is_finished() && (self.eof || self.error.is_some() || self.aborted)
    }
}
