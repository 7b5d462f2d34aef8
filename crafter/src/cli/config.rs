//! `crafter config`: the source of each option's value.

use std::ffi::OsString;

use clap::{ArgMatches, Command, parser::ValueSource};
use crafter::{Error, Result, protocol::control::SOCKET_VARIABLE};
use serde::Serialize;

use super::{Globals, exit, print};

pub mod defaults;
pub mod file;

use defaults::{Defaults, Setting};

/// `crafter config`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Show the value of each option, and its source
    #[command(after_help = SHOW_HELP)]
    Show(ShowArgs),
}

const HELP: &str = "\
Defaults of options are read from ~/.config/crafter/config.toml ($XDG_CONFIG_HOME is honoured).
Keys are the long names of options. A key at the top applies to every command that has the
option, a key in a table only to the command of that name:

  timeout = 1
  color = \"never\"
  [sr]
  retry = 2
  [policy.explain]
  protocol = \"udp\"

The command line has precedence over environment variables, these over the file, and the file
over the built-in default. A table has precedence over the keys at the top. --NAME=false
overrides `NAME = true`. A file of another user is not read.

Examples:
  crafter config show
  crafter config show sr";

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The command whose options to show, and options for it [default: what the file or the environment
    /// sets, for all commands]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

const SHOW_HELP: &str = "\
FROM is the source: default, the line of the file, the environment variable, or the command line.
The name of the file is printed on stderr.
--json: an object with file (null if there is none) and options, an array with command, option,
value (null if unset), source (default, file, environment, command-line), line and variable.
Exit code 0; 2: an error in the file.

Examples:
  crafter config show
  crafter config show sr --retry 1
  crafter config show policy explain";

/// An option of a command, its value, and the source of the value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Row {
    command: String,
    option: String,
    value: Option<String>,
    source: &'static str,
    /// The line in the file that sets the value, if one does.
    line: Option<usize>,
    /// The environment variable that sets the value, if one does.
    variable: Option<String>,
}

#[derive(Serialize)]
struct Shown {
    file: Option<String>,
    options: Vec<Row>,
}

/// Prints the options.
///
/// # Errors
/// [`Error::Invalid`] for an unknown command; those of writing.
pub fn run(args: &Args, globals: &Globals) -> anyhow::Result<u8> {
    let Action::Show(ShowArgs { command }) = &args.action;
    let defaults = Defaults::read(super::plain_command)?;
    let options = if command.is_empty() { all(&defaults)? } else { of_command(&defaults, command)? };
    let shown = Shown { file: defaults.path.as_ref().map(|path| path.display().to_string()), options };
    if !globals.json {
        match (&shown.file, file::path()) {
            (Some(path), _) => print::note(format_args!("file: {path}")),
            (None, Some(path)) => {
                print::note(format_args!("no file: {} does not exist, or belongs to another user", path.display()))
            }
            (None, None) => print::note("no file: HOME is not set"),
        }
    }
    print::result(globals, &shown, text)?;
    Ok(exit::SUCCESS)
}

fn text(shown: &Shown) -> String {
    let rows = shown.options.iter().map(|row| {
        let from = match (row.line, &row.variable) {
            (Some(line), _) => format!("file, line {line}"),
            (_, Some(variable)) => format!("environment, {variable}"),
            _ => row.source.replace('-', " "),
        };
        let value = row.value.clone().unwrap_or_else(|| "-".to_owned());
        [row.command.clone(), format!("--{}", row.option), value, from]
    });
    let heading = ["COMMAND", "OPTION", "VALUE", "FROM"];
    print::table(heading, &heading, rows)
}

/// The options of all commands whose value is not the built-in default.
fn all(defaults: &Defaults) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let root = super::plain_command();
    let globals: Vec<String> = root
        .get_arguments()
        .filter(|arg| arg.is_global_set())
        .filter_map(|arg| arg.get_long().map(str::to_owned))
        .collect();
    for path in commands(&root, &[]) {
        let words: Vec<OsString> = path.iter().map(Into::into).collect();
        for mut row in of_command(defaults, &words)?.into_iter().filter(|row| row.source != "default") {
            let is_global = globals.contains(&row.option);
            if is_global && !defaults.setting(&path, &row.option).is_some_and(Setting::is_in_table) {
                "all".clone_into(&mut row.command);
            }
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

/// The paths of all commands without subcommands.
fn commands(command: &Command, path: &[String]) -> Vec<Vec<String>> {
    let below = |sub: &Command| commands(sub, &[path, &[sub.get_name().to_owned()]].concat());
    let subcommands = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    if command.has_subcommands() { subcommands.flat_map(below).collect() } else { vec![path.to_vec()] }
}

/// The options of the command that `words` name, after options in `words`.
fn of_command(defaults: &Defaults, words: &[OsString]) -> Result<Vec<Row>> {
    let line = || [OsString::from("crafter")].into_iter().chain(words.iter().cloned());
    // Operands may be missing.
    let matches_of = |command: Command| {
        let matches = command.ignore_errors(true).try_get_matches_from(line());
        matches.map_err(|error| Error::invalid("COMMAND", error.kind()))
    };
    let plain = super::plain_command();
    let first = matches_of(defaults.apply(plain.clone(), &[]))?;
    let overridden = defaults.overridden(&plain, &first);
    let matches = matches_of(defaults.apply(plain.clone(), &overridden))?;
    let mut command = plain;
    command.build();
    let (mut command, mut matches, mut path) = (&command, &matches, Vec::new());
    while let Some((name, below)) = matches.subcommand() {
        command = command.find_subcommand(name).expect("clap has matched it");
        matches = below;
        path.push(name.to_owned());
    }
    if command.has_subcommands() {
        let known = command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(|sub| sub.get_name());
        let name = words.last().map(|word| word.to_string_lossy()).unwrap_or_default();
        let near = crafter::layer::nearest(&name, known);
        return Err(Error::invalid("COMMAND", format_args!("'{name}' does not name a command with options{near}")));
    }
    let options = command.get_arguments().filter(|arg| !super::is_builtin(arg));
    Ok(options.filter_map(|arg| row(defaults, &path, arg, matches, &overridden)).collect())
}

fn row(
    defaults: &Defaults,
    path: &[String],
    arg: &clap::Arg,
    matches: &ArgMatches,
    overridden: &[String],
) -> Option<Row> {
    let option = arg.get_long()?.to_owned();
    let id = arg.get_id().as_str();
    let values = matches
        .get_raw(id)
        .map(|values| values.map(|value| value.to_string_lossy().into_owned()).collect::<Vec<_>>().join(", "));
    let value = values.or_else(|| matches.try_get_one::<bool>(id).ok().flatten().map(bool::to_string));
    let mut row = Row { command: path.join(" "), option, value, source: "default", line: None, variable: None };
    let setting = defaults.setting(path, &row.option).filter(|_| !overridden.contains(&row.option));
    match matches.value_source(id) {
        Some(ValueSource::CommandLine) => row.source = "command-line",
        Some(ValueSource::EnvVariable) => {
            row.source = "environment";
            row.variable = arg.get_env().map(|name| name.to_string_lossy().into_owned());
        }
        _ if row.option == "socket" && defaults::socket_variable().is_some() => {
            row.source = "environment";
            row.variable = Some(SOCKET_VARIABLE.to_owned());
            row.value = defaults::socket_variable().map(|path| path.to_string_lossy().into_owned());
        }
        _ => {
            if let Some(setting) = setting {
                row.source = "file";
                row.line = Some(setting.line);
            }
        }
    }
    Some(row)
}
