//! The user's defaults: read from the file, checked against clap's definitions, and set as defaults of clap.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};
use crafter::{Error, Result, layer::nearest, packet::Excerpt, protocol::control::SOCKET_VARIABLE};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::file;
use crate::cli::is_builtin;

/// A key of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The command, e.g. `policy explain`; empty for all commands.
    command: Vec<String>,
    /// The long name of the option.
    option: String,
    values: Vec<String>,
    /// Counts from 1.
    pub line: usize,
}

impl Setting {
    /// Whether it is in the table of a command.
    pub fn is_in_table(&self) -> bool {
        !self.command.is_empty()
    }
}

/// The keys of the file.
#[derive(Debug, Default)]
pub struct Defaults {
    /// The file; `None` if there is none.
    pub path: Option<PathBuf>,
    settings: Vec<Setting>,
}

/// The environment variable with the socket of the service, unless it is empty.
pub fn socket_variable() -> Option<OsString> {
    std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty())
}

/// Whether an option is a flag, which takes no value on the command line.
fn is_flag(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

impl Defaults {
    /// Reads the file of the user.
    ///
    /// # Errors
    /// [`Error::Text`] with file and line for the first key or value that does not fit the command line; those of
    /// [`file::read`].
    pub fn read(command: impl FnOnce() -> Command) -> Result<Self> {
        let Some(path) = file::path() else { return Ok(Self::default()) };
        match file::read(&path)? {
            Some(text) => Self::parse(&path, &text, command()),
            None => Ok(Self::default()),
        }
    }

    fn parse(path: &Path, text: &str, mut command: Command) -> Result<Self> {
        // Adds the global options to each command.
        command.build();
        let mut reader = Reader { path, text, root: &command, settings: Vec::new() };
        let (table, errors) = DeTable::parse_recoverable(text);
        if let Some(error) = errors.first() {
            let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            return Err(
                reader.error(error.span().map_or(0, |span| span.start), format_args!("invalid TOML: {message}"))
            );
        }
        reader.table(table.get_ref(), &command, &mut Vec::new())?;
        let settings = reader.settings;
        Ok(Self { path: Some(path.to_owned()), settings })
    }

    /// Whether the file sets nothing.
    pub fn is_empty(&self) -> bool {
        self.settings.is_empty()
    }

    /// The key that sets an option of a command: the one of the innermost table.
    pub fn setting(&self, command: &[String], option: &str) -> Option<&Setting> {
        let fits = |setting: &&Setting| setting.option == option && command.starts_with(&setting.command);
        self.settings.iter().filter(fits).max_by_key(|setting| setting.command.len())
    }

    /// `command` with these defaults, except of the options in `without`.
    pub fn apply(&self, command: Command, without: &[String]) -> Command {
        if self.is_empty() {
            return command;
        }
        let globals: Vec<Arg> = command.get_arguments().filter(|arg| arg.is_global_set()).cloned().collect();
        self.apply_to(command, &mut Vec::new(), &globals, without)
    }

    fn apply_to(&self, mut command: Command, path: &mut Vec<String>, globals: &[Arg], without: &[String]) -> Command {
        // A default of a global option for this command only: clap does not replace an argument that it has.
        let own = |arg: &&Arg| {
            let setting = arg.get_long().and_then(|long| self.setting(path, long));
            setting.is_some_and(Setting::is_in_table) && !path.is_empty()
        };
        for arg in globals.iter().filter(own) {
            command = command.arg(arg.clone());
        }
        let options: Vec<Arg> = command.get_arguments().cloned().collect();
        for arg in options {
            let Some(long) = arg.get_long().filter(|_| !is_builtin(&arg)) else { continue };
            if without.iter().any(|name| name == long) || long == "socket" && socket_variable().is_some() {
                continue;
            }
            if let Some(setting) = self.setting(path, long) {
                command = command.mut_arg(arg.get_id(), |arg| with_default(arg, &setting.values));
            }
        }
        let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        for name in names {
            path.push(name.clone());
            command = command.mut_subcommand(&name, |sub| self.apply_to(sub, path, globals, without));
            path.pop();
        }
        command
    }

    /// The options of the file that an option of the command line excludes (`conflicts_with`): they do not apply.
    pub fn overridden(&self, command: &Command, matches: &ArgMatches) -> Vec<String> {
        let mut root = command.clone();
        root.build();
        let (mut command, mut matches, mut path) = (&root, matches, Vec::new());
        while let Some((name, below)) = matches.subcommand() {
            let Some(sub) = command.find_subcommand(name) else { break };
            (command, matches) = (sub, below);
            path.push(name.to_owned());
        }
        let is_given = |arg: &Arg| {
            let id = arg.get_id().as_str();
            matches.try_contains_id(id).is_ok() && matches.value_source(id) == Some(ValueSource::CommandLine)
        };
        let is_set = |arg: &Arg| arg.get_long().is_some_and(|long| self.setting(&path, long).is_some());
        let mut overridden = BTreeSet::new();
        for arg in command.get_arguments() {
            for other in command.get_arg_conflicts_with(arg) {
                for (given, set) in [(arg, other), (other, arg)] {
                    if is_given(given) && !is_given(set) && is_set(set) {
                        overridden.extend(set.get_long().map(str::to_owned));
                    }
                }
            }
        }
        overridden.into_iter().collect()
    }
}

/// An option with another default. A flag also takes `=false`, so that the command line can override `true`.
fn with_default(arg: Arg, values: &[String]) -> Arg {
    let values = values.to_vec();
    if is_flag(&arg) {
        let parser = clap::value_parser!(bool);
        let arg = arg.action(ArgAction::Set).num_args(0..=1).require_equals(true).default_missing_value("true");
        return arg.value_parser(parser).hide_possible_values(true).default_values(values);
    }
    arg.default_values(values)
}

/// Reads the tables of the file.
struct Reader<'t> {
    path: &'t Path,
    text: &'t str,
    root: &'t Command,
    settings: Vec<Setting>,
}

impl Reader<'_> {
    /// The line of a byte offset, from 1.
    fn line(&self, at: usize) -> usize {
        self.text[..at.min(self.text.len())].matches('\n').count() + 1
    }

    fn error(&self, at: usize, reason: impl std::fmt::Display) -> Error {
        Error::Text {
            place: format!("{}, line {}", self.path.display(), self.line(at)),
            reason: reason.to_string(),
            excerpt: Box::new(Excerpt::new(self.text, at)),
        }
    }

    fn table(&mut self, table: &DeTable<'_>, command: &Command, path: &mut Vec<String>) -> Result<()> {
        // In the order of the text, for the order of errors.
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let (name, at) = (key.get_ref().as_ref(), key.span().start);
            match value.get_ref() {
                DeValue::Table(inner) => match command.find_subcommand(name).filter(|_| name != "help") {
                    Some(sub) => {
                        path.push(sub.get_name().to_owned());
                        self.table(inner, sub, path)?;
                        path.pop();
                    }
                    None => {
                        let known = command.get_subcommands().filter(|sub| !sub.is_hide_set());
                        let near = nearest(name, known.map(|sub| sub.get_name()));
                        return Err(self.error(at, format_args!("[{name}] does not name a command{near}")));
                    }
                },
                _ => self.setting(name, at, value, command, path)?,
            }
        }
        Ok(())
    }

    fn setting(
        &mut self,
        name: &str,
        at: usize,
        value: &Spanned<DeValue<'_>>,
        command: &Command,
        path: &[String],
    ) -> Result<()> {
        let mut options = Vec::new();
        gather(command, &mut options);
        let is_named = |arg: &&Arg| arg.get_long() == Some(name) || aliases(arg).any(|alias| alias == name);
        let named: Vec<&Arg> = options.iter().copied().filter(is_named).collect();
        let Some(first) = named.first() else {
            let known: BTreeSet<&str> = options.iter().filter_map(|arg| arg.get_long()).collect();
            let of = match path {
                [] => "there is no option".to_owned(),
                path => format!("`{} {}` has no option", self.root.get_name(), path.join(" ")),
            };
            return Err(self.error(at, format_args!("{of} '{name}'{}", nearest(name, known.into_iter()))));
        };
        let option = first.get_long().unwrap_or(name).to_owned();
        let place = value.span().start;
        let values = values(value.get_ref()).map_err(|reason| self.error(place, format_args!("{name}: {reason}")))?;
        // At the top, a value may fit some commands only (the flag --tcp of one command is a port of another).
        let checked: Vec<std::result::Result<(), String>> = named.iter().map(|arg| check(arg, &values)).collect();
        if let Some(reason) = checked.into_iter().find_map(std::result::Result::err) {
            let advice = if path.is_empty() && named.len() > 1 { "; a table sets it for one command" } else { "" };
            return Err(self.error(place, format_args!("{reason}{advice}")));
        }
        let line = self.line(at);
        self.settings.push(Setting { command: path.to_vec(), option, values, line });
        Ok(())
    }
}

/// The options of a command and of its subcommands, without clap's own.
fn gather<'c>(command: &'c Command, options: &mut Vec<&'c Arg>) {
    options.extend(command.get_arguments().filter(|arg| arg.get_long().is_some() && !is_builtin(arg)));
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        gather(sub, options);
    }
}

/// The other long names of an option.
fn aliases(arg: &Arg) -> impl Iterator<Item = &str> {
    arg.get_all_aliases().into_iter().flatten()
}

/// A value as the command line would give it.
fn values(value: &DeValue<'_>) -> std::result::Result<Vec<String>, &'static str> {
    let one = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Ok(number.to_string()),
            Err(_) => Err("the number is too large"),
        },
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Ok(flag.to_string()),
        _ => Err("not a value of an option; give a text, a number, true or false"),
    };
    match value {
        DeValue::Array(list) => list.iter().map(|value| one(value.get_ref())).collect(),
        value => Ok(vec![one(value)?]),
    }
}

/// Tests whether an option takes the values.
///
/// # Errors
/// clap's sentence.
fn check(arg: &Arg, values: &[String]) -> std::result::Result<(), String> {
    let name = arg.get_long().unwrap_or_default();
    if is_flag(arg) {
        return match values {
            [value] if value == "true" || value == "false" => Ok(()),
            _ => Err(format!("{name}: it is a flag; give true or false")),
        };
    }
    if values.len() != 1 && !matches!(arg.get_action(), ArgAction::Append) {
        return Err(format!("{name}: give one value, not {}", values.len()));
    }
    // The argument alone: without the others, its conflicts would name unknown arguments.
    let mut alone = Arg::new("value").long(name.to_owned()).value_parser(arg.get_value_parser().clone());
    alone = alone.action(arg.get_action().clone()).allow_hyphen_values(true);
    if let Some(names) = arg.get_value_names() {
        alone = alone.value_names(names.to_vec()).num_args(1);
    }
    let line = values.iter().map(|value| format!("--{name}={value}"));
    let command = Command::new("crafter").no_binary_name(true).disable_help_flag(true).arg(alone);
    match command.try_get_matches_from(line) {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = error.to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            // Possible values follow on the second line, advice after an empty line.
            let lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
            Err(lines.collect::<Vec<_>>().join(" "))
        }
    }
}

#[cfg(test)]
mod tests;
