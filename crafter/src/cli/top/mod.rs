//! `crafter top`: shows leases, flows and interfaces of the service in a terminal.
//!
//! - `model`: the state of the display, without IO; `table`: rows that can be sorted.
//! - `draw`: draws the model; `screen`: the terminal, which is restored at the end.
//! - `source`: polls the service.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use crate::cli::exit;
use crafter::{Error, Result};
use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};

use self::{
    model::{Key, Model, Snapshot, Tab},
    screen::Screen,
    source::Source,
};
use super::{
    Globals, print,
    service::Socket,
    signals::{Arriving, Interruption, duration, release},
    who,
};

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
    /// Time between two updates
    #[arg(long, value_name = "TIME", default_value = "1", value_parser = duration)]
    interval: Duration,
    #[command(flatten)]
    service: Socket,
}

const HELP: &str = "\
Three views of the running service: leases, with packets and bytes per second delivered to them
(IN) and sent by them (OUT), RSTs suppressed, packets lost because the client did not read them in
time or its share of the receive queues was full, and packets that the policy refused; flows that
the kernel half saw; counters of the hooks for each interface. Other users' leases and flows are
shown only if the policy lets this user observe.
  q, Esc, Ctrl-C   quit
  Tab, Shift-Tab   leases, flows, interfaces
  s, r             sort by the next column; reverse the order
  arrows, PgUp, PgDn, Home, End
If the service stops, top waits until it runs again.
It needs a terminal and has no --json; programs use `crafter leases --json` and `crafter monitor
--json`.
Exit code 0: quit; 1: the service does not answer, or the terminal is closed; 2: stdout is not a
terminal; 143: SIGTERM.

Examples:
  crafter top
  crafter top --interval 0.5";

/// Shows the service until the user quits.
///
/// # Errors
/// Those of the first query of the service, and of the terminal.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    if globals.json {
        return Err(Error::invalid("--json", "`crafter top` has no JSON output; use `crafter leases --json`").into());
    }
    if !io::stdout().is_terminal() {
        let reason = "not a terminal; programs use `crafter leases --json`";
        return Err(Error::invalid("stdout", reason).into());
    }
    // Before the terminal is switched: a signal at any time restores it.
    let mut signals = Arriving::new()?;
    release();
    let mut model = Model::new();
    let opening = async {
        let mut source = Source::open(args.service).await?;
        // An error of the first query is printed on the normal screen.
        let first = source.snapshot(model.tab()).await?;
        Ok::<_, Error>((source, first))
    };
    let (source, first) = tokio::select! {
        opened = opening => opened?,
        number = signals.next() => return Ok(Interruption::Signal(number).usual_code(true)),
    };
    take(&mut model, Ok(first));
    let (tab, wanted) = watch::channel(model.tab());
    let (sender, snapshots) = mpsc::channel(1);
    let mut screen = Screen::open()?;
    let ended = tokio::select! {
        ended = show(&mut screen, &mut model, &tab, snapshots, &mut signals) => ended,
        () = source::watch(source, args.interval, wanted, sender) => Ok(exit::SUCCESS),
    };
    drop(screen);
    Ok(ended?)
}

/// Draws after each snapshot and each key; returns the exit code.
async fn show(
    screen: &mut Screen,
    model: &mut Model,
    tab: &watch::Sender<Tab>,
    mut snapshots: mpsc::Receiver<Result<Snapshot>>,
    signals: &mut Arriving,
) -> Result<u8> {
    let mut keys = EventStream::new();
    loop {
        screen.draw(model)?;
        tokio::select! {
            Some(snapshot) = snapshots.recv() => take(model, snapshot),
            event = keys.next() => match event {
                Some(Ok(Event::Key(key))) if is_end(key) => return Ok(exit::SUCCESS),
                Some(Ok(Event::Key(key))) => {
                    if let Some(key) = binding(key) {
                        model.press(key);
                    }
                    tab.send_if_modified(|tab| std::mem::replace(tab, model.tab()) != model.tab());
                }
                // A resize: the next draw uses the new size.
                Some(Ok(_)) => {}
                Some(Err(source)) => return Err(Error::Io { action: "read keys".to_owned(), source }),
                None => return Ok(exit::SUCCESS),
            },
            number = signals.next() => return Ok(Interruption::Signal(number).usual_code(true)),
        }
    }
}

fn take(model: &mut Model, snapshot: Result<Snapshot>) {
    match snapshot {
        Ok(snapshot) => model.take(snapshot, Instant::now(), who::since),
        Err(error) => model.fail(print::sentence(&error.into())),
    }
}

fn is_end(key: KeyEvent) -> bool {
    let with_control = key.modifiers.contains(KeyModifiers::CONTROL);
    matches!((key.code, with_control), (KeyCode::Char('q') | KeyCode::Esc, false) | (KeyCode::Char('c'), true))
}

fn binding(key: KeyEvent) -> Option<Key> {
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
