//! Runs a script with the engine.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crafter::{
    engine::{AckPolicy, StreamConfig, StreamEngine},
    layer::TcpOption,
    packet::Flags,
};
use crafter_packet::testing::Segment;

use super::script::{Event, Line, Opening, SegmentSpec};

/// The peer's initial sequence number: its stream wraps at 2^32 soon.
const PEER_ISN: u32 = u32::MAX - 99;

/// The peer's first timestamp: its clock wraps at 2^32 soon.
const PEER_TIMESTAMP: u32 = u32::MAX - 499;

/// Limit of consecutive polls of the engine at one instant.
const POLLS: usize = 1000;

/// The engine, the state of its peer, and the virtual clock.
pub struct Player {
    local: SocketAddr,
    remote: SocketAddr,
    engine: Option<StreamEngine>,
    /// Crafter's initial sequence number, once it is sent.
    isn: Option<u32>,
    /// Crafter's first timestamp.
    first_timestamp: Option<u32>,
    began: Instant,
    now: Instant,
    /// Time of the previous line.
    previous: Instant,
    sent: VecDeque<(Instant, Segment)>,
    written: usize,
    read: usize,
}

/// The byte at this position of a stream; different for each direction.
fn byte(ours: bool, number: usize) -> u8 {
    (number * 31 + number / 251 + if ours { 7 } else { 101 }) as u8
}

/// Value and echo of the timestamps option.
fn timestamps(segment: &Segment) -> Option<(u32, u32)> {
    segment.options.iter().find_map(|option| match option {
        TcpOption::Timestamp(value, echo) => Some((*value, *echo)),
        _ => None,
    })
}

fn bytes(ours: bool, from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|number| byte(ours, number)).collect()
}

impl Player {
    pub fn new(is_v6: bool) -> Self {
        let ends =
            if is_v6 { ["[2001:db8::2]:50000", "[2001:db8::1]:80"] } else { ["192.0.2.2:50000", "192.0.2.1:80"] };
        let [local, remote] = ends.map(|end| end.parse().expect("an end"));
        let now = Instant::now();
        Self {
            local,
            remote,
            engine: None,
            isn: None,
            first_timestamp: None,
            began: now,
            now,
            previous: now,
            sent: VecDeque::new(),
            written: 0,
            read: 0,
        }
    }

    /// Executes a line, or checks that the engine does what it says.
    ///
    /// # Errors
    /// How the engine deviates.
    pub fn play(&mut self, line: &Line) -> Result<(), String> {
        if let Event::Sends(spec) = &line.event {
            return self.sends(line.after, spec);
        }
        if let Some(after) = line.after {
            self.pass(after)?;
        }
        self.nothing_unexpected()?;
        match &line.event {
            Event::Connect(opening) => self.connect(opening)?,
            Event::Sends(_) => {}
            Event::Receives(spec) => self.receive(spec)?,
            Event::Quiet(time) => {
                self.pass(*time)?;
                self.nothing_unexpected()?;
            }
            Event::Write(count) => {
                let bytes = bytes(true, self.written, *count);
                let taken = self.engine()?.send(&bytes).map_err(|error| error.to_string())?;
                self.written += taken;
                if taken != *count {
                    return Err(format!("{taken} bytes were accepted, not {count}"));
                }
            }
            Event::Read(count) => self.read(*count)?,
            Event::Eof => match self.engine()?.recv(&mut [0]) {
                Ok(Some(0)) => {}
                other => return Err(format!("read {other:?} instead of the end of stream")),
            },
            Event::Close => {
                let now = self.now;
                self.engine()?.close(now);
            }
            Event::Abort => {
                let now = self.now;
                self.engine()?.abort(now);
            }
            Event::State(name) => {
                let state = format!("{:?}", self.engine()?.state());
                if state != *name {
                    return Err(format!("the state is {state}"));
                }
            }
            Event::Error(words) => match self.engine()?.error() {
                Some(error) if error.to_string().contains(words.as_str()) => {}
                Some(error) => return Err(format!("the error is: {error}")),
                None => return Err("there is no error".to_owned()),
            },
            Event::Finished => {
                if !self.engine()?.is_finished() {
                    return Err("the connection is not finished".to_owned());
                }
            }
        }
        self.collect();
        self.previous = self.now;
        Ok(())
    }

    /// Checks that every segment sent so far was expected.
    ///
    /// # Errors
    /// The first unexpected segment.
    pub fn nothing_unexpected(&mut self) -> Result<(), String> {
        match self.sent.front() {
            None => Ok(()),
            Some((at, segment)) => {
                let (at, shown) = (at.duration_since(self.began), self.show(segment));
                Err(format!("unexpected segment, sent at {at:?}: {shown}"))
            }
        }
    }

    fn connect(&mut self, opening: &Opening) -> Result<(), String> {
        let mut config = StreamConfig::new(self.local, self.remote, 0x00c0_ffee);
        config.mtu = opening.mtu.unwrap_or(config.mtu);
        config.rx_buffer = opening.rx.unwrap_or(config.rx_buffer);
        config.connect_timeout = opening.time_out.unwrap_or(config.connect_timeout);
        config.retransmission_timeout = opening.give_up.unwrap_or(config.retransmission_timeout);
        config.time_wait = opening.time_wait.unwrap_or(config.time_wait);
        config.acks = opening.acks_after.map_or(config.acks, AckPolicy::Delayed);
        config.no_delay = !opening.nagle;
        config.timestamps = opening.timestamps;
        let engine = StreamEngine::connect(config, None, self.now).map_err(|error| error.to_string())?;
        self.engine = Some(engine);
        Ok(())
    }

    fn engine(&mut self) -> Result<&mut StreamEngine, String> {
        self.engine.as_mut().ok_or("the script must begin with 'connect'".to_owned())
    }

    /// Collects the segments that the engine sends now.
    fn collect(&mut self) {
        let Some(engine) = &mut self.engine else { return };
        for _ in 0..POLLS {
            let mut packets = Vec::new();
            engine.poll_transmit(self.now, &mut |packet| packets.push(packet.to_vec()));
            for packet in packets {
                let segment = Segment::parse(&packet).expect("the engine's own segment");
                assert_eq!(segment.checksum, None, "a wrong checksum: {segment}");
                self.sent.push_back((self.now, segment));
            }
            if engine.poll_timeout(self.now).is_none_or(|next| next > self.now) {
                return;
            }
            engine.handle_timeout(self.now);
        }
        panic!("the engine never stops requesting to be polled");
    }

    /// Advances the clock to `time` after the previous line.
    fn pass(&mut self, time: Duration) -> Result<(), String> {
        let until = self.previous + time;
        while self.step(until)? {}
        self.now = self.now.max(until);
        Ok(())
    }

    /// Advances to the engine's next timeout, unless it is later than `until`; returns whether it did.
    fn step(&mut self, until: Instant) -> Result<bool, String> {
        let now = self.now;
        let Some(next) = self.engine()?.poll_timeout(now).filter(|next| *next <= until) else { return Ok(false) };
        self.now = next.max(now);
        self.engine()?.handle_timeout(next);
        self.collect();
        Ok(true)
    }

    fn sends(&mut self, after: Option<Duration>, spec: &SegmentSpec) -> Result<(), String> {
        self.collect();
        let (earliest, latest) = match after {
            None => (self.previous, self.now),
            Some(after) => (self.previous + after.mul_f64(0.95), self.previous + after.mul_f64(1.05)),
        };
        while self.sent.is_empty() && self.step(latest)? {}
        let Some((at, segment)) = self.sent.pop_front() else {
            let waited = latest.duration_since(self.previous);
            return Err(format!("crafter sends nothing within {waited:?}"));
        };
        if after.is_some() && at < earliest {
            let after = at.duration_since(self.previous);
            return Err(format!("too early, {after:?} after the previous line: {}", self.show(&segment)));
        }
        if segment.flags.contains(Flags::SYN) && self.isn.is_none() {
            self.isn = Some(segment.seq);
            self.first_timestamp = timestamps(&segment).map(|(value, _)| value);
        }
        if let Some(what) = self.differs(&segment, spec) {
            return Err(format!("{what} differs; crafter sends instead: {}", self.show(&segment)));
        }
        (self.previous, self.now) = (at, self.now.max(at));
        Ok(())
    }

    /// The timestamps of a segment of crafter, relative as in scripts. The echo of a SYN is 0.
    fn relative_timestamps(&self, segment: &Segment) -> Option<(u32, u32)> {
        let (value, echo) = timestamps(segment)?;
        let base = if segment.flags.contains(Flags::ACK) { PEER_TIMESTAMP } else { 0 };
        Some((value.wrapping_sub(self.first_timestamp.unwrap_or_default()), echo.wrapping_sub(base)))
    }

    /// The first field that differs from the script.
    fn differs(&self, segment: &Segment, spec: &SegmentSpec) -> Option<&'static str> {
        let without_push = |flags: Flags| Flags(flags.0 & !Flags::PSH.0);
        let seq = segment.seq.wrapping_sub(self.isn.unwrap_or_default());
        let sack = segment.options.iter().find_map(|option| match option {
            TcpOption::Sack(blocks) => {
                blocks.first().map(|(a, b)| (a.wrapping_sub(PEER_ISN), b.wrapping_sub(PEER_ISN)))
            }
            _ => None,
        });
        let sack_permitted = segment.options.contains(&TcpOption::SackOk);
        let is_data = |payload: &[u8]| payload == bytes(true, seq.wrapping_sub(1) as usize, payload.len());
        [
            ("the flags", without_push(segment.flags) != without_push(spec.flags)),
            ("the sequence number", seq != spec.seq),
            ("the length", segment.payload.len() != spec.length),
            ("the data", !segment.payload.is_empty() && !is_data(&segment.payload)),
            ("the acknowledgment", spec.ack.is_some_and(|ack| ack != segment.ack.wrapping_sub(PEER_ISN))),
            ("the window", spec.window.is_some_and(|window| window != segment.window)),
            ("the MSS", spec.mss.is_some_and(|mss| Some(mss) != segment.mss())),
            ("the window scale", spec.scale.is_some_and(|scale| Some(scale) != segment.window_scale())),
            ("SACK permitted", spec.sack_permitted && !sack_permitted),
            ("the timestamp", spec.timestamps.is_some() && spec.timestamps != self.relative_timestamps(segment)),
            ("the SACK block", spec.sack.is_some() && spec.sack != sack),
        ]
        .into_iter()
        .find_map(|(what, differs)| differs.then_some(what))
    }

    fn receive(&mut self, spec: &SegmentSpec) -> Result<(), String> {
        let mut segment = Segment::new(self.remote, self.local);
        segment.flags = spec.flags;
        segment.seq = PEER_ISN.wrapping_add(spec.seq);
        segment.ack = spec.ack.map_or(0, |ack| self.isn.unwrap_or_default().wrapping_add(ack));
        segment.window = spec.window.unwrap_or(segment.window);
        segment.payload = bytes(false, spec.seq.wrapping_sub(1) as usize, spec.length);
        segment.options.extend(spec.mss.map(TcpOption::Mss));
        segment.options.extend(spec.scale.map(TcpOption::WScale));
        segment.options.extend(spec.sack_permitted.then_some(TcpOption::SackOk));
        let isn = self.isn.unwrap_or_default();
        let block =
            |(a, b): (u32, u32)| TcpOption::Sack([(isn.wrapping_add(a), isn.wrapping_add(b))].into_iter().collect());
        segment.options.extend(spec.sack.map(block));
        let first_timestamp = self.first_timestamp.unwrap_or_default();
        segment.options.extend(spec.timestamps.map(|(value, echo)| {
            TcpOption::Timestamp(PEER_TIMESTAMP.wrapping_add(value), first_timestamp.wrapping_add(echo))
        }));
        let now = self.now;
        match self.engine()?.handle_packet(now, &segment.build()) {
            true => Ok(()),
            false => Err("the engine does not accept the segment".to_owned()),
        }
    }

    fn read(&mut self, count: usize) -> Result<(), String> {
        let mut got: Vec<u8> = Vec::new();
        let mut buffer = vec![0; count + 1];
        while got.len() <= count {
            match self.engine()?.recv(&mut buffer) {
                Ok(Some(0) | None) => break,
                Ok(Some(count)) => got.extend(&buffer[..count]),
                Err(error) => return Err(error.to_string()),
            }
        }
        if got != bytes(false, self.read, got.len()) {
            return Err("wrong bytes".to_owned());
        }
        self.read += got.len();
        if got.len() == count { Ok(()) } else { Err(format!("{} bytes could be read", got.len())) }
    }

    /// A segment in the notation of scripts.
    fn show(&self, segment: &Segment) -> String {
        let seq = segment.seq.wrapping_sub(self.isn.unwrap_or_default());
        let mut shown = format!("> {} {seq}", segment.flags);
        if !segment.payload.is_empty() {
            let _ = write!(shown, ":{}", seq.wrapping_add(segment.payload.len() as u32));
        }
        if segment.flags.contains(Flags::ACK) {
            let _ = write!(shown, " ack {}", segment.ack.wrapping_sub(PEER_ISN));
        }
        let _ = write!(shown, " win {}", segment.window);
        for option in &segment.options {
            let _ = match option {
                TcpOption::Mss(mss) => write!(shown, " mss {mss}"),
                TcpOption::WScale(scale) => write!(shown, " wscale {scale}"),
                TcpOption::SackOk => write!(shown, " sackOK"),
                TcpOption::Sack(blocks) => blocks.iter().try_for_each(|(a, b)| {
                    write!(shown, " sack {}:{}", a.wrapping_sub(PEER_ISN), b.wrapping_sub(PEER_ISN))
                }),
                _ => Ok(()),
            };
        }
        if let Some((value, echo)) = self.relative_timestamps(segment) {
            let _ = write!(shown, " ts {value} {echo}");
        }
        shown
    }
}
