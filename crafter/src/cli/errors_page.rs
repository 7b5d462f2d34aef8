//! Test: `crafter/docs/errors.md` lists every error and exit code, with the message that the error prints.

use std::{fmt::Debug, fs, io, net::IpAddr, path::Path, time::Duration};

use clap::Parser as _;
use crafter::{
    Error, engine,
    expr::PacketSet,
    packet,
    policy::Policy,
    session::{Session, SessionOptions},
    shell::Shell,
};

use super::{
    Cli, exit, get, print,
    shell::Outside,
    signals::{Interruption, Phase},
};

/// A row of a table: kind of error, exit code, message.
type Row = (String, u8, String);

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md")).unwrap()
}

/// Compares the table below a heading with `rows`. The message of a failure shows the lines that the page lacks.
fn compare(heading: &str, rows: Vec<Row>) {
    let page = page();
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    let section = section.split("\n## ").next().unwrap();
    let listed: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let rows: Vec<String> = rows
        .into_iter()
        .map(|(kind, code, message)| format!("| `{kind}` | {code} | {} |", message.replace('|', "\\|")))
        .collect();
    assert_eq!(listed, rows, "left: errors.md; right: the source, for errors.md:\n{}\n", rows.join("\n"));
}

/// The variants of `enum Error` in the source of an error type, in order.
fn variants(source: &str) -> Vec<&str> {
    let (_, body) = source.split_once("\npub enum Error {\n").unwrap();
    let body = body.split("\n}\n").next().unwrap();
    let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
    let names = lines.filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()));
    names.map(|line| line.split([' ', ',', '(']).next().unwrap()).collect()
}

/// The rows of an error type, of which `examples` has one for each variant of `source`.
fn rows<E: Debug + ToString>(source: &str, examples: Vec<E>, code: impl Fn(E) -> u8) -> Vec<Row> {
    let row = |example: E| {
        let (debug, message) = (format!("{example:?}"), example.to_string());
        (debug.split(' ').next().unwrap().to_owned(), code(example), message)
    };
    let rows: Vec<Row> = examples.into_iter().map(row).collect();
    let names: Vec<&str> = rows.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, variants(source), "left: examples of this test; right: variants in the source");
    rows
}

fn not_found() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

fn remote() -> std::net::SocketAddr {
    "192.0.2.1:80".parse().unwrap()
}

fn address() -> IpAddr {
    remote().ip()
}

#[test]
fn page_lists_every_error_of_the_library() {
    let seconds = Duration::from_secs;
    let examples = vec![
        Error::UnknownInterface { name: "eth7".into() },
        Error::UnknownHost { name: "web.example.org".into(), reason: "Name or service not known".into() },
        Error::NoRoute { destination: address(), reason: "the routing table has no entry for it (`ip route`)".into() },
        Error::NoNeighbour { address: address(), interface: "eth0".into(), after: seconds(3) },
        Error::Permission { capability: "CAP_NET_RAW", action: "open a packet socket".into() },
        Error::PortTaken {
            protocol: "TCP",
            address: "192.0.2.2".parse().unwrap(),
            port: 8080,
            holder: Some("nginx (pid 123)".into()),
        },
        Error::NoFreePorts {
            protocol: "UDP",
            address: "192.0.2.2".parse().unwrap(),
            count: 1024,
            reason: "17 of 2048 ports tried are in use".into(),
        },
        Error::Attach {
            interface: "eth0".into(),
            mode: "native",
            reason: "the XDP hook of eth0 is taken by xdp-filter, pid 812".into(),
        },
        Error::KernelTooOld {
            release: "5.15.0-91-generic".into(),
            missing: "bpf_xdp_load_bytes, which Linux has since 5.18".into(),
        },
        Error::Refused { remote: remote() },
        Error::Reset { remote: remote() },
        Error::TimedOut { remote: remote(), after: seconds(5), waiting_for: "SYN-ACK" },
        Error::Unreachable {
            remote: remote(),
            from: "203.0.113.7".parse().unwrap(),
            reason: "communication prohibited".into(),
        },
        Error::invalid("--loss", "the sum with --duplicate and --reorder exceeds 100%; lower one of them"),
        Error::Text {
            place: "config.toml, line 2".into(),
            reason: "there is no option 'timeuot'; did you mean timeout?".into(),
            excerpt: Box::new(packet::Excerpt::new("[sr]\ntimeuot = 1\n", 5)),
        },
        Policy::parse("[[rule]]\neverybody = true\nusers = 1\n").map(drop).map_err(Error::from).unwrap_err(),
        Error::Forbidden {
            rule: Some(2),
            verdict: "port".into(),
            message: "rule 2 allows no TCP to port 25; ask the administrator".into(),
        },
        Error::NoService {
            path: "/run/crafter/crafter.sock".into(),
            reason: not_found().to_string(),
            hint: "start it with `systemctl start crafter.socket` or `crafter serve`",
        },
        Error::Service {
            path: "/run/crafter/crafter.sock".into(),
            reason: "no reply to org.crafter.v1.Lease within 15s".into(),
        },
        Error::Io { action: "read packets.pcapng".into(), source: not_found() },
        Error::Bpf { action: "load crafter_xdp".into(), reason: "the BPF_PROG_LOAD syscall failed".into() },
    ];
    compare("Errors of the library", rows(include_str!("../error.rs"), examples, |error| exit::code(&error)));
}

#[test]
fn page_lists_every_error_of_packets() {
    let examples = vec![
        PacketSet::parse("IP(ttl=(1,64))").unwrap().packets(10).map(drop).unwrap_err(),
        PacketSet::parse("IP()/TCP(dport=70000)").unwrap_err(),
        packet::Error::Io { action: "create /no/such/file.pcapng".into(), source: not_found() },
    ];
    let code = |error: packet::Error| exit::code_of(&anyhow::Error::new(error));
    compare("Errors of packets and captures", rows(include_str!("../../packet/src/error.rs"), examples, code));
}

#[test]
fn page_lists_every_error_of_the_engine() {
    let examples = vec![
        engine::Pacer::per_second(0.0).map(drop).unwrap_err(),
        engine::Error::Refused { remote: remote() },
        engine::Error::Reset { remote: remote() },
        engine::Error::TimedOut { remote: remote(), after: Duration::from_secs(60), waiting_for: "acknowledgment" },
        engine::Error::Unreachable { remote: remote(), from: address(), reason: "port unreachable".into() },
        engine::Error::Forbidden { rule: Some(2), message: "rule 2 allows no TCP to port 25".into() },
        engine::Error::Io { action: "connect".into(), source: io::ErrorKind::ConnectionAborted.into() },
    ];
    let code = |error| exit::code(&Error::from(error));
    compare("Errors of the engine", rows(include_str!("../../engine/src/error.rs"), examples, code));
}

#[tokio::test(flavor = "current_thread")]
async fn page_lists_errors_of_the_command_line() {
    let usage = Cli::try_parse_from(["crafter", "sr1", "--timeout", "0", "ARP()"]).unwrap_err().to_string();
    let usage = usage.lines().next().unwrap().strip_prefix("error: ").unwrap().to_owned();
    let unreadable = anyhow::Error::new(not_found()).context("cannot read hosts.crafter");
    let mut shell = Shell::new(Outside::new(Session::new(SessionOptions::default()), None));
    let failure = shell.run("x = IP()\ny = IP(tll=1)", |_| {}).await.unwrap_err();
    let status = hyper::StatusCode::NOT_FOUND;
    let limit = Interruption::TimedOut { limit: Duration::from_secs(1), phase: Phase::LookUp };
    let rows = vec![
        ("usage".into(), exit::USAGE, usage),
        ("file".into(), exit::code_of(&unreadable), print::sentence(&unreadable)),
        ("statement".into(), super::shell::code(&failure), format!("hosts.crafter, {failure}")),
        ("time limit".into(), limit.code(), limit.to_string()),
        ("http".into(), exit::SERVER_ERROR, get::http_error("web.example.org/page", status)),
    ];
    compare("Errors of the command line", rows);
}

#[test]
fn page_lists_every_exit_code() {
    let (mut rows, mut meaning) = (Vec::new(), String::new());
    for line in include_str!("exit.rs").lines() {
        if let Some(text) = line.strip_prefix("/// ") {
            meaning = text.to_owned();
        } else if let Some(constant) = line.strip_prefix("pub const ")
            && let Some((name, code)) = constant.split_once(": u8 = ")
        {
            rows.push((name.to_owned(), code.trim_end_matches(';').parse().unwrap(), meaning.clone()));
        }
    }
    compare("Exit codes", rows);
}
