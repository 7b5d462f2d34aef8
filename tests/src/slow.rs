//! Timeouts for tests on an emulated CPU: `cargo xtask vm-test` sets `CRAFTER_TEST_SLOWNESS` to the factor by which it
//! is slower than a real one.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// The factor; 1 if not set.
pub fn slowness() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| {
        let given = std::env::var("CRAFTER_TEST_SLOWNESS").ok();
        given.and_then(|factor| factor.parse().ok()).filter(|factor| (1..=100).contains(factor)).unwrap_or(1)
    })
}

/// The timeout for something that takes at most `real` on a real CPU.
pub fn allow(real: Duration) -> Duration {
    real * slowness()
}

/// The number of bytes to transfer instead of `real`, so that a transfer takes the same time.
pub fn bytes(real: u64) -> u64 {
    real / u64::from(slowness())
}

/// Polls until `done` returns true, for at most `real` on a real CPU; returns whether it did.
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
