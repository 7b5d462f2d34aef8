//! Scripts of single connections in `scripts/`: what the application does, what crafter's engine must send, and what
//! the peer sends, on a virtual clock. In the style of packetdrill, with segments in tcpdump's notation.
//!
//! A line is an event; `#` begins a comment. Sequence numbers are relative to each side's initial one (the SYN is 0,
//! the first byte 1); the peer's real ones wrap at 2^32 after 100 bytes. The bytes of a stream are a function of their
//! position, so that retransmitted and overlapping data can be compared. Timestamps are in milliseconds, relative to
//! each side's first; the peer's real ones wrap at 2^32 half a second after its SYN.
//!
//! | line | meaning |
//! |---|---|
//! | `connect [mtu N] [rx N] [acks-after TIME] [time-out TIME] [give-up TIME] [time-wait TIME] [nagle] [timestamps]` | the application opens the connection; must be the first line |
//! | `> FLAGS FROM[:TO] [ack N] [win N] [mss N] [wscale N] [sackOK] [sack A:B] [ts VALUE ECHO]` | crafter sends this segment at once; fields that are not given, and PSH, may have any value |
//! | `< FLAGS FROM[:TO] [...]` | the peer sends this segment |
//! | `+TIME LINE` | the event follows after this time: `<` and application events exactly, `>` within 5 % |
//! | `quiet TIME` | crafter sends nothing for this time |
//! | `write N`, `read N`, `eof`, `close`, `abort` | the application writes N bytes, reads and checks exactly N bytes, reads the end of stream, closes, aborts |
//! | `state NAME`, `error WORDS`, `finished` | the state that the application observes |
//!
//! A segment of crafter that the script does not contain is an error, also at its end.

mod player;
mod script;

use std::{fs, path::PathBuf};

use crafter_tests::leak::Parallel;

use player::Player;

#[test]
fn engine_follows_every_script() {
    let _parallel = Parallel::begin();
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/namespaces/scripted/scripts");
    let mut paths: Vec<_> =
        fs::read_dir(&directory).expect("the scripts").map(|entry| entry.expect("a script").path()).collect();
    paths.sort();
    let mut failures = Vec::new();
    for path in &paths {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(path).expect("a script");
        match play(&text) {
            Ok(lines) => println!("{name}: {lines} lines"),
            Err((line, reason)) => failures.push(format!("{name}:{line}: {reason}")),
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    assert!(paths.len() >= 12, "{} scripts", paths.len());
}

/// Runs a script over IPv4 and over IPv6. Returns the number of its last line, or the line that failed and the reason.
fn play(text: &str) -> Result<usize, (usize, String)> {
    let lines = script::parse(text)?;
    for is_v6 in [false, true] {
        let mut player = Player::new(is_v6);
        for (number, line) in &lines {
            let version = if is_v6 { "IPv6" } else { "IPv4" };
            player.play(line).map_err(|reason| (*number, format!("{version}: {reason}")))?;
        }
        let last = lines.last().map_or(0, |(number, _)| *number);
        player.nothing_unexpected().map_err(|reason| (last, reason))?;
    }
    Ok(lines.len())
}

/// The player must report deviations.
#[test]
fn deviations_from_a_script_are_reported() {
    let _parallel = Parallel::begin();
    let without_mss = "connect\n> S 0 mss\n";
    let cases = [
        ("connect\n> S 5", 2, "instead"),
        ("connect\n+1s > S 0", 2, "too early"),
        ("connect\n> S 0\n> S 0", 3, "nothing"),
        ("connect\nquiet 1s", 2, "unexpected segment"),
        ("connect\n> S 0\n< S. 0 ack 1\n< . 1 ack 1", 4, "unexpected segment"),
        ("connect\n> S 0\nstate Established", 3, "Connecting"),
        ("connect\n> S 0\n< S. 0 ack 1\n> . 1 ack 1\n< P. 1:11 ack 1\n> . 1 ack 11\nread 11", 7, "10"),
        ("connect\n> S 0\nerror refused", 3, "no error"),
        ("connect\n> X 0", 2, "flags"),
        ("connect\nsing", 2, "sing"),
        (without_mss, 2, "mss"),
    ];
    for (text, line, part) in cases {
        let (at, reason) = play(text).expect_err(text);
        assert_eq!(at, line, "{text}: {reason}");
        assert!(reason.contains(part), "{text}: {reason}");
    }
}
