//! What ends a command early: Ctrl-C, SIGTERM, SIGHUP, and the time limit `--timeout`.
//!
//! [`hold`] is called before anything else in the process, so that a signal that arrives early is neither lost nor ends
//! the process without output. It stays pending until the command handles signals ([`Signals::new`]), or until
//! [`release`], for commands that signals end at once.

use std::{cell::Cell, io, rc::Rc, time::Duration};

use futures_util::FutureExt as _;
use nix::sys::signal::{SigSet, Signal};
use tokio::{
    signal::unix::{self, SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};

use super::{blocked, exit, hang_up::HangUp};

/// Time that attaching may take in addition to a time limit; also the time that closing may take after it passed.
const ALLOWANCE: Duration = Duration::from_secs(2);

const MILLISECOND: Duration = Duration::from_millis(1);

/// Time for tasks of the driver to send the RSTs of dropped streams and to release their leases.
const RELEASE_TIME: Duration = Duration::from_millis(10);

fn handled() -> SigSet {
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM])
}

/// Blocks SIGINT and SIGTERM in this thread, so that they stay pending. Threads that it starts inherit the mask.
pub fn hold() {
    // Fails only for an invalid argument.
    let _ = handled().thread_block();
}

/// Unblocks SIGINT and SIGTERM; pending ones are delivered at once.
pub fn release() {
    let _ = handled().thread_unblock();
}

/// The option `--timeout` of each command that waits for the network.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
#[group(skip)]
pub struct Limit {
    /// Time limit for the whole command, from look-ups of names to the end [default: none]
    #[arg(long, short, value_name = "TIME", value_parser = duration)]
    pub timeout: Option<Duration>,
}

impl Limit {
    /// How long to wait for a next hop to answer: at most the limit, and at most as long as for all attempts together
    /// if the user says how long to wait for an answer. `None`: as long as the kernel.
    pub fn next_hop(self, wait: Option<Duration>, attempts: u32) -> Option<Duration> {
        self.timeout.into_iter().chain(wait.map(|wait| wait.saturating_mul(attempts))).min()
    }

    /// How long to wait for one answer: `given` if the user says so, else the limit divided by the number of attempts,
    /// or `default` without a limit.
    pub fn wait(self, given: Option<Duration>, default: Duration, attempts: u32) -> Duration {
        let share = |limit: Duration| {
            let share = limit / attempts.max(1);
            // Whole milliseconds, for messages.
            if share < MILLISECOND { share } else { Duration::from_millis(share.as_millis() as u64) }
        };
        given.or(self.timeout.map(share)).unwrap_or(default)
    }
}

/// Reads a time: seconds, with decimals, or a number with the unit us, ms, s, m or h; more than 0 and at most 30 days.
///
/// # Errors
/// A sentence for clap.
pub fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 5] = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let (number, unit) =
        UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor))).unwrap_or((text, 1.0));
    let seconds =
        number.parse::<f64>().ok().filter(|_| number.ends_with(|last: char| last.is_ascii_digit() || last == '.'));
    // A much longer time would overflow when it is added to a clock.
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds * unit).ok())
        .filter(|time| !time.is_zero() && time.as_secs() <= 30 * 24 * 3600)
        .ok_or_else(|| "not a time; give seconds, or a number with a unit (200ms, 1.5, 2m), up to 30 days".to_owned())
}

/// What a command is doing when its time limit passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It waits for the system's resolver.
    LookUp,
    /// It waits for the service, for the attachment, or for the next hop.
    #[default]
    Opening,
    /// It has sent the first packet, or captures.
    Exchange,
}

/// What has ended a command early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// A signal, by number.
    Signal(i32),
    /// The time limit.
    TimedOut {
        /// `--timeout`.
        limit: Duration,
        /// What the command did.
        phase: Phase,
    },
}

impl Interruption {
    /// The exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Signal(number) => exit::signal(number),
            Self::TimedOut { .. } => exit::TIMED_OUT,
        }
    }

    /// The exit code of a command that runs until Ctrl-C or `--timeout`: success if it had nothing more to do, except
    /// after another signal.
    pub fn usual_code(self, is_complete: bool) -> u8 {
        let is_usual = matches!(self, Self::Signal(libc::SIGINT) | Self::TimedOut { .. });
        if is_complete && is_usual { exit::SUCCESS } else { self.code() }
    }

    /// Whether it is the time limit.
    pub fn is_timeout(self) -> bool {
        matches!(self, Self::TimedOut { .. })
    }
}

/// The value of `error` in JSON; for a time limit also the message.
impl std::fmt::Display for Interruption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self::TimedOut { limit, phase } = self else { return f.write_str("interrupted") };
        match phase {
            Phase::LookUp => write!(
                f,
                "no answer to a look-up of a host name within {limit:?} (--timeout); check the name server, give an \
                 address, or wait longer"
            ),
            Phase::Opening => write!(
                f,
                "not ready within {limit:?} (--timeout): the service, attaching, the next hop or the peer takes longer; \
                 see `crafter doctor`, or wait longer"
            ),
            Phase::Exchange => write!(f, "not complete within {limit:?} (--timeout); wait longer"),
        }
    }
}

/// As an error, it ends the command. The program prints no message for a signal.
impl std::error::Error for Interruption {}

/// The time limit of a command. It begins with the first packet, at the latest [`ALLOWANCE`] after the command begins:
/// loading and attaching the programs is not counted. For a look-up of names it begins with the command.
#[derive(Debug)]
pub struct Clock {
    limit: Option<Duration>,
    start: Instant,
    first_packet: Cell<Option<Instant>>,
    phase: Cell<Phase>,
    /// When the limit passed.
    passed: Cell<Option<Instant>>,
    is_over: Cell<bool>,
}

impl Clock {
    fn new(limit: Limit) -> Self {
        Self {
            limit: limit.timeout,
            start: Instant::now(),
            first_packet: Cell::default(),
            phase: Cell::default(),
            passed: Cell::default(),
            is_over: Cell::default(),
        }
    }

    /// What the command does now.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.set(phase);
        if phase == Phase::Exchange && self.first_packet.get().is_none() {
            self.first_packet.set(Some(Instant::now()));
        }
    }

    /// The time at which the limit passes; after that, the time at which closing has taken too long. `None`: never.
    fn deadline(&self) -> Option<Instant> {
        let limit = self.limit.filter(|_| !self.is_over.get())?;
        Some(match (self.passed.get(), self.phase.get()) {
            (Some(passed), _) => passed + ALLOWANCE,
            (None, Phase::LookUp) => self.start + limit,
            (None, _) => {
                let latest = self.start + ALLOWANCE;
                self.first_packet.get().unwrap_or(latest).min(latest) + limit
            }
        })
    }

    /// Waits for [`Clock::deadline`].
    async fn passes(&self) -> Interruption {
        let Some(limit) = self.limit else { return std::future::pending().await };
        // The deadline cannot be earlier; until then, it may still change.
        sleep_until(self.start + limit).await;
        while let Some(deadline) = self.deadline() {
            if deadline <= Instant::now() {
                let is_first = self.passed.replace(Some(deadline)).is_none();
                self.is_over.set(!is_first);
                return Interruption::TimedOut { limit, phase: self.phase.get() };
            }
            sleep_until(deadline).await;
        }
        std::future::pending().await
    }
}

/// Ctrl-C, SIGTERM, SIGHUP and the time limit: once this value exists, the first of these signals does not end the
/// process.
pub struct Signals {
    arriving: Arriving,
    clock: Rc<Clock>,
}

/// SIGINT, SIGTERM and SIGHUP as they arrive.
pub struct Arriving {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hang_up: HangUp,
}

impl Arriving {
    /// Installs the handlers. Pending signals stay pending.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn new() -> io::Result<Self> {
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, hang_up: HangUp::new()? })
    }

    /// Waits for the next signal; returns its number. Safe to cancel.
    pub async fn next(&mut self) -> i32 {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.terminate.recv() => libc::SIGTERM,
            () = self.hang_up.arrive() => libc::SIGHUP,
        }
    }
}

impl Signals {
    /// Handles signals from now on, and those that are pending; starts the time limit. A second signal ends the process
    /// even if the command is blocked.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn new(limit: Limit) -> io::Result<Self> {
        // Before `watch`: the runtime of its thread passes a signal only to the receivers that exist when it arrives.
        let arriving = Arriving::new()?;
        if let Err(error) = blocked::watch() {
            log::info!("a second signal does not end this process while it is blocked: {error}");
        }
        release();
        Ok(Self { arriving, clock: Rc::new(Clock::new(limit)) })
    }

    /// The clock of the time limit.
    pub fn clock(&self) -> Rc<Clock> {
        self.clock.clone()
    }

    /// Waits for the next signal, or until the time limit passes. Safe to cancel.
    pub async fn next(&mut self) -> Interruption {
        tokio::select! {
            biased;
            number = self.arriving.next() => Interruption::Signal(number),
            timed_out = self.clock.passes() => timed_out,
        }
    }

    /// Discards signals that have arrived and were not returned by `next`.
    pub fn discard(&mut self) {
        while self.next().now_or_never().is_some() {}
    }

    /// Runs `work` until it ends. An interruption drops it, and all that it owns.
    ///
    /// # Errors
    /// The interruption.
    pub async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Interruption> {
        let interruption = tokio::select! {
            result = work => return Ok(result),
            interruption = self.next() => interruption,
        };
        sleep(RELEASE_TIME).await;
        Err(interruption)
    }

    /// Runs a function that may block, such as the system's resolver, in another thread. An interruption leaves it to
    /// end by itself, or with the process.
    ///
    /// # Errors
    /// The interruption.
    pub async fn unless_blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Interruption> {
        let work = tokio::task::spawn_blocking(work);
        // A panic of the function continues here.
        self.unless(work).await.map(|done| done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_bounds() {
        for (text, milliseconds) in [
            ("0.25", 250),
            ("1.5", 1500),
            ("200ms", 200),
            ("2s", 2000),
            ("1.5m", 90_000),
            ("1h", 3_600_000),
            ("2.", 2000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        assert_eq!(duration("5us"), Ok(Duration::from_micros(5)));
        for text in
            ["0", "-1", "x", "", "s", "ms", "inf", "infs", "NaN", "1e30", "2592001", "721h", "1 s", "1d", "nans"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn limit_begins_with_the_first_packet_and_allows_for_closing() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let clock = |limit| Clock { limit, start, ..Clock::new(Limit::default()) };
        assert_eq!(clock(None).deadline(), None);
        let clock = clock(Some(5 * second));
        assert_eq!(clock.deadline(), Some(start + 5 * second + ALLOWANCE), "attaching is not counted");
        clock.set_phase(Phase::LookUp);
        assert_eq!(clock.deadline(), Some(start + 5 * second));
        for (sent, begun) in [(second / 2, second / 2), (4 * second, ALLOWANCE)] {
            clock.phase.set(Phase::Exchange);
            clock.first_packet.set(Some(start + sent));
            assert_eq!(clock.deadline(), Some(start + begun + 5 * second));
        }
        clock.passed.set(Some(start));
        assert_eq!(clock.deadline(), Some(start + ALLOWANCE));
        clock.is_over.set(true);
        assert_eq!(clock.deadline(), None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn time_limit_interrupts_twice() {
        let long_ago = Instant::now() - Duration::from_secs(60);
        let limit = Duration::from_secs(1);
        let mut signals = Signals::new(Limit { timeout: Some(limit) }).unwrap();
        signals.clock = Rc::new(Clock { start: long_ago, ..Clock::new(Limit { timeout: Some(limit) }) });
        signals.clock().set_phase(Phase::LookUp);
        for _ in 0..2 {
            let interruption = signals.unless(std::future::pending::<()>()).await.unwrap_err();
            assert_eq!(interruption, Interruption::TimedOut { limit, phase: Phase::LookUp });
            assert_eq!(interruption.code(), exit::TIMED_OUT);
            let text = interruption.to_string();
            assert!(text.starts_with("no answer to a look-up of a host name within 1s (--timeout); "), "{text}");
        }
        assert_eq!(signals.clock.deadline(), None);
        assert_eq!(signals.unless(async { 7 }).await, Ok(7));
    }

    #[test]
    fn wait_is_a_share_of_the_limit() {
        let second = Duration::from_secs(1);
        let limit = Limit { timeout: Some(6 * second) };
        assert_eq!(limit.wait(None, second, 3), 2 * second);
        assert_eq!(limit.wait(Some(second), 2 * second, 3), second);
        assert_eq!(Limit::default().wait(None, second, 3), second);
        assert_eq!(Limit { timeout: Some(second) }.wait(None, second, 3), Duration::from_millis(333));
        assert_eq!(limit.next_hop(Some(second), 2), Some(2 * second));
        assert_eq!((limit.next_hop(None, 2), Limit::default().next_hop(None, 2)), (limit.timeout, None));
    }
}
