//! Output of commands that need neither privileges nor a network, compared with the files in `snapshots/`: the help of
//! every command, errors, and the examples of the pages. To renew the files after an intended change, and to add those
//! of new commands and examples:
//!
//! ```sh
//! TRYCMD=overwrite cargo test --package crafter --test integration -- cli::snapshots
//! ```

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const RENEW: &str = "TRYCMD=overwrite cargo test --package crafter --test integration -- cli::snapshots";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/cli/snapshots")
}

fn is_renewing() -> bool {
    std::env::var_os("TRYCMD").is_some_and(|mode| mode == "overwrite")
}

/// The environment of the commands: nothing of the user, the terminal and the host.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("XDG_CONFIG_HOME", "/nonexistent"),
    ("HOME", "/nonexistent"),
    ("NO_COLOR", "1"),
    ("CLICOLOR_FORCE", "0"),
    ("CRAFTER_SOCKET", "/nonexistent/crafter.sock"),
];

/// Compares the output of the commands in files below `snapshots/` with what the files hold.
fn compare(files: &str) {
    // trycmd can set variables, and not remove them.
    assert!(std::env::var_os("CRAFTER_LOG").is_none(), "unset CRAFTER_LOG, whose value the help prints");
    let cases = trycmd::TestCases::new();
    cases.register_bin("crafter", Path::new(env!("CARGO_BIN_EXE_crafter")));
    for (name, value) in ENVIRONMENT {
        cases.env(name, value);
    }
    cases.case(directory().join(files)).run();
    // Outside of a block, commands do not run.
    let text = |file: &str| fs::read_to_string(directory().join(file)).unwrap();
    if !files.contains('*') {
        assert_eq!(text(files).matches("\n$ ").count(), text(files).matches("```console\n$ ").count(), "{files}");
    }
}

/// Adds commands to a file, or requires that it has them.
fn require(file: &str, commands: &[String]) {
    let path = directory().join(file);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let known: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    let missing: Vec<&String> = commands.iter().filter(|command| !known.contains(command.as_str())).collect();
    if missing.is_empty() {
        return;
    }
    assert!(is_renewing(), "{file} has no {missing:?}; to add them:\n{RENEW}");
    let added = missing.iter().map(|command| format!("```console\n$ {command}\n\n```\n"));
    let parts: Vec<String> = [text].into_iter().filter(|text| !text.is_empty()).chain(added).collect();
    fs::write(path, parts.join("\n")).unwrap();
}

/// The names of all commands, as in `crafter policy check`.
fn commands() -> Vec<String> {
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_crafter"));
    let done = command.envs(ENVIRONMENT).arg("man").arg("--out").arg(out.path()).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let pages = fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().path());
    // The page crafter-policy-check.1 is that of `crafter policy check`.
    pages.map(|page| page.file_stem().unwrap().to_str().unwrap().replace('-', " ")).collect()
}

#[test]
fn help_of_every_command() {
    let names = commands();
    assert!(names.len() > 25, "{names:?}");
    for name in names {
        let file = format!("help/{}.trycmd", name.replace(' ', "-"));
        require(&file, &[format!("{name} -h"), format!("{name} --help")]);
        // A terminal may be unable to show other characters.
        assert!(fs::read_to_string(directory().join(&file)).unwrap().is_ascii(), "{name}");
    }
    compare("help/*.trycmd");
}

#[test]
fn errors() {
    compare("errors.trycmd");
}

#[test]
fn output_of_packets_and_lists() {
    compare("packets.trycmd");
}

#[test]
fn examples_of_the_pages() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut examples = Vec::new();
    for page in ["../README.md", "docs/crafting.md", "docs/administrators.md", "docs/options.md"] {
        let text = fs::read_to_string(root.join(page)).unwrap();
        let blocks = text.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n"));
        for line in blocks.flat_map(str::lines) {
            let command = line.split("  #").next().unwrap_or_default().trim_end();
            if ["build", "show", "ls"].iter().any(|name| command.starts_with(&format!("crafter {name} ")))
                || command == "crafter ls"
            {
                examples.push(command.to_owned());
            }
        }
    }
    assert!(examples.len() >= 6, "{examples:?}");
    require("pages.trycmd", &examples);
    compare("pages.trycmd");
}
