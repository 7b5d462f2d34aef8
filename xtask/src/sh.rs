//! Running other programs: echoed, as the user or as root, with errors that
//! name the command.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Once;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::progress;

/// Directories of root's that a user's `PATH` may lack.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Announces a step.
pub fn step(text: &str) {
    progress::say(&format!("==> {text}"));
}

/// Says what a step does, or why it does not.
pub fn note(text: &str) {
    // Much of it is what other programs say.
    progress::say(&format!("    {}", without_credentials(text)));
}

/// Runs a command with its output shown; an exit code other than 0 is an error.
pub fn run(command: &mut Command) -> Result<()> {
    match exit_code(command)? {
        0 => Ok(()),
        code => bail!("`{}` ended with exit code {code}", line(command)),
    }
}

/// Runs a command whose output is of interest only if it fails. A password can
/// be asked for, since sudo does that by the terminal.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("`{}` does not start", line(command)))?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stdout));
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        bail!("it ended with exit code {}", code_of(output.status));
    }
    Ok(())
}

/// Runs a command with its output shown; returns its exit code.
pub fn exit_code(command: &mut Command) -> Result<u8> {
    println!("    $ {}", line(command));
    let _ = io::stdout().flush();
    let status = command.status().with_context(|| format!("`{}` does not start", line(command)))?;
    Ok(code_of(status))
}

/// What a shell would report: a signal counts as 128 plus its number.
pub fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Runs a command quietly; returns its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("`{}` does not start", line(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}", line(command), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Cargo, by the toolchain that runs this xtask.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// A program to be run as root with these variables set: directly if this
/// process is root's, else through sudo, which may ask for a password only where
/// there is a terminal.
pub fn root<'a>(
    program: impl Into<OsString>,
    variables: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Command> {
    // Arguments are there for all users to read; an environment is not.
    let (secret, open): (Vec<_>, Vec<_>) = variables.into_iter().partition(|(_, value)| hides(value));
    let mut command = if is_root() {
        Command::new("env")
    } else {
        let mut sudo = Command::new("sudo");
        if sudo_needs_no_password()? {
            sudo.arg("-n");
        } else if !io::stdin().is_terminal() {
            bail!("this needs root, and sudo asks for a password without a terminal: run it as root, or on a terminal");
        }
        if !secret.is_empty() {
            let names: Vec<&str> = secret.iter().map(|(name, _)| *name).collect();
            sudo.arg(format!("--preserve-env={}", names.join(",")));
        }
        // sudo clears the environment; env sets what is wanted behind it.
        sudo.args(["--", "env"]);
        sudo
    };
    command.envs(secret);
    let path = path_with_system_directories();
    command.arg(assignment("PATH", path.to_string_lossy().as_ref()));
    // A PATH among them is the one that counts.
    for (name, value) in open {
        command.arg(assignment(name, value));
    }
    command.arg(program.into());
    Ok(command)
}

/// How often sudo is reminded; it forgets the password after 5 minutes or more.
const REMINDER: Duration = Duration::from_secs(60);

/// Sees to it that [`root`] will work until the end of this process, before minutes of building for it: where sudo
/// wants a password, it asks for it now, and is reminded of it from time to time.
///
/// # Errors
/// A sentence that says what to do, without root, and without sudo or a terminal to ask for its password on.
pub fn become_root() -> Result<()> {
    static ASKED: Once = Once::new();
    root("true", [])?;
    if is_root() || ASKED.is_completed() {
        return Ok(());
    }
    if !sudo_needs_no_password()? {
        let asked = progress::aside(|| Command::new("sudo").arg("-v").status()).context("sudo does not start")?;
        if !asked.success() {
            bail!("this needs root, and sudo refuses: run it as root");
        }
    }
    // Also where it has just been given: it may be forgotten before the build ends.
    ASKED.call_once(|| {
        thread::spawn(|| {
            loop {
                thread::sleep(REMINDER);
                // Where it refuses, it asks again when it is needed.
                let _ = Command::new("sudo").args(["-n", "-v"]).stdin(Stdio::null()).stderr(Stdio::null()).status();
            }
        });
    });
    Ok(())
}

/// The executable of this name, in `PATH` or in root's directories.
pub fn find(name: &str) -> Option<PathBuf> {
    env::split_paths(&path_with_system_directories()).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// The workspace's top directory.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where cargo puts what it builds for release.
pub fn release_directory() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    workspace().join(target).join("release")
}

/// Whether this process is root's.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

fn sudo_needs_no_password() -> Result<bool> {
    let status = Command::new("sudo").args(["-n", "true"]).stdin(Stdio::null()).stderr(Stdio::null()).status();
    match status {
        Ok(status) => Ok(status.success()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("this needs root, and sudo is not installed: run it as root")
        }
        Err(error) => Err(error).context("this needs root, and sudo does not start"),
    }
}

/// `PATH`, with the directories of root's that a user may lack.
pub fn path_with_system_directories() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    for directory in SYSTEM_DIRECTORIES.map(PathBuf::from) {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    env::join_paths(directories).unwrap_or(path)
}

/// Whether a URL in it has a name or a password.
fn hides(text: &str) -> bool {
    text != without_credentials(text)
}

/// The text with `***` in place of the name and the password of each URL (RFC 3986, section 3.2.1), such as those of a
/// proxy: what is printed ends up in logs.
pub fn without_credentials(text: &str) -> String {
    let (mut shown, mut rest) = (String::new(), text);
    while let Some((before, behind)) = rest.split_once("://") {
        shown += before;
        shown += "://";
        let end = behind.find(|c: char| c.is_whitespace() || "/?#'\"`".contains(c)).unwrap_or(behind.len());
        match behind[..end].rfind('@') {
            Some(at) => {
                shown += "***";
                rest = &behind[at..];
            }
            None => rest = behind,
        }
    }
    shown + rest
}

fn assignment(name: &str, value: &str) -> String {
    format!("{name}={value}")
}

/// A command as one would type it, without the search path.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words
        .map(|word| word.to_string_lossy().into_owned())
        .filter(|word| !word.starts_with("PATH="))
        .map(|word| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
            if !word.is_empty() && word.chars().all(plain) {
                word
            } else if word.contains('\n') {
                "'...'".to_owned()
            } else {
                format!("'{word}'")
            }
        })
        .collect();
    without_credentials(&words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_printed() {
        for (text, shown) in [
            ("http://user:secret@proxy:3128/ and more", "http://***@proxy:3128/ and more"),
            ("http_proxy=https://user:a@b@proxy x://t@h", "http_proxy=https://***@proxy x://***@h"),
            ("http://mirror/debian/pool/a@b", "http://mirror/debian/pool/a@b"),
            ("mail x@example.org", "mail x@example.org"),
            ("://", "://"),
        ] {
            assert_eq!(without_credentials(text), shown);
            assert_eq!(hides(text), text != shown);
        }
        let mut command = Command::new("env");
        command.arg("http_proxy=http://user:secret@proxy:3128");
        assert!(!line(&command).contains("secret"), "{}", line(&command));
    }

    #[test]
    fn secret_variables_of_root_are_no_arguments() {
        if !is_root() {
            println!("not run: this test asks for root");
            return;
        }
        let proxy = ("http_proxy", "http://user:secret@proxy:3128");
        let mut command = root("sh", [proxy]).unwrap();
        command.args(["-c", "tr '\\0' ' ' </proc/$$/cmdline; echo \"$http_proxy\""]);
        let said = output(&mut command).unwrap();
        assert_eq!(said.matches("secret").count(), 1, "{said}");
        assert!(said.ends_with(&format!("{}\n", proxy.1)), "{said}");
        let mut command = root("sh", [("PATH", "/bin:/somewhere")]).unwrap();
        assert_eq!(output(command.args(["-c", "echo $PATH"])).unwrap(), "/bin:/somewhere\n");
    }
}
