//! The user's defaults, and `crafter config`.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use super::{Done, run};

/// A command with the file `text` below `directory`.
fn crafter(directory: &Path, text: &str, args: &[&str]) -> Done {
    let file = directory.join("crafter/config.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, text).unwrap();
    with_file(directory, args)
}

fn with_file(directory: &Path, args: &[&str]) -> Done {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crafter"));
    command.args(args).env("XDG_CONFIG_HOME", directory).env_remove("CRAFTER_LOG").env_remove("CRAFTER_SOCKET");
    run(command)
}

#[test]
fn source_of_each_value_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let text = "timeout = 1\nsocket = \"/run/one\"\n[sr]\nretry = 2\n";
    let done = crafter(directory.path(), text, &["--json", "config", "show", "sr", "--count", "3"]);
    done.succeeds();
    let shown = done.object("config-show");
    let option = |name: &str| {
        let options = shown["options"].as_array().unwrap();
        let found = options.iter().find(|row| row["option"] == name).unwrap();
        (found["value"].as_str().unwrap_or_default().to_owned(), found["source"].clone(), found["line"].clone())
    };
    assert_eq!(option("count"), ("3".to_owned(), "command-line".into(), ().into()));
    assert_eq!(option("timeout"), ("1".to_owned(), "file".into(), 1.into()));
    assert_eq!(option("retry"), ("2".to_owned(), "file".into(), 4.into()));
    assert_eq!(option("socket"), ("/run/one".to_owned(), "file".into(), 2.into()));
    assert_eq!(option("limit"), ("1000000".to_owned(), "default".into(), ().into()));

    let mut command = Command::new(env!("CARGO_BIN_EXE_crafter"));
    command.args(["config", "show"]).env("XDG_CONFIG_HOME", directory.path());
    command.env("CRAFTER_SOCKET", "/run/two").env("CRAFTER_LOG", "error");
    let done = run(command);
    done.succeeds();
    for row in ["all --log error environment, CRAFTER_LOG", "sr --socket /run/two environment, CRAFTER_SOCKET"] {
        let rows = done.text().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        assert!(rows.into_iter().any(|line| line == row), "{row}: {done:?}");
    }
}

#[test]
fn unknown_key_ends_every_command_except_help_and_version() {
    let directory = tempfile::tempdir().unwrap();
    let sentence = "config.toml, line 2: there is no option 'timeuot'; did you mean timeout?";
    crafter(directory.path(), "\ntimeuot = 1\n", &["ls"]).fails(2, sentence);
    with_file(directory.path(), &["config", "show"]).fails(2, sentence);
    with_file(directory.path(), &["--version"]).succeeds();
    with_file(directory.path(), &["sr", "--help"]).succeeds();
}

#[test]
fn file_precedes_defaults_and_command_line_precedes_file() {
    let directory = tempfile::tempdir().unwrap();
    let done = crafter(directory.path(), "json = true\n", &["ls", "IP"]);
    assert_eq!(done.object("ls")["layer"], "IP");
    assert!(with_file(directory.path(), &["ls", "IP", "--json=false"]).text().starts_with("IP: "));
}

#[test]
fn file_of_another_user_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    crafter(directory.path(), "json = true\n", &["ls"]).succeeds();
    let file = directory.path().join("crafter/config.toml");
    std::os::unix::fs::chown(&file, Some(65_534), None).unwrap();
    assert!(with_file(directory.path(), &["ls", "IP"]).text().starts_with("IP: "));
    std::os::unix::fs::chown(&file, Some(0), None).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o646)).unwrap();
    with_file(directory.path(), &["ls"]).fails(2, "every user may write it");
}
