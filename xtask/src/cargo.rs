//! Running cargo: its progress on the progress line, its failures explained.

use std::env;
use std::io::{self, IsTerminal, Read};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::{progress, sh};

/// How long a build for release takes from nothing on two processors.
pub const RELEASE_TIME: Duration = Duration::from_secs(480);

/// Part of a build that its last crate takes, which is crafter itself.
const LAST: f64 = 0.2;

/// What cargo's lines of mere status begin with.
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

/// Runs cargo with its progress on the progress line; shows warnings and errors, not the names of 300 crates. Returns
/// its standard output.
///
/// # Errors
/// If cargo ends with an exit code other than 0; the sentence names the cause where its output shows one.
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
            bail!("the build is not begun, since set-up failed");
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
        // What cargo said of it is on the screen.
        return Err(obstacle(&said).map_or_else(|| anyhow!("the build failed, as its output shows"), Into::into));
    }
    Ok(stdout)
}

/// The cargo that [`run`] waits for, by its process id.
static RUNNING: Mutex<Running> = Mutex::new(Running { process: None, is_cancelled: false });

struct Running {
    process: Option<u32>,
    is_cancelled: bool,
}

fn running() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the build that runs, and any later one, for what it needs cannot be had: minutes of compiling would lead to the
/// same error.
pub fn cancel() {
    let mut running = running();
    running.is_cancelled = true;
    if let Some(process) = running.process {
        // It may have ended by itself; it is waited for by `run`, so that its id is still its own.
        let _ = sh::output(Command::new("kill").arg(process.to_string()));
    }
}

/// Runs cargo without a word; what it says is the error's.
///
/// # Errors
/// As [`run`], with the last lines that it said.
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

/// Shows what cargo says until it ends; returns it.
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
                    // The end of a progress line that cargo has wiped is empty.
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

/// `Building [===>  ] 12/340: name`: 12 and 340.
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

/// Without the escape sequences of colours and of wiping.
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

/// The disk is full, or the registry cannot be reached: no other way of building would do better.
#[derive(Debug)]
pub struct Obstacle(&'static str);

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Obstacle {}

/// What on this host made a build fail, in a sentence with what to do; `None`: the sources, it seems.
fn obstacle(said: &str) -> Option<Obstacle> {
    let has = |parts: &[&str]| parts.iter().any(|part| said.contains(part));
    if has(&["No space left on device", "os error 28"]) {
        return Some(Obstacle("the build failed because the disk is full: free some space, then try again"));
    }
    if has(&["certificate is not yet valid", "certificate has expired", "certificate not valid yet"]) {
        return Some(Obstacle(
            "crates cannot be downloaded, because by this host's clock the registry's certificate is of another time: \
             set the clock, then try again",
        ));
    }
    if has(&["SSL certificate problem", "SSL CA cert", "unable to get local issuer", "self-signed certificate"]) {
        return Some(Obstacle(
            "crates cannot be downloaded, because the registry's certificate is not trusted here: if a proxy has \
             replaced it, name the proxy's by CARGO_HTTP_CAINFO=FILE",
        ));
    }
    let network =
        ["Could not resolve host", "failed to download", "download of config.json failed", "Couldn't connect"];
    has(&network).then_some(Obstacle(
        "crates cannot be downloaded: see that the registry can be reached (a proxy is named by HTTPS_PROXY), then try \
         again",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_progress() {
        assert_eq!(units("    Building [====>    ] 12/340: syn, serde(build)"), Some((12, 340)));
        assert_eq!(units("\x1b[K\x1b[1m\x1b[36m    Building\x1b[0m [=>  ] 7/9: a"), Some((7, 9)));
        assert_eq!(units("   Compiling syn v2.0.1"), None);
        assert!(is_status("   Compiling syn v2.0.1") && is_status("\x1b[1m\x1b[32m    Finished\x1b[0m `release`"));
        assert!(!is_status("warning: unused") && !is_status("error[E0308]: mismatched") && !is_status(""));
    }

    #[test]
    fn output_is_read_to_its_end() {
        let text = "   Compiling a v1\r    Building [=> ] 1/2: a\rwarning: unused\n    Finished";
        let said = show(text.as_bytes()).unwrap();
        assert!(
            said.contains("Compiling a") && said.contains("warning: unused") && !said.contains("Building"),
            "{said}"
        );
    }

    #[test]
    fn obstacles() {
        let sentence = |said| obstacle(said).map(|obstacle| obstacle.to_string()).unwrap_or_default();
        assert!(sentence("error: failed to write: No space left on device (os error 28)").contains("disk is full"));
        assert!(sentence("[60] SSL certificate problem: unable to get").contains("CARGO_HTTP_CAINFO"));
        assert!(sentence("[60] SSL certificate problem: certificate is not yet valid").contains("set the clock"));
        assert!(sentence("[6] Could not resolve host: x").contains("proxy"));
        assert_eq!(sentence("error[E0308]: mismatched types"), "");
    }
}
