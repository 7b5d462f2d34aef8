//! Candidates for option values that only the running program knows: layers, fields, interfaces, users, groups. The shell
//! asks the program for them; the variable [`VARIABLE`] selects this mode.

use std::{collections::BTreeSet, ffi::OsStr, fs};

use clap::builder::StyledStr;
use clap_complete::{
    CompleteEnv,
    engine::{ArgValueCompleter, CompletionCandidate},
};
use crafter::{
    layer::{Kind, Layer as _},
    shell::Names,
};

use super::command;

/// Names the shell that asks for candidates, or whose registration script is to be printed.
pub const VARIABLE: &str = "CRAFTER_COMPLETE";

/// Answers the request of a shell and exits, if [`VARIABLE`] is set.
pub fn answer() {
    CompleteEnv::with_factory(command).var(VARIABLE).complete();
}

/// Completes names of layers.
pub fn layers() -> ArgValueCompleter {
    completer(|| Kind::ALL.iter().map(|kind| kind.layer().info()).map(|info| (info.name.to_owned(), Some(info.doc))))
}

/// Completes names of interfaces.
pub fn interfaces() -> ArgValueCompleter {
    completer(|| {
        let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).map(|name| (name, None))
    })
}

/// Completes names of users of the file `/etc/passwd`. Other user databases cannot be listed in bounded time.
pub fn users() -> ArgValueCompleter {
    completer(|| names_of("/etc/passwd"))
}

/// Completes names of groups of the file `/etc/group`.
pub fn groups() -> ArgValueCompleter {
    completer(|| names_of("/etc/group"))
}

/// Completes layers, fields and named values at the end of an expression.
pub fn expressions() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let found = current.to_str().map(expression).unwrap_or_default();
        found.into_iter().map(CompletionCandidate::new).collect::<Vec<_>>()
    })
}

/// The expressions that continue `text` by one name.
fn expression(text: &str) -> Vec<String> {
    // Some shells pass the quote that opens the word.
    let code = text.trim_start_matches(['\'']);
    let (start, found) = Names::default().complete(code);
    let before = &text[..text.len() - code.len() + start];
    // The shell's functions and variables are not part of an expression.
    let is_layer = |name: &str| name.strip_suffix('(').is_some_and(|name| Kind::named(name).is_ok());
    let fits = |name: &String| name.ends_with('=') || name.starts_with('"') || is_layer(name);
    found.into_iter().filter(fits).map(|name| format!("{before}{name}")).collect()
}

/// A completer of the candidates that begin with the word, sorted, with their descriptions.
fn completer<I>(candidates: impl Fn() -> I + Send + Sync + 'static) -> ArgValueCompleter
where
    I: Iterator<Item = (String, Option<&'static str>)>,
{
    ArgValueCompleter::new(move |current: &OsStr| {
        let current = current.to_string_lossy();
        let found: BTreeSet<_> = candidates().filter(|(name, _)| name.starts_with(&*current)).collect();
        let candidate = |(name, help): (String, Option<&'static str>)| {
            CompletionCandidate::new(name).help(help.map(|help| StyledStr::from(help.trim())))
        };
        found.into_iter().map(candidate).collect::<Vec<_>>()
    })
}

/// The first field of each line of a user database.
fn names_of(path: &str) -> impl Iterator<Item = (String, Option<&'static str>)> + use<> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let names: Vec<String> = text.lines().filter_map(|line| line.split(':').next()).map(str::to_owned).collect();
    names.into_iter().filter(|name| !name.is_empty()).map(|name| (name, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(arguments: &[&str]) -> Vec<String> {
        let arguments: Vec<_> = arguments.iter().map(Into::into).collect();
        let index = arguments.len() - 1;
        let found = clap_complete::engine::complete(&mut command(), arguments, index, None).unwrap();
        found.iter().map(|candidate| candidate.get_value().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn layers_and_fields_of_an_expression_are_completed() {
        assert_eq!(completed(&["crafter", "sr", "IP()/UD"]), ["IP()/UDP("]);
        assert_eq!(
            completed(&["crafter", "build", "IP(dst=\"192.0.2.1\")/TCP(dp"]),
            ["IP(dst=\"192.0.2.1\")/TCP(dport="]
        );
        assert_eq!(expression("'IP(dst=\"192.0.2.1\", tt"), ["'IP(dst=\"192.0.2.1\", ttl="]);
        assert!(expression("IP(dst=\"192.0.2").is_empty(), "inside a text");
        assert!(!expression("").iter().any(|name| name.starts_with("sr")), "functions of the shell");
    }

    #[test]
    fn names_of_layers_interfaces_and_users_are_completed() {
        assert_eq!(completed(&["crafter", "ls", "TC"]), ["TCP", "TCPAOValue", "TCPquote"]);
        assert_eq!(completed(&["crafter", "show", "--first", "Eth"]), ["Ether"]);
        for command in ["sr", "sniff", "replay", "leases", "counters", "get"] {
            assert!(completed(&["crafter", command, "--interface", "l"]).contains(&"lo".to_owned()), "{command}");
        }
        assert!(completed(&["crafter", "policy", "explain", "--user", "roo"]).contains(&"root".to_owned()));
        assert!(completed(&["crafter", "serve", "--group", "roo"]).contains(&"root".to_owned()));
    }
}
