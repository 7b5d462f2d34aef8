//! The audit log with a journal of the test, which reads datagrams like journald.

use std::{
    collections::HashMap,
    io::{PipeReader, Read, pipe},
    os::unix::net::{UnixDatagram, UnixStream},
    time::Duration,
};

use nix::sys::{
    resource::{UsageWho, getrusage},
    socket::{setsockopt, sockopt},
};
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
        cause: Cause::Policy(Decision { rule: Some(2), verdict: Verdict::Denied }),
    }
}

fn lease(user: u32) -> Record<'static> {
    Record::Lease { who: Who { user, ..WHO }, resource: leased(), rule: None }
}

fn end(user: u32) -> Record<'static> {
    let counts = Counts { sent: 3, refused: 1, delivered: 2, lost: 0 };
    Record::End { who: Who { user, ..WHO }, resource: leased(), reason: "closed", counts }
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
    audit.flush_counts(start + Duration::from_secs(4));
    audit.flush_counts(start + Duration::from_secs(4));
    let entries = journal.read();
    assert_eq!((entries.len(), count(&entries)), (1, 96));
    assert_eq!(entries[0]["MESSAGE"], "user 1000: 96 further refusals in the last 3 s");
    // Also when the service stops.
    let mut entries = flood(&audit, &journal, 100, start + Duration::from_secs(4));
    audit.record(&Record::Stop { reason: "idle" }, start + Duration::from_secs(4));
    entries.extend(journal.read());
    assert_eq!(entries.pop().unwrap()["CRAFTER_EVENT"], "stop");
    assert_eq!(count(&entries), 100);
}

fn sum(entries: &[Entry], event: &str, field: &str) -> u64 {
    let fields = entries.iter().filter(|entry| entry["CRAFTER_EVENT"] == event).map(|entry| &entry[field]);
    fields.map(|value| value.parse::<u64>().unwrap()).sum()
}

/// The leases and ends that the entries are about, one by one or in summaries.
fn leases_and_ends(entries: &[Entry]) -> (u64, u64) {
    let records = |event: &str| entries.iter().filter(|entry| entry["CRAFTER_EVENT"] == event).count() as u64;
    let summed = |field| sum(entries, "summary", field);
    (records("lease") + summed("CRAFTER_LEASES"), records("end") + summed("CRAFTER_ENDS"))
}

#[test]
fn leases_and_ends_above_the_rate_are_summarised_with_exact_counts() {
    let journal = Journal::new();
    let (audit, _) = journal.log();
    let start = Instant::now();
    let mut entries = Vec::new();
    // 10,000 leases in a second, the last of which does not end.
    for step in 0..10_000_u32 {
        let now = start + Duration::from_micros(100) * step;
        audit.record(&lease(1000), now);
        if step < 9_999 {
            audit.record(&end(1000), now);
        }
        entries.extend(journal.read());
    }
    assert!((200..=220).contains(&entries.len()), "a burst, and the rate: {}", entries.len());
    // Events of another user are still recorded.
    let second = start + Duration::from_secs(1);
    audit.record(&lease(1001), second);
    audit.record(&end(1001), second);
    assert_eq!(journal.read().len(), 2);
    audit.flush_counts(second);
    let summary = journal.read();
    assert_eq!(summary.len(), 1);
    let [leases, ends] = ["CRAFTER_LEASES", "CRAFTER_ENDS"].map(|field| summary[0][field].as_str());
    let message = format!("user 1000: {leases} further leases, {ends} ends in the last 1 s; sent ");
    assert!(summary[0]["MESSAGE"].starts_with(&message), "{:?}", summary[0]);
    entries.extend(summary);
    assert_eq!(leases_and_ends(&entries), (10_000, 9_999));
    // The packets of the leases that ended are exact, too.
    let sent = sum(&entries, "end", "CRAFTER_SENT") + sum(&entries, "summary", "CRAFTER_SENT");
    assert_eq!(sent, 3 * 9_999);
    // Nothing is counted twice, and the rest is in the last summary.
    audit.flush_counts(second);
    assert!(journal.read().is_empty());
    (0..1000).for_each(|_| audit.record(&end(1000), second));
    let mut entries = journal.read();
    audit.record(&Record::Stop { reason: "SIGTERM" }, second);
    entries.extend(journal.read());
    assert_eq!(entries.pop().unwrap()["CRAFTER_EVENT"], "stop");
    assert_eq!(leases_and_ends(&entries), (0, 1000));
}

#[test]
fn counts_that_the_journal_does_not_accept_are_written_later() {
    let journal = Journal::new();
    let (audit, _) = journal.log();
    let now = Instant::now();
    // Nobody reads meanwhile.
    for user in 0..20 {
        for _ in 0..100 {
            audit.record(&refusal(user), now);
            audit.record(&lease(user), now);
            audit.record(&end(user), now);
        }
        audit.flush_counts(now);
    }
    assert!(audit.lost() > 0);
    let mut entries = journal.read();
    for _ in 0..20 {
        audit.flush_counts(now);
        entries.extend(journal.read());
    }
    assert_eq!(leases_and_ends(&entries), (2000, 2000));
    assert_eq!(sum(&entries, "refusal", "CRAFTER_COUNT"), 2000);
}

#[test]
fn many_ids_of_one_person_do_not_fill_the_log() {
    let journal = Journal::new();
    let (audit, _) = journal.log();
    let now = Instant::now();
    let mut entries = Vec::new();
    for user in 100_000..165_536 {
        audit.record(&lease(user), now);
        audit.record(&refusal(user), now);
        audit.record(&end(user), now);
        entries.extend(journal.read());
    }
    assert_eq!(entries.len(), 2500, "the burst of all users");
    assert!(audit.state().users.len() <= MOST_USERS);
    while audit.state().users.values().any(|user| !user.counted.is_empty()) || !audit.state().others.is_empty() {
        let before = entries.len();
        audit.flush_counts(now);
        entries.extend(journal.read());
        assert!(entries.len() - before <= 2 * (SUMMARIES + 1), "{}", entries.len() - before);
    }
    assert_eq!(leases_and_ends(&entries), (65_536, 65_536));
    assert_eq!(sum(&entries, "refusal", "CRAFTER_COUNT"), 65_536);
}

#[test]
fn idle_users_are_removed() {
    let journal = Journal::new();
    let (audit, _) = journal.log();
    let start = Instant::now();
    for user in 0..10_000 {
        // Twenty seconds per thousand users.
        audit.record(&refusal(user), start + Duration::from_millis(20) * user);
        journal.read();
    }
    assert!(audit.state().users.len() <= USERS);
    audit.flush_counts(start + Duration::from_secs(300));
    assert!(audit.state().users.is_empty());
}

/// Runs `work` on another thread, and asserts that it waits for nothing, whatever the load of the machine: a call that
/// waits is a voluntary context switch, and one that waits for a reader never returns.
fn assert_does_not_block<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let waits = || getrusage(UsageWho::RUSAGE_THREAD).unwrap().voluntary_context_switches();
        let before = waits();
        let result = work();
        sender.send((result, waits() - before)).unwrap();
    });
    let (result, waits) = ended.recv_timeout(Duration::from_secs(300)).expect("it returns");
    // Locks of the allocator and page faults may wait, too.
    assert!(waits < 100, "it waited {waits} times");
    result
}

#[test]
#[should_panic(expected = "it waited")]
fn short_waits_are_noticed() {
    assert_does_not_block(|| (0..200).for_each(|_| std::thread::sleep(Duration::from_micros(10))));
}

#[test]
fn full_journal_does_not_block() {
    let journal = Journal::new();
    let (audit, _) = journal.log();
    let now = Instant::now();
    // Linux queues net.unix.max_dgram_qlen datagrams, and as many bytes as the sender's buffer allows.
    let audit = assert_does_not_block(move || {
        for _ in 0..10_000 {
            audit.record(&Record::Reload { rules: 3, warnings: 1, ended: 0 }, now);
        }
        audit
    });
    let lost = audit.lost();
    assert!((1..10_000).contains(&lost), "{lost}");
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
    /// Returns how many records were written. Drops the log, and with it the writing end.
    fn flood(audit: Audit) -> u64 {
        assert_does_not_block(move || {
            let now = Instant::now();
            let reason = "\u{1b}\n".repeat(5000);
            for _ in 0..10_000 {
                audit.record(&Record::ReloadFailed { reason: &reason }, now);
            }
            let lost = audit.lost();
            assert!((1..10_000).contains(&lost), "{lost}");
            10_000 - lost
        })
    }
    let (mut reader, writer) = pipe().unwrap();
    let written = flood(Audit::at("/nowhere", writer.into()).unwrap());
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count() as u64, written);
    assert!(text.lines().all(|line| line.len() == 4095), "cut to what a pipe accepts in one write");
    // A stream socket, such as journald passes to services as stderr.
    let (ours, _theirs) = UnixStream::pair().unwrap();
    setsockopt(&ours, sockopt::SndBuf, &20_000).unwrap();
    flood(Audit::at("/nowhere", ours.into()).unwrap());
}
