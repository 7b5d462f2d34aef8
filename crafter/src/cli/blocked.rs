//! Ends a command that cannot handle signals, because it is blocked in a write to a pipe that nobody reads.

use std::{io, sync::Mutex, thread, time::Duration};

use super::{exit, signals::Arriving};

/// Time for a command to end by itself after the second signal.
const GRACE: Duration = Duration::from_millis(500);

/// Whether the thread runs.
static WATCHED: Mutex<bool> = Mutex::new(false);

/// Watches signals from a thread, which ends the process with the first signal's exit code after the second signal.
/// Does nothing if the thread already runs.
///
/// # Errors
/// If the thread, or its handlers, cannot be made.
pub fn watch() -> io::Result<()> {
    let Ok(mut watched) = WATCHED.lock() else { return Ok(()) };
    if *watched {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        // Registered here, not in the thread: each signal from now on is counted.
        let _entered = runtime.enter();
        Arriving::new()?
    };
    let counted = async move {
        let code = exit::signal(signals.next().await);
        signals.next().await;
        tokio::time::sleep(GRACE).await;
        std::process::exit(code.into());
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(counted))?;
    *watched = true;
    Ok(())
}
