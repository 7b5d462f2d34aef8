//! The terminal of the progress line: its width, and a signal handler that erases the line before the process ends.
//!
//! Calls the C library directly, without a crate, because the first command on a machine waits until xtask is compiled.

use std::ffi::{c_int, c_ulong, c_void};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// Moves to the beginning of the line and erases to the end of the screen, which includes the rest of a line that a
/// narrower terminal wrapped. The line is erased first, because tmux adds the text of an erased screen to its history.
pub const WIPE: &str = "\r\x1b[K\x1b[J";

/// Switches automatic wrapping of long lines off and on (DECAWM).
pub const CUT: &str = "\x1b[?7l";
pub const WRAP: &str = "\x1b[?7h";

const STDOUT: c_int = 1;
/// The request of `ioctl` for the window size; the same on all architectures that crafter supports
/// (asm-generic/ioctls.h).
const TIOCGWINSZ: c_ulong = 0x5413;

/// Constants of `signal.h`; the numbers are the same on all architectures.
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

// SAFETY: the signatures are those of the C library.
unsafe extern "C" {
    fn ioctl(descriptor: c_int, request: c_ulong, ...) -> c_int;
    fn write(descriptor: c_int, bytes: *const c_void, count: usize) -> isize;
    fn signal(number: c_int, handler: usize) -> usize;
    fn raise(number: c_int) -> c_int;
}

/// The width in columns of the terminal on the standard output; `None` if there is no terminal or its width is unknown.
pub fn columns() -> Option<usize> {
    let mut size = WindowSize::default();
    // SAFETY: the request writes one `struct winsize`, which outlives the call.
    let result = unsafe { ioctl(STDOUT, TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.columns > 0).then(|| size.columns.into())
}

/// Whether the progress line is shown.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// Sets whether the progress line must be erased when a signal ends this process. SIGINT, SIGTERM and SIGHUP end it as
/// without the handler; those that were ignored are still ignored.
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
    // SAFETY: all three functions are async-signal-safe, and the text is static. The raised signal ends the process
    // after this handler has returned.
    unsafe {
        if SHOWN.load(Ordering::Relaxed) {
            write(STDOUT, WIPE.as_ptr().cast(), WIPE.len());
        }
        signal(number, SIG_DFL);
        raise(number);
    }
}
