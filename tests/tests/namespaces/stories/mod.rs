//! Stories of a connection, told by scripts in `scripts/`: what the program does, what crafter's engine sends, and what
//! comes from the peer, on a virtual clock. In the manner of packetdrill, with tcpdump's words for segments.
//!
//! A line is an event; `#` begins a comment. Sequence numbers count from each side's first (its SYN is 0, its first byte
//! 1); the peer's real ones pass 2^32 a hundred bytes behind its SYN. The bytes of a stream are a pattern by their
//! numbers, so that what is sent again and what overlaps can be compared. Timestamps count in milliseconds from each side's
//! first; the peer's real ones pass 2^32 half a second behind its SYN.
//!
//! | line | meaning |
//! |---|---|
//! | `connect [mtu N] [rx N] [acks-after TIME] [time-out TIME] [give-up TIME] [time-wait TIME] [nagle] [timestamps]` | the program opens the connection; the first line |
//! | `> FLAGS FROM[:TO] [ack N] [win N] [mss N] [wscale N] [sackOK] [sack A:B] [ts VALUE ECHO]` | crafter sends this, and at once; what is not named may be anything, P too |
//! | `< FLAGS FROM[:TO] [...]` | this comes from the peer |
//! | `+TIME LINE` | so much later: `<`, or what the program does; of `>`, the moment when crafter sends, by a twentieth more or less |
//! | `quiet TIME` | crafter sends nothing so long |
//! | `write N`, `read N`, `eof`, `close`, `abort` | the program writes so many bytes, reads so many that it checks, reads the end, closes, aborts |
//! | `state NAME`, `error WORDS`, `finished` | what the program sees |
//!
//! What crafter sends and the story does not have is an error, and so is anything left to be sent at its end.

mod player;
mod script;

use std::{fs, path::PathBuf};

use crafter_tests::leak::Parallel;

use player::Player;

#[test]
fn every_story_comes_true() {
    let _parallel = Parallel::begin();
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/namespaces/stories/scripts");
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

/// Plays a script over IPv4 and over IPv6; the number of its lines, or the line where it does not come true, and why.
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

/// A player that takes everything for true would be of no use.
#[test]
fn what_does_not_come_true_is_told() {
    let _parallel = Parallel::begin();
    let begins = "connect\n> S 0 mss\n";
    let cases = [
        ("connect\n> S 5", 2, "instead"),
        ("connect\n+1s > S 0", 2, "too early"),
        ("connect\n> S 0\n> S 0", 3, "nothing"),
        ("connect\nquiet 1s", 2, "does not have"),
        ("connect\n> S 0\n< S. 0 ack 1\n< . 1 ack 1", 4, "does not have"),
        ("connect\n> S 0\nstate Established", 3, "Connecting"),
        ("connect\n> S 0\n< S. 0 ack 1\n> . 1 ack 1\n< P. 1:11 ack 1\n> . 1 ack 11\nread 11", 7, "10"),
        ("connect\n> S 0\nerror refused", 3, "no error"),
        ("connect\n> X 0", 2, "flags"),
        ("connect\nsing", 2, "sing"),
        (begins, 2, "mss"),
    ];
    for (text, line, part) in cases {
        let (at, reason) = play(text).expect_err(text);
        assert_eq!(at, line, "{text}: {reason}");
        assert!(reason.contains(part), "{text}: {reason}");
    }
}
