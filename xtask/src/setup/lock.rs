//! One set-up at a time for a user: a second one waits, and so does crafter's build script, see `toolchain::wait`.

use std::fs::{self, File, TryLockError};

use anyhow::{Context, Result};

use crate::{sh, toolchain};

/// Held as long as a set-up is at work; released when dropped, and by the end of the process.
pub struct Lock(#[expect(dead_code, reason = "holds the lock")] File);

impl Lock {
    /// Takes the lock, waiting for another set-up to end.
    ///
    /// # Errors
    /// If the directory of set-up cannot be written to.
    pub fn take() -> Result<Self> {
        let path = toolchain::setup_lock().context("neither HOME nor XDG_DATA_HOME is set: set HOME")?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("cannot write to {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                sh::note("another set-up is at work: waiting for its end");
                file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(Self(file))
    }
}
