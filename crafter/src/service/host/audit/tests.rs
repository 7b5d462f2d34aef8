//! The audit log with a journal of the test, which reads datagrams like journald.

use std::{
    collections::HashMap,
    io::{PipeReader, Read, pipe},
    os::unix::net::{UnixDatagram, UnixStream},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use tempfile::TempDir;

use super::*;
use crate::policy::{Decision, Verdict};

type Entry = HashMap<String, String>;

struct Journal {
    directory: TempDir,
    socket: Option<UnixDatagram>,
}

impl Journal {
    fn new() -> Self {
        let mut journal = Self { directory: tempfile::tempdir().unwrap(), socket: None };
        journal.start();
        journal
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn start(&mut self) {
        let socket = UnixDatagram::bind(self.path()).unwrap();
        socket.set_nonblocking(true).unwrap();
        self.socket = Some(socket);
    }

    fn stop(&mut self) {
        self.socket = None;
        std::fs::remove_file(self.path()).unwrap();
    }

    /// The entries that have arrived.
    fn read(&self) -> Vec<Entry> {
        let mut buffer = [0; 8192];
        std::iter::from_fn(|| self.socket.as_ref()?.recv(&mut buffer).ok().map(|length| entry(&buffer[..length])))
            .collect()
    }

    /// A log that writes to this journal, and the pipe that it uses without one.
    fn log(&self) -> (Audit, PipeReader) {
        let (reader, writer) = pipe().unwrap();
        (Audit::at(self.path(), writer.into()).unwrap(), reader)
    }
}

/// Parses the journal's native protocol.
fn entry(mut bytes: &[u8]) -> Entry {
    let mut entry = Entry::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        let (line, rest) = (std::str::from_utf8(&bytes[..end]).unwrap(), &bytes[end + 1..]);
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => {
                bytes = rest;
                (name, value)
            }
            None => {
                let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
                assert_eq!(rest[8 + length], b'\n');
                bytes = &rest[8 + length + 1..];
                (line, std::str::from_utf8(&rest[8..8 + length]).unwrap())
            }
        };
        assert!(name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'), "{name}");
        assert!(entry.insert(name.to_owned(), value.to_owned()).is_none(), "{name} twice");
    }
    entry
}

const WHO: Who = Who { user: 1000, pid: Some(77), lease: Some(5) };

fn leased() -> Resource<'static> {
    Resource {
        interface: Some("eth0"),
        protocol: Some("tcp"),
        address: Some("192.0.2.1".parse().unwrap()),
        ports: Some(40_000..=40_003),
        ..Resource::default()
    }
}

fn refusal(user: u32) -> Record<'static> {
    Record::Refusal {
        who: Who { user, ..WHO },
        kind: RequestKind::Packet,
        resource: Resource {
            destination: Some("2001:db8::25".parse().unwrap()),
            destination_port: Some(25),
            protocol: Some("tcp"),
            ..Resource::default()
        },
        decision: Decision { rule: Some(2), verdict: Verdict::Denied },
    }
}

fn expect(entry: &Entry, fields: &[(&str, &str)]) {
    let mut expected: Entry = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    expected.insert("SYSLOG_IDENTIFIER".to_owned(), "crafter".to_owned());
    assert_eq!(entry, &expected);
}

#[test]
fn records_have_their_fields() {
    let journal = Journal::new();
    let (audit, _) = journal.log();
    let now = Instant::now();
    audit.record(&Record::Start { version: "0.1.0", rules: 2 }, now);
    audit.record(&Record::Lease { who: WHO, resource: leased(), rule: Some(2) }, now);
    audit.record(&refusal(1000), now);
    let counts = Counts { sent: 3, refused: 1, delivered: 2, lost: 0 };
    audit.record(&Record::End { who: WHO, resource: leased(), reason: "closed", counts }, now);
    audit.record(&Record::Reload { rules: 3, warnings: 1, ended: 0 }, now);
    audit.record(&Record::ReloadFailed { reason: "line 1: no\nline 2: neither" }, now);
    audit.record(&Record::Stop { reason: "SIGTERM" }, now);
    let entries = journal.read();
    let leased = [
        ("CRAFTER_USER", "1000"),
        ("CRAFTER_PID", "77"),
        ("CRAFTER_LEASE", "5"),
        ("CRAFTER_INTERFACE", "eth0"),
        ("CRAFTER_PROTOCOL", "tcp"),
        ("CRAFTER_ADDRESS", "192.0.2.1"),
        ("CRAFTER_PORTS", "40000-40003"),
    ];
    expect(
        &entries[0],
        &[
            ("MESSAGE", "crafter 0.1.0 serves, with 2 rules"),
            ("PRIORITY", "6"),
            ("CRAFTER_EVENT", "start"),
            ("CRAFTER_VERSION", "0.1.0"),
            ("CRAFTER_RULES", "2"),
        ],
    );
    let message = "user 1000 (pid 77), lease 5, has tcp ports 40000-40003 of 192.0.2.1 on eth0, by rule 2";
    let head = [("MESSAGE", message), ("PRIORITY", "6"), ("CRAFTER_EVENT", "lease"), ("CRAFTER_RULE", "2")];
    expect(&entries[1], &[&head[..], &leased[..]].concat());
    expect(
        &entries[2],
        &[
            (
                "MESSAGE",
                "user 1000 (pid 77), lease 5, is refused a packet of tcp to 2001:db8::25 port 25: \
                 rule 2: it denies the destination",
            ),
            ("PRIORITY", "5"),
            ("CRAFTER_EVENT", "refusal"),
            ("CRAFTER_USER", "1000"),
            ("CRAFTER_PID", "77"),
            ("CRAFTER_LEASE", "5"),
            ("CRAFTER_PROTOCOL", "tcp"),
            ("CRAFTER_DESTINATION", "2001:db8::25"),
            ("CRAFTER_DESTINATION_PORT", "25"),
            ("CRAFTER_OF", "packet"),
            ("CRAFTER_RULE", "2"),
            ("CRAFTER_VERDICT", "denied"),
            ("CRAFTER_COUNT", "1"),
        ],
    );
    let message = "lease ended: user 1000 (pid 77), lease 5, tcp ports 40000-40003 of 192.0.2.1 on eth0: closed; \
                   sent 3, refused 1, delivered 2, lost 0";
    let end = [
        ("MESSAGE", message),
        ("PRIORITY", "6"),
        ("CRAFTER_EVENT", "end"),
        ("CRAFTER_REASON", "closed"),
        ("CRAFTER_SENT", "3"),
        ("CRAFTER_REFUSED", "1"),
        ("CRAFTER_DELIVERED", "2"),
        ("CRAFTER_LOST", "0"),
    ];
    expect(&entries[3], &[&end[..], &leased[..]].concat());
    assert_eq!(entries[4]["MESSAGE"], "reloaded the policy: 3 rules, 1 warning, 0 leases ended");
    assert_eq!(entries[5]["CRAFTER_REASON"], "line 1: no\nline 2: neither");
    assert_eq!((entries[5]["PRIORITY"].as_str(), entries[5]["CRAFTER_EVENT"].as_str()), ("4", "reload"));
    assert_eq!(entries[6]["MESSAGE"], "crafter stops: SIGTERM");
    assert_eq!(entries.len(), 7);
}

/// Makes `count` refusals at once, and returns their records. The socket's queue is short, so each record is read at
/// once.
fn flood(audit: &Audit, journal: &Journal, count: usize, now: Instant) -> Vec<Entry> {
    let read = |_| {
        audit.record(&refusal(1000), now);
        journal.read()
    };
    (0..count).flat_map(read).collect()
}

fn count(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| entry["CRAFTER_COUNT"].parse::<u64>().unwrap()).sum()
}

#[test]
fn refusals_above_the_rate_are_counted() {
    let journal = Journal::new();
    let (audit, _) = journal.log();
    let start = Instant::now();
    let entries = flood(&audit, &journal, 1000, start);
    assert_eq!((entries.len(), count(&entries)), (20, 20), "a burst");
    // Records of other users and of leases are not affected.
    audit.record(&refusal(1001), start);
    audit.record(&Record::Lease { who: WHO, resource: leased(), rule: None }, start);
    assert_eq!(journal.read().len(), 2);
    // The next record contains the count of those in between.
    audit.record(&refusal(1000), start + Duration::from_secs(1));
    let entries = journal.read();
    assert_eq!((entries.len(), count(&entries)), (1, 981));
    assert!(entries[0]["MESSAGE"].ends_with(" (and 980 more before it)"), "{:?}", entries[0]);
    // Without a further refusal, the count is recorded once.
    let entries = flood(&audit, &journal, 100, start + Duration::from_secs(1));
    assert_eq!((entries.len(), count(&entries)), (4, 4), "the rest of a second's five");
    audit.flush_counts(start + Duration::from_secs(1));
    assert!(journal.read().is_empty(), "flushing does not exceed the rate");
    audit.flush_counts(start + Duration::from_secs(2));
    audit.flush_counts(start + Duration::from_secs(3));
    let entries = journal.read();
    assert_eq!((entries.len(), count(&entries)), (1, 96));
    assert_eq!(entries[0]["MESSAGE"], "user 1000: 96 more refusals, not recorded one by one because of the rate limit");
    // Also when the service stops, whatever the rate.
    let mut entries = flood(&audit, &journal, 100, start + Duration::from_secs(3));
    audit.record(&Record::Stop { reason: "idle" }, start + Duration::from_secs(3));
    entries.extend(journal.read());
    assert_eq!(entries.pop().unwrap()["CRAFTER_EVENT"], "stop");
    assert_eq!(count(&entries), 100);
}

#[test]
fn idle_users_are_removed() {
    let journal = Journal::new();
    let (audit, _) = journal.log();
    let start = Instant::now();
    for user in 0..10_000 {
        // Ten seconds per thousand users.
        audit.record(&refusal(user), start + Duration::from_millis(10) * user);
        if user % 100 == 0 {
            journal.read();
        }
    }
    assert!(audit.state().users.len() <= USERS);
    audit.flush_counts(start + Duration::from_secs(200));
    assert!(audit.state().users.is_empty());
}

#[test]
fn full_journal_does_not_block() {
    let journal = Journal::new();
    let (audit, _) = journal.log();
    let now = Instant::now();
    // Linux queues net.unix.max_dgram_qlen datagrams, and as many bytes as the sender's buffer allows.
    for _ in 0..10_000 {
        audit.record(&Record::Lease { who: WHO, resource: leased(), rule: None }, now);
    }
    let lost = audit.lost();
    assert!((1..10_000).contains(&lost), "{lost}");
    assert!(now.elapsed() < Duration::from_secs(5));
    assert_eq!(journal.read().len() as u64, 10_000 - lost);
    audit.record(&Record::Stop { reason: "idle" }, now);
    audit.record(&Record::Stop { reason: "idle" }, now);
    let entries = journal.read();
    assert_eq!(entries[0]["CRAFTER_UNWRITTEN"], lost.to_string());
    assert!(!entries[1].contains_key("CRAFTER_UNWRITTEN"), "counted once");
    assert_eq!(audit.lost(), lost);
}

#[test]
fn lines_are_written_without_a_journal() {
    let mut journal = Journal::new();
    let (audit, mut lines) = journal.log();
    let now = Instant::now();
    journal.stop();
    audit.record(&refusal(1000), now);
    audit.record(&Record::ReloadFailed { reason: "a \"b\"\nc" }, now);
    journal.start();
    audit.record(&Record::Stop { reason: "idle" }, now);
    assert_eq!(journal.read().len(), 1, "a restarted journal");
    drop(audit);
    let mut text = String::new();
    lines.read_to_string(&mut text).unwrap();
    let expected = "\
        crafter: event=refusal user=1000 pid=77 lease=5 protocol=tcp destination=2001:db8::25 destination_port=25 \
        of=packet rule=2 verdict=denied count=1 message=\"user 1000 (pid 77), lease 5, is refused a packet of tcp to \
        2001:db8::25 port 25: rule 2: it denies the destination\"\n\
        crafter: event=reload reason=\"a \\\"b\\\"\\nc\" message=\"cannot reload the policy, the previous one \
        remains in force: a \\\"b\\\"\\nc\"\n";
    assert_eq!(text, expected);
}

#[test]
fn full_stderr_does_not_block() {
    let now = Instant::now();
    let flood = |audit: &Audit| {
        for _ in 0..10_000 {
            audit.record(&Record::ReloadFailed { reason: &"\u{1b}\n".repeat(5000) }, now);
        }
        let lost = audit.lost();
        assert!((1..10_000).contains(&lost), "{lost}");
        10_000 - lost
    };
    let (mut reader, writer) = pipe().unwrap();
    let audit = Audit::at("/nowhere", writer.into()).unwrap();
    let taken = flood(&audit);
    drop(audit);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count() as u64, taken);
    assert!(text.lines().all(|line| line.len() == 4095), "cut to what a pipe accepts in one write");
    // As journald gives services for stderr.
    let (ours, _theirs) = UnixStream::pair().unwrap();
    setsockopt(&ours, sockopt::SndBuf, &20_000).unwrap();
    flood(&Audit::at("/nowhere", ours.into()).unwrap());
    assert!(now.elapsed() < Duration::from_secs(5));
}
