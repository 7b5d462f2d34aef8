//! A real case for each exit code of each command.

use std::{collections::BTreeSet, fs, process::Command};

use super::{command, crafter, lab, on_server, run, served::Served};

/// The exit codes of each command that `docs/errors.md` gives it, without those of signals, which `moments`,
/// `on_terminal` and `lab_run` test.
const CODES: [(&str, &[i32]); 25] = [
    ("build", &[0, 1, 2, 9]),
    ("ls", &[0, 1, 2]),
    // It sends from a port that is in use, too, without a lease.
    ("send", &[0, 1, 2, 3, 4, 9, 10, 11]),
    ("sr", &[0, 1, 2, 3, 4, 5, 8, 9, 10, 11]),
    ("sr1", &[0, 1, 2, 3, 4, 5, 8, 9, 10, 11]),
    ("shell", &[0, 1, 2, 3, 4, 8, 9, 10, 11]),
    ("ping", &[0, 1, 2, 3, 4, 5, 9, 10, 11]),
    ("traceroute", &[0, 1, 2, 3, 4, 5, 9, 10, 11]),
    ("get", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    ("dns", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    ("sniff", &[0, 1, 2, 3, 4, 5, 9]),
    ("show", &[0, 1, 2]),
    ("replay", &[0, 1, 2, 3, 9]),
    ("serve", &[0, 1, 2, 3, 11]),
    ("info", &[0, 1, 2]),
    ("leases", &[0, 1, 2]),
    ("flows", &[0, 1, 2, 3]),
    ("counters", &[0, 1, 2, 3]),
    ("monitor", &[0, 1, 2]),
    ("top", &[0, 1, 2]),
    ("policy", &[0, 1, 2, 4]),
    ("doctor", &[0, 1, 2]),
    ("lab", &[0, 2, 3, 126, 127]),
    ("config", &[0, 1, 2]),
    ("completions", &[0, 1, 2]),
];

/// Cases that other tests have, or that need a terminal or a signal.
const ELSEWHERE: [(&str, i32, &str); 5] = [
    ("serve", 0, "restart of the service, by SIGTERM"),
    ("monitor", 0, "monitor::events_are_printed_live"),
    ("top", 0, "top::leases_flows_and_counters"),
    ("top", 1, "top::top_without_terminal_is_refused"),
    ("lab", 1, "none known"),
];

const SYN: &str = r#"IP(dst="192.0.2.1")/TCP(dport=80, flags="S")"#;
const SILENT: &str = r#"IP(dst="192.0.2.1")/TCP(dport=83, flags="S")"#;
const TAKEN: &str = r#"IP(dst="192.0.2.1")/TCP(sport=7000, dport=80, flags="S")"#;
const LOCAL: &str = r#"IP(dst="127.0.0.1")/TCP(dport=80, flags="S")"#;

/// The cases that were run: command and code.
#[derive(Default)]
struct Table {
    rows: BTreeSet<(String, i32)>,
    wrong: Vec<String>,
}

impl Table {
    fn row(&mut self, command: Command, name: &str, code: i32) {
        let line = format!("{command:?}");
        let done = run(command);
        let messages = done.stderr.lines().filter(|line| line.starts_with("crafter: ")).count();
        let may_be_silent = done.text().contains("\"error\"") || [0, 1, 4, 5, 6].contains(&code);
        // `policy check` prints all errors of a policy.
        let has_message =
            messages > 1 && name == "policy" || messages == 1 || may_be_silent && messages == 0 || code == 0;
        if done.code != code || !has_message || done.stderr.contains("panicked") {
            self.wrong.push(format!("{code} expected: {line}: {done:?}"));
        }
        self.rows.insert((name.to_owned(), code));
    }
}

#[test]
fn each_command_has_its_exit_codes() {
    let mut table = Table::default();
    in_a_lab(&mut table);
    through_the_service(&mut table);
    table.rows.extend(ELSEWHERE.map(|(command, code, _)| (command.to_owned(), code)));
    let missing: Vec<_> = CODES
        .iter()
        .flat_map(|(name, codes)| codes.iter().map(|code| ((*name).to_owned(), *code)))
        .filter(|row| !table.rows.contains(row))
        .collect();
    assert!(missing.is_empty(), "no case: {missing:?}");
    assert!(table.wrong.is_empty(), "{}", table.wrong.join("\n"));
    // All commands of the help are in the table.
    let help = run({
        let mut help = Command::new(env!("CARGO_BIN_EXE_crafter"));
        help.arg("--help");
        help
    });
    let commands = help.text().split("\nOptions:").next().unwrap().lines();
    let commands: BTreeSet<&str> = commands.filter_map(|line| line.strip_prefix("  ")?.split("  ").next()).collect();
    assert_eq!(commands, CODES.iter().map(|(name, _)| *name).collect());
}

fn in_a_lab(table: &mut Table) {
    let lab = lab();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let [capture, policy, wrong, pages] = ["p.pcapng", "policy.toml", "wrong.toml", "pages"].map(path);
    fs::write(&policy, "[[rule]]\nuser = 0\n").unwrap();
    fs::write(&wrong, "[[rule]]\nusers = 0\n").unwrap();
    crafter(&lab, &["build", "-w", &capture, r#"IP(dst="192.0.2.1")/UDP(dport=9)"#]).succeeds();
    for rule in [
        "-p tcp --dport 83 -j DROP",
        "-p udp --dport 83 -j DROP",
        "-p udp --dport 84 -j REJECT --reject-with icmp-admin-prohibited",
        "-p tcp --dport 84 -j REJECT --reject-with icmp-admin-prohibited",
        "-p tcp --dport 53 --tcp-flags PSH PSH -j REJECT --reject-with tcp-reset",
    ] {
        let words: Vec<&str> = ["-A", "INPUT"].into_iter().chain(rule.split(' ')).collect();
        on_server(&lab, "iptables", &words);
    }
    // A router that reports a network as prohibited.
    on_server(&lab, "sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
    on_server(&lab, "ip", &["route", "add", "prohibit", "203.0.113.0/24"]);
    let _taken = lab.client().run(|| {
        (std::net::TcpListener::bind("192.0.2.2:7000").unwrap(), std::net::UdpSocket::bind("192.0.2.2:7000").unwrap())
    });
    let taken = format!("sr1({TAKEN})");
    let local = format!("sr1({LOCAL})");
    let syn = format!("sr1({SYN})");
    let none = "/no/such/file";
    let full: [&[&str]; 4] = [&["ls"], &["config", "show"], &["completions", "bash"], &["build", SYN]];
    for words in full {
        let mut child = command(&lab, words)
            .stdout(fs::File::create("/dev/full").unwrap())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        assert_eq!(super::wait(&mut child), 1, "{words:?}");
        table.rows.insert((words[0].to_owned(), 1));
    }
    let rows: &[(i32, &[&str])] = &[
        (0, &["build", SYN]),
        (0, &["ls"]),
        (0, &["send", r#"IP(dst="192.0.2.1")/UDP(dport=9)"#]),
        (0, &["sr", SYN]),
        (0, &["sr1", SYN]),
        (0, &["shell", "-c", "1"]),
        (0, &["ping", "-c", "1", "192.0.2.1"]),
        (0, &["traceroute", "192.0.2.1"]),
        (0, &["get", "192.0.2.1"]),
        (0, &["dns", "@192.0.2.1", "www.lab.test"]),
        (0, &["sniff", "--timeout", "0.1"]),
        (0, &["show", &capture]),
        (0, &["replay", &capture]),
        (0, &["flows", "--direct"]),
        (0, &["counters", "--direct"]),
        (0, &["policy", "check", &policy]),
        (0, &["doctor"]),
        (0, &["lab", "run", "true"]),
        (0, &["config", "show"]),
        (0, &["completions", "zsh"]),
        (0, &["man", "--out", &pages]),
        (1, &["send", "-w", "/no/such/file", SYN]),
        (1, &["sr", "-w", "/no/such/file", SYN]),
        (1, &["sr1", "-w", "/no/such/file", SYN]),
        (1, &["build", "-w", "/no/such/file", SYN]),
        (1, &["ping", "-w", "/no/such/file", "192.0.2.1"]),
        (1, &["traceroute", "-w", "/no/such/file", "192.0.2.1"]),
        (1, &["sniff", "-w", "/no/such/file"]),
        (1, &["get", "-o", "/no/such/file", "192.0.2.1"]),
        (1, &["dns", "--socket", none, "@192.0.2.1", "lab.test"]),
        (1, &["shell", none]),
        (1, &["show", "/"]),
        (2, &["show", none]),
        (1, &["replay", none]),
        (1, &["serve", "--socket", "/proc/none/socket"]),
        (1, &["info", "--socket", none]),
        (1, &["leases", "--socket", none]),
        (1, &["flows", "--socket", none]),
        (1, &["counters", "--socket", none]),
        (1, &["monitor", "--socket", none]),
        (1, &["policy", "show", "--socket", none]),
        (1, &["policy", "reload", "--socket", none]),
        (1, &["policy", "check", none]),
        (2, &["policy", "check", &wrong]),
        (2, &["sr1", "IP(dst=1"]),
        (2, &["get", "ftp://192.0.2.1"]),
        (2, &["show", "zz"]),
        (2, &["top"]),
        (4, &["ping", "-c", "1", "203.0.113.5"]),
        (4, &["traceroute", "203.0.113.5"]),
        (4, &["get", "192.0.2.1:81"]),
        (4, &["get", "192.0.2.1:84"]),
        (4, &["dns", "@192.0.2.1:84", "lab.test"]),
        (5, &["sr", "--wait", "0.1", SILENT]),
        (5, &["sr1", "--wait", "0.1", SILENT]),
        (5, &["ping", "-c", "1", "--wait", "0.1", "--udp", "83", "192.0.2.1"]),
        (5, &["traceroute", "--wait", "0.1", "--retry", "0", "--udp=83", "192.0.2.1", "-m", "2"]),
        (5, &["get", "--timeout", "0.1", "192.0.2.1:83"]),
        (5, &["dns", "--timeout", "0.1", "--tries", "1", "@192.0.2.1:83", "lab.test"]),
        (5, &["sniff", "--timeout", "0.1", "--count", "1", "udp port 1"]),
        (6, &["get", "192.0.2.1/status/404"]),
        (6, &["dns", "@192.0.2.1", "nothing.lab.test"]),
        (7, &["get", "192.0.2.1/reset"]),
        (7, &["dns", "--tcp", "@192.0.2.1", "lab.test"]),
        (8, &["sr", TAKEN]),
        (8, &["sr1", TAKEN]),
        (8, &["shell", "-c", &taken]),
        (8, &["get", "--source-port", "7000", "192.0.2.1"]),
        (8, &["dns", "--source-port", "7000", "@192.0.2.1", "lab.test"]),
        (9, &["build", r#"IP(dst="no-such-host.invalid")"#]),
        (9, &["send", "-i", "none0", SYN]),
        (9, &["sr", "-i", "none0", SYN]),
        (9, &["sr1", "-i", "none0", SYN]),
        (9, &["shell", "-i", "none0", "-c", &syn]),
        (9, &["ping", "-i", "none0", "192.0.2.1"]),
        (9, &["ping", "no-such-host.invalid"]),
        (9, &["traceroute", "-i", "none0", "192.0.2.1"]),
        (9, &["get", "--iface", "none0", "192.0.2.1"]),
        (9, &["get", "no-such-host.invalid"]),
        (9, &["dns", "-i", "none0", "@192.0.2.1", "lab.test"]),
        (9, &["sniff", "-i", "none0"]),
        (9, &["replay", "-i", "none0", &capture]),
        (126, &["lab", "run", &policy]),
        (127, &["lab", "run", none]),
    ];
    for (code, words) in rows {
        table.row(command(&lab, words), words[0], *code);
    }
    // The driver of lo has no native mode.
    let attaching: [&[&str]; 8] = [
        &["send", LOCAL],
        &["sr", LOCAL],
        &["sr1", LOCAL],
        &["shell", "-c", &local],
        &["ping", "-c", "1", "127.0.0.1"],
        &["traceroute", "127.0.0.1"],
        &["get", "127.0.0.1"],
        &["dns", "@127.0.0.1", "lab.test"],
    ];
    for words in attaching {
        table.row(command(&lab, &[words, &["--attach", "native"]].concat()), words[0], 10);
        // The kernel says that it is version 2.6.
        let mut old = lab.command("setarch");
        old.args(["--uname-2.6", env!("CARGO_BIN_EXE_crafter")]).args(words);
        table.row(old, words[0], 11);
        table.row(without(&lab, "-net_raw,-net_admin,-bpf,-sys_admin", words), words[0], 3);
    }
    let mut old = lab.command("setarch");
    old.args(["--uname-2.6", env!("CARGO_BIN_EXE_crafter"), "serve", "--socket", &path("socket")]);
    table.row(old, "serve", 11);
    let socket = path("socket");
    for words in [
        &["sniff"][..],
        &["replay", &capture],
        &["serve", "--socket", &socket],
        &["lab", "run", "true"],
        &["flows", "--direct"],
        &["counters", "--direct"],
    ] {
        table.row(without(&lab, "-net_raw,-net_admin,-bpf,-sys_admin,-perfmon", words), words[0], 3);
    }
    table.row(without(&lab, "-net_raw,-net_admin,-bpf,-sys_admin,-perfmon", &["doctor"]), "doctor", 1);
    for (name, _) in CODES {
        table.row(command(&lab, &[name, "--no-such-option"]), name, 2);
    }
}

fn without(lab: &crafter::lab::Lab, capabilities: &str, words: &[&str]) -> Command {
    let mut command = lab.command("setpriv");
    command.arg(format!("--bounding-set={capabilities}")).arg(env!("CARGO_BIN_EXE_crafter")).args(words);
    command
}

/// The user nobody may send TCP from ports 50000 to 50099, and may not observe.
fn through_the_service(table: &mut Table) {
    let served = Served::new();
    for words in [&["info"][..], &["leases"], &["flows"], &["counters"], &["policy", "show"], &["policy", "reload"]] {
        table.row(served.command(words), words[0], 0);
    }
    let udp = r#"IP(dst="192.0.2.1")/UDP(dport=9)"#;
    let script = format!("send({udp})");
    for words in [
        &["send", udp][..],
        &["sr", udp],
        &["sr1", udp],
        &["shell", "-c", &script],
        &["ping", "-c", "1", "192.0.2.1"],
        &["traceroute", "192.0.2.1"],
        &["get", "--source-port", "40000", "192.0.2.1"],
        &["dns", "@192.0.2.1", "lab.test"],
        &["sniff", "-i", "lab0"],
        &["policy", "reload"],
    ] {
        table.row(served.command_as_nobody(words), words[0], 4);
    }
}
