//! Runs other programs, as the user or as root. Commands are echoed, and errors name the command.

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

/// System directories that may be missing from a user's `PATH`.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Prints the title of a step.
pub fn step(text: &str) {
    progress::say(&format!("==> {text}"));
}

/// Prints a detail of the current step. Credentials in URLs are removed.
pub fn note(text: &str) {
    progress::say(&format!("    {}", without_credentials(text)));
}

/// Runs a command with its output shown; an exit code other than 0 is an error.
pub fn run(command: &mut Command) -> Result<()> {
    match exit_code(command)? {
        0 => Ok(()),
        code => bail!("`{}` ended with exit code {code}", line(command)),
    }
}

/// Runs a command and prints its output only if it fails. sudo can still ask for a password, since it uses the
/// terminal.
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

/// The exit code as a shell reports it: 128 plus the signal's number if a signal ended the process.
pub fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Runs a command without showing its output, and returns its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("`{}` does not start", line(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}", line(command), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Sends signal `$1` to process `$2` with the shell's built-in `kill`. The program `kill` is in a package that a minimal
/// Debian lacks (procps).
pub const KILL: &str = "kill -s \"$1\" \"$2\"";

/// Sends a signal, named without SIG, to a process of this user.
///
/// # Errors
/// If there is no such process.
pub fn kill(signal: &str, process: u32) -> Result<()> {
    output(Command::new("/bin/sh").args(["-c", KILL, "sh", signal, &process.to_string()])).map(drop)
}

/// The cargo of the toolchain that runs this xtask.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// A command that runs a program as root with these variables set: directly if this process runs as root, otherwise
/// through sudo, which may ask for a password only on a terminal.
pub fn root<'a>(
    program: impl Into<OsString>,
    variables: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Command> {
    // Every user can read the arguments of a process, but not its environment.
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
        // sudo clears the environment; env sets the variables again.
        sudo.args(["--", "env"]);
        sudo
    };
    command.envs(secret);
    let path = path_with_system_directories();
    command.arg(assignment("PATH", path.to_string_lossy().as_ref()));
    // A PATH among the variables overrides the one above.
    for (name, value) in open {
        command.arg(assignment(name, value));
    }
    command.arg(program.into());
    Ok(command)
}

/// How often sudo's cached credentials are refreshed; sudo keeps them for at least 5 minutes.
const REMINDER: Duration = Duration::from_secs(60);

/// Makes sure, before a long build, that [`root`] works until this process ends: sudo asks for its password now, and a
/// thread refreshes its cached credentials.
///
/// # Errors
/// If this process does not run as root, and sudo is missing or needs a password without a terminal.
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
    // The build may take longer than sudo keeps a password.
    ASKED.call_once(|| {
        thread::spawn(|| {
            loop {
                thread::sleep(REMINDER);
                // If this fails, sudo asks again when it is needed.
                let _ = Command::new("sudo").args(["-n", "-v"]).stdin(Stdio::null()).stderr(Stdio::null()).status();
            }
        });
    });
    Ok(())
}

/// The path of an executable, from `PATH` or the system directories.
pub fn find(name: &str) -> Option<PathBuf> {
    env::split_paths(&path_with_system_directories())
        .map(|directory| directory.join(name))
        .find(|file| is_program(file))
}

/// Whether a path is a file with an execute permission, as execvp(3) requires it.
fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)
}

/// The workspace's top directory.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Cargo's output directory for release builds.
pub fn release_directory() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    workspace().join(target).join("release")
}

/// Whether this process runs as root.
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

/// `PATH` with the system directories appended.
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

/// Whether the text contains a URL with a user name or password.
fn hides(text: &str) -> bool {
    text != without_credentials(text)
}

/// Replaces the user name and password of each URL (RFC 3986, section 3.2.1) by `***`, since printed text ends up in
/// logs.
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

/// A command as it would be typed in a shell, without `PATH`.
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
    fn kill_needs_no_program_named_kill() {
        let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
        let mut shell = Command::new("/bin/sh");
        let killed = output(shell.args(["-c", KILL, "sh", "TERM", &sleeper.id().to_string()]).env("PATH", ""));
        if killed.is_err() {
            sleeper.kill().unwrap();
        }
        assert_eq!((killed.unwrap().as_str(), sleeper.wait().unwrap().signal()), ("", Some(15)));
        assert!(kill("TERM", sleeper.id()).is_err(), "it has ended");
    }

    #[test]
    fn file_without_execute_permission_is_not_a_program() {
        assert!(is_program(&env::current_exe().unwrap()));
        for path in ["/proc/self/maps", "/proc/self", "/dev/null", "/proc/self/no-such-file"] {
            assert!(!is_program(Path::new(path)), "{path}");
        }
    }

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
    fn secret_variables_of_root_are_not_passed_as_arguments() {
        if !is_root() {
            println!("not run: this test needs root");
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
