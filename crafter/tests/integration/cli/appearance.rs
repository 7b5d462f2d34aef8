//! Colours and widths of the output: on terminals, in pipes, in JSON and in captures. Needs no privileges.

use std::process::{Command, Stdio};

use super::{run, terminal::Terminal};

/// IP / UDP, with 2 bytes of payload.
const PACKET: &str = "4500001e0001000040117ac8c0000202c00002010005000700ab16a76869";

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crafter"));
    command.args(args).env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").env_remove("CRAFTER_LOG");
    command.env("XDG_CONFIG_HOME", "/nonexistent");
    command
}

/// What a command prints on a terminal of so many columns, stdout and stderr.
fn on_terminal(args: &[&str], columns: u16, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", "\"$@\"; echo the end", "sh", env!("CARGO_BIN_EXE_crafter")]).args(args);
    command.env("XDG_CONFIG_HOME", "/nonexistent").env_remove("CLICOLOR_FORCE").env_remove("CRAFTER_LOG");
    // An empty value does not disable colours.
    command.env("NO_COLOR", "").envs(variables.iter().copied());
    let size = (if columns == 0 { 0 } else { 40 }, columns);
    let mut terminal = Terminal::with_size(command, size);
    terminal.shows("the end\r\n");
    terminal.said().replace("\r\n", "\n").trim_end_matches("the end\n").to_owned()
}

/// Without sequences that set colours; panics at any other escape sequence.
fn without_colours(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |plain, part| {
        let (parameters, rest) = part.split_once('m').unwrap();
        assert!(parameters.chars().all(|c| c.is_ascii_digit() || c == ';'), "{parameters:?} in {text:?}");
        plain + rest
    })
}

#[test]
fn colours_are_used_on_terminals_unless_disabled() {
    for args in [
        &["show", PACKET][..],
        &["show", "--as", "summary", PACKET],
        &["show", "--as", "map", PACKET],
        &["ls"],
        &["ls", "IP"],
        &["build", "IP(tll=1)"],
        &["sr", "--no-such-option"],
        &["sr", "--help"],
        &["shell", "--direct", "-c", "IP(dst=\"192.0.2.1\").show()"],
        &["policy", "check", "tests/integration/cli/snapshots/errors.in/policy.toml"],
    ] {
        let done = run(command(args));
        let plain = format!("{}{}", done.text(), done.stderr);
        assert!(!plain.contains('\x1b'), "a pipe: {args:?}: {plain:?}");
        let coloured = on_terminal(args, 200, &[]);
        assert!(coloured.contains('\x1b'), "a terminal: {args:?}: {coloured:?}");
        assert_eq!(without_colours(&coloured), plain, "{args:?}");
        assert_eq!(on_terminal(args, 200, &[("NO_COLOR", "1")]), plain, "{args:?}");
        assert_eq!(on_terminal(&[args, &["--color", "never"]].concat(), 200, &[]), plain, "{args:?}");
        let mut forced = command(args);
        forced.env("CLICOLOR_FORCE", "1");
        let done = run(forced);
        assert_eq!(format!("{}{}", done.text(), done.stderr), coloured, "CLICOLOR_FORCE: {args:?}");
        let done = run(command(&[args, &["--color", "always"]].concat()));
        assert_eq!(format!("{}{}", done.text(), done.stderr), coloured, "--color always: {args:?}");
    }
}

#[test]
fn json_bytes_and_captures_have_no_colours() {
    for args in [
        &["--json", "show", PACKET][..],
        &["--json", "ls", "TCP"],
        &["--json", "build", "IP()/TCP()"],
        &["build", "IP()/TCP()"],
        &["build", "--raw", "IP()/TCP()"],
        &["show", "--as", "expr", PACKET],
        &["show", "--as", "hexdump", PACKET],
        &["build", "--write", "-", "IP()/TCP()"],
        &["--json", "policy", "check"],
        &["completions", "bash"],
    ] {
        let done = run(command(&[args, &["--color", "always"]].concat()));
        done.succeeds();
        assert!(!done.stdout.contains(&0x1b), "{args:?}: {done:?}");
    }
}

#[test]
fn long_lines_fit_narrow_terminals() {
    let long = format!("IP()/\"{}\"/TCP(dprt=80)/\"{}\"", "x".repeat(100), "y".repeat(100));
    for args in [&["ls", "TCP"][..], &["ls"], &["ls", "UDP"]] {
        let plain = run(command(args)).text().to_owned();
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for columns in [40, 80, 120] {
            let narrow = without_colours(&on_terminal(args, columns, &[]));
            assert_eq!(words(&narrow), words(&plain), "{args:?}, {columns}");
            // The first columns of a table are not divided.
            let widest = narrow.lines().map(str::len).max().unwrap();
            assert!(widest <= usize::from(columns).max(60), "{args:?}, {columns}:\n{narrow}");
        }
        // No terminal, and one that reports no width.
        for columns in [0, 200] {
            assert_eq!(without_colours(&on_terminal(args, columns, &[])), plain, "{args:?}, {columns}");
        }
    }
    for (columns, widest) in [(40, 40), (80, 80), (200, 200), (0, 120), (1, 24)] {
        let said = without_colours(&on_terminal(&["build", &long], columns, &[]));
        let lines: Vec<&str> = said.lines().collect();
        let [_, line, mark] = lines[..] else { panic!("{columns}: {said}") };
        assert!(line.len() <= widest && line.contains("...") && line.contains("dprt"), "{columns}: {said}");
        assert_eq!(&line[mark.find('^').unwrap()..mark.len()], "dprt", "{columns}: {said}");
    }
}

#[test]
fn comments_of_a_capture_cannot_control_the_terminal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("comment.pcapng");
    let mut writer = crafter::capture::Writer::create(&path).unwrap();
    let bytes = crafter::layer::Packet::from(crafter::layer::Ip::to("192.0.2.1")).build().unwrap();
    let entry = crafter::capture::Entry::new(std::time::Duration::ZERO, crafter::layer::Kind::Ip, &bytes);
    writer.write(&crafter::capture::Entry { comment: Some("harmless\x1b[2J"), ..entry }).unwrap();
    writer.finish().unwrap();
    for form in ["fields", "summary"] {
        let mut command = command(&["show", "--as", form, path.to_str().unwrap()]);
        command.stdin(Stdio::null());
        let done = run(command);
        assert!(done.text().contains("# harmless?[2J"), "{done:?}");
    }
}
