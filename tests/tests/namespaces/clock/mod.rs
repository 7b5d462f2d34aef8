//! Sets CLOCK_REALTIME forward and back while crafter works. Timers and the kernel half use CLOCK_MONOTONIC and must
//! not be affected; wall-clock timestamps must follow CLOCK_REALTIME.
//!
//! The clock belongs to the whole machine. These tests are therefore ignored, run in a virtual machine by `cargo xtask
//! vm-test --program clock`, and refuse to run anywhere else.

mod exchange;
mod service;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crafter::lab::INTERFACE;
use crafter_tests::{guarded::GuardedLab, leak::Serial, testbed, wire::mac};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
};

/// Seconds.
const DAY: i64 = 86_400;
const YEAR: i64 = 365 * DAY;

/// Steps of the clock in seconds; each is undone afterwards.
const STEPS: [i64; 4] = [DAY, -DAY, YEAR, -YEAR];

/// An address in the server's network that sends no answer, not even an ICMP error.
const SILENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

/// Runs the test alone, and only in a virtual machine.
fn begin() -> Serial {
    let first = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    assert!(
        std::env::var_os("CRAFTER_TEST_MACHINE").is_some() && first.trim() == "vm_init",
        "these tests set the clock of the machine; run them with `cargo xtask vm-test --program clock`"
    );
    Serial::begin()
}

/// CLOCK_REALTIME as time since 1970.
fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

/// CLOCK_MONOTONIC in nanoseconds.
fn monotonic() -> u64 {
    let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC").into();
    now.as_nanos() as u64
}

/// Steps the clock by `seconds`, and verifies it.
fn shift(seconds: i64) {
    let before = clock_gettime(ClockId::CLOCK_REALTIME).expect("the clock");
    let began = Instant::now();
    let to = TimeSpec::new(before.tv_sec() + seconds, before.tv_nsec());
    clock_settime(ClockId::CLOCK_REALTIME, to).unwrap_or_else(|e| panic!("set the clock to {to}: {e}"));
    let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("the clock");
    let change = now.tv_sec() - before.tv_sec();
    assert!(
        (seconds..=seconds + 2 + began.elapsed().as_secs() as i64).contains(&change),
        "the clock changed by {change} s instead of {seconds} s"
    );
}

/// A thread that steps the clock forward and back until this is ended or dropped; afterwards the clock is correct.
struct Jumps {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u32>>,
}

impl Jumps {
    /// Starts the thread; `pause`: time between two steps.
    fn every(pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let work = move || {
            let mut count = 0;
            for step in STEPS.into_iter().cycle() {
                for step in [step, -step] {
                    shift(step);
                    count += 1;
                    std::thread::sleep(pause);
                }
                if until.load(Ordering::Relaxed) {
                    break;
                }
            }
            count
        };
        Self { stop, thread: Some(std::thread::spawn(work)) }
    }

    /// Stops the thread; returns the number of steps.
    fn end(mut self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("once").join().expect("set the clock")
    }
}

impl Drop for Jumps {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A lab whose client has a neighbour entry for [`SILENT`].
fn lab() -> GuardedLab {
    let lab = testbed::lab();
    let server = lab.server().run(|| mac(INTERFACE)).expect("enter the server");
    let address = server.map(|byte| format!("{byte:02x}")).join(":");
    let arguments = ["neigh", "replace", &SILENT.to_string(), "lladdr", &address, "dev", INTERFACE, "nud", "permanent"];
    testbed::run(lab.client().command("ip").args(arguments));
    lab
}

fn silent() -> IpAddr {
    SILENT.into()
}
