//! The groups of commands in `crafter --help`. clap groups options, but not commands.

use std::fmt::Write as _;

use clap::{Command, builder::Styles};

/// Headings and their commands, in the order of the help.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Craft", &["build", "ls", "send", "sr", "sr1", "shell"]),
    ("Measure", &["ping", "traceroute", "get", "dns"]),
    ("Capture", &["sniff", "show", "replay"]),
    ("Service", &["serve", "info", "leases", "flows", "counters", "monitor", "top", "policy"]),
    ("Set up", &["doctor", "lab", "config", "completions"]),
];

/// The help of `crafter`: as clap prints it, with a heading for each group of commands.
pub fn with_groups(command: Command) -> Command {
    let styles = Styles::styled();
    let (header, literal) = (styles.get_header(), styles.get_literal());
    let width = GROUPS.iter().flat_map(|(_, names)| *names).map(|name| name.len()).max().unwrap_or(0);
    let mut template = "{about-with-newline}\n{usage-heading} {usage}\n".to_owned();
    for (heading, names) in GROUPS {
        // Writing to a String cannot fail.
        let _ = writeln!(template, "\n{header}{heading}:{header:#}");
        for name in names {
            let about = command.find_subcommand(name).and_then(Command::get_about).cloned().unwrap_or_default();
            let _ = writeln!(template, "  {literal}{name:width$}{literal:#}  {about}");
        }
    }
    let _ = write!(template, "\n{header}Options:{header:#}\n{{options}}{{after-help}}");
    command.help_template(template)
}

#[cfg(test)]
mod tests {
    use crate::cli::command;

    use super::GROUPS;

    #[test]
    fn every_command_is_in_exactly_one_group() {
        let command = command();
        let mut listed: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        let visible = command.get_subcommands().filter(|command| !command.is_hide_set());
        let mut commands: Vec<&str> = visible.map(|command| command.get_name()).collect();
        listed.sort_unstable();
        commands.sort_unstable();
        assert_eq!(listed, commands, "left: groups; right: commands");
    }

    #[test]
    fn help_lists_each_command_below_its_heading() {
        let help = command().render_help().to_string();
        for (heading, names) in GROUPS {
            let (_, section) =
                help.split_once(&format!("\n{heading}:\n")).unwrap_or_else(|| panic!("{heading}: {help}"));
            let section = section.split("\n\n").next().unwrap();
            for name in names {
                assert!(section.contains(&format!("  {name} ")), "{name} is not below {heading}: {help}");
            }
        }
        assert!(help.contains("\nOptions:\n") && help.contains("\nExit codes"), "{help}");
    }
}
