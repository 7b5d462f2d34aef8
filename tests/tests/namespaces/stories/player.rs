//! Plays a script against the engine.

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

use super::script::{Event, Line, Opening, Told};

/// The peer's first sequence number: its stream passes 2^32 soon.
const PEER: u32 = u32::MAX - 99;

/// The peer's first timestamp: its clock passes 2^32 soon.
const PEERS_STAMP: u32 = u32::MAX - 499;

/// How often the engine may ask to be looked at without time passing.
const TURNS: usize = 1000;

/// An engine, its peer's numbers, and the virtual clock.
pub struct Player {
    local: SocketAddr,
    remote: SocketAddr,
    engine: Option<StreamEngine>,
    /// Crafter's first sequence number, once it has sent that.
    isn: Option<u32>,
    /// Its first timestamp.
    stamp: Option<u32>,
    began: Instant,
    now: Instant,
    /// When the line before happened.
    before: Instant,
    sent: VecDeque<(Instant, Segment)>,
    written: usize,
    read: usize,
}

/// The byte of a stream with this number, different both ways.
fn byte(ours: bool, number: usize) -> u8 {
    (number * 31 + number / 251 + if ours { 7 } else { 101 }) as u8
}

/// Value and echo.
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
            stamp: None,
            began: now,
            now,
            before: now,
            sent: VecDeque::new(),
            written: 0,
            read: 0,
        }
    }

    /// Has this line come true.
    ///
    /// # Errors
    /// How it does not.
    pub fn play(&mut self, line: &Line) -> Result<(), String> {
        if let Event::Sends(told) = &line.event {
            return self.sends(line.after, told);
        }
        if let Some(after) = line.after {
            self.pass(after)?;
        }
        self.nothing_unexpected()?;
        match &line.event {
            Event::Connect(opening) => self.connect(opening)?,
            Event::Sends(_) => {}
            Event::Comes(told) => self.comes(told)?,
            Event::Quiet(time) => {
                self.pass(*time)?;
                self.nothing_unexpected()?;
            }
            Event::Write(count) => {
                let bytes = bytes(true, self.written, *count);
                let taken = self.engine()?.send(&bytes).map_err(|error| error.to_string())?;
                self.written += taken;
                if taken != *count {
                    return Err(format!("{taken} bytes were taken, not {count}"));
                }
            }
            Event::Read(count) => self.read(*count)?,
            Event::Eof => match self.engine()?.recv(&mut [0]) {
                Ok(Some(0)) => {}
                other => return Err(format!("it reads {other:?}, not the end")),
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
                    return Err("the connection goes on".to_owned());
                }
            }
        }
        self.collect();
        self.before = self.now;
        Ok(())
    }

    /// Nothing was sent that no line has taken.
    ///
    /// # Errors
    /// What was.
    pub fn nothing_unexpected(&mut self) -> Result<(), String> {
        match self.sent.front() {
            None => Ok(()),
            Some((at, segment)) => {
                let (at, shown) = (at.duration_since(self.began), self.show(segment));
                Err(format!("crafter sent, at {at:?}: {shown}; the story does not have that"))
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
        self.engine.as_mut().ok_or("the story has to begin with 'connect'".to_owned())
    }

    /// Takes what the engine has to send now.
    fn collect(&mut self) {
        let Some(engine) = &mut self.engine else { return };
        for _ in 0..TURNS {
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
        panic!("the engine asks to be looked at without end");
    }

    /// Lets so much time pass behind the line before.
    fn pass(&mut self, time: Duration) -> Result<(), String> {
        let until = self.before + time;
        while self.step(until)? {}
        self.now = self.now.max(until);
        Ok(())
    }

    /// Goes on to the next moment when the engine has something to do, if that is not later than `until`.
    fn step(&mut self, until: Instant) -> Result<bool, String> {
        let now = self.now;
        let Some(next) = self.engine()?.poll_timeout(now).filter(|next| *next <= until) else { return Ok(false) };
        self.now = next.max(now);
        self.engine()?.handle_timeout(next);
        self.collect();
        Ok(true)
    }

    fn sends(&mut self, after: Option<Duration>, told: &Told) -> Result<(), String> {
        self.collect();
        let (earliest, latest) = match after {
            None => (self.before, self.now),
            Some(after) => (self.before + after.mul_f64(0.95), self.before + after.mul_f64(1.05)),
        };
        while self.sent.is_empty() && self.step(latest)? {}
        let Some((at, segment)) = self.sent.pop_front() else {
            let waited = latest.duration_since(self.before);
            return Err(format!("crafter sends nothing within {waited:?}"));
        };
        if after.is_some() && at < earliest {
            let after = at.duration_since(self.before);
            return Err(format!("too early, {after:?} after the line before: {}", self.show(&segment)));
        }
        if segment.flags.contains(Flags::SYN) && self.isn.is_none() {
            self.isn = Some(segment.seq);
            self.stamp = timestamps(&segment).map(|(value, _)| value);
        }
        if let Some(what) = self.differs(&segment, told) {
            return Err(format!("{what} differs; crafter sends instead: {}", self.show(&segment)));
        }
        (self.before, self.now) = (at, self.now.max(at));
        Ok(())
    }

    /// The timestamp of a segment of crafter's in the numbers of a story. A SYN echoes nothing, which is 0.
    fn stamps(&self, segment: &Segment) -> Option<(u32, u32)> {
        let (value, echo) = timestamps(segment)?;
        let base = if segment.flags.contains(Flags::ACK) { PEERS_STAMP } else { 0 };
        Some((value.wrapping_sub(self.stamp.unwrap_or_default()), echo.wrapping_sub(base)))
    }

    /// What is not as it is told.
    fn differs(&self, segment: &Segment, told: &Told) -> Option<&'static str> {
        let without_push = |flags: Flags| Flags(flags.0 & !Flags::PSH.0);
        let seq = segment.seq.wrapping_sub(self.isn.unwrap_or_default());
        let sack = segment.options.iter().find_map(|option| match option {
            TcpOption::Sack(blocks) => blocks.first().map(|(a, b)| (a.wrapping_sub(PEER), b.wrapping_sub(PEER))),
            _ => None,
        });
        let sack_permitted = segment.options.contains(&TcpOption::SackOk);
        let is_data = |payload: &[u8]| payload == bytes(true, seq.wrapping_sub(1) as usize, payload.len());
        [
            ("the flags", without_push(segment.flags) != without_push(told.flags)),
            ("the sequence number", seq != told.seq),
            ("the length", segment.payload.len() != told.length),
            ("the data", !segment.payload.is_empty() && !is_data(&segment.payload)),
            ("the acknowledgment", told.ack.is_some_and(|ack| ack != segment.ack.wrapping_sub(PEER))),
            ("the window", told.window.is_some_and(|window| window != segment.window)),
            ("the MSS", told.mss.is_some_and(|mss| Some(mss) != segment.mss())),
            ("the window scale", told.scale.is_some_and(|scale| Some(scale) != segment.window_scale())),
            ("SACK permitted", told.sack_permitted && !sack_permitted),
            ("the timestamp", told.timestamps.is_some() && told.timestamps != self.stamps(segment)),
            ("the SACK block", told.sack.is_some() && told.sack != sack),
        ]
        .into_iter()
        .find_map(|(what, differs)| differs.then_some(what))
    }

    fn comes(&mut self, told: &Told) -> Result<(), String> {
        let mut segment = Segment::new(self.remote, self.local);
        segment.flags = told.flags;
        segment.seq = PEER.wrapping_add(told.seq);
        segment.ack = told.ack.map_or(0, |ack| self.isn.unwrap_or_default().wrapping_add(ack));
        segment.window = told.window.unwrap_or(segment.window);
        segment.payload = bytes(false, told.seq.wrapping_sub(1) as usize, told.length);
        segment.options.extend(told.mss.map(TcpOption::Mss));
        segment.options.extend(told.scale.map(TcpOption::WScale));
        segment.options.extend(told.sack_permitted.then_some(TcpOption::SackOk));
        let isn = self.isn.unwrap_or_default();
        let block =
            |(a, b): (u32, u32)| TcpOption::Sack([(isn.wrapping_add(a), isn.wrapping_add(b))].into_iter().collect());
        segment.options.extend(told.sack.map(block));
        let stamp = self.stamp.unwrap_or_default();
        segment.options.extend(
            told.timestamps
                .map(|(value, echo)| TcpOption::Timestamp(PEERS_STAMP.wrapping_add(value), stamp.wrapping_add(echo))),
        );
        let now = self.now;
        match self.engine()?.handle_packet(now, &segment.build()) {
            true => Ok(()),
            false => Err("the engine says that this is not its connection's".to_owned()),
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
        if got.len() == count { Ok(()) } else { Err(format!("{} bytes are there to be read", got.len())) }
    }

    /// A segment in the words of a story.
    fn show(&self, segment: &Segment) -> String {
        let seq = segment.seq.wrapping_sub(self.isn.unwrap_or_default());
        let mut shown = format!("> {} {seq}", segment.flags);
        if !segment.payload.is_empty() {
            let _ = write!(shown, ":{}", seq.wrapping_add(segment.payload.len() as u32));
        }
        if segment.flags.contains(Flags::ACK) {
            let _ = write!(shown, " ack {}", segment.ack.wrapping_sub(PEER));
        }
        let _ = write!(shown, " win {}", segment.window);
        for option in &segment.options {
            let _ = match option {
                TcpOption::Mss(mss) => write!(shown, " mss {mss}"),
                TcpOption::WScale(scale) => write!(shown, " wscale {scale}"),
                TcpOption::SackOk => write!(shown, " sackOK"),
                TcpOption::Sack(blocks) => blocks
                    .iter()
                    .try_for_each(|(a, b)| write!(shown, " sack {}:{}", a.wrapping_sub(PEER), b.wrapping_sub(PEER))),
                _ => Ok(()),
            };
        }
        if let Some((value, echo)) = self.stamps(segment) {
            let _ = write!(shown, " ts {value} {echo}");
        }
        shown
    }
}
