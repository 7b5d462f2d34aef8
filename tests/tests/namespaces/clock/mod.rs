//! CLOCK_REALTIME is set forward and back while crafter works. What takes time is measured by CLOCK_MONOTONIC, by which
//! the kernel half stamps, and notices nothing; what says what time it is says what the clock says at that moment.
//!
//! The clock is the whole machine's: these tests are ignored, and `cargo xtask vm-test --program clock` runs them, in a
//! virtual machine. Anywhere else they refuse to run also when they are asked to.

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
use crafter_tests::{guarded::GuardedLab, leak::Serial, stage, wire::mac};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
};

/// In seconds.
const DAY: i64 = 86_400;
const YEAR: i64 = 365 * DAY;

/// How far the clock goes; each time it comes back.
const STEPS: [i64; 4] = [DAY, -DAY, YEAR, -YEAR];

/// An address of the server's network at which nobody answers, not even that nobody is there.
const SILENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

/// One test at a time, and only where the clock is nobody's.
fn begin() -> Serial {
    let first = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    assert!(
        std::env::var_os("CRAFTER_TEST_MACHINE").is_some() && first.trim() == "vm_init",
        "these tests set the clock of the machine that they run on: `cargo xtask vm-test --program clock`"
    );
    Serial::begin()
}

/// CLOCK_REALTIME, since 1970.
fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

/// CLOCK_MONOTONIC in nanoseconds.
fn monotonic() -> u64 {
    let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC").into();
    now.as_nanos() as u64
}

/// Sets the clock forward or back, and sees that it went.
fn shift(seconds: i64) {
    let before = clock_gettime(ClockId::CLOCK_REALTIME).expect("the clock");
    let began = Instant::now();
    let to = TimeSpec::new(before.tv_sec() + seconds, before.tv_nsec());
    clock_settime(ClockId::CLOCK_REALTIME, to).unwrap_or_else(|e| panic!("set the clock to {to}: {e}"));
    let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("the clock");
    let went = now.tv_sec() - before.tv_sec();
    assert!((seconds..=seconds + 2 + began.elapsed().as_secs() as i64).contains(&went), "{went} instead of {seconds}");
}

/// The clock, set to and fro until this is dropped or ended; then it is right again.
struct Jumps {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u32>>,
}

impl Jumps {
    /// Begins, and stays for so long where it went.
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

    /// Ends it; how often the clock was set.
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

/// A lab whose client believes to know the way to [`SILENT`].
fn lab() -> GuardedLab {
    let lab = stage::lab();
    let server = lab.server().run(|| mac(INTERFACE)).expect("enter the server");
    let address = server.map(|byte| format!("{byte:02x}")).join(":");
    let arguments = ["neigh", "replace", &SILENT.to_string(), "lladdr", &address, "dev", INTERFACE, "nud", "permanent"];
    stage::run(lab.client().command("ip").args(arguments));
    lab
}

/// The silent address.
fn silent() -> IpAddr {
    SILENT.into()
}
