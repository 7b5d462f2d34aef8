//! `crafter shell`

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    ops::{Deref, DerefMut},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crafter_tests::exit;
use nix::{
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, tcgetattr},
    },
    unistd::Pid,
};

use super::{command, crafter, lab, run, schema::valid, terminal::Terminal, wait};

/// The tutorial's steps: query, answer, SYN, SYN-ACK shown, ACK, GET. The sequence number wraps after the SYN.
const HANDSHAKE: &str = r#"
server = IP(dst="192.0.2.1")
query = server/UDP(sport=5353, dport=53)/DNS(rd=1, qd=DNSQR(qname="www.lab.test"))
answer = sr1(query)
answer[DNS].id == query[DNS].id
synack = sr1(server/TCP(sport=50000, dport=80, flags="S", seq=4294967295))
show(synack)
ours, theirs = synack.ack, synack.seq + 1   # where both go on
send(server/TCP(sport=50000, dport=80, flags="A", seq=ours, ack=theirs))
get = server/TCP(sport=50000, dport=80, flags="PA", seq=ours, ack=theirs)/"GET / HTTP/1.0\r\nHost: www\r\n\r\n"
answered, unanswered = sr(
    get,
    timeout=1,
    multi=True,
)
page = answered[1].reply
raw(page[TCP].payload)[0:15]; synack.ack; len(unanswered)
send(server/TCP(sport=50000, dport=80, flags="A", seq=ours + len(get[Raw]), ack=page.seq + len(page[TCP].payload)))
"#;

#[test]
fn tutorial_handshake_leaves_no_kernel_reset() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("handshake.crafter");
    fs::write(&file, HANDSHAKE).unwrap();
    for mode in ["auto", "tc"] {
        // A new server for each, without state for the port.
        let lab = lab();
        let done = crafter(&lab, &["shell", "--attach", mode, file.to_str().unwrap()]);
        done.succeeds();
        let lines: Vec<&str> = done.text().lines().collect();
        assert_eq!(lines.first(), Some(&"True"), "{done:?}");
        for line in ["  flags           = \"SA\"", "  ack             = 0", "###[ TCP ]###"] {
            assert!(lines.contains(&line), "no {line:?}: {done:?}");
        }
        // The send statements before and after print their number of packets.
        assert_eq!(lines[lines.len() - 5..], ["1", "b\"HTTP/1.0 200 OK\"", "0", "0", "1"], "{done:?}");
        assert!(done.stderr.contains("the kernel half counted the same"), "{done:?}");
        assert_eq!(lab.tap().count().unwrap(), 0, "RSTs reached the server");
    }
}

/// A session keeps 256 of the ports that it chose; half-open connections of the others are reset earlier, and counted.
#[test]
fn half_open_connections_are_reset_and_counted() {
    let lab = lab();
    let statements = r#"x = sr1(IP(dst="192.0.2.1")/TCP(dport=80, flags="S"));"#.repeat(300);
    let done = crafter(&lab, &["shell", "-c", &statements]);
    done.succeeds();
    assert_eq!(done.stderr, ";; reset 300 half-open connections\n", "{done:?}");
    assert_eq!(lab.tap().count().unwrap(), 300);
}

#[test]
fn statements_from_arguments_files_and_stdin() {
    let directory = tempfile::tempdir().unwrap();
    let shell = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crafter"));
        command.arg("shell").args(args).current_dir(directory.path());
        run(command)
    };
    let done = shell(&["-c", "x = 40; x + 2; IP(ttl=x)"]);
    done.succeeds();
    assert_eq!(done.text(), "42\nIP(ttl=40)\n");
    let done = shell(&["--json", "-c", "[1, None, \"a\"]\nIP(dst=\"localhost\").dst; IP(ttl=7)"]);
    let lines: Vec<_> = done.text().lines().map(|line| valid("shell", line)["value"].clone()).collect();
    assert_eq!(lines[0], serde_json::json!([1, null, "a"]));
    assert_eq!(lines[1], "127.0.0.1");
    assert_eq!(lines[2]["layers"][0]["fields"]["ttl"], 7);

    fs::write(directory.path().join("f"), "x = 1\nx\n\nIP(\n  tll=3)\n").unwrap();
    // A file is parsed as a whole; each statement is evaluated when it is executed.
    let done = shell(&["f"]);
    done.fails(exit::USAGE, "f, line 5, column 3: IP has no field 'tll'; did you mean ttl");
    assert_eq!(done.text(), "1\n");
    fs::write(directory.path().join("f"), "1\n2 +\n").unwrap();
    let done = shell(&["f"]);
    done.fails(exit::USAGE, "f, line 2, column 4: ");
    assert_eq!(done.text(), "");
    shell(&["none"]).fails(exit::FAILURE, "cannot read none");
    shell(&["-c", "rdpcap(\"none\")"]).fails(exit::FAILURE, "line 1, column 1: read none: ");
    shell(&["-c", "1", "f"]).fails(exit::USAGE, "cannot be used with");
}

/// The first statement that fails ends the shell with its exit code, wherever the statements are from.
#[test]
fn failing_statement_ends_with_its_exit_code() {
    let lab = lab();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("f");
    for (statement, code, said) in [
        ("foo", exit::USAGE, "column 1: "),
        ("foo()", exit::USAGE, "column 1: "),
        ("IP(tll=1)", exit::USAGE, "IP has no field 'tll'; did you mean ttl"),
        ("1 +", exit::USAGE, "column 4: "),
        ("rdpcap(\"none\")", exit::FAILURE, "read none: "),
        ("sr1(IP(dst=\"192.0.2.77\")/ICMP())", exit::NO_ROUTE, "192.0.2.77 does not answer"),
    ] {
        let text = format!("1\n{statement}\n2\n");
        fs::write(&file, &text).unwrap();
        let mut piped = lab.command("sh");
        piped.args(["-c", "\"$0\" shell - < \"$1\"", env!("CARGO_BIN_EXE_crafter"), file.to_str().unwrap()]);
        for (form, done) in [
            ("-c", crafter(&lab, &["shell", "-c", &text])),
            ("file", crafter(&lab, &["shell", file.to_str().unwrap()])),
            ("stdin", super::run(piped)),
        ] {
            done.fails(code, said);
            assert!(done.stderr.contains("line 2"), "{form}: {done:?}");
            assert!(!done.text().contains('2'), "{form}: {done:?}");
        }
    }
}

#[test]
fn network_errors_have_separate_exit_codes() {
    let lab = lab();
    let send = "send(IP(dst=\"192.0.2.77\")/UDP(dport=7))";
    crafter(&lab, &["shell", "-c", send]).fails(exit::NO_ROUTE, "line 1, column 1: 192.0.2.77 does not answer");
    let done = crafter(
        &lab,
        &["shell", "-c", "x = sr1(IP(dst=\"192.0.2.1\")/TCP(dport=80, flags=\"R\"), timeout=0.2); x == None"],
    );
    done.succeeds();
    assert_eq!(done.text(), "True\n");
}

#[test]
fn statements_from_a_pipe_run_line_by_line() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crafter"));
    command.arg("shell").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, mut answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    let mut ask = |text: &str| {
        writeln!(stdin, "{text}").unwrap();
        answers.next().unwrap().unwrap()
    };
    assert_eq!(ask("x = 1; x + 1"), "2");
    assert_eq!(ask("[x,\n2]"), "[1, 2]");
    writeln!(stdin, "\n\nfoo").unwrap();
    assert_eq!(wait(&mut child), i32::from(exit::USAGE));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("stdin, line 6, column 1: there is no variable"), "{said}");
}

#[test]
fn sniffed_packets_are_values() {
    let lab = lab();
    let text = "p = sniff(\"udp port 9\", count=2, timeout=20); p; p[0][Raw].load; p[1].dport; len(sniff(timeout=0.1, filter=\"tcp\"))";
    let mut child = command(&lab, &["shell", "-c", text]);
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it does not end");
        let send = || std::net::UdpSocket::bind("192.0.2.2:0")?.send_to(b"hello", "192.0.2.1:9");
        lab.client().run(send).unwrap().unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "<2 packets: 2 UDP>\nb\"hello\"\n9\n0\n");
}

/// A shell on a terminal.
struct Shell(Terminal);

impl Shell {
    fn new(mut command: Command, state: &std::path::Path) -> Self {
        command.arg("shell").env("XDG_STATE_HOME", state);
        let mut shell = Self(Terminal::new(command));
        shell.shows("crafter> ");
        shell
    }

    /// Types a statement; waits for its output and the next prompt.
    #[track_caller]
    fn says(&mut self, keys: &str, text: &str) {
        self.keys(&format!("{keys}\r"));
        self.shows(&format!("\n{text}\r\n"));
        self.shows("crafter> ");
    }
}

impl Deref for Shell {
    type Target = Terminal;

    fn deref(&self) -> &Terminal {
        &self.0
    }
}

impl DerefMut for Shell {
    fn deref_mut(&mut self) -> &mut Terminal {
        &mut self.0
    }
}

#[test]
fn prompt_has_completion_and_history() {
    let state = tempfile::tempdir().unwrap();
    let terminal = || Shell::new(Command::new(env!("CARGO_BIN_EXE_crafter")), state.path());
    let mut shell = terminal();
    shell.says("1 + 2 * 3", "7");
    // Completion of fields, in a layer's brackets and after a packet; of variables; of functions.
    shell.keys("packet = IP(tt\t9)/UD\tdpo\t80)\r");
    shell.shows("crafter> ");
    shell.says("pac\t.tt\t + 33", "42");
    shell.says("packet[UD\t].dp\t + 1", "81");
    shell.says("le\tpack\t)", "28");
    // Several candidates are listed.
    shell.keys("sr\t\t");
    shell.shows("srp1(");
    shell.keys("\x03");
    shell.shows("crafter> \r");
    shell.says("RandS\t > 0", "True");
}

#[test]
fn at_the_prompt() {
    let state = tempfile::tempdir().unwrap();
    let terminal = || Shell::new(Command::new(env!("CARGO_BIN_EXE_crafter")), state.path());
    let mut shell = terminal();
    // An open bracket continues the statement on the next line.
    shell.says("len([1,\r2,3]) + 74", "77");
    // An error names its position, and the shell continues.
    shell.keys("IP(ttl=256)\r");
    shell.shows("crafter: IP.ttl: 256 does not fit 8 bits, the largest is 255\r\n  IP(ttl=256)\r\n         ^^^\r\n");
    shell.shows("crafter> ");
    // Ctrl-C discards the line.
    shell.keys("this is not (wanted\x03");
    shell.shows("crafter> ");
    shell.says("100 + 11", "111");
    // Arrow up recalls the previous line.
    shell.says("\x1b[A + 1", "112");
    shell.keys("\x04");
    assert_eq!(wait(&mut shell.child), 0);
    // The history is kept for the next shell.
    let mut shell = terminal();
    shell.says("\x1b[A + 1", "113");
    shell.keys("exit\r");
    assert_eq!(wait(&mut shell.child), 0);
    let directory = state.path().join("crafter");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&directory.join("history"))), (0o700, 0o600));
    let history = fs::read_to_string(directory.join("history")).unwrap();
    assert!(history.contains("100 + 11 + 1 + 1\n") && !history.contains("wanted"), "{history}");
}

#[test]
fn ctrl_c_interrupts_the_statement_but_not_the_shell() {
    let lab = lab();
    let state = tempfile::tempdir().unwrap();
    let mut shell = Shell::new(command(&lab, &[]), state.path());
    let raw = tcgetattr(&shell.keys).unwrap();
    shell.says("x = 5; x", "5");
    shell.keys("x = sr1(IP(dst=\"192.0.2.1\")/TCP(sport=50000, dport=80, flags=\"R\"), timeout=600)\r");
    super::eventually(|| (lab.tap().count().unwrap() > 0).then_some(()));
    kill(Pid::from_raw(shell.child.id() as i32), Signal::SIGINT).unwrap();
    shell.shows("interrupted");
    shell.shows("crafter> ");
    shell.says("x + 1", "6");
    // The port is still owned, and answers are received.
    shell.says("sr1(IP(dst=\"192.0.2.1\")/TCP(sport=50000, dport=80, flags=\"S\"))[TCP].flags", "\"SA\"");
    // The terminal's settings are restored, also if the shell ends within a line.
    kill(Pid::from_raw(shell.child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(wait(&mut shell.child), 128 + Signal::SIGTERM as i32);
    let after = tcgetattr(&shell.keys).unwrap();
    let canonical = LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG;
    assert!(after.local_flags.contains(canonical) && !raw.local_flags.contains(canonical));
}
