//! `crafter man` and `crafter completions`: manual pages and completion scripts for packages.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use crate::cli::exit;
use clap::CommandFactory as _;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};
use crafter::{Error, Result};

use super::{Cli, Globals, print};

/// `crafter man`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Write the pages to DIR, which is created if necessary
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

const HELP: &str = "\
Writes crafter.1, and crafter-COMMAND.1 for each command.
--json: an object with files, their paths.
Exit code 0: the files are written; 1: a file cannot be written.

Examples:
  crafter man --out man1 && man -l man1/crafter-sr.1";

/// `crafter completions`
#[derive(Debug, clap::Args)]
#[command(after_help = COMPLETIONS_HELP)]
pub struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

const COMPLETIONS_HELP: &str = "\
Prints a script for the shell on stdout, with and without --json. It completes commands and
options. To complete layers, fields, interfaces, users and groups, too, let the shell ask crafter
itself. In bash (CRAFTER_COMPLETE also takes zsh, fish, elvish and powershell):
  source <(CRAFTER_COMPLETE=bash crafter)
Exit code 0.

Examples:
  crafter completions bash > /etc/bash_completion.d/crafter";

/// Writes the pages.
///
/// # Errors
/// Those of writing.
pub fn run(args: &Args, globals: &Globals) -> anyhow::Result<u8> {
    let failed = |path: &Path| {
        let action = format!("write {}", path.display());
        move |source| Error::Io { action, source }
    };
    fs::create_dir_all(&args.out).map_err(failed(&args.out))?;
    let mut paths = Vec::new();
    for page in pages() {
        let path = args.out.join(page.man().get_filename());
        let write = |file: File| -> io::Result<()> {
            let mut file = BufWriter::new(file);
            page.write(&mut file)?;
            file.flush()
        };
        File::create(&path).and_then(write).map_err(failed(&path))?;
        paths.push(path);
    }
    if globals.json {
        print::json(&serde_json::json!({ "files": paths }))?;
    }
    Ok(exit::SUCCESS)
}

/// Prints the script.
///
/// # Errors
/// Those of writing.
pub fn completions(args: &CompletionsArgs) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "crafter", &mut script);
    print::out(String::from_utf8_lossy(&script)).map_err(|source| Error::Io { action: "print".to_owned(), source })?;
    Ok(exit::SUCCESS)
}

/// The manual page of a command.
struct Page {
    command: clap::Command,
    /// The page of the parent, for the section SEE ALSO.
    parent: Option<String>,
}

/// The pages of all commands that are not hidden.
fn pages() -> Vec<Page> {
    let mut root = Cli::command().disable_help_subcommand(true);
    // Names the subcommands `crafter-NAME`, and adds the global options to each.
    root.build();
    let mut pages = Vec::new();
    gather(&root, None, &mut pages);
    pages
}

fn gather(command: &clap::Command, parent: Option<&str>, pages: &mut Vec<Page>) {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    pages.push(Page { command: command.clone(), parent: parent.map(str::to_owned) });
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        gather(sub, Some(&name), pages);
    }
}

impl Page {
    fn man(&self) -> Man {
        let source = concat!("crafter ", env!("CARGO_PKG_VERSION"));
        Man::new(self.command.clone()).source(source).manual("crafter's manual")
    }

    fn write(&self, file: &mut impl Write) -> io::Result<()> {
        let man = self.man();
        man.render_title(file)?;
        // No hyphenation, which would break names and options; no justification.
        writeln!(file, ".nh\n.ad l")?;
        man.render_name_section(file)?;
        man.render_synopsis_section(file)?;
        man.render_description_section(file)?;
        if self.command.get_arguments().any(|argument| !argument.is_hide_set()) {
            man.render_options_section(file)?;
        }
        if self.command.get_subcommands().any(|sub| !sub.is_hide_set()) {
            man.render_subcommands_section(file)?;
        }
        let mut roff = Roff::new();
        sections(&mut roff, &self.command.get_after_help().map(ToString::to_string).unwrap_or_default());
        if let Some(parent) = &self.parent {
            roff.control("SH", ["SEE ALSO"]);
            roff.text([bold(parent.as_str()), roman("(1)")]);
        }
        roff.to_writer(file)
    }
}

/// Writes the text after the options as sections with the headings of manual pages: NOTES, JSON, EXIT STATUS, EXAMPLES.
/// Paragraphs are filled; indented lines are kept.
fn sections(roff: &mut Roff, text: &str) {
    let mut is_kept = false;
    let mut heading = None;
    for line in text.lines() {
        let found = match line {
            "Examples:" => Some("EXAMPLES"),
            line if line.starts_with("Exit code") => Some("EXIT STATUS"),
            line if line.starts_with("--json") => Some("JSON"),
            _ if heading.is_none() => Some("NOTES"),
            _ => None,
        };
        let indented = line.starts_with("  ");
        if is_kept && (!indented || found.is_some()) {
            roff.control("fi", []);
            is_kept = false;
        }
        if let Some(found) = found
            && heading != Some(found)
        {
            roff.control("SH", [found]);
            heading = Some(found);
        }
        match line {
            "Examples:" => {}
            "" => {
                roff.control("PP", []);
            }
            _ => {
                if indented && !is_kept {
                    roff.control("PP", []);
                    roff.control("nf", []);
                    is_kept = true;
                }
                roff.text([roman(line)]);
            }
        }
    }
    if is_kept {
        roff.control("fi", []);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::documentation;

    fn every(command: &clap::Command, found: &mut Vec<clap::Command>) {
        found.push(command.clone());
        command.get_subcommands().for_each(|command| every(command, found));
    }

    fn commands() -> Vec<clap::Command> {
        let mut root = Cli::command().disable_help_subcommand(true);
        root.build();
        let mut found = Vec::new();
        every(&root, &mut found);
        found
    }

    #[test]
    fn help_of_every_command_has_exit_codes_and_valid_examples() {
        for command in commands() {
            let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
            assert!(command.get_about().is_some(), "{name}: no description");
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{name}: no examples"));
            let mut own = 0;
            for line in examples.lines() {
                assert!(line.starts_with("  "), "{name}: '{line}' follows the examples");
                let Some(at) = line.find("crafter ") else { continue };
                let words = documentation::commands(&line[at..]).swap_remove(0);
                if let Err(error) = <Cli as clap::Parser>::try_parse_from(&words)
                    && error.use_stderr()
                {
                    panic!("{name}: {words:?}: {error}");
                }
                own += usize::from(words.join(" ").starts_with(&name));
            }
            assert!(own > 0, "{name}: no example of its own");
            if !command.has_subcommands() {
                assert!(help.lines().any(|line| line.starts_with("Exit code")), "{name}: no exit codes");
                assert!(help.contains("--json"), "{name}: no JSON keys");
            }
            for line in help.lines() {
                assert!(line.len() <= 100, "{name}: '{line}' is wider than a terminal");
            }
        }
    }

    #[test]
    fn headings_of_a_page() {
        let mut roff = Roff::new();
        let text =
            "One.\nTwo:\n  kept\n   so\nOn.\n--json: keys,\nmore.\nExit code 0: well.\n\nExamples:\n  crafter .x -y";
        sections(&mut roff, text);
        let page = roff.render();
        let body = page.split_once(".SH NOTES\n").unwrap().1;
        let expected = "One.\nTwo:\n.PP\n.nf\n  kept\n   so\n.fi\nOn.\n.SH JSON\n\\-\\-json: keys,\nmore.\n.SH \"EXIT STATUS\"\n\
                        Exit code 0: well.\n.PP\n.SH EXAMPLES\n.PP\n.nf\n  crafter .x \\-y\n.fi\n";
        assert_eq!(body, expected);
    }
}
