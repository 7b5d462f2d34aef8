//! Names of users and processes, and ages, for people.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    time::{ClockId, clock_gettime},
    unistd::{Uid, User},
};

/// Cache of user names.
#[derive(Debug, Default)]
pub struct Users(HashMap<u32, Option<String>>);

impl Users {
    /// The user's name; `None` if it has none.
    pub fn name(&mut self, user: u32) -> Option<&str> {
        let look_up = || User::from_uid(Uid::from_raw(user)).ok().flatten().map(|user| printable(&user.name));
        self.0.entry(user).or_insert_with(look_up).as_deref()
    }

    /// The user's name, or the number if it has none.
    pub fn label(&mut self, user: u32) -> String {
        self.name(user).map_or_else(|| user.to_string(), str::to_owned)
    }
}

/// Cache of processes, valid for a short time.
#[derive(Debug, Default)]
pub struct Processes(HashMap<u32, Option<(String, Duration)>>);

impl Processes {
    /// The name of a process that was running at `began` (microseconds since 1970). `None` if the process has ended, also
    /// if its number was reused since.
    pub fn name(&mut self, pid: u32, began: u64) -> Option<String> {
        let (name, age) = self.0.entry(pid).or_insert_with(|| look_up(pid)).as_ref()?;
        // Start times in /proc have the resolution of clock ticks; tolerate a second.
        (*age + Duration::from_secs(1) >= since(began)).then(|| name.clone())
    }
}

/// The name of a process and its age.
fn look_up(pid: u32) -> Option<(String, Duration)> {
    let stat = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    let booted = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    let started = Duration::from_millis(stat.starttime.saturating_mul(1000) / procfs::ticks_per_second());
    Some((printable(&stat.comm), Duration::from(booted).saturating_sub(started)))
}

/// Text of another user, with control characters replaced, which could control the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Time that has passed since `then`, in microseconds since 1970.
pub fn since(then: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_micros(then))
}

/// `59s`, `3m20s`, `2h05m`, `3d04h`
pub fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_users_and_processes() {
        let mut users = Users::default();
        assert_eq!(users.name(0), Some("root"));
        assert_eq!(users.label(0), "root");
        assert_eq!(users.name(4_000_000_000), None);
        assert_eq!(users.label(4_000_000_000), "4000000000");
        let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap();
        let mut processes = Processes::default();
        assert!(processes.name(std::process::id(), now).is_some());
        // This process did not run in 1970: its number belonged to another process.
        assert_eq!(processes.name(std::process::id(), 0), None);
        assert_eq!(processes.name(u32::MAX, now), None);
        assert_eq!(printable("\u{1b}[2Jé\n"), "?[2Jé?");
    }

    #[test]
    fn ages_in_two_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (200, "3m20s"), (7500, "2h05m"), (273_600, "3d04h")] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }
}
