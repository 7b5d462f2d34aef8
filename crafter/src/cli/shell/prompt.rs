//! The prompt: editing, history and completion, in a thread of its own, so that leases are served meanwhile.

use std::{
    io,
    path::PathBuf,
    sync::mpsc::{Receiver, Sender, channel},
};

use crafter::shell::{Names, is_open};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use rustyline::{
    CompletionType, Config, Context, Editor, Helper,
    completion::Completer,
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::FileHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};

use super::{input::Input, note, state};

/// What stands before what is typed.
pub const PROMPT: &str = "crafter> ";

/// Statements that are remembered.
const REMEMBERED: usize = 10_000;

/// A prompt on the terminal.
pub struct Prompt {
    ask: Sender<Names>,
    answers: tokio::sync::mpsc::Receiver<Input>,
    terminal: Option<Termios>,
}

impl Prompt {
    /// Prompts nothing yet.
    ///
    /// # Errors
    /// There is no terminal to speak of.
    pub fn start() -> anyhow::Result<Self> {
        // As it is now, to be so again if the shell has to end in the midst of a line.
        let terminal = tcgetattr(io::stdin()).ok();
        let history = state::history().unwrap_or_else(|error| {
            note(&format!("no history: {error}"));
            None
        });
        let config = Config::builder()
            .max_history_size(REMEMBERED)?
            .history_ignore_dups(true)?
            .history_ignore_space(true)
            .auto_add_history(true)
            .completion_type(CompletionType::List)
            .build();
        let mut editor = Editor::with_history(config.clone(), FileHistory::with_config(&config))?;
        if let Some(history) = &history
            && let Err(error) = editor.load_history(history)
        {
            note(&format!("no history: {error}"));
        }
        let ((ask, asked), (answer, answers)) = (channel(), tokio::sync::mpsc::channel(1));
        std::thread::spawn(move || serve(editor, history, &asked, &answer));
        note("help() tells what there is, Tab completes, Ctrl-D leaves");
        Ok(Self { ask, answers, terminal })
    }

    /// Prompts, completing these names.
    pub fn ask(&self, names: Names) {
        // If the thread is gone, there is no answer either.
        let _ = self.ask.send(names);
    }

    /// What is answered; `None` if the terminal is gone.
    pub async fn answer(&mut self) -> Option<Input> {
        self.answers.recv().await
    }

    /// Puts the terminal back as it was, for an end in the midst of a line.
    pub fn restore(&self) {
        if let Some(terminal) = &self.terminal {
            // The terminal may be gone, and then it does not matter.
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, terminal);
            // Pasted text marked as such is a mode of the terminal too.
            let _ = super::print::out("\x1b[?2004l\n");
        }
    }
}

fn serve(
    mut editor: Editor<Completion, FileHistory>,
    history: Option<PathBuf>,
    asked: &Receiver<Names>,
    answers: &tokio::sync::mpsc::Sender<Input>,
) {
    while let Ok(names) = asked.recv() {
        editor.set_helper(Some(Completion { names }));
        let input = match editor.readline(PROMPT) {
            Ok(text) => {
                // At once: a shell that is killed leaves its history. A full disk is no reason not to go on.
                let _ = history.as_ref().map(|history| editor.append_history(history));
                Input::Text(text)
            }
            Err(ReadlineError::Interrupted) => Input::Cancelled,
            Err(ReadlineError::Eof) => Input::End,
            Err(error) => Input::Failed(error.to_string()),
        };
        if answers.blocking_send(input).is_err() {
            return;
        }
    }
}

struct Completion {
    names: Names,
}

impl Completer for Completion {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.names.complete(line.get(..pos).unwrap_or(line)))
    }
}

impl Validator for Completion {
    /// A line whose brackets are open goes on in the next.
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let open = is_open(context.input());
        Ok(if open { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Hinter for Completion {
    type Hint = String;
}

impl Highlighter for Completion {}

impl Helper for Completion {}
