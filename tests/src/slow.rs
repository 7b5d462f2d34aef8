//! Tests on an emulated processor: `cargo xtask vm-test` says how much slower than a real one it is taken to be, by
//! `CRAFTER_TEST_SLOWNESS`. Without it all is as on a real one.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// The factor; 1 on a real processor.
pub fn slowness() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| {
        let given = std::env::var("CRAFTER_TEST_SLOWNESS").ok();
        given.and_then(|factor| factor.parse().ok()).filter(|factor| (1..=100).contains(factor)).unwrap_or(1)
    })
}

/// How long something may take that takes so long at most on a real processor.
pub fn allow(real: Duration) -> Duration {
    real * slowness()
}

/// How many bytes to move instead of so many, so that it takes no longer.
pub fn bytes(real: u64) -> u64 {
    real / u64::from(slowness())
}

/// Waits until `done`, at most for so long on a real processor; whether it is.
pub fn wait_until(real: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + allow(real);
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
