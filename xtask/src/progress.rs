//! One line at the bottom of a terminal that says which step runs, for how long, and how long it may still take. In a
//! pipe: a line every half a minute instead, so that a log shows that the work goes on.
//!
//! By hand and not by indicatif, because every first command compiles xtask and waits for it.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::terminal;

/// How often the line is drawn.
const TICK: Duration = Duration::from_millis(500);
/// How often a log gets a line.
const LOG: Duration = Duration::from_secs(30);
/// Columns of a terminal that does not tell.
const COLUMNS: usize = 80;
/// Part of a job below which its own speed says little about the time that is left.
const EARLY: f64 = 0.1;

static STATE: Mutex<Option<State>> = Mutex::new(None);

struct State {
    began: Instant,
    /// How long the job takes from nothing on two processors.
    typical: Duration,
    /// What runs now: the build, and the eBPF linker beside it.
    lanes: Vec<(&'static str, String)>,
    /// How much of the job is done, 0 to 1.
    done: f64,
    terminal: bool,
    paused: bool,
    logged: Instant,
}

/// Shows the line until dropped.
pub struct Progress {
    stop: Arc<(Mutex<bool>, Condvar)>,
    ticker: Option<JoinHandle<()>>,
}

impl Progress {
    /// Starts the line of a job that takes about `typical` from nothing on two processors.
    pub fn start(typical: Duration) -> Self {
        let now = Instant::now();
        *state() = Some(State {
            began: now,
            typical,
            lanes: Vec::new(),
            done: 0.0,
            terminal: io::stdout().is_terminal(),
            paused: false,
            logged: now,
        });
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = stop.clone();
        let ticker = thread::spawn(move || {
            let mut ended = stopped.0.lock().unwrap_or_else(PoisonError::into_inner);
            while !*ended {
                ended = stopped.1.wait_timeout(ended, TICK).unwrap_or_else(PoisonError::into_inner).0;
                if let Some(state) = state().as_mut().filter(|_| !*ended) {
                    state.tick();
                }
            }
        });
        Self { stop, ticker: Some(ticker) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(ticker) = self.ticker.take() {
            // A panic of the ticker has been printed.
            let _ = ticker.join();
        }
        if let Some(state) = state().take() {
            state.clear();
        }
    }
}

/// Says what runs in a lane; empty: nothing any more.
pub fn lane(name: &'static str, what: impl Into<String>) {
    if let Some(state) = state().as_mut() {
        state.lanes.retain(|(lane, _)| *lane != name);
        let what = what.into();
        if !what.is_empty() {
            state.lanes.push((name, what));
            state.lanes.sort_by_key(|(lane, _)| *lane);
        }
        state.draw();
    }
}

/// Says how much of the job is done, 0 to 1.
pub fn done(part: f64) {
    if let Some(state) = state().as_mut() {
        state.done = part.clamp(0.0, 1.0);
    }
}

/// Prints a line above the progress line.
pub fn say(text: &str) {
    let state = state();
    if let Some(state) = state.as_ref() {
        state.clear();
    }
    println!("{text}");
    // Before the output of the programs that the step runs.
    let _ = io::stdout().flush();
    if let Some(state) = state.as_ref() {
        state.draw();
    }
}

/// Does something that may ask on the terminal, such as sudo for a password, without the line in between.
pub fn aside<T>(ask: impl FnOnce() -> T) -> T {
    let pause = |paused| {
        if let Some(state) = state().as_mut() {
            state.clear();
            state.paused = paused;
        }
    };
    pause(true);
    let answer = ask();
    pause(false);
    answer
}

fn state() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn tick(&mut self) {
        if self.terminal {
            self.draw();
        } else if self.logged.elapsed() >= LOG {
            self.logged = Instant::now();
            println!("    {}", self.text());
            let _ = io::stdout().flush();
        }
    }

    fn draw(&self) {
        if self.terminal && !self.paused {
            let text = fitted(&self.text(), terminal::columns().unwrap_or(COLUMNS));
            terminal::wipe_on_signals(true);
            // The cursor stays at the beginning: a terminal that has become narrower wraps the line behind it, and the
            // next drawing wipes all of it. One that has not told its new width yet cuts the line off.
            print!("{}{}{text}{}\r", terminal::WIPE, terminal::CUT, terminal::WRAP);
            let _ = io::stdout().flush();
        }
    }

    fn clear(&self) {
        if self.terminal && !self.paused {
            print!("{}", terminal::WIPE);
            let _ = io::stdout().flush();
            terminal::wipe_on_signals(false);
        }
    }

    fn text(&self) -> String {
        let lanes: Vec<&str> = self.lanes.iter().map(|(_, what)| what.as_str()).collect();
        let elapsed = self.began.elapsed();
        let left = words(time_left(elapsed, self.done, self.typical));
        format!("[{}, {left}] {}", clock(elapsed), lanes.join(" | "))
    }
}

/// As much of the line as a terminal of this width shows without wrapping it.
fn fitted(text: &str, columns: usize) -> String {
    // In the last column, some terminals wrap already.
    let most = columns.saturating_sub(1);
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(3)).chain("...".chars().take(most)).collect()
}

/// By the speed so far once there is one, before by what is typical.
fn time_left(elapsed: Duration, done: f64, typical: Duration) -> Duration {
    let total = if done < EARLY { typical } else { elapsed.div_f64(done) };
    total.saturating_sub(elapsed)
}

fn clock(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

fn words(left: Duration) -> String {
    match left.as_secs() {
        0..=4 => "nearly done".into(),
        seconds @ 5..=90 => format!("about {} s left", seconds.next_multiple_of(5)),
        seconds => format!("about {} min left", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_the_terminal() {
        let line = "[1:15, about 4 min left] building: 12 of 340 | building the eBPF linker";
        assert_eq!(fitted(line, 80), line);
        assert_eq!(fitted(line, 40), "[1:15, about 4 min left] building: 1...");
        for columns in 0..90 {
            assert!(fitted(line, columns).len() <= columns.saturating_sub(1), "{columns}");
        }
    }

    #[test]
    fn estimates() {
        let seconds = Duration::from_secs;
        assert_eq!(time_left(seconds(10), 0.0, seconds(240)), seconds(230));
        assert_eq!(time_left(seconds(60), 0.5, seconds(240)), seconds(60));
        assert_eq!(time_left(seconds(300), 0.05, seconds(240)), seconds(0));
        assert_eq!(time_left(seconds(30), 1.0, seconds(240)), seconds(0));
        assert_eq!(words(seconds(230)), "about 4 min left");
        assert_eq!(words(seconds(62)), "about 65 s left");
        assert_eq!(words(seconds(3)), "nearly done");
        assert_eq!(clock(seconds(75)), "1:15");
    }
}
