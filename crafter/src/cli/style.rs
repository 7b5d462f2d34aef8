//! Colours: the roles that texts have, and when they are coloured. A role has the same colour in every command.
//!
//! The colours are those of the terminal's theme, without a background, so that they are readable on light and dark
//! terminals, and each meaning is also in words. `crafter/docs/options.md` lists the roles.

use std::{
    ffi::OsString,
    fmt::Display,
    io::{self, IsTerminal},
    os::fd::AsFd,
};

use anstream::{AutoStream, ColorChoice, stream::RawStream};
use anstyle::{AnsiColor, Color, Effects, Style};
use clap::{ValueEnum, builder::Styles};
use crafter::probe::TargetState;

/// Names of layers.
pub const LAYER: Style = AnsiColor::Cyan.on_default().bold();
/// Addresses: IP, MAC, prefixes, with a port or without.
pub const ADDRESS: Style = AnsiColor::Magenta.on_default();
/// A positive verdict or state: open, up, answered, ok.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// A negative verdict or state: closed, unreachable, lost, failed.
pub const BAD: Style = AnsiColor::Red.on_default();
/// A verdict or state that is neither: no answer, TTL exceeded, a note.
pub const DOUBTFUL: Style = AnsiColor::Yellow.on_default();
/// The word that introduces an error, and the mark below its place in a text.
pub const ERROR: Style = AnsiColor::Red.on_default().bold();
/// The word that introduces a warning, and the mark below its place in a text.
pub const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// Headings of tables.
pub const HEADING: Style = Style::new().bold();
/// Text of less importance: defaults, computed fields, hints.
pub const FAINT: Style = Style::new().dimmed();
/// The colours of the layers in a map of bytes, reused from the first after the last.
pub const MAP: [Style; 6] = [
    AnsiColor::Cyan.on_default(),
    AnsiColor::Yellow.on_default(),
    AnsiColor::Green.on_default(),
    AnsiColor::Magenta.on_default(),
    AnsiColor::Blue.on_default(),
    AnsiColor::Red.on_default(),
];

/// The same roles for the help and the errors of clap.
pub const CLAP: Styles = Styles::styled().error(ERROR).invalid(DOUBTFUL).valid(GOOD).header(HEADING).usage(HEADING);

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

/// The style of a state.
pub const fn of_state(state: TargetState) -> Style {
    match state {
        TargetState::Open | TargetState::Up | TargetState::Answered => GOOD,
        TargetState::Closed | TargetState::Unreachable => BAD,
        TargetState::TtlExceeded | TargetState::Error | TargetState::NoAnswer => DOUBTFUL,
    }
}

/// Styles texts for one stream, or leaves them as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint(bool);

impl Paint {
    /// Styles nothing.
    #[cfg(test)]
    pub const PLAIN: Self = Self(false);
    /// Styles everything.
    #[cfg(test)]
    pub const COLOURED: Self = Self(true);

    /// Styles what is written to stdout, if [`choose`] and the environment allow it.
    pub fn stdout() -> Self {
        Self::of(&io::stdout())
    }

    /// Styles what is written to stderr, if [`choose`] and the environment allow it.
    pub fn stderr() -> Self {
        Self::of(&io::stderr())
    }

    fn of(stream: &impl RawStream) -> Self {
        Self(AutoStream::choice(stream) != ColorChoice::Never)
    }

    /// Whether it styles.
    pub fn is_on(self) -> bool {
        self.0
    }

    /// A style in ratatui's types; without colours only its weight.
    pub fn for_screen(self, style: Style) -> ratatui::style::Style {
        use ratatui::style::{Color as ScreenColor, Modifier};
        let mut drawn = ratatui::style::Style::new();
        if let Some(Color::Ansi(color)) = style.get_fg_color().filter(|_| self.0) {
            drawn = drawn.fg(ScreenColor::Indexed(color as u8));
        }
        for (effect, modifier) in [(Effects::BOLD, Modifier::BOLD), (Effects::DIMMED, Modifier::DIM)] {
            if style.get_effects().contains(effect) {
                drawn = drawn.add_modifier(modifier);
            }
        }
        drawn
    }

    /// A text in a style.
    pub fn styled(self, style: Style, text: impl Display) -> String {
        if self.0 { format!("{style}{text}{style:#}") } else { text.to_string() }
    }
}

/// Columns of the terminal that a stream is; `None` if it is not a terminal, or reports no width.
pub fn columns(stream: &(impl AsFd + IsTerminal)) -> Option<usize> {
    let size = stream.is_terminal().then(|| rustix::termios::tcgetwinsize(stream).ok()).flatten()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
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

    #[test]
    fn screen_has_the_same_colours() {
        use ratatui::style::{Color as ScreenColor, Modifier, Style as ScreenStyle};
        let error = ScreenStyle::new().fg(ScreenColor::Indexed(1)).add_modifier(Modifier::BOLD);
        assert_eq!(Paint::COLOURED.for_screen(ERROR), error);
        assert_eq!(Paint::PLAIN.for_screen(ERROR), ScreenStyle::new().add_modifier(Modifier::BOLD));
        assert_eq!(Paint::COLOURED.for_screen(FAINT), ScreenStyle::new().add_modifier(Modifier::DIM));
    }

    #[test]
    fn page_lists_every_role() {
        let page = include_str!("../../docs/options.md");
        let source = include_str!("style.rs").split("\n#[cfg(test)]\nmod tests").next().unwrap();
        let mut count = 0;
        for role in source.lines().filter_map(|line| line.strip_prefix("pub const ")?.split_once(": ")) {
            if matches!(role.1.split(' ').next(), Some("Style" | "[Style;")) {
                count += 1;
                assert!(page.contains(&format!("| `{}` |", role.0)), "options.md does not list {}", role.0);
            }
        }
        assert!(count >= 10, "{count} roles");
    }
}
