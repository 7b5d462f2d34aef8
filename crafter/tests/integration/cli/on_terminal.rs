//! Commands on a terminal: the progress line, keys, suspension, and a terminal that disappears.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crafter::{capture::Capture, lab::Lab};
use nix::{
    sys::{
        signal::{Signal, kill},
        termios::LocalFlags,
    },
    unistd::Pid,
};

use super::{command, crafter, eventually, interrupted::handles_signals, lab, on_server, terminal::Terminal, wait};

/// Erases the line.
const ERASE: &str = "\r\x1b[2K";

const OPEN: &str = r#"IP(dst="192.0.2.1")/TCP(dport=80, flags=["S", "R"])"#;

/// A command whose controlling terminal is the test's, as in a login session.
fn session(lab: &Lab, args: &[&str]) -> Terminal {
    let mut command = lab.command("setsid");
    command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_crafter")]).args(args);
    Terminal::with_size(command, (40, 140))
}

/// Connections of the server, from the SYN on.
fn connections(lab: &Lab) -> String {
    let of = |state| lab.server().command("ss").args(["-Htan", "state", state]).output().unwrap().stdout;
    String::from_utf8([of("syn-recv"), of("established")].concat()).unwrap()
}

#[test]
fn progress_line_is_drawn_on_a_terminal_only() {
    let lab = lab();
    let set = r#"IP(dst="192.0.2.1")/TCP(dport=(1,200), flags="S")"#;
    let args = ["sr", set, "--rate", "200", "--wait", "1"];
    for (columns, kind) in [(0, "xterm"), (1, "xterm"), (40, "xterm"), (140, "xterm"), (200, "xterm"), (140, "dumb")] {
        let mut command = command(&lab, &args);
        command.env("TERM", kind);
        let mut terminal = Terminal::with_size(command, (40, columns));
        assert_eq!(terminal.wait(), 0, "{}", terminal.said());
        let said = terminal.said();
        let after = said.rsplit_once(ERASE).map(|(_, after)| after);
        assert!(said.contains(";; 2 open, 198 closed"), "{columns}: {said:?}");
        if kind == "dumb" {
            assert!(!said.contains('\x1b') && !said.contains(" of 200 sent, "), "{said:?}");
            continue;
        }
        // The line is erased at the end, and the terminal is as it was.
        assert!(after.is_some_and(|after| !after.contains(" of 200 sent")), "{columns}: {said:?}");
        assert!(terminal.is_cooked() && !said.contains("\x1b[?25l"), "{columns}: {said:?}");
        let lines = said.split(ERASE).flat_map(|part| part.lines()).filter(|line| line.contains(" of 200 "));
        let lines: Vec<&str> = lines.map(str::trim_end).collect();
        match columns {
            140 | 200 => {
                assert!(lines.iter().all(|line| line.ends_with(" left")), "{columns}: {lines:?}");
            }
            // A number is not cut.
            40 => assert!(lines.iter().all(|line| line.ends_with("answered") || line.ends_with(" sent")), "{lines:?}"),
            _ => {}
        }
        assert!(
            columns < 40 || !lines.is_empty() && lines.iter().all(|line| line.len() <= columns.into()),
            "{lines:?}"
        );
    }
    let done = crafter(&lab, &args);
    done.succeeds();
    let lines: Vec<&str> = done.text().lines().collect();
    assert_eq!(
        lines[2..],
        ["192.0.2.1: 200 TCP ports", "  open          53, 80", "  closed        1-52, 54-79, 81-200",]
    );
    assert!(lines[0].contains(":53 S ==> ") && lines[1].contains(":80 S ==> "), "{done:?}");
    assert!(!done.stderr.contains('\r') && done.stderr.starts_with(";; 2 open, 198 closed\n"), "{done:?}");
    for (show, count) in [("open", 2), ("answered", 200), ("all", 200)] {
        let done = crafter(&lab, &[&args[..], &["--show", show]].concat());
        assert_eq!(done.text().lines().filter(|line| line.contains(" ==> ")).count(), count, "{done:?}");
    }
}

#[test]
fn progress_line_follows_the_width() {
    let lab = lab();
    let mut terminal = session(&lab, &["ping", "--interval", "0.05", "192.0.2.1"]);
    terminal.shows(" packets/s ");
    terminal.resize(30);
    // The line that is shown is drawn once more, before the next one is made.
    for _ in 0..6 {
        terminal.shows("seq=");
    }
    let before = terminal.said().len();
    for _ in 0..10 {
        terminal.shows(" sent, ");
    }
    terminal.keys("\x03");
    assert_eq!(terminal.wait(), 130);
    let said = terminal.said();
    let drawn: Vec<&str> = said[before..].split(['\r', '\n']).filter(|line| line.contains(" answered")).collect();
    let bare = |line: &&'_ str| line.trim_start_matches("\x1b[2K").trim_end_matches("^C").trim_end().to_owned();
    let drawn: Vec<String> = drawn[1..].iter().map(bare).collect();
    assert!(drawn.len() > 5, "{said:?}");
    assert!(drawn.iter().all(|line| line.len() <= 30 && line.ends_with("answered")), "{drawn:?}");
}

/// Ctrl-C as a key, which the terminal sends to all processes in its foreground.
#[test]
fn typed_ctrl_c_ends_each_command() {
    let lab = lab();
    on_server(&lab, "iptables", &["-A", "INPUT", "-p", "tcp", "--dport", "83", "-j", "DROP"]);
    on_server(&lab, "iptables", &["-A", "INPUT", "-p", "udp", "--dport", "83", "-j", "DROP"]);
    let silent = r#"IP(dst="192.0.2.1")/TCP(dport=83, flags="S")"#;
    for (args, shown, code) in [
        (&["sr", OPEN, "--wait", "60"][..], " ==> ", 130),
        (&["sr1", silent, "--wait", "60"], " sent, 0 answered", 130),
        (&["send", silent, "-c", "10000", "--rate", "50"], " sent, ", 130),
        (&["ping", "--interval", "0.05", "192.0.2.1"], "seq=2", 130),
        (&["traceroute", "--wait", "5", "203.0.113.5"], " sent, 0 answered", 130),
        (&["get", "-o", "/dev/null", "http://192.0.2.1/bytes/100G"], " left", 130),
        (&["dns", "--timeout", "20", "@192.0.2.1:83", "lab.test"], "", 130),
        (&["sniff", "-i", "lab0"], "listening on", 0),
        (&["shell", "-c", r#"sr1(IP(dst="192.0.2.1")/TCP(dport=83, flags="S"), timeout=60)"#], "", 130),
    ] {
        let mut terminal = session(&lab, args);
        match shown {
            "" => handles_signals(&terminal.child),
            shown => terminal.shows(shown),
        }
        terminal.keys("\x03");
        assert_eq!(terminal.wait(), code, "{args:?}: {}", terminal.said());
        assert!(terminal.is_cooked(), "{args:?}");
        let said = terminal.said();
        let last = said.rsplit("^C").next().unwrap();
        assert!(!last.contains(" packets/s,") || last.contains(ERASE), "{args:?}: {said:?}");
        eventually(|| connections(&lab).is_empty().then_some(()));
    }
}

#[test]
fn suspended_command_continues() {
    let lab = lab();
    let directory = tempfile::tempdir().unwrap();
    let resume = directory.path().join("resume");
    let closed = r#"IP(dst="192.0.2.1")/TCP(dport=(1,60), flags="S")"#;
    // The shell reports the stop, and continues the command in the foreground when the test says so.
    let script = r#"set -m; "${@:2}"; echo "stopped: $?"; while ! [ -e "$1" ]; do sleep 0.05; done; fg >/dev/null; echo "code: $?""#;
    for (args, shown, results) in [
        (
            &["sr", closed, "--rate", "40", "--show", "open", "--wait", "1"][..],
            " of 60 sent",
            ";; 60 requests, 60 sent; ",
        ),
        (&["ping", "-c", "20", "--interval", "0.05", "192.0.2.1"], "seq=5", "20 sent, 20 received, 0% lost"),
        (&["get", "-o", "/dev/null", "http://192.0.2.1/bytes/30M"], " of 31.46 MB", "200 OK: 31457280 bytes in "),
        (&["traceroute", "192.0.2.1", "--interval", "0.2", "-f", "1"], "hops, UDP", " 1  192.0.2.1 "),
    ] {
        let _ = fs::remove_file(&resume);
        let mut command = lab.command("setsid");
        command.args(["--ctty", "--wait", "bash", "-c", script, "bash"]).arg(&resume);
        command.arg(env!("CARGO_BIN_EXE_crafter")).args(args);
        let mut terminal = Terminal::with_size(command, (40, 140));
        let before = terminal.settings();
        terminal.shows(shown);
        terminal.keys("\x1a");
        if args[0] == "traceroute" {
            // It may have ended before.
        } else {
            terminal.shows("stopped: 148");
            let stopped = terminal.settings();
            assert_eq!(stopped.local_flags, before.local_flags, "{args:?}: {}", terminal.said());
        }
        fs::write(&resume, "").unwrap();
        terminal.shows("code: ");
        terminal.wait();
        let said = terminal.said();
        assert!(said.contains(results), "{args:?}: {said:?}");
        assert!(args[0] == "traceroute" || said.contains("code: 0"), "{args:?}: {said:?}");
        assert_eq!(terminal.settings().local_flags, before.local_flags, "{args:?}");
    }
}

/// A reply that arrives in time is counted, although the command reads it after the timeout.
#[test]
fn reply_during_a_suspension_is_counted() {
    let lab = lab();
    let server = lab.server().run(|| std::net::UdpSocket::bind("192.0.2.1:7000")).unwrap().unwrap();
    let datagram = r#"IP(dst="192.0.2.1")/UDP(dport=7000)/"x""#;
    for (args, result) in [
        (&["ping", "-c", "1", "--udp", "7000", "--wait", "1", "192.0.2.1"][..], "1 sent, 1 received, 0% lost"),
        (&["sr", "--wait", "1", datagram], "1 received, 1 answered, 0 unanswered"),
        (&["sr1", "--wait", "1", datagram], "1 received, 1 answered, 0 unanswered"),
    ] {
        let mut child = command(&lab, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut bytes = [0; 2000];
        let (length, from) = server.recv_from(&mut bytes).unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        kill(pid, Signal::SIGSTOP).unwrap();
        eventually(|| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ").then_some(()));
        server.send_to(&bytes[..length], from).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1500));
        kill(pid, Signal::SIGCONT).unwrap();
        let code = wait(&mut child);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(code == 0 && said.contains(result), "{args:?}: {code}: {said}");
    }
}

/// The window is closed: the results so far are recorded, half-open connections are reset, and nothing is left.
#[test]
fn closed_terminal_ends_each_command() {
    let lab = lab();
    on_server(&lab, "iptables", &["-A", "INPUT", "-p", "udp", "--dport", "83", "-j", "DROP"]);
    let directory = tempfile::tempdir().unwrap();
    let [sr, sniffed] = ["sr.pcapng", "sniff.pcapng"].map(|name| directory.path().join(name));
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let script =
        r#"x = sr1(IP(dst="192.0.2.1")/TCP(dport=80, flags="S")); sr1(IP(dst="192.0.2.1")/UDP(dport=83), timeout=60)"#;
    for (args, shown) in [
        (&["sr", OPEN, "--wait", "60", "-w", &path(&sr)][..], " ==> "),
        (&["ping", "--interval", "0.05", "192.0.2.1"], "seq=2"),
        (&["traceroute", "--wait", "5", "203.0.113.5"], " sent, 0 answered"),
        (&["get", "-o", "/dev/null", "http://192.0.2.1/bytes/100G"], " left"),
        (&["dns", "--timeout", "20", "@192.0.2.1:83", "lab.test"], ""),
        (&["sniff", "-i", "lab0", "-w", &path(&sniffed)], "listening on"),
        (&["shell", "-c", script], ""),
        (&["shell"], "crafter> "),
    ] {
        let mut terminal = session(&lab, args);
        match shown {
            "" => handles_signals(&terminal.child),
            shown => terminal.shows(shown),
        }
        if args[0] == "sniff" {
            let send = || {
                let socket = std::net::UdpSocket::bind("192.0.2.2:0")?;
                (0..4).try_for_each(|_| socket.send_to(b"datagram", "192.0.2.1:83").map(drop))
            };
            lab.client().run(send).unwrap().unwrap();
        }
        // Writing may fail before the signal arrives.
        let code = terminal.close();
        assert!(code == 128 + libc::SIGHUP || code == 1, "{args:?}: {code}");
        eventually(|| connections(&lab).is_empty().then_some(()));
    }
    let capture = Capture::read(&fs::read(&sr).unwrap()).unwrap();
    let last = capture.packets.last().unwrap().comment.clone();
    assert_eq!((capture.broken.is_none(), last.as_deref()), (true, Some("sent, resets a half-open connection")));
    let capture = Capture::read(&fs::read(&sniffed).unwrap()).unwrap();
    assert!(capture.broken.is_none() && capture.packets.len() >= 4, "{} packets", capture.packets.len());
}

/// As SIGTERM; a command that nohup(1) started ignores it.
#[test]
fn hang_up_prints_the_results_unless_it_is_ignored() {
    let lab = lab();
    let args = ["ping", "--interval", "0.02", "-c", "60", "192.0.2.1"];
    for (ignores, code) in [(false, 128 + libc::SIGHUP), (true, 0)] {
        let mut command = match ignores {
            false => command(&lab, &args),
            true => {
                let mut command = lab.command("sh");
                command.args(["-c", r#"trap "" HUP; exec "$@""#, "sh", env!("CARGO_BIN_EXE_crafter")]).args(args);
                command
            }
        };
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        handles_signals(&child);
        kill(Pid::from_raw(child.id() as i32), Signal::SIGHUP).unwrap();
        assert_eq!(wait(&mut child), code, "ignores {ignores}");
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(" received, ") && (!ignores || said.contains("60 sent, 60 received")), "{said}");
    }
}

/// However the shell ends while a line is edited, the terminal is as it was.
#[test]
fn shell_restores_the_terminal() {
    let state = tempfile::tempdir().unwrap();
    // The first wait of the runtime fails after a second, when the prompt is shown; tokio panics.
    let panic = ["-qq", "-o", "/dev/null", "-e", "trace=?epoll_wait,epoll_pwait", "-e"];
    let inject = "inject=?epoll_wait,epoll_pwait:error=EBADF:delay_enter=1000000";
    for (end, code) in [("\x04", 0), ("exit\r", 0), ("SIGTERM", 143), ("SIGHUP", 129), ("panic", 101)] {
        let mut command = match end {
            "panic" => {
                let mut command = Command::new("strace");
                command.args(panic).args([inject, "--", env!("CARGO_BIN_EXE_crafter")]);
                command
            }
            _ => Command::new(env!("CARGO_BIN_EXE_crafter")),
        };
        command.arg("shell").env("XDG_STATE_HOME", state.path());
        let mut shell = Terminal::new(command);
        let before = shell.settings();
        shell.shows("crafter> ");
        if end != "panic" {
            eventually(|| (!shell.settings().local_flags.contains(LocalFlags::ICANON)).then_some(()));
        }
        match end {
            "SIGTERM" => kill(Pid::from_raw(shell.child.id() as i32), Signal::SIGTERM).unwrap(),
            "SIGHUP" => kill(Pid::from_raw(shell.child.id() as i32), Signal::SIGHUP).unwrap(),
            "panic" => shell.shows("panicked"),
            keys => shell.keys(keys),
        }
        assert_eq!(shell.wait(), code, "{end:?}: {}", shell.said());
        let after = shell.settings();
        assert_eq!(
            (after.local_flags, after.input_flags, after.output_flags),
            (before.local_flags, before.input_flags, before.output_flags),
            "{end:?}: {}",
            shell.said()
        );
        let said = shell.said();
        let is_off = said.rfind("\x1b[?2004l") > said.rfind("\x1b[?2004h");
        assert!(is_off, "{end:?}: bracketed paste remains on: {said:?}");
    }
}
