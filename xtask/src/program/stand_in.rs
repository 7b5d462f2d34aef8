//! Stand-ins for peers that could not be installed: programs at the end of `PATH` that record the call and fail. A test
//! that fails when run alone, and called a stand-in, is reported as not run; other tests are unaffected.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use anyhow::{Context, Result};

use crate::setup::Missing;
use crate::sh;

/// Prefix of the names of Python modules.
const MODULE: &str = "python3-";

/// Prefix of the directories' names; the id of the process that owns the directory follows.
const PREFIX: &str = "crafter-stand-ins.";

/// The stand-ins, removed when dropped. If a signal ends the process, the next run removes them.
pub struct StandIns {
    directory: PathBuf,
    missing: Vec<Missing>,
}

impl StandIns {
    /// Creates a stand-in for each missing tool, and removes those of processes that have ended.
    ///
    /// # Errors
    /// If the temporary directory cannot be written to.
    pub fn make(missing: Vec<Missing>) -> Result<Self> {
        let temporary = std::env::temp_dir();
        remove_stale(&temporary);
        if missing.is_empty() {
            return Ok(Self { directory: PathBuf::new(), missing });
        }
        // Not in the target directory, since some tests run as users without access to this home directory. The name is
        // unpredictable, so that no other user can create it first.
        let template = temporary.join(format!("{PREFIX}{}.XXXXXXXX", std::process::id()));
        let made = sh::output(Command::new("mktemp").arg("--directory").arg(template))?;
        let stand_ins = Self { directory: made.trim_end().into(), missing };
        stand_ins.write().with_context(|| format!("cannot write to {}", stand_ins.directory.display()))?;
        Ok(stand_ins)
    }

    fn write(&self) -> std::io::Result<()> {
        fs::set_permissions(&self.directory, fs::Permissions::from_mode(0o755))?;
        // Accessible for all users, independent of the umask.
        fs::write(self.calls(), "")?;
        fs::set_permissions(self.calls(), fs::Permissions::from_mode(0o666))?;
        let calls = self.calls();
        for Missing { command, .. } in &self.missing {
            match command.strip_prefix(MODULE) {
                Some(module) => {
                    let package = self.directory.join("python").join(module);
                    fs::create_dir_all(&package)?;
                    let text = format!(
                        "open({:?}, 'a').write({:?})\nraise ImportError({:?})\n",
                        calls.display().to_string(),
                        format!("{command}\n"),
                        format!("not run: {command} is missing"),
                    );
                    fs::write(package.join("__init__.py"), text)?;
                }
                None => {
                    let path = self.directory.join(command);
                    let calls = calls.display();
                    let text = format!(
                        "#!/bin/sh\necho '{command}' >>'{calls}'\necho 'not run: {command} is missing' >&2\nexit 127\n"
                    );
                    executable(&path, &text)?;
                }
            }
        }
        Ok(())
    }

    /// The variables with search paths, in which the stand-ins are last.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        if self.missing.is_empty() {
            return Vec::new();
        }
        let path = format!("{}:{}", sh::path_with_system_directories().to_string_lossy(), self.directory.display());
        let mut variables = vec![("PATH", path)];
        if self.missing.iter().any(|missing| missing.command.starts_with(MODULE)) {
            variables.push(("PYTHONPATH", self.directory.join("python").display().to_string()));
        }
        variables
    }

    /// The missing tools that were called since the last call of this method.
    pub fn take_calls(&self) -> Vec<&Missing> {
        if self.missing.is_empty() {
            return Vec::new();
        }
        let text = fs::read_to_string(self.calls()).unwrap_or_default();
        if !text.is_empty() {
            // Truncated and not removed, since other users could not create it again.
            let _ = fs::write(self.calls(), "");
        }
        self.missing.iter().filter(|missing| text.lines().any(|line| line == missing.command)).collect()
    }

    /// The missing tools.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    fn calls(&self) -> PathBuf {
        self.directory.join("calls")
    }
}

/// Removes this user's directories of processes that have ended.
fn remove_stale(temporary: &Path) {
    let Ok(own) = fs::metadata("/proc/self") else { return };
    for entry in fs::read_dir(temporary).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split_once('.')?.0.parse::<u32>().ok());
        // Not of a link, which another user may have created.
        let is_own = entry.metadata().is_ok_and(|data| data.is_dir() && data.uid() == own.uid());
        if is_own && owner.is_some_and(|owner| !Path::new("/proc").join(owner.to_string()).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Writes a program from another process. Otherwise a child of another thread could inherit the descriptor that is open
/// for writing, and starting the program would fail with ETXTBSY (execve(2)).
fn executable(path: &Path, text: &str) -> io::Result<()> {
    let mut shell = Command::new("sh");
    shell.args(["-c", "printf %s \"$2\" >\"$1\" && chmod 755 \"$1\"", "sh"]).arg(path).arg(text);
    let status = shell.status()?;
    status.success().then_some(()).ok_or_else(|| io::Error::other(format!("{} cannot be written", path.display())))
}

impl Drop for StandIns {
    fn drop(&mut self) {
        if !self.missing.is_empty() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_recorded_and_fail() {
        let missing = |command: &str| Missing { command: command.into(), sentence: "not in this suite".into() };
        let stand_ins = StandIns::make(vec![missing("no-such-peer"), missing("python3-nosuchmodule")]).unwrap();
        let variables = stand_ins.variables();
        let run = |line: &str| Command::new("sh").args(["-c", line]).envs(variables.iter().cloned()).output().unwrap();
        assert!(stand_ins.take_calls().is_empty());
        assert!(run("true; command -v no-such-peer").status.success());
        assert!(stand_ins.take_calls().is_empty());
        let output = run("no-such-peer --version");
        assert_eq!(output.status.code(), Some(127));
        assert_eq!(stand_ins.take_calls().iter().map(|missing| &missing.command).collect::<Vec<_>>(), ["no-such-peer"]);
        if sh::find("python3").is_some() {
            assert!(!run("python3 -c 'import nosuchmodule'").status.success());
            assert_eq!(stand_ins.take_calls()[0].command, "python3-nosuchmodule");
        }
        let directory = stand_ins.directory.clone();
        drop(stand_ins);
        assert!(!directory.exists());
    }

    #[test]
    fn directories_of_ended_processes_are_removed() {
        let temporary = sh::output(Command::new("mktemp").args(["--directory", "--tmpdir"])).unwrap();
        let temporary = Path::new(temporary.trim_end());
        let mut ended = Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        let names = [
            (format!("{PREFIX}{}.stale", ended.id()), false),
            (format!("{PREFIX}{}.running", std::process::id()), true),
            (format!("{PREFIX}other"), true),
            (format!("other.{}.stale", ended.id()), true),
        ];
        for (name, _) in &names {
            fs::create_dir_all(temporary.join(name).join("python")).unwrap();
        }
        std::os::unix::fs::symlink(temporary, temporary.join(format!("{PREFIX}{}.link", ended.id()))).unwrap();
        remove_stale(temporary);
        let left = names.map(|(name, expected)| (temporary.join(name).exists(), expected));
        fs::remove_dir_all(temporary).unwrap();
        assert!(left.iter().all(|(exists, expected)| exists == expected), "{left:?}");
    }
}
