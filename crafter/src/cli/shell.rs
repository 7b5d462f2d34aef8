//! `crafter shell`: packets by hand, results in variables.

mod input;
mod outside;
mod prompt;
mod state;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
};

use crate::cli::exit;
use anyhow::Context as _;
use crafter::shell::{Failure, Output, Shell};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    input::{Input, Text},
    outside::Outside,
};
use super::{
    Globals,
    interface::{self, Ended},
    print,
};

/// `crafter shell`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// A file of statements; -: those on stdin [default: a prompt, or stdin if it is no terminal]
    #[arg(value_name = "FILE", conflicts_with = "command")]
    file: Option<PathBuf>,
    /// Run these statements: lines, or several with ; between
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
Packets are written as for `crafter sr`, results are variables:
  synack = sr1(IP(dst=\"192.0.2.1\")/TCP(sport=5000, dport=80, flags=\"S\"))
  send(IP(dst=\"192.0.2.1\")/TCP(sport=5000, dport=80, flags=\"A\", seq=synack.ack, ack=synack.seq+1))
`help()` lists the functions, Tab completes, Ctrl-C ends what is running, Ctrl-D the shell.
Ports that were sent from stay owned until then: the kernel resets nothing. At the end crafter
resets connections that are half open: no packet acknowledged or reset what a SYN-ACK answered.
Not so if the shell is killed, or with --leave-open: then the kernel resets them later.
What is shown goes to stdout, with --json as one JSON value a line; all else to stderr.
Without a prompt the first error ends it: exit code 2 if the text makes no sense, else the
error's own. The history is in $XDG_STATE_HOME/crafter, or ~/.local/state/crafter.
Exit code 0: all statements went well, or the prompt was left; others as above.

Examples:
  crafter shell
  crafter shell -c 'IP(dst=\"192.0.2.1\")/ICMP()'
  crafter shell --json script.crafter";

/// Runs statements, or prompts for them.
///
/// # Errors
/// Those of reading the statements and of writing; without a prompt, the statements' own.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let session = args.link.session(args.policy.terms(), &args.half_open).await?;
    let mut shell = Shell::new(Outside::new(session, args.link.interface.clone()));
    let code = match (&args.command, &args.file) {
        (Some(text), _) => script(&mut shell, "-c", text, globals).await,
        (None, Some(path)) if path.as_os_str() != "-" => match std::fs::read_to_string(path) {
            Ok(text) => script(&mut shell, &path.display().to_string(), &text, globals).await,
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        },
        (None, None) if io::stdin().is_terminal() => prompted(&mut shell, globals).await,
        _ => piped(&mut shell, globals).await,
    };
    print::half_open_reset(shell.into_world().close().await?);
    code
}

/// Runs a text that is there as a whole; all of it is read before the first statement is run.
async fn script(shell: &mut Shell<Outside>, name: &str, text: &str, globals: &Globals) -> anyhow::Result<u8> {
    let mut printer = Printer::new(globals);
    let ran = interface::until_signal(shell.run(text, |output| printer.take(output))).await?;
    printer.finish()?;
    match ran {
        Ended::Itself(Ok(())) => Ok(exit::SUCCESS),
        Ended::Itself(Err(failure)) => Ok(failed(name, &failure)),
        Ended::Signal(code) => Ok(code),
    }
}

/// Runs what comes from stdin, statement by statement, so that a program can talk to the shell.
async fn piped(shell: &mut Shell<Outside>, globals: &Globals) -> anyhow::Result<u8> {
    let work = async {
        let mut input = input::piped();
        while let Some(text) = input.next().await {
            let Text { text, line } = text.context("cannot read stdin")?;
            let mut printer = Printer::new(globals);
            let ran = shell.run(&text, |output| printer.take(output)).await;
            printer.finish()?;
            if let Err(mut failure) = ran {
                failure.line += line;
                return Ok(failed("stdin", &failure));
            }
            if shell.is_leaving() {
                break;
            }
        }
        Ok(exit::SUCCESS)
    };
    match interface::until_signal(work).await? {
        Ended::Itself(code) => code,
        Ended::Signal(code) => Ok(code),
    }
}

/// Prompts for statements until the user leaves. Errors are told and do not end it.
async fn prompted(shell: &mut Shell<Outside>, globals: &Globals) -> anyhow::Result<u8> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut prompt = prompt::Prompt::start()?;
    loop {
        prompt.ask(shell.names());
        let answer = tokio::select! {
            answer = prompt.answer() => answer,
            _ = terminate.recv() => {
                prompt.restore();
                return Ok(128 + libc::SIGTERM as u8);
            }
        };
        let text = match answer {
            Some(Input::Text(text)) => text,
            Some(Input::Cancelled) => continue,
            Some(Input::Failed(reason)) => return Err(anyhow::Error::msg(reason).context("cannot read the terminal")),
            Some(Input::End) | None => return Ok(exit::SUCCESS),
        };
        let mut printer = Printer::new(globals);
        // One that came while nothing was running is for nothing.
        while futures_util::FutureExt::now_or_never(interrupt.recv()).is_some() {}
        let ran = tokio::select! {
            ran = shell.run(&text, |output| printer.take(output)) => Some(ran),
            _ = interrupt.recv() => None,
            _ = terminate.recv() => return Ok(128 + libc::SIGTERM as u8),
        };
        if let Err(error) = printer.finish() {
            print::error(&error);
        }
        match ran {
            Some(Ok(())) => {}
            Some(Err(failure)) => told(&text, &failure),
            None => note("interrupted"),
        }
        if shell.is_leaving() {
            return Ok(exit::SUCCESS);
        }
    }
}

/// Prints values as they come.
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
            Output::Notice(text) => return note(text),
            Output::Value(value) if self.json => {
                value.to_json().map_err(anyhow::Error::from).and_then(|value| print::json(&value))
            }
            Output::Value(value) => print::out(format!("{value}\n")).map_err(anyhow::Error::from),
        };
        if let Err(error) = printed {
            self.fault.get_or_insert(error);
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        self.fault.map_or(Ok(()), Err)
    }
}

/// Something to know that is no result.
fn note(text: &str) {
    // Nothing is left to complain to when stderr is gone.
    let _ = writeln!(io::stderr().lock(), ";; {text}");
}

fn failed(name: &str, failure: &Failure) -> u8 {
    print::error(&anyhow::anyhow!("{name}, {failure}"));
    if failure.is_of_text() { exit::USAGE } else { exit::code(&failure.error) }
}

/// Tells a failure below the line that was typed, with a mark below the place.
fn told(text: &str, failure: &Failure) {
    let mut said = String::new();
    if !text.contains('\n') {
        said = format!("{:>1$}\n", "^", prompt::PROMPT.len() + failure.column);
    }
    let place = if said.is_empty() { format!("line {}: ", failure.line) } else { String::new() };
    let _ = writeln!(io::stderr().lock(), "{said}{place}{}", failure.reason());
}
