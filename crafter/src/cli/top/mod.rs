//! `crafter top`: what goes on in the service, in a terminal.
//!
//! - `model`: what is shown, without IO; `table`: rows that can be sorted.
//! - `draw`: the model on a screen; `screen`: the terminal, given back however it ends.
//! - `source`: what the service tells, again and again.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use crate::cli::exit;
use crafter::{Error, Result};
use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures_util::StreamExt as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use self::{
    model::{Key, Model, Tab, Told},
    screen::Screen,
    source::Source,
};
use super::{Globals, interface::seconds, print, service::Socket, who};

mod draw;
mod model;
mod screen;
mod source;
mod table;
#[cfg(test)]
mod tests;

/// `crafter top`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// How often to look
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    interval: Duration,
    #[command(flatten)]
    service: Socket,
}

const HELP: &str = "\
Three views of the running service: its leases, with packets and bytes per second that were
delivered to them (IN) and that they sent (OUT), RSTs suppressed, messages lost because they
were not read in time, and packets that the policy refused; the flows that the kernel half
saw; what its hooks counted on each interface. Of others only where the policy lets this user
observe.
  q, Esc, Ctrl-C   quit
  Tab, Shift-Tab   leases, flows, interfaces
  s, r             sort by the next column; the other way round
  arrows, PgUp, PgDn, Home, End
A service that goes away is waited for.
It needs a terminal; there is no --json: `crafter leases --json` and `crafter monitor --json`
are for programs.
Exit code 0: quit; 1: the service does not answer, or the terminal is gone; 2: stdout is no
terminal; 143: SIGTERM.

Examples:
  crafter top
  crafter top --interval 0.5";

/// Shows it until somebody has seen enough.
///
/// # Errors
/// Those of the service, as long as nothing is shown, and of the terminal.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    if globals.json {
        return Err(Error::invalid("--json", "top is for people: use `crafter leases --json`").into());
    }
    if !io::stdout().is_terminal() {
        let reason = "it is no terminal: `crafter leases --json` tells the same to programs";
        return Err(Error::invalid("stdout", reason).into());
    }
    let mut source = Source::open(args.service).await?;
    let mut model = Model::new();
    // Its errors are told before the terminal is another.
    let first = source.look(model.tab()).await?;
    take(&mut model, Ok(first));
    let (tab, wanted) = watch::channel(model.tab());
    let (sender, told) = mpsc::channel(1);
    let mut screen = Screen::open()?;
    let ended = tokio::select! {
        ended = show(&mut screen, &mut model, &tab, told) => ended,
        () = source::watch(source, args.interval, wanted, sender) => Ok(exit::SUCCESS),
    };
    drop(screen);
    Ok(ended?)
}

/// Draws whenever something is new, and does what keys ask for; the exit code.
async fn show(
    screen: &mut Screen,
    model: &mut Model,
    tab: &watch::Sender<Tab>,
    mut told: mpsc::Receiver<Result<Told>>,
) -> Result<u8> {
    let failed = |source| Error::Io { action: "listen to signals".to_owned(), source };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(failed)?;
    let mut keys = EventStream::new();
    loop {
        screen.draw(model)?;
        tokio::select! {
            Some(told) = told.recv() => take(model, told),
            event = keys.next() => match event {
                Some(Ok(Event::Key(key))) if is_end(key) => return Ok(exit::SUCCESS),
                Some(Ok(Event::Key(key))) => {
                    if let Some(key) = asked(key) {
                        model.press(key);
                    }
                    tab.send_if_modified(|tab| std::mem::replace(tab, model.tab()) != model.tab());
                }
                // Another size, which drawing sees to.
                Some(Ok(_)) => {}
                Some(Err(source)) => return Err(Error::Io { action: "read keys".to_owned(), source }),
                None => return Ok(exit::SUCCESS),
            },
            _ = interrupt.recv() => return Ok(exit::SUCCESS),
            _ = terminate.recv() => return Ok(128 + libc::SIGTERM as u8),
            _ = hang_up.recv() => return Ok(128 + libc::SIGHUP as u8),
        }
    }
}

fn take(model: &mut Model, told: Result<Told>) {
    match told {
        Ok(told) => model.take(told, Instant::now(), who::since),
        Err(error) => model.fail(print::sentence(&error.into())),
    }
}

fn is_end(key: KeyEvent) -> bool {
    let with_control = key.modifiers.contains(KeyModifiers::CONTROL);
    matches!((key.code, with_control), (KeyCode::Char('q') | KeyCode::Esc, false) | (KeyCode::Char('c'), true))
}

fn asked(key: KeyEvent) -> Option<Key> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    Some(match key.code {
        KeyCode::Tab | KeyCode::Right => Key::NextTab,
        KeyCode::BackTab | KeyCode::Left => Key::PreviousTab,
        KeyCode::Char('s') => Key::Sort,
        KeyCode::Char('r') => Key::Reverse,
        KeyCode::Down => Key::Move(1),
        KeyCode::Up => Key::Move(-1),
        KeyCode::PageDown => Key::Page(1),
        KeyCode::PageUp => Key::Page(-1),
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return None,
    })
}
