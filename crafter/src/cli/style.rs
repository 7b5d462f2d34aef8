//! Colours: when they are used, and which. A colour means the same in every command.
//!
//! Text with these styles is to be printed by [`stdout`] or [`stderr`], which remove them where they do not belong: in
//! pipes and files, with `NO_COLOR` or `TERM=dumb`, unless `CLICOLOR_FORCE` or `--color` demands them.

use std::{ffi::OsString, fmt::Display};

use anstream::ColorChoice;
use anstyle::{AnsiColor, Style};
use clap::ValueEnum;

/// Names of layers.
#[allow(dead_code, reason = "for commands that print packets and verdicts")]
pub const LAYER: Style = AnsiColor::Cyan.on_default().bold();
/// Addresses, of hosts and of interfaces.
#[allow(dead_code, reason = "for commands that print packets and verdicts")]
pub const ADDRESS: Style = AnsiColor::Blue.on_default();
/// A positive verdict: open, up, answered.
#[allow(dead_code, reason = "for commands that print packets and verdicts")]
pub const GOOD: Style = AnsiColor::Green.on_default();
/// A negative verdict: closed, unreachable, lost.
#[allow(dead_code, reason = "for commands that print packets and verdicts")]
pub const BAD: Style = AnsiColor::Red.on_default();
/// A verdict that is neither, and warnings.
#[allow(dead_code, reason = "for commands that print packets and verdicts")]
pub const DOUBTFUL: Style = AnsiColor::Yellow.on_default();
/// The word that introduces an error.
pub const ERROR: Style = AnsiColor::Red.on_default().bold();

/// The values of `--color`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal, unless NO_COLOR is set; also elsewhere if CLICOLOR_FORCE is set.
    #[default]
    Auto,
    /// Also in pipes and files.
    Always,
    /// Not at all.
    Never,
}

/// Sets when this process prints colours, clap's output included.
pub fn choose(when: When) {
    let choice = match when {
        When::Auto => ColorChoice::Auto,
        When::Always => ColorChoice::Always,
        When::Never => ColorChoice::Never,
    };
    choice.write_global();
}

/// The value of `--color` in a command line that is not parsed yet: errors of parsing have colours too.
pub fn given(words: &[OsString]) -> When {
    let mut words = words.iter().map(|word| word.to_string_lossy()).take_while(|word| word != "--");
    let mut when = When::Auto;
    while let Some(word) = words.next() {
        let value = match word.strip_prefix("--color") {
            Some("") => words.next().map(|value| value.into_owned()),
            Some(value) => value.strip_prefix('=').map(str::to_owned),
            None => None,
        };
        when = value.and_then(|value| When::from_str(&value, false).ok()).unwrap_or(when);
    }
    when
}

/// `text` in a style.
pub fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// stderr, without styles where they do not belong.
pub fn stderr() -> anstream::AutoStream<std::io::Stderr> {
    anstream::stderr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_is_found_before_parsing() {
        let given = |words: &[&str]| given(&words.iter().map(Into::into).collect::<Vec<_>>());
        assert_eq!(given(&["crafter", "--color=never", "ls"]), When::Never);
        assert_eq!(given(&["crafter", "ls", "--color", "always"]), When::Always);
        assert_eq!(given(&["crafter", "ls", "--color", "purple"]), When::Auto);
        assert_eq!(given(&["crafter", "lab", "run", "--", "ls", "--color=always"]), When::Auto);
    }
}
