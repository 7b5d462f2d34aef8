//! Test: `crafter/docs/options.md` is the contract of options, and clap's definitions keep it: an option means the same in
//! every command that has it, except where the page says otherwise.

use std::{
    any::TypeId,
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use clap::{Arg, Command};

use super::{command, is_builtin};

/// An option of a command.
struct Used {
    command: String,
    arg: Arg,
}

/// The options of all commands; global ones have the command `all`.
fn options() -> Vec<Used> {
    fn gather(command: &Command, path: &[&str], found: &mut Vec<Used>) {
        for arg in command.get_arguments().filter(|arg| arg.get_long().is_some() && !is_builtin(arg)) {
            let command = if path.is_empty() { "all".to_owned() } else { path.join(" ") };
            found.push(Used { command, arg: arg.clone() });
        }
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            gather(sub, &[path, &[sub.get_name()]].concat(), found);
        }
    }
    let mut found = Vec::new();
    gather(&command(), &[], &mut found);
    found
}

impl Used {
    fn long(&self) -> &str {
        self.arg.get_long().unwrap_or_default()
    }

    /// `-i, --interface, --iface IF`
    fn signature(&self) -> String {
        let mut names: Vec<String> = self.arg.get_short().map(|short| format!("-{short}")).into_iter().collect();
        names.push(format!("--{}", self.long()));
        names.extend(self.arg.get_visible_aliases().into_iter().flatten().map(|alias| format!("--{alias}")));
        let mut text = names.join(", ");
        let takes_value = self.arg.get_action().takes_values();
        if let Some([value]) = self.arg.get_value_names().filter(|_| takes_value) {
            let is_optional = self.arg.get_num_args().is_some_and(|range| range.min_values() == 0);
            text += &if is_optional { format!("[={value}]") } else { format!(" {value}") };
        }
        text
    }

    fn help(&self) -> String {
        self.arg.get_help().map(ToString::to_string).unwrap_or_default()
    }

    /// The type of its values: one for all whole numbers, and one for each list of possible values.
    fn kind(&self) -> String {
        let possible: Vec<String> =
            self.arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        let id = self.arg.get_value_parser().type_id();
        let whole = [TypeId::of::<u8>(), TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>()];
        match () {
            () if !self.arg.get_action().takes_values() => "flag".to_owned(),
            () if !possible.is_empty() => possible.join("|"),
            () if whole.iter().any(|whole| id == *whole) => "whole number".to_owned(),
            () => format!("{id:?}"),
        }
    }
}

/// The rows of the table below a heading of the page.
fn rows<const N: usize>(page: &str, heading: &str) -> Vec<[String; N]> {
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    let section = section.split("\n## ").next().unwrap();
    let cells = |line: &str| {
        let cells: Vec<String> = line.trim_matches('|').split(" | ").map(|cell| cell.trim().replace('`', "")).collect();
        cells.try_into().unwrap_or_else(|cells: Vec<_>| panic!("{heading}: {} cells in {line}", cells.len()))
    };
    section.lines().filter(|line| line.starts_with("| `")).map(cells).collect()
}

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/options.md")).unwrap()
}

#[test]
fn options_mean_the_same_in_every_command() {
    let page = page();
    let table = rows::<3>(&page, "Options");
    let exceptions = rows::<4>(&page, "Exceptions");
    let mut faults = Vec::new();
    let mut names = BTreeSet::new();
    for [signature, ..] in &table {
        for name in signature.split([' ', '[']).filter(|word| word.starts_with('-')) {
            if !names.insert(name.trim_end_matches(',')) {
                faults.push(format!("{name} is in two rows"));
            }
        }
    }
    let mut users: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut kinds: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut excepted = BTreeSet::new();
    for used in &options() {
        let signature = used.signature();
        let exception = exceptions.iter().position(|[command, option, ..]| {
            command.split(", ").any(|command| command == used.command) && *option == signature
        });
        if let Some(at) = exception {
            excepted.insert(at);
            if !used.help().starts_with(&exceptions[at][2]) {
                faults.push(format!("{} {signature}: its help is '{}'", used.command, used.help()));
            }
            continue;
        }
        match table.iter().find(|[known, ..]| *known == signature) {
            None => faults.push(format!("{}: no row\n| `{signature}` | {} | {0} |", used.command, used.help())),
            Some([known, meaning, _]) => {
                users.entry(known).or_default().push(used.command.clone());
                if !used.help().starts_with(meaning) {
                    faults.push(format!("{} {signature}: its help is '{}'", used.command, used.help()));
                }
            }
        }
        let (command, kind) =
            kinds.entry(used.long().to_owned()).or_insert_with(|| (used.command.clone(), used.kind()));
        if *kind != used.kind() {
            faults.push(format!("--{}: {kind} in {command}, {} in {}", used.long(), used.kind(), used.command));
        }
    }
    for [signature, meaning, listed] in &table {
        let users = users.get(signature.as_str()).map(|users| users.join(", ")).unwrap_or_default();
        if *listed != users {
            faults.push(format!("commands differ; use\n| `{signature}` | {meaning} | {users} |"));
        }
    }
    let unused = (0..exceptions.len()).filter(|at| !excepted.contains(at));
    faults.extend(unused.map(|at| format!("no such option: {:?}", exceptions[at])));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn old_names_are_listed() {
    let mut found = BTreeSet::new();
    for used in options() {
        let visible: Vec<&str> = used.arg.get_visible_aliases().unwrap_or_default();
        let long = used.arg.get_all_aliases().unwrap_or_default().into_iter().filter(|name| !visible.contains(name));
        let short = used.arg.get_all_short_aliases().unwrap_or_default().into_iter().map(|short| format!("-{short}"));
        for name in long.map(|name| format!("--{name}")).chain(short) {
            found.insert([used.command.clone(), name, format!("--{}", used.long())]);
        }
    }
    let listed: BTreeSet<[String; 3]> = rows(&page(), "Old names").into_iter().collect();
    assert_eq!(listed, found, "left: options.md; right: clap's definitions");
}

#[test]
fn global_options_are_valid_before_and_after_every_command() {
    let mut root = command();
    let globals: Vec<Arg> = root.get_arguments().filter(|arg| !is_builtin(arg)).cloned().collect();
    assert!(globals.iter().all(Arg::is_global_set), "an option of the root is not global");
    assert!(globals.len() >= 3);
    root.build();
    fn check(command: &Command, globals: &[Arg]) {
        for global in globals {
            assert!(command.get_arguments().any(|arg| arg.get_id() == global.get_id()), "{}", command.get_name());
        }
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            check(sub, globals);
        }
    }
    check(&root, &globals);
    for line in ["crafter --json --color never --log off ls", "crafter ls --json --color never --log off"] {
        let cli = <super::Cli as clap::Parser>::try_parse_from(line.split(' ')).unwrap();
        assert!(cli.globals.json && cli.globals.log == log::LevelFilter::Off, "{line}");
        assert_eq!(cli.globals.color, super::style::When::Never, "{line}");
    }
}

#[test]
fn engine_options_are_in_the_long_help_only() {
    let mut root = command();
    root.build();
    for name in ["sr", "get", "ping", "shell", "serve"] {
        let command = root.find_subcommand_mut(name).unwrap();
        let (short, long) = (command.render_help().to_string(), command.render_long_help().to_string());
        assert!(!short.contains("--attach") && !short.contains("--flows"), "{name}: {short}");
        assert!(long.contains("\nEngine:\n") && long.contains("--attach <MODE>"), "{name}: {long}");
        assert!(short.contains("--json"), "{name}: {short}");
    }
}
