//! Removes filters under clsact, which belong to the device, not to a file descriptor, and so outlive their owner. The
//! guard is a separate process that waits for the end of its standard input, which is closed when the owner drops the
//! other end or exits for any reason, and then removes the filters.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex},
};

use super::lock;
use crate::error::{Error, Result};

/// Reads one command per line:
/// - `open OWNER DEVICE` records whether the device already has a clsact qdisc, and answers. If it has none, the qdisc
///   that is added later is removed once it has no filters left.
/// - `filter OWNER DEVICE SIDE PREFERENCE HANDLE` records a filter to remove at the end.
/// - `end OWNER DEVICE` removes the filters of one owner, latest first, and answers.
///
/// At the end of the input, it removes all of them. Only names and numbers are passed to `tc`, because other text
/// could make it start programs: a compromised service gains nothing through its guard.
const SCRIPT: &str = r#"
exec 3>&1 >/dev/null
trap '' INT TERM HUP QUIT
set -f
IFS='
'
todo= ours=
undo() {
    [ -z "$1" ] || printf %s "$1" | tc -force -batch -
}
remove() {
    kept=
    for device in $ours; do
        if [ "$device" != "$1" ] || [ -n "$(tc filter show dev "$1" ingress; tc filter show dev "$1" egress)" ]; then
            kept="$kept$device$IFS"
        else
            tc qdisc del dev "$1" clsact
        fi
    done
    ours=$kept
}
while IFS=' ' read -r word owner device side preference handle more; do
    case $owner$device$side$preference$handle$more in
        *[!a-zA-Z0-9.:_@-]*) [ "$word" = filter ] || echo "no name: $owner $device" >&3; continue ;;
    esac
    case $word in
        open)
            if shown=$(tc qdisc show dev "$device"); then
                case $shown in *clsact*) ;; *) ours="$ours$device$IFS" ;; esac
                echo done >&3
            else
                echo "tc qdisc show dev $device: exit code $?" >&3
            fi ;;
        filter)
            case $side in ingress | egress) ;; *) continue ;; esac
            todo="$owner filter del dev $device $side pref $preference handle $handle bpf$IFS$todo" ;;
        end)
            mine= others=
            for entry in $todo; do
                case $entry in
                    "$owner "*) mine="$mine${entry#* }$IFS" ;;
                    *) others="$others$entry$IFS" ;;
                esac
            done
            todo=$others
            undo "$mine"
            remove "$device"
            echo done >&3 ;;
    esac
done
undo "$(for entry in $todo; do echo "${entry#* }"; done)"
for device in $ours; do remove "$device"; done
"#;

/// A running guard.
#[derive(Debug)]
pub struct Guard {
    process: Child,
    /// `None` once the guard was ended.
    input: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// A guard that several owners share, each with devices of its own.
pub type Shared = Arc<Mutex<Guard>>;

/// The guard of a process that cannot start one later.
static AHEAD: Mutex<Option<Shared>> = Mutex::new(None);

/// Starts the guard of this process now, with the capabilities that a child gets: for a service that gives up the right
/// to start programs before it attaches its first filter. It ends with the process.
///
/// # Errors
/// [`Error::Io`] without a shell.
pub fn start_ahead() -> Result<()> {
    *lock(&AHEAD) = Some(Arc::new(Mutex::new(Guard::start()?)));
    Ok(())
}

/// The guard that was started ahead; else a new one, in the network namespace of the calling thread.
///
/// # Errors
/// [`Error::Io`] without a shell, or where no program may be started.
pub(super) fn guard() -> Result<Shared> {
    let ahead = lock(&AHEAD).clone();
    ahead.map_or_else(|| Guard::start().map(|guard| Arc::new(Mutex::new(guard))), Ok)
}

impl Guard {
    fn start() -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "crafter-guard"]);
        // A process group of its own: signals from the terminal to our group must not reach the guard.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().map_err(|source| Error::Io {
            action: "start the guard of clsact filters (`sh`), which removes them on this kernel".to_owned(),
            source,
        })?;
        let pipes = process.stdin.take().zip(process.stdout.take());
        let (input, answers) = pipes.ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self { process, input: Some(input), answers: BufReader::new(answers) })
    }

    /// Announces that a qdisc will be added to `device`. Call it before the qdisc is added.
    ///
    /// # Errors
    /// [`Error::Io`] if the guard has ended, or has no `tc`.
    pub(super) fn open(&mut self, owner: u64, device: &str) -> Result<()> {
        self.say(&format!("open {owner} {device}"))?;
        self.answer()
    }

    /// Announces a filter, which the guard removes when `owner` ends. Call it before the filter is added.
    ///
    /// # Errors
    /// [`Error::Io`] if the guard has ended.
    pub(super) fn filter(&mut self, owner: u64, device: &str, side: &str, preference: u16, handle: u32) -> Result<()> {
        self.say(&format!("filter {owner} {device} {side} {preference} {handle:#x}"))
    }

    /// Removes the filters of `owner`, which are on `device`, and waits for that.
    ///
    /// # Errors
    /// [`Error::Io`] if the guard has ended.
    pub(super) fn end(&mut self, owner: u64, device: &str) -> Result<()> {
        self.say(&format!("end {owner} {device}"))?;
        self.answer()
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let Some(input) = &mut self.input else { return Ok(()) };
        // One write: the guard reads whole lines only, whenever this process is killed.
        input.write_all(format!("{line}\n").as_bytes()).map_err(failed)
    }

    fn answer(&mut self) -> Result<()> {
        let mut answer = String::new();
        self.answers.read_line(&mut answer).map_err(failed)?;
        match answer.trim_end() {
            "done" => Ok(()),
            "" => Err(failed(io::ErrorKind::BrokenPipe.into())),
            other => Err(Error::Io {
                action: "run `tc` (package iproute2), which removes the filters on this kernel".to_owned(),
                source: io::Error::other(other.to_owned()),
            }),
        }
    }
}

fn failed(source: io::Error) -> Error {
    Error::Io { action: "communicate with the guard of the clsact filters".to_owned(), source }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever a line says, `tc` only removes filters.
    #[test]
    fn commands_in_a_line_are_not_executed() {
        let directory = tempfile::tempdir().unwrap();
        // In the place of `tc`: records its arguments.
        let (log, tc) = (directory.path().join("log"), directory.path().join("tc"));
        let script = format!("#!/bin/sh\n[ \"$1\" = qdisc ] || {{ echo \"$@\"; cat; }} >> {}\n", log.display());
        crafter_tests::executable::script(&script, &tc).unwrap();
        let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT, "crafter-guard"])
            .env("PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = "open 1 if7\n\
            filter 1 if7 ingress 20001 0x18000\n\
            filter 1 if7;reboot ingress 1 0x1\n\
            filter 1 $(reboot) egress 1 0x1\n\
            filter 1 if7 exec 1 0x1\n\
            filter 1 if7 egress 1 0x1 more words\n\
            exec bpf run reboot\n\
            open 1 if7`reboot`\n\
            filter 2 if7 egress 20002 0x28000\n\
            end 2 if7\n";
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "done\nno name: 1 if7`reboot`\ndone\n");
        let log = std::fs::read_to_string(log).unwrap();
        let commands: Vec<_> = log.lines().filter(|line| line.contains("del ")).collect();
        let remove =
            |side, preference, handle| format!("filter del dev if7 {side} pref {preference} handle {handle} bpf");
        assert_eq!(commands, [remove("egress", "20002", "0x28000"), remove("ingress", "20001", "0x18000")], "{log}");
    }
}
