//! Every `crafter` command in a `sh` block of the documentation parses.

use std::{fs, path::Path};

use clap::Parser as _;

use super::Cli;

/// Splits a line into its commands, and each command into words, as a shell does. Covers what the pages use: quotes,
/// comments, and `;`, `|`, `&`, `>` between commands.
pub fn commands(line: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words, mut word, mut quote) = (Vec::new(), Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            (_, Some(open)) if c == open => quote = None,
            (_, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            (' ', None) => words.extend(word.take()),
            (';' | '|' | '>' | '&', None) => {
                words.extend(word.take());
                commands.push(std::mem::take(&mut words));
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    commands.push(words);
    commands
}

/// The words from `crafter` on, where they are the command; `sudo` and `env` may precede them.
fn of_crafter(words: &[String]) -> Option<&[String]> {
    let prefix = |word: &String| matches!(word.as_str(), "sudo" | "env") || word.starts_with("PATH=");
    let at = words.iter().position(|word| !prefix(word))?;
    (words[at] == "crafter").then(|| &words[at..])
}

#[test]
fn every_command_in_the_pages_parses() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages = vec![root.join("README.md"), root.join("CONTRIBUTING.md"), root.join(".github/SECURITY.md")];
    pages.extend(fs::read_dir(root.join("crafter/docs")).unwrap().map(|entry| entry.unwrap().path()));
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.push(root.join("crafter/docs/schema/README.md"));
    let mut count = 0;
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        let blocks = text.split("```").skip(1).step_by(2);
        for line in blocks.filter_map(|block| block.strip_prefix("sh\n")).flat_map(str::lines) {
            for words in commands(line).iter().filter_map(|words| of_crafter(words)) {
                count += 1;
                if let Err(error) = Cli::try_parse_from(words)
                    && error.use_stderr()
                {
                    panic!("{}: {words:?}: {error}", page.display());
                }
            }
        }
    }
    assert!(count > 50, "{count} commands: the pages or their blocks were not found");
}

#[test]
fn a_line_is_split_into_commands_and_words() {
    let line = "sudo env PATH=\"a b\" crafter sr 'IP()/TCP(dport=[80,443])'; ls | crafter show - # not; a command";
    let found: Vec<Vec<String>> =
        commands(line).iter().filter_map(|words| of_crafter(words)).map(<[_]>::to_vec).collect();
    assert_eq!(found, [vec!["crafter", "sr", "IP()/TCP(dport=[80,443])"], vec!["crafter", "show", "-"]]);
}
