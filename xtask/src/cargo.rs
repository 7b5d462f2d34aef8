//! Running cargo: its progress on the progress line, its failures explained.

use std::env;
use std::io::{self, IsTerminal, Read};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::{progress, sh};

/// How long a release build takes from an empty target directory on two processors.
pub const RELEASE_TIME: Duration = Duration::from_secs(480);

/// Fraction of the build time that the last crate, crafter itself, takes.
const LAST: f64 = 0.2;

/// First words of cargo's status lines.
const STATUS: [&str; 13] = [
    "Adding",
    "Blocking",
    "Checking",
    "Compiling",
    "Downloaded",
    "Downloading",
    "Executable",
    "Finished",
    "Fresh",
    "Installing",
    "Locking",
    "Replacing",
    "Updating",
];

/// Runs cargo and returns its standard output. Its progress is shown on the progress line; warnings and errors are
/// printed, status lines are not.
///
/// # Errors
/// If cargo's exit code is not 0; the error names the cause if cargo's output shows it.
pub fn run(command: &mut Command) -> Result<String> {
    let colour = if io::stderr().is_terminal() { "always" } else { "never" };
    command
        .env("CARGO_TERM_PROGRESS_WHEN", "always")
        .env("CARGO_TERM_PROGRESS_WIDTH", "100")
        .env("CARGO_TERM_COLOR", env::var("CARGO_TERM_COLOR").unwrap_or_else(|_| colour.into()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = {
        let mut running = running();
        if running.is_cancelled {
            bail!("the build was not started because set-up failed");
        }
        let child = command.spawn().context("cargo does not start")?;
        running.process = Some(child.id());
        child
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.map(|mut out| out.read_to_string(&mut text)).transpose().map(|_| text)
    });
    let said = stderr.map(show).transpose()?.unwrap_or_default();
    let status = child.wait()?;
    running().process = None;
    progress::lane("build", "");
    let stdout = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context("cargo's output")?;
    if !status.success() {
        return Err(obstacle(&said).map_or_else(|| anyhow!("the build failed; see cargo's output above"), Into::into));
    }
    Ok(stdout)
}

/// The cargo process that [`run`] waits for.
static RUNNING: Mutex<Running> = Mutex::new(Running { process: None, is_cancelled: false });

struct Running {
    process: Option<u32>,
    is_cancelled: bool,
}

fn running() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the running build and refuses later ones, because set-up failed: after minutes of compiling they would fail
/// with the same error.
pub fn cancel() {
    let mut running = running();
    running.is_cancelled = true;
    if let Some(process) = running.process {
        // If it has ended, its id is not reused until `run` has waited for it.
        let _ = sh::kill("TERM", process);
    }
}

/// Runs cargo without showing its output.
///
/// # Errors
/// Like [`run`], with the last lines of cargo's output.
pub fn quietly(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().context("cargo does not start")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = said.lines().rev().take(20).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        return Err(obstacle(&said).map_or_else(|| anyhow!("the build failed:\n{}", last.join("\n")), Into::into));
    }
    Ok(())
}

/// Shows cargo's output until it ends, and returns it.
fn show(mut stderr: impl Read) -> Result<String> {
    let (mut said, mut line) = (String::new(), Vec::new());
    let mut buffer = [0; 4096];
    loop {
        let count = stderr.read(&mut buffer)?;
        for byte in &buffer[..count] {
            if !matches!(byte, b'\n' | b'\r') {
                line.push(*byte);
                continue;
            }
            let text = String::from_utf8_lossy(&line).into_owned();
            line.clear();
            match units(&text) {
                Some((done, all)) => {
                    progress::done(f64::from(done) / f64::from(all.max(1)) * (1.0 - LAST));
                    progress::lane("build", format!("building: {done} of {all}"));
                }
                None if is_status(&text) => {
                    if text.contains("Blocking") {
                        progress::lane("build", "waiting for another cargo");
                    }
                    said += &(text + "\n");
                }
                None => {
                    // The text after an erased progress line is empty.
                    if !plain(&text).trim().is_empty() || *byte == b'\n' {
                        progress::say(&text);
                    }
                    said += &(text + "\n");
                }
            }
        }
        if count == 0 {
            return Ok(said + &String::from_utf8_lossy(&line));
        }
    }
}

/// Parses cargo's progress line: 12 and 340 from `Building [===>  ] 12/340: name`.
fn units(line: &str) -> Option<(u32, u32)> {
    let plain = plain(line);
    let (_, rest) = plain.trim_start().strip_prefix("Building [")?.split_once("] ")?;
    let (done, rest) = rest.split_once('/')?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((done.trim().parse().ok()?, digits.parse().ok()?))
}

fn is_status(line: &str) -> bool {
    let plain = plain(line);
    let word = plain.split_whitespace().next().unwrap_or_default();
    plain.starts_with(' ') && STATUS.contains(&word)
}

/// Removes escape sequences.
fn plain(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line.chars();
    while let Some(letter) = rest.next() {
        if letter == '\x1b' {
            rest.find(char::is_ascii_alphabetic);
        } else {
            plain.push(letter);
        }
    }
    plain
}

/// A cause outside of the sources, such as a full disk or an unreachable registry, with what to do about it.
#[derive(Debug)]
pub struct Obstacle(&'static str);

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Obstacle {}

/// Finds a cause outside of the sources in cargo's output.
fn obstacle(said: &str) -> Option<Obstacle> {
    let has = |parts: &[&str]| parts.iter().any(|part| said.contains(part));
    if has(&["No space left on device", "os error 28"]) {
        return Some(Obstacle("the build failed because the disk is full: free some space, then try again"));
    }
    if has(&["certificate is not yet valid", "certificate has expired", "certificate not valid yet"]) {
        return Some(Obstacle(
            "crates cannot be downloaded because the registry's certificate is not valid at the time of this host's \
             clock: set the clock, then try again",
        ));
    }
    if has(&["SSL certificate problem", "SSL CA cert", "unable to get local issuer", "self-signed certificate"]) {
        return Some(Obstacle(
            "crates cannot be downloaded because the registry's certificate is not trusted: if a proxy has replaced it, \
             set CARGO_HTTP_CAINFO to a file with the proxy's certificate",
        ));
    }
    let network =
        ["Could not resolve host", "failed to download", "download of config.json failed", "Couldn't connect"];
    has(&network).then_some(Obstacle(
        "crates cannot be downloaded because the registry cannot be reached: check the network (HTTPS_PROXY names a \
         proxy), then try again",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_cargo_is_parsed() {
        assert_eq!(units("    Building [====>    ] 12/340: syn, serde(build)"), Some((12, 340)));
        assert_eq!(units("\x1b[K\x1b[1m\x1b[36m    Building\x1b[0m [=>  ] 7/9: a"), Some((7, 9)));
        assert_eq!(units("   Compiling syn v2.0.1"), None);
        assert!(is_status("   Compiling syn v2.0.1") && is_status("\x1b[1m\x1b[32m    Finished\x1b[0m `release`"));
        assert!(!is_status("warning: unused") && !is_status("error[E0308]: mismatched") && !is_status(""));
    }

    #[test]
    fn output_is_read_until_eof() {
        let text = "   Compiling a v1\r    Building [=> ] 1/2: a\rwarning: unused\n    Finished";
        let said = show(text.as_bytes()).unwrap();
        assert!(
            said.contains("Compiling a") && said.contains("warning: unused") && !said.contains("Building"),
            "{said}"
        );
    }

    #[test]
    fn causes_outside_of_the_sources_are_named() {
        let sentence = |said| obstacle(said).map(|obstacle| obstacle.to_string()).unwrap_or_default();
        assert!(sentence("error: failed to write: No space left on device (os error 28)").contains("disk is full"));
        assert!(sentence("[60] SSL certificate problem: unable to get").contains("CARGO_HTTP_CAINFO"));
        assert!(sentence("[60] SSL certificate problem: certificate is not yet valid").contains("set the clock"));
        assert!(sentence("[6] Could not resolve host: x").contains("proxy"));
        assert_eq!(sentence("error[E0308]: mismatched types"), "");
    }
}
