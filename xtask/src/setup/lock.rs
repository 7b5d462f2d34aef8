//! One set-up at a time for a user: a second one waits, and so does crafter's build script, see `toolchain::wait`.

use std::fs::{self, File, TryLockError};
use std::path::PathBuf;

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
        Self::of(toolchain::setup_lock())
    }

    /// As [`Lock::take`], for what no build waits for: captures and Python's packages.
    ///
    /// # Errors
    /// As [`Lock::take`].
    pub fn of_data() -> Result<Self> {
        Self::of(toolchain::data_directory().map(|directory| directory.join("data.lock")))
    }

    fn of(path: Option<PathBuf>) -> Result<Self> {
        let path = path.context("neither HOME nor XDG_DATA_HOME is set: set HOME")?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        // One that root made, by sudo with this HOME, can be locked all the same.
        let file = file.or_else(|error| File::open(&path).map_err(|_| error));
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
