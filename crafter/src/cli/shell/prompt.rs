//! The prompt, with editing, history and completion. It runs in a thread, so that the runtime serves leases meanwhile.

use std::{
    io,
    path::PathBuf,
    sync::mpsc::{Receiver, Sender, channel},
};

use crafter::shell::{Names, is_open};
use crossterm::event::DisableBracketedPaste;
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

use super::{input::Input, print, state};

/// Text of the prompt.
const PROMPT: &str = "crafter> ";

/// Length of the history, in statements.
const HISTORY_LENGTH: usize = 10_000;

/// A prompt on the terminal. Dropping it while a line is edited restores the terminal.
pub struct Prompt {
    ask: Sender<Names>,
    answers: tokio::sync::mpsc::Receiver<Input>,
    /// The terminal's settings before the first prompt.
    terminal: Option<Termios>,
    is_editing: bool,
}

impl Prompt {
    /// Starts the thread; [`Self::ask`] shows the prompt.
    ///
    /// # Errors
    /// If the terminal cannot be used.
    pub fn start() -> anyhow::Result<Self> {
        let terminal = tcgetattr(io::stdin()).ok();
        let history = state::history().unwrap_or_else(|error| {
            print::note(format_args!("no history: {error}"));
            None
        });
        let config = Config::builder()
            .max_history_size(HISTORY_LENGTH)?
            .history_ignore_dups(true)?
            .history_ignore_space(true)
            .auto_add_history(true)
            .completion_type(CompletionType::List)
            .build();
        let mut editor = Editor::with_history(config.clone(), FileHistory::with_config(&config))?;
        if let Some(history) = &history
            && let Err(error) = editor.load_history(history)
        {
            print::note(format_args!("no history: {error}"));
        }
        let ((ask, asked), (answer, answers)) = (channel(), tokio::sync::mpsc::channel(1));
        std::thread::Builder::new().spawn(move || serve(editor, history, &asked, &answer))?;
        print::note("help() lists the functions, Tab completes, Ctrl-D ends the shell");
        Ok(Self { ask, answers, terminal, is_editing: false })
    }

    /// Shows the prompt; Tab completes `names`.
    pub fn ask(&mut self, names: Names) {
        self.is_editing = true;
        // If the thread has ended, `answer` returns `None`.
        let _ = self.ask.send(names);
    }

    /// The input; `None` if the thread has ended.
    pub async fn answer(&mut self) -> Option<Input> {
        let answer = self.answers.recv().await;
        self.is_editing = false;
        answer
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        if let Some(terminal) = self.terminal.as_ref().filter(|_| self.is_editing) {
            // Fails if the terminal is closed; nothing is left to restore then.
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, terminal);
            // Switch off bracketed paste mode.
            let _ = crossterm::execute!(io::stdout(), DisableBracketedPaste);
            let _ = print::out("\n");
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
                // Saved after each line, for a shell that is killed. An error does not end the prompt.
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
    /// Input with open brackets continues on the next line.
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
