//! Every command with its output to a pipe that is closed, or to a full disk.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crafter::{capture::Capture, lab::Lab};

use super::{Done, Traffic, command, lab, served::Served, wait};

const SYN: &str = r#"IP(dst="192.0.2.1")/TCP(dport=80, flags="S")"#;

/// Runs a command with these outputs.
fn run(mut command: Command, stdout: Stdio, stderr: Stdio) -> Done {
    let mut child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().unwrap();
    // The writing ends of pipes are closed, so that they end with the command.
    drop(command);
    let pipe = child.stderr.take();
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        pipe.map(|mut pipe| std::io::Read::read_to_string(&mut pipe, &mut text).unwrap());
        text
    });
    let code = wait(&mut child);
    Done { code, stdout: Vec::new(), stderr: reading.join().unwrap() }
}

/// A pipe that nobody reads any more.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// A full disk.
fn full() -> Stdio {
    fs::File::create("/dev/full").unwrap().into()
}

/// Commands that print results, with text or JSON.
fn commands(capture: &str, policy: &str) -> Vec<Vec<String>> {
    let lines: [&[&str]; 42] = [
        &["--help"],
        &["--version"],
        &["help", "sr"],
        &["build", SYN],
        &["build", "--raw", SYN],
        &["build", "--json", SYN],
        &["build", "-w", "-", SYN],
        &["ls"],
        &["ls", "--json"],
        &["ls", "TCP"],
        &["show", capture],
        &["show", "--json", capture],
        &["show", "--as", "hexdump", capture],
        &["sr", SYN],
        &["sr", "--json", SYN],
        &["sr", "-w", "-", SYN],
        &["sr1", SYN],
        &["sr1", "--json", SYN],
        &["sr1", "-w", "-", SYN],
        &["send", "--json", SYN],
        &["send", "-w", "-", SYN],
        &["ping", "-c", "2", "--interval", "0.02", "192.0.2.1"],
        &["ping", "-c", "2", "--interval", "0.02", "--json", "192.0.2.1"],
        &["ping", "-c", "2", "--interval", "0.02", "-w", "-", "192.0.2.1"],
        &["ping", "-q", "-c", "1", "192.0.2.1"],
        &["traceroute", "192.0.2.1"],
        &["traceroute", "--json", "192.0.2.1"],
        &["traceroute", "-w", "-", "192.0.2.1"],
        &["get", "192.0.2.1"],
        &["get", "http://192.0.2.1/bytes/10M"],
        &["get", "-o", "/dev/null", "--json", "192.0.2.1"],
        &["dns", "@192.0.2.1", "www.lab.test"],
        &["dns", "--json", "@192.0.2.1", "www.lab.test"],
        &["replay", "--top-speed", capture],
        &["replay", "--top-speed", "--json", capture],
        &["shell", "-c", "1; 2; 3"],
        &["shell", "--json", "-c", "1; 2; 3"],
        &["doctor"],
        &["doctor", "--json"],
        &["policy", "check", policy],
        &["config", "show"],
        &["completions", "bash"],
    ];
    lines.iter().map(|line| line.iter().map(|word| (*word).to_owned()).collect()).collect()
}

/// The same of the service.
const OF_THE_SERVICE: [&[&str]; 9] = [
    &["info"],
    &["info", "--json"],
    &["leases"],
    &["leases", "--json"],
    &["flows", "--json"],
    &["counters", "--json"],
    &["policy", "show"],
    &["policy", "show", "--json"],
    &["policy", "reload", "--json"],
];

fn messages(done: &Done) -> Vec<&str> {
    done.stderr.lines().filter(|line| line.starts_with("crafter: ") && !line.contains("the service ")).collect()
}

/// `command` makes the same command each time.
#[track_caller]
fn check(line: &str, command: impl Fn() -> Command) {
    let done = run(command(), closed(), Stdio::piped());
    assert!(done.code == 0 && messages(&done).is_empty(), "{line} into a closed pipe: {done:?}");
    let done = run(command(), full(), Stdio::piped());
    let is_one = matches!(messages(&done)[..], [one] if one.contains("No space left on device"));
    assert!(done.code == 1 && is_one, "{line} onto a full disk: {done:?}");
}

fn files(lab: &Lab, directory: &Path) -> [String; 2] {
    let [capture, policy] = ["packets.pcapng", "policy.toml"].map(|name| directory.join(name));
    let udp = r#"IP(dst="192.0.2.1")/UDP(dport=(1,20))"#;
    super::crafter(lab, &["build", "-w", capture.to_str().unwrap(), udp]).succeeds();
    fs::write(&policy, "[[rule]]\nuser = 0\n").unwrap();
    [capture, policy].map(|path| path.to_str().unwrap().to_owned())
}

/// A reader that closes the pipe ends a command without a message; a full disk is one sentence, and exit code 1.
#[test]
fn closed_pipe_is_quiet_and_full_disk_is_an_error() {
    let lab = lab();
    let directory = tempfile::tempdir().unwrap();
    let [capture, policy] = files(&lab, directory.path());
    for words in commands(&capture, &policy) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        check(&words.join(" "), || command(&lab, &words));
    }
}

#[test]
fn closed_pipe_and_full_disk_for_commands_of_the_service() {
    let served = Served::new();
    for words in OF_THE_SERVICE {
        check(&words.join(" "), || served.command(words));
    }
}

/// Ends at the first write that fails, although packets keep arriving.
#[test]
fn endless_commands_end_with_their_reader() {
    let lab = lab();
    let traffic = Traffic::start(&lab);
    for words in [
        &["sniff", "-i", "lab0"][..],
        &["sniff", "-i", "lab0", "--json"],
        &["sniff", "-i", "lab0", "-w", "-"],
        &["ping", "--interval", "0.02", "192.0.2.1"],
        &["ping", "--interval", "0.02", "--json", "192.0.2.1"],
    ] {
        check(&words.join(" "), || command(&lab, words));
    }
    let many = r#"IP(dst="192.0.2.1")/TCP(dport=81, flags="S")"#;
    for words in [
        &["sr", "--show", "all", "-c", "100000", "--rate", "1000", many][..],
        &["sr", "--json", "-c", "100000", "--rate", "1000", many],
    ] {
        check(&words.join(" "), || command(&lab, words));
    }
    drop(traffic);
}

/// Messages that cannot be written change nothing else.
#[test]
fn unwritable_stderr_does_not_change_the_exit_code() {
    let lab = lab();
    for (words, code) in [
        (&["sr", SYN][..], 0),
        (&["ping", "-c", "1", "192.0.2.1"], 0),
        (&["get", "192.0.2.1"], 0),
        (&["send", SYN], 0),
        (&["sr1", "nonsense"], 2),
        (&["nonsense"], 2),
        (&["show", "/"], 1),
    ] {
        for stderr in [closed(), full()] {
            assert_eq!(run(command(&lab, words), Stdio::null(), stderr).code, code, "{words:?}");
        }
    }
}

#[test]
fn full_disk_for_a_capture_is_an_error() {
    let lab = lab();
    for words in [
        &["sr", "-w", "/dev/full", SYN][..],
        &["sr1", "-w", "/dev/full", SYN],
        &["send", "-w", "/dev/full", SYN],
        &["ping", "-c", "1", "-w", "/dev/full", "192.0.2.1"],
        &["traceroute", "-w", "/dev/full", "192.0.2.1"],
        &["sniff", "-i", "lab0", "-w", "/dev/full"],
        &["build", "-w", "/dev/full", SYN],
        &["get", "-o", "/dev/full", "192.0.2.1"],
    ] {
        super::crafter(&lab, words).fails(1, "No space left on device");
    }
}

/// What was written before the disk was full remains, and the results are printed.
#[test]
fn disk_that_becomes_full_keeps_what_was_written() {
    let lab = lab();
    let directory = tempfile::tempdir().unwrap();
    let kept = directory.path().join("kept");
    let small = directory.path().join("small");
    fs::create_dir(&small).unwrap();
    // A file system of 64 KiB in a mount namespace of its own.
    let on_small = |words: &[&str]| {
        let mut command = lab.command("unshare");
        let script = r#"mount -t tmpfs -o size=64k tmpfs small && "$@"; code=$?; cp small/file kept; exit $code"#;
        command.args(["--mount", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_crafter")]).args(words);
        command.current_dir(directory.path());
        super::run(command)
    };
    let datagram = r#"IP(dst="192.0.2.1")/UDP(dport=9)/"0123456789""#;
    let done = on_small(&["send", "--json", "-c", "3000", "-w", "small/file", datagram]);
    done.fails(1, "No space left on device");
    assert_eq!(done.object("send")["account"]["sent"], 3000);
    let capture = Capture::read(&fs::read(&kept).unwrap()).unwrap();
    assert!(capture.packets.len() > 300, "{} packets, {:?}", capture.packets.len(), capture.broken);
    assert!(capture.packets.iter().all(|packet| packet.bytes.ends_with(b"0123456789")));

    let done = on_small(&["get", "--json", "-o", "small/file", "http://192.0.2.1/bytes/1M"]);
    let summary = done.object("get");
    assert_eq!((done.code, &summary["exit_code"]), (1, &1.into()), "{summary}");
    assert!(summary["error"].as_str().unwrap().contains("No space left on device"), "{summary}");
    assert_eq!(summary["body_bytes"], fs::metadata(&kept).unwrap().len());
    assert_eq!(fs::metadata(&kept).unwrap().len(), 64 << 10);
}
