//! The terminal below the progress line: its width, and what a signal must wipe before it ends this process.
//!
//! By the C library that std is linked to, without a crate: every first command compiles xtask and waits for it.

use std::ffi::{c_int, c_ulong, c_void};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// Moves to the beginning of the line, and wipes from there to the end of the screen: also what was the rest of a line
/// before a narrower terminal wrapped it. The line first, since tmux keeps the text of a screen that is wiped as a whole.
pub const WIPE: &str = "\r\x1b[K\x1b[J";

/// From now on, what is longer than a line is cut off (DECAWM), and from now on wrapped again.
pub const CUT: &str = "\x1b[?7l";
pub const WRAP: &str = "\x1b[?7h";

const STDOUT: c_int = 1;
/// Of `ioctl`, on all architectures that crafter runs on (asm-generic/ioctls.h).
const TIOCGWINSZ: c_ulong = 0x5413;

/// `signal.h`; the numbers are the same on all architectures.
const SIGHUP: c_int = 1;
const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
const SIG_DFL: usize = 0;
const SIG_IGN: usize = 1;

/// `struct winsize`.
#[repr(C)]
#[derive(Default)]
struct WindowSize {
    rows: u16,
    columns: u16,
    pixels: [u16; 2],
}

// SAFETY: as the C library declares them.
unsafe extern "C" {
    fn ioctl(descriptor: c_int, request: c_ulong, ...) -> c_int;
    fn write(descriptor: c_int, bytes: *const c_void, count: usize) -> isize;
    fn signal(number: c_int, handler: usize) -> usize;
    fn raise(number: c_int) -> c_int;
}

/// The width of the terminal on the standard output; `None`: it has none, or does not know it.
pub fn columns() -> Option<usize> {
    let mut size = WindowSize::default();
    // SAFETY: the request writes one `struct winsize`, which outlives the call.
    let result = unsafe { ioctl(STDOUT, TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.columns > 0).then(|| size.columns.into())
}

/// Whether there is something to wipe.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// Says whether there is something to wipe when a signal ends this process. Ctrl-C, SIGTERM and SIGHUP do so as before,
/// and as far as they were not ignored.
pub fn wipe_on_signals(shown: bool) {
    static INSTALL: Once = Once::new();
    SHOWN.store(shown, Ordering::Relaxed);
    INSTALL.call_once(|| {
        for number in [SIGINT, SIGTERM, SIGHUP] {
            let handler: extern "C" fn(c_int) = wipe_and_end;
            // SAFETY: the handler makes system calls that are async-signal-safe, and reads an atomic.
            unsafe {
                if signal(number, handler as usize) == SIG_IGN {
                    signal(number, SIG_IGN);
                }
            }
        }
    });
}

extern "C" fn wipe_and_end(number: c_int) {
    // SAFETY: all three are async-signal-safe; the text is static. Raised again, the signal ends the process once this
    // handler has returned.
    unsafe {
        if SHOWN.load(Ordering::Relaxed) {
            write(STDOUT, WIPE.as_ptr().cast(), WIPE.len());
        }
        signal(number, SIG_DFL);
        raise(number);
    }
}
