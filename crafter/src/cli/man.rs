//! `crafter man` and `crafter completions`: what packages install beside the binary.

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
    /// Write them here; the directory is made
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

const HELP: &str = "\
Writes crafter.1, and crafter-COMMAND.1 for every command.
--json: an array with the paths of the files.
Exit code 0: they are written; 1: they cannot be.

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
A script for the shell goes to stdout, with and without --json.
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
        let path = args.out.join(page.get_filename());
        let write = |file: File| -> io::Result<()> {
            let mut file = BufWriter::new(file);
            page.write(&mut file)?;
            file.flush()
        };
        File::create(&path).and_then(write).map_err(failed(&path))?;
        paths.push(path);
    }
    if globals.json {
        print::json(&paths)?;
    }
    Ok(exit::SUCCESS)
}

/// Prints a script.
///
/// # Errors
/// Those of writing.
pub fn completions(args: &CompletionsArgs) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "crafter", &mut script);
    print::out(String::from_utf8_lossy(&script)).map_err(|source| Error::Io { action: "print".to_owned(), source })?;
    Ok(exit::SUCCESS)
}

/// A manual page.
struct Page {
    man: Man,
    /// What stands behind the options.
    more: String,
    has: Has,
    /// Pages to see too.
    others: Vec<String>,
}

/// Which sections there are.
struct Has {
    options: bool,
    subcommands: bool,
}

/// The pages of all commands that help lists.
fn pages() -> Vec<Page> {
    let mut root = Cli::command().disable_help_subcommand(true);
    // Names the subcommands `crafter-NAME`, and hands the global options down.
    root.build();
    let mut pages = Vec::new();
    gather(&root, None, &mut pages);
    pages
}

fn gather(command: &clap::Command, parent: Option<&str>, pages: &mut Vec<Page>) {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let shown: Vec<&clap::Command> = command.get_subcommands().filter(|command| !command.is_hide_set()).collect();
    pages.push(Page {
        more: command.get_after_help().map(ToString::to_string).unwrap_or_default(),
        has: Has {
            options: command.get_arguments().any(|argument| !argument.is_hide_set()),
            subcommands: !shown.is_empty(),
        },
        others: parent.map(str::to_owned).into_iter().collect(),
        man: Man::new(command.clone())
            .source(concat!("crafter ", env!("CARGO_PKG_VERSION")))
            .manual("crafter's manual"),
    });
    for sub in shown {
        gather(sub, Some(&name), pages);
    }
}

impl Page {
    fn get_filename(&self) -> String {
        self.man.get_filename()
    }

    fn write(&self, file: &mut impl Write) -> io::Result<()> {
        self.man.render_title(file)?;
        // No hyphens in names and options that break at the end of a line, and no stretched blanks.
        writeln!(file, ".nh\n.ad l")?;
        self.man.render_name_section(file)?;
        self.man.render_synopsis_section(file)?;
        self.man.render_description_section(file)?;
        if self.has.options {
            self.man.render_options_section(file)?;
        }
        if self.has.subcommands {
            self.man.render_subcommands_section(file)?;
        }
        let mut roff = Roff::new();
        sections(&mut roff, &self.more);
        if !self.others.is_empty() {
            roff.control("SH", ["SEE ALSO"]);
            for other in &self.others {
                roff.text([bold(other.as_str()), roman("(1)")]);
            }
        }
        roff.to_writer(file)
    }
}

/// The text behind the options as sections: prose is filled, what is indented stays as it is; what it tells of JSON, of
/// exit codes and as examples gets headings, as manual pages have them.
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

    /// The words of a line up to what is the shell's: `|`, `>`, `&&`.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
        for c in line.chars() {
            match (c, quote) {
                (_, Some(open)) if c == open => quote = None,
                (_, Some(_)) => word.get_or_insert_default().push(c),
                ('"' | '\'', None) => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                (' ', None) => words.extend(word.take()),
                ('|' | '>' | '&', None) => return words,
                _ => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        words
    }

    #[test]
    fn every_help_says_what_how_it_ends_and_an_example_that_is_right() {
        for command in commands() {
            let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
            assert!(command.get_about().is_some(), "{name}: what does it do?");
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{name}: no examples"));
            let mut own = 0;
            for line in examples.lines() {
                assert!(line.starts_with("  "), "{name}: '{line}' stands behind the examples");
                let Some(at) = line.find("crafter ") else { continue };
                let words = words(&line[at..]);
                if let Err(error) = <Cli as clap::Parser>::try_parse_from(&words)
                    && error.use_stderr()
                {
                    panic!("{name}: {words:?}: {error}");
                }
                own += usize::from(words.join(" ").starts_with(&name));
            }
            assert!(own > 0, "{name}: no example of its own");
            if !command.has_subcommands() {
                assert!(help.lines().any(|line| line.starts_with("Exit code")), "{name}: how does it end?");
                assert!(help.contains("--json"), "{name}: what is JSON?");
            }
            for line in help.lines() {
                assert!(line.len() <= 100, "{name}: '{line}' is wider than a terminal");
            }
        }
    }

    #[test]
    fn shell_words() {
        let line = "crafter sr 'IP()/TCP(dport=[80,443])' \"a b\"c '' | head";
        assert_eq!(words(line), ["crafter", "sr", "IP()/TCP(dport=[80,443])", "a bc", ""]);
    }

    #[test]
    fn sections_of_a_page() {
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
