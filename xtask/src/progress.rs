//! The progress line at the bottom of a terminal: current step, elapsed time and estimated remaining time. In a pipe, a
//! line every 30 s, so that a log shows progress.
//!
//! Written without indicatif because the first command on a machine waits until xtask is compiled.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::terminal;

/// How often the line is drawn.
const TICK: Duration = Duration::from_millis(500);
/// How often a log gets a line.
const LOG: Duration = Duration::from_secs(30);
/// Assumed width, in columns, of a terminal whose width is unknown.
const COLUMNS: usize = 80;
/// Completed fraction below which the speed so far is not used for the estimate.
const EARLY: f64 = 0.1;

static STATE: Mutex<Option<State>> = Mutex::new(None);

struct State {
    began: Instant,
    /// How long the job takes from an empty target directory on two processors.
    typical: Duration,
    /// The tasks that run now by name: the build, and in parallel the eBPF linker.
    lanes: Vec<(&'static str, String)>,
    /// Completed fraction of the job, 0 to 1.
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
    /// Shows the progress line of a job that takes about `typical` from an empty target directory on two processors.
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

/// Sets the text of a task in the progress line; an empty text removes the task.
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

/// Sets the completed fraction of the job, 0 to 1.
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

/// Hides the progress line while `ask` runs, which may prompt on the terminal, as sudo does for a password.
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
            // The cursor stays at the beginning of the line: if the terminal becomes narrower, it wraps the rest of the
            // line, and the next redraw erases all of it. Until the new width is known, the terminal cuts the line off.
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

/// Shortens the line to what a terminal of this width shows without wrapping.
fn fitted(text: &str, columns: usize) -> String {
    // Some terminals wrap after the last column.
    let most = columns.saturating_sub(1);
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(3)).chain("...".chars().take(most)).collect()
}

/// Estimates the remaining time from the speed so far, or from the typical time while little is done.
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
