//! Allows one set-up at a time per user: a second one waits, and so does crafter's build script
//! (`toolchain::wait_for_setup`).

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{sh, toolchain};

/// The error for a data directory that this user cannot write to.
pub fn cannot_write(path: &Path) -> String {
    let directory = toolchain::data_directory().unwrap_or_default();
    format!(
        "cannot write to {}: if {} belongs to root because set-up ran under sudo, run `sudo chown -R \"$USER\" {}`; \
         otherwise set XDG_DATA_HOME to a directory that you can write to",
        path.display(),
        directory.display(),
        directory.display()
    )
}

/// The lock of a running set-up; released when dropped, and when the process ends.
pub struct Lock(#[expect(dead_code, reason = "holds the lock")] File);

impl Lock {
    /// Takes the lock; waits until another set-up has released it.
    ///
    /// # Errors
    /// If the data directory cannot be written to.
    pub fn take() -> Result<Self> {
        Self::of(toolchain::setup_lock())
    }

    /// Like [`Lock::take`], for captures and Python packages, for which no build waits.
    ///
    /// # Errors
    /// Like [`Lock::take`].
    pub fn of_data() -> Result<Self> {
        Self::of(toolchain::data_directory().map(|directory| directory.join("data.lock")))
    }

    fn of(path: Option<PathBuf>) -> Result<Self> {
        let path = path.context("neither HOME nor XDG_DATA_HOME is set: set HOME")?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(|| cannot_write(directory))?;
        }
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        // A lock file that belongs to root, made under sudo with this HOME, can still be opened for reading and locked.
        let file = file.or_else(|error| File::open(&path).map_err(|_| error));
        let file = file.with_context(|| cannot_write(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                sh::note("another set-up is running: waiting until it ends");
                file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    use std::{env, thread};

    use super::*;

    #[test]
    fn lock_is_released_when_its_holder_is_killed() {
        let path = env::temp_dir().join(format!("xtask-lock-{}", std::process::id()));
        let mut holder = Command::new("flock");
        holder.args(["--exclusive", "--close"]).arg(&path).args(["sh", "-c", "echo held; exec sleep 100"]);
        let mut holder = holder.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 5];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut line).unwrap();
        let began = Instant::now();
        let killer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            let sleeper = sh::output(Command::new("pgrep").arg("-P").arg(holder.id().to_string())).unwrap();
            holder.kill().unwrap();
            holder.wait().unwrap();
            sh::kill("TERM", sleeper.trim().parse().unwrap()).unwrap();
        });
        let lock = Lock::of(Some(path.clone())).unwrap();
        let waited = began.elapsed();
        killer.join().unwrap();
        drop(lock);
        fs::remove_file(path).unwrap();
        assert!((Duration::from_millis(250)..Duration::from_secs(20)).contains(&waited), "{waited:?}");
    }

    #[test]
    fn unwritable_directory_names_remedy() {
        let sentence = |path: Option<&str>| match Lock::of(path.map(PathBuf::from)) {
            Ok(_) => panic!("{path:?} can be locked"),
            Err(error) => format!("{error:#}"),
        };
        assert!(sentence(None).contains("set HOME"), "{}", sentence(None));
        for path in ["/proc/crafter/setup.lock", "/dev/null/crafter/setup.lock"] {
            let said = sentence(Some(path));
            assert!(said.starts_with("cannot write to /") && said.contains("XDG_DATA_HOME"), "{said}");
        }
    }
}
