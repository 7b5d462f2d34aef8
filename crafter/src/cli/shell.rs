//! `crafter shell`: crafts packets at a prompt, with results in variables.

mod input;
mod outside;
mod prompt;
mod state;

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    time::Duration,
};

use crate::cli::exit;
use anyhow::Context as _;
use crafter::shell::{Failure, Output, Shell};
use tokio::signal::unix::{SignalKind, signal};

use self::input::{Input, Text};
pub use self::outside::Outside;
use super::{
    Globals,
    hang_up::HangUp,
    interface, print,
    signals::{Limit, Signals},
};

/// Time for SIGHUP to arrive after the terminal cannot be read.
const HANG_UP_DELAY: Duration = Duration::from_millis(100);

/// `crafter shell`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Run the statements of FILE, or of stdin for - [default: a prompt, or stdin if it is not a terminal]
    #[arg(value_name = "FILE", conflicts_with = "command")]
    file: Option<PathBuf>,
    /// Run these statements, separated by newlines or ;
    #[arg(short, long, value_name = "STATEMENTS")]
    command: Option<String>,
    #[command(flatten)]
    link: interface::Link,
    #[command(flatten)]
    policy: interface::Policy,
    #[command(flatten)]
    half_open: interface::HalfOpen,
}

const HELP: &str = "\
Packets are written as for `crafter sr`; results can be assigned to variables:
  synack = sr1(IP(dst=\"192.0.2.1\")/TCP(sport=5000, dport=80, flags=\"S\"))
  send(IP(dst=\"192.0.2.1\")/TCP(sport=5000, dport=80, flags=\"A\", seq=synack.ack, ack=synack.seq+1))
`help()` lists the functions, Tab completes, Ctrl-C interrupts a statement, Ctrl-D ends the shell.
Source ports stay owned until the shell ends, so that the kernel sends no RST. At the end crafter
resets half-open connections: those whose SYN-ACK no packet acknowledged or reset. If the shell
is killed, and with --leave-open, the kernel resets them later.
Values are printed on stdout, with --json one object per line with type (value) and value; messages
on stderr.
Without a prompt the first error ends the shell: exit code 2 for a syntax error, else the code of
the error. The history is in $XDG_STATE_HOME/crafter, or ~/.local/state/crafter.
Exit code 0: all statements succeeded, or the prompt was left; others as above.

Examples:
  crafter shell
  crafter shell -c 'IP(dst=\"192.0.2.1\")/ICMP()'
  crafter shell --json script.crafter";

/// Runs statements, or prompts for them.
///
/// # Errors
/// Those of reading the statements and of writing; without a prompt, the statements' own.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let mut signals = Signals::new(Limit::default())?;
    let session = signals.unless(args.link.session(args.policy.terms(), &args.half_open)).await??;
    let mut shell = Shell::new(Outside::new(session, args.link.interface.clone()));
    let code = match (&args.command, &args.file) {
        (Some(text), _) => script(&mut shell, &mut signals, "-c", text, globals).await,
        (None, Some(path)) if path.as_os_str() != "-" => match std::fs::read_to_string(path) {
            Ok(text) => script(&mut shell, &mut signals, &path.display().to_string(), &text, globals).await,
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        },
        (None, None) if io::stdin().is_terminal() => {
            let ended = prompted(&mut shell, globals).await;
            // Ctrl-C at the prompt does not shorten the end.
            signals.discard();
            ended
        }
        _ => piped(&mut shell, &mut signals, globals).await,
    };
    print::half_open_reset(shell.into_world().close(&mut signals).await);
    code
}

/// Runs a complete text. All of it is parsed before the first statement is run.
async fn script(
    shell: &mut Shell<Outside>,
    signals: &mut Signals,
    name: &str,
    text: &str,
    globals: &Globals,
) -> anyhow::Result<u8> {
    let mut printer = Printer::new(globals);
    let ran = signals.unless(shell.run(text, |output| printer.take(output))).await;
    printer.finish()?;
    Ok(ran?.map_or_else(|failure| failed(name, &failure), |()| exit::SUCCESS))
}

/// Runs each statement from stdin when it is complete, so that a program can use the shell interactively.
async fn piped(shell: &mut Shell<Outside>, signals: &mut Signals, globals: &Globals) -> anyhow::Result<u8> {
    let work = async {
        let mut input = input::piped()?;
        while let Some(text) = input.next().await {
            let Text { text, line } = text.context("cannot read stdin")?;
            let mut printer = Printer::new(globals);
            let ran = shell.run(&text, |output| printer.take(output)).await;
            printer.finish()?;
            if let Err(mut failure) = ran {
                failure.line += line;
                failure.excerpt.number += line;
                return Ok(failed("stdin", &failure));
            }
            if shell.is_leaving() {
                break;
            }
        }
        Ok(exit::SUCCESS)
    };
    signals.unless(work).await?
}

/// Prompts for statements until the user leaves. Errors are printed and do not end the prompt.
async fn prompted(shell: &mut Shell<Outside>, globals: &Globals) -> anyhow::Result<u8> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hang_up = HangUp::new()?;
    let mut prompt = prompt::Prompt::start()?;
    loop {
        prompt.ask(shell.names());
        let answer = tokio::select! {
            answer = prompt.answer() => answer,
            _ = terminate.recv() => return Ok(exit::signal(libc::SIGTERM)),
            () = hang_up.arrive() => return Ok(exit::signal(libc::SIGHUP)),
        };
        let text = match answer {
            Some(Input::Text(text)) => text,
            Some(Input::Cancelled) => continue,
            Some(Input::Failed(reason)) => {
                // Reading a terminal that disappears may fail before its signal arrives.
                if tokio::time::timeout(HANG_UP_DELAY, hang_up.arrive()).await.is_ok() {
                    return Ok(exit::signal(libc::SIGHUP));
                }
                return Err(anyhow::Error::msg(reason).context("cannot read the terminal"));
            }
            Some(Input::End) | None => return Ok(exit::SUCCESS),
        };
        let mut printer = Printer::new(globals);
        // Discard an interrupt that arrived while no statement was running.
        while futures_util::FutureExt::now_or_never(interrupt.recv()).is_some() {}
        let ran = tokio::select! {
            ran = shell.run(&text, |output| printer.take(output)) => Some(ran),
            _ = interrupt.recv() => None,
            _ = terminate.recv() => return Ok(exit::signal(libc::SIGTERM)),
            () = hang_up.arrive() => return Ok(exit::signal(libc::SIGHUP)),
        };
        if let Err(error) = printer.finish() {
            print::error(&error);
        }
        match ran {
            Some(Ok(())) => {}
            Some(Err(failure)) => print_failure(&text, &failure),
            None => print::note("interrupted"),
        }
        if shell.is_leaving() {
            return Ok(exit::SUCCESS);
        }
    }
}

/// Prints the output of statements.
struct Printer {
    json: bool,
    fault: Option<anyhow::Error>,
}

impl Printer {
    fn new(globals: &Globals) -> Self {
        Self { json: globals.json, fault: None }
    }

    fn take(&mut self, output: Output<'_>) {
        let printed = match output {
            Output::Notice(text) => return print::note(text),
            Output::Value(value) if self.json => {
                let record = |value| print::json(&serde_json::json!({ "type": "value", "value": value }));
                value.to_json().map_err(anyhow::Error::from).and_then(record)
            }
            Output::Value(value) => print::packets_out(format!("{value}\n")).map_err(anyhow::Error::from),
        };
        if let Err(error) = printed {
            self.fault.get_or_insert(error);
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        self.fault.map_or(Ok(()), Err)
    }
}

/// Prints the failure of a script; returns its exit code.
fn failed(name: &str, failure: &Failure) -> u8 {
    print::report(format_args!("{name}, {failure}"), &[&failure.excerpt]);
    code(failure)
}

/// The exit code of a failure.
pub fn code(failure: &Failure) -> u8 {
    if failure.is_of_text() { exit::USAGE } else { exit::code(&failure.error) }
}

/// Prints a failure at the prompt.
fn print_failure(text: &str, failure: &Failure) {
    let place = if text.contains('\n') { format!("line {}: ", failure.line) } else { String::new() };
    print::report(format_args!("{place}{}", failure.reason()), &[&failure.excerpt]);
}
