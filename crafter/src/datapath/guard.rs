//! The guard of what outlives its owner: filters under clsact belong to the device, not to a file descriptor. A process
//! of its own therefore waits for the end of its standard input, which comes when the owner drops the other end or dies
//! in whatever way, and then takes down what was put up.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::error::{Error, Result};

/// One word and its arguments per line. `open DEVICE`: notes whether it has a clsact qdisc already, and answers; one
/// that comes later is ours to remove, once nobody has a filter there. `todo OWNER COMMAND`: what `tc` is to do in the
/// end. `end OWNER DEVICE`: does that for one owner, latest first, and answers. The end of the input ends all.
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
while IFS=' ' read -r word owner rest; do
    case $word in
        open)
            if shown=$(tc qdisc show dev "$owner"); then
                case $shown in *clsact*) ;; *) ours="$ours$owner$IFS" ;; esac
                echo done >&3
            else
                echo "tc qdisc show dev $owner: exit code $?" >&3
            fi ;;
        todo) todo="$owner $rest$IFS$todo" ;;
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
            remove "$rest"
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
    /// `None` once it was told to end.
    tell: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// A guard that several owners share, each with devices of its own.
pub type Shared = Arc<Mutex<Guard>>;

/// The guard of a process that can start none later.
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

/// What is guarded is a list in another process, so that a panic of ours does not spoil it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guard {
    fn start() -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "crafter-guard"]);
        // A group of its own: what the terminal sends to ours must not reach the guard.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().map_err(|source| Error::Io {
            action: "start the guard of clsact filters (`sh`), which removes them on this kernel".to_owned(),
            source,
        })?;
        let pipes = process.stdin.take().zip(process.stdout.take());
        let (tell, answers) = pipes.ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self { process, tell: Some(tell), answers: BufReader::new(answers) })
    }

    /// To be called before a qdisc is added to `device`.
    ///
    /// # Errors
    /// [`Error::Io`] when the guard is gone, or has no `tc`.
    pub(super) fn open(&mut self, device: &str) -> Result<()> {
        self.say(&format!("open {device}"))?;
        self.answer()
    }

    /// What `tc` is to do when `owner` ends; to be called before there is anything to be undone.
    ///
    /// # Errors
    /// [`Error::Io`] when the guard is gone.
    pub(super) fn todo(&mut self, owner: u64, command: &str) -> Result<()> {
        self.say(&format!("todo {owner} {command}"))
    }

    /// Does what is to be done for `owner`, whose filters are on `device`, and waits for that.
    ///
    /// # Errors
    /// [`Error::Io`] when the guard is gone.
    pub(super) fn end(&mut self, owner: u64, device: &str) -> Result<()> {
        self.say(&format!("end {owner} {device}"))?;
        self.answer()
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let Some(tell) = &mut self.tell else { return Ok(()) };
        // One write: what the guard has read of us is whole lines, whenever we die.
        tell.write_all(format!("{line}\n").as_bytes()).map_err(failed)
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
    Error::Io { action: "speak with the guard of the clsact filters".to_owned(), source }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.tell.take());
        let _ = self.process.wait();
    }
}
