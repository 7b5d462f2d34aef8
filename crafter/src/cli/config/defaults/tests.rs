use clap::FromArgMatches as _;

use super::*;
use crate::cli::{self, Cli};

fn parse(text: &str) -> Result<Defaults> {
    Defaults::parse(Path::new("config.toml"), text, cli::plain_command())
}

fn error(text: &str) -> String {
    let sentence = parse(text).expect_err(text).to_string();
    sentence.replace("config.toml, ", "")
}

fn command_line(text: &str, words: &[&str]) -> String {
    let defaults = parse(text).unwrap();
    let matches = cli::matches(&defaults, words.iter().map(Into::into)).unwrap();
    format!("{:?}", Cli::from_arg_matches(&matches).unwrap())
}

#[test]
fn unknown_key_is_named_with_line_and_nearest_option() {
    assert_eq!(error("timeout = 1\n\ntimeuot = 2\n"), "line 3: there is no option 'timeuot'; did you mean timeout?");
    assert_eq!(error("[sr]\nretri = 2\n"), "line 2: `crafter sr` has no option 'retri'; did you mean retry?");
    assert_eq!(error("[srr]\nretry = 2\n"), "line 1: [srr] does not name a command; did you mean sr or sr1?");
    assert!(error("[sr]\nmtu = 1400\n").contains("`crafter sr` has no option 'mtu'"));
    assert!(error("help = true").contains("there is no option 'help'"));
}

#[test]
fn invalid_value_is_named_with_line() {
    assert_eq!(
        error("timeout = 0\n"),
        "line 1: invalid value '0' for '--timeout <TIME>': not a time; give seconds, or a number with a unit (200ms, 1.5, \
         2m), up to 30 days; a table sets it for one command"
    );
    assert!(
        error("\n[show]\nas = \"x\"").starts_with("line 3: invalid value 'x' for '--as <FORM>' [possible values: ")
    );
    assert_eq!(error("json = 1"), "line 1: json: it is a flag; give true or false; a table sets it for one command");
    assert_eq!(error("[sr]\ntimeout = [1, 2]"), "line 2: timeout: give one value, not 2");
    assert_eq!(
        error("[sr]\ntimeout = 2024-01-01"),
        "line 2: timeout: not a value of an option; give a text, a number, true or false"
    );
    assert!(error("timeout = ").starts_with("line 1: invalid TOML: "));
}

#[test]
fn table_precedes_top_and_command_line_precedes_both() {
    let text = "timeout = 7\n[sr]\ntimeout = 8\n";
    let line = |words: &[&str]| command_line(text, &[&["crafter"], words].concat());
    assert!(line(&["ping", "192.0.2.1"]).contains("timeout: Some(7s)"));
    assert!(line(&["sr", "IP()"]).contains("timeout: Some(8s)"));
    assert!(line(&["sr", "IP()", "--timeout", "9"]).contains("timeout: Some(9s)"));
}

#[test]
fn flags_and_global_options_are_set_and_overridden() {
    let json = |text: &str, words: &[&str]| command_line(text, words).contains("json: true");
    assert!(json("json = true", &["crafter", "ls"]));
    assert!(!json("json = true", &["crafter", "ls", "--json=false"]));
    assert!(json("[ls]\njson = true", &["crafter", "ls"]));
    assert!(!json("[ls]\njson = true", &["crafter", "info"]));
    assert!(json("json = false", &["crafter", "ls", "--json"]));
    assert!(json("json = false", &["crafter", "--json", "ls"]));
    assert!(json("[ls]\njson = false", &["crafter", "--json", "ls"]));
}

#[test]
fn command_line_excludes_conflicting_keys() {
    let line = command_line("interval = 3", &["crafter", "sr", "IP()", "--rate", "10"]);
    assert!(line.contains("interval: None") && line.contains("rate: Some(10.0)"), "{line}");
    let line = command_line("direct = true", &["crafter", "sr", "IP()", "--socket", "/s"]);
    assert!(line.contains("direct: false"), "{line}");
}

#[test]
fn alias_is_a_key() {
    let line = command_line("iface = \"lo\"", &["crafter", "sr", "IP()"]);
    assert!(line.contains("interface: Some(\"lo\")"), "{line}");
}
