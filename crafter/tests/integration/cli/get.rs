//! `crafter get`

use std::{
    collections::HashSet,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    os::fd::AsRawFd as _,
    process::Stdio,
    time::{Duration, Instant},
};

use crafter::{datapath::features, lab};
use crafter_tests::exit;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{command, crafter, crafter_without, eventually, lab, on_server, wait};

const WEB: &str = "http://192.0.2.1";
const WEB6: &str = "http://[2001:db8::1]";

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The kind of attachment for tc programs on this kernel.
fn classifier() -> &'static str {
    let host = features::host().expect("the host's facts");
    if features::has_tcx(&host.kernel) { "tcx" } else { "clsact" }
}

#[test]
fn page_over_both_ip_versions_and_all_receive_modes() {
    let lab = lab();
    for mode in ["auto", "native", "generic", "tc"] {
        for web in [WEB, WEB6] {
            let done = crafter(&lab, &["get", "--attach", mode, &format!("{web}/")]);
            done.succeeds();
            assert!(done.text().contains("<h1>It works</h1>"), "{done:?}");
            let mechanism = match mode {
                "tc" => &format!("{} + ring buffer on lab0", classifier()),
                "generic" => "generic XDP + AF_XDP on lab0",
                _ => "native XDP + AF_XDP on lab0",
            };
            for part in ["200 OK: ", "handshake: ", "sent: ", "received: ", "0 RSTs suppressed", mechanism] {
                assert!(done.stderr.contains(part), "no '{part}': {done:?}");
            }
        }
    }
    assert_eq!(lab.tap().count().unwrap(), 0, "RSTs reached the server");
}

#[test]
fn hundred_megabytes_match_the_server() {
    let lab = lab();
    let expected = lab::sha256(100 << 20);
    for web in [WEB, WEB6] {
        let done = crafter(&lab, &["get", &format!("{web}/bytes/100M")]);
        done.succeeds();
        assert_eq!(sha256(&done.stdout), expected);
        // Without Content-Length; the last chunk ends the body.
        let done = crafter(&lab, &["get", "-q", &format!("{web}/bytes/5M?chunked=1")]);
        done.succeeds();
        assert_eq!((done.stderr.as_str(), sha256(&done.stdout)), ("", lab::sha256(5 << 20)));
    }
    assert_eq!(lab.tap().count().unwrap(), 0, "RSTs reached the server");
}

#[test]
fn download_over_a_lossy_network() {
    let lab = lab();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("body");
    let (file, url) = (file.to_str().unwrap(), format!("{WEB}/bytes/5M"));
    let bad = ["get", "--loss", "5%", "--duplicate", "5%", "--reorder", "5%", "--json", "-o", file, &url];
    let report = crafter(&lab, &bad).object("get");
    assert_eq!(sha256(&fs::read(file).unwrap()), lab::sha256(5 << 20));
    for counted in ["hook_drops", "duplicates", "out_of_order"] {
        assert!(report[counted].as_u64().unwrap() > 0, "{counted}: {report}");
    }
}

#[test]
fn download_to_a_file_with_json() {
    let lab = lab();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("body");
    let done = crafter(&lab, &["get", "--json", "-o", file.to_str().unwrap(), &format!("{WEB}/bytes/1M")]);
    done.succeeds();
    assert_eq!(sha256(&fs::read(&file).unwrap()), lab::sha256(1 << 20));
    let report = done.object("get");
    for (key, value) in [
        ("url", json!("http://192.0.2.1/bytes/1M")),
        ("remote", json!("192.0.2.1:80")),
        ("status", json!(200)),
        ("content_length", json!(1 << 20)),
        ("body_bytes", json!(1 << 20)),
        ("retransmissions", json!(0)),
        ("rsts_suppressed", json!(0)),
        ("error", json!(null)),
        ("exit_code", json!(0)),
    ] {
        assert_eq!(report[key], value, "{key}: {report}");
    }
    assert!(report["handshake_ns"].as_u64().unwrap() > 0);
    assert!(report["bytes_received"].as_u64().unwrap() > 1 << 20);
    // Without a file, the body is written to stdout.
    let done = crafter(&lab, &["get", "--json", &format!("{WEB}/status/404")]);
    assert_eq!((done.code, done.text()), (exit::SERVER_ERROR.into(), ""));
    let report: serde_json::Value = serde_json::from_str(&done.stderr).unwrap();
    assert_eq!((&report["status"], &report["exit_code"]), (&json!(404), &json!(exit::SERVER_ERROR)));
}

#[test]
fn verbose_prints_request_and_response() {
    let lab = lab();
    let done = crafter(&lab, &["get", "-v", &format!("{WEB}/status/200")]);
    done.succeeds();
    let segments: Vec<&str> = done.stderr.lines().filter(|line| line.contains("Flags [")).collect();
    assert!(segments[0].starts_with("00:00:00.000000 IP 192.0.2.2."), "{segments:#?}");
    for (index, part) in [(0, "192.0.2.1.80: Flags [S], seq"), (1, "Flags [S.], seq"), (2, "Flags [.], ack")] {
        assert!(segments[index].contains(part), "{segments:#?}");
    }
    // A FIN whose acknowledgment is late is sent again.
    let fins = segments.iter().filter(|line| line.contains("Flags [F.]")).map(|line| line.split(' ').nth(2));
    assert_eq!(fins.collect::<HashSet<_>>().len(), 2, "one FIN of each side: {segments:#?}");
    assert!(segments.iter().all(|line| !line.contains("incorrect")), "{segments:#?}");
}

#[test]
fn timestamps_are_offered_on_request() {
    let lab = lab();
    let url = format!("{WEB}/bytes/100K");
    for (arguments, offered) in [(&["get", "-v", "--timestamps"][..], true), (&["get", "-v"], false)] {
        let done = crafter(&lab, &[arguments, &["-o", "/dev/null", &url]].concat());
        done.succeeds();
        let segments: Vec<&str> = done.stderr.lines().filter(|line| line.contains("Flags [")).collect();
        assert!(segments.len() > 10 && segments.iter().all(|line| line.contains("TS val") == offered), "{segments:#?}");
        let report = crafter(&lab, &[arguments, &["--json", "-o", "/dev/null", &url]].concat()).object("get");
        assert_eq!(report["timestamps"], offered, "{report}");
    }
    on_server(&lab, "sysctl", &["-qw", "net.ipv4.tcp_timestamps=0"]);
    let report = crafter(&lab, &["get", "--timestamps", "--json", "-o", "/dev/null", &url]).object("get");
    assert_eq!(report["timestamps"], false, "{report}");
}

#[test]
fn resets_of_the_kernel_are_suppressed_in_observe_mode() {
    let lab = lab();
    let url = format!("{WEB}/bytes/100K");
    let observed = crafter(&lab, &["get", "--observe", "--json", "-o", "/dev/null", &url]);
    observed.succeeds();
    assert!(observed.object("get")["rsts_suppressed"].as_u64().unwrap() > 0, "{observed:?}");
    assert_eq!(lab.tap().count().unwrap(), 0, "RSTs reached the server");
    // Positive control: if they are allowed, the kernel's RSTs break the connection.
    let passed = crafter(&lab, &["get", "--observe", "--rst", "pass", "--max-time", "5", "-o", "/dev/null", &url]);
    assert_ne!(passed.code, 0, "{passed:?}");
    assert!(lab.tap().count().unwrap() > 0, "no RST reached the server");
}

#[test]
fn url_without_scheme_is_http() {
    let lab = lab();
    on_server(&lab, "ip", &["address", "add", "192.0.2.3/32", "dev", "lo"]);
    let listener = lab.server().run(|| TcpListener::bind("192.0.2.3:8080").unwrap()).unwrap();
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(client.try_clone().unwrap()).read_line(&mut line).unwrap();
        client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nport").unwrap();
        line
    });
    for (url, body) in
        [("192.0.2.1/bytes/4", 4), ("[2001:db8::1]/bytes/5", 5), ("2001:db8::1:80/", 0), ("192.0.2.1", 1)]
    {
        let done = crafter(&lab, &["get", "-q", "--connect-timeout", "1", url]);
        match body {
            // This parses as an IPv6 address with eight groups, at which there is no host.
            0 => assert_ne!(done.code, 0, "{done:?}"),
            1 => assert!(done.text().contains("<h1>It works</h1>"), "{done:?}"),
            bytes => assert_eq!((done.code, done.stdout.len()), (0, bytes), "{done:?}"),
        }
    }
    let done = crafter(&lab, &["get", "--json", "-o", "/dev/null", "192.0.2.3:8080/path"]);
    done.succeeds();
    assert_eq!(done.object("get")["url"], json!("http://192.0.2.3:8080/path"));
    assert_eq!(server.join().unwrap(), "GET /path HTTP/1.1\r\n");
}

#[test]
fn failures_have_exit_codes_and_messages() {
    let lab = lab();
    let get = |args: &[&str]| crafter(&lab, &[&["get"], args].concat());
    get(&["https://192.0.2.1/"])
        .fails(exit::USAGE, "scheme 'https' is not supported, only http without TLS; name an http:// URL");
    get(&["/bytes/1"]).fails(exit::USAGE, "URL: '/bytes/1' names no host; write HOST");
    get(&["--loss", "101%", WEB]).fails(exit::USAGE, "--loss");
    get(&["--loss", "60%", "--reorder", "60%", WEB]).fails(exit::USAGE, "--loss");
    get(&["--source", "192.0.2.77", WEB]).fails(exit::USAGE, "192.0.2.77 is not an address of this host");
    for web in [WEB, WEB6] {
        get(&[&format!("{web}:81/")]).fails(exit::REFUSED, ":81 refused the connection");
    }
    let missing = get(&[&format!("{WEB}/nothing-here")]);
    missing.fails(exit::SERVER_ERROR, "404 Not Found");
    assert_eq!(missing.text(), "no such page, see /\n");
    get(&[&format!("{WEB}/reset")]).fails(exit::RESET, "192.0.2.1:80 reset the connection");
    get(&[&format!("{WEB}/close")]).fails(exit::FAILURE, "closed the connection without a response");
    get(&["--interface", "nope0", WEB]).fails(exit::NO_ROUTE, "no interface named 'nope0'");
    get(&["--interface", "lo", WEB]).fails(exit::NO_ROUTE, "no route to 192.0.2.1: lo reaches only");
    get(&["--interface", "lab0", "http://192.0.2.2/"]).fails(exit::NO_ROUTE, "reached over lo, not over lab0");
    get(&["http://192.0.2.99/"]).fails(exit::NO_ROUTE, "192.0.2.99 does not answer on lab0");
    get(&["-o", "/no/such/place", WEB]).fails(exit::FAILURE, "write the body to /no/such/place: No such file");
    crafter_without(&lab, "-net_raw", &["get", WEB]).fails(exit::PERMISSION, "CAP_NET_RAW");
    crafter_without(&lab, "-bpf,-sys_admin", &["get", WEB]).fails(exit::PERMISSION, "CAP_BPF");
    crafter_without(&lab, "-perfmon,-sys_admin", &["get", WEB]).fails(exit::PERMISSION, "CAP_PERFMON");
    crafter_without(&lab, "-net_admin,-sys_admin", &["get", WEB]).fails(exit::PERMISSION, "CAP_NET_ADMIN");
    // These four capabilities suffice.
    let four = "-all,+net_admin,+net_raw,+bpf,+perfmon";
    for mode in ["native", "generic", "tc"] {
        let page = crafter_without(&lab, four, &["get", "--attach", mode, &format!("{WEB}/bytes/100K")]);
        assert_eq!((page.code, page.stdout.len()), (0, 100 << 10), "{mode}: {}", page.stderr);
    }
}

#[test]
fn silent_server_times_out() {
    let lab = lab();
    on_server(&lab, "ip", &["route", "add", "blackhole", "198.51.100.0/24"]);
    let start = Instant::now();
    let hole = crafter(&lab, &["get", "--timeout", "0.7", "http://198.51.100.1/"]);
    hole.fails(exit::TIMED_OUT, "no answer from 198.51.100.1:80 within 700ms (SYN-ACK)");
    assert!((700..15_000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    let slow = crafter(&lab, &["get", "--max-time", "1", &format!("{WEB}/slow?ms=20000")]);
    slow.fails(exit::TIMED_OUT, "within 1s");
}

#[test]
fn used_port_and_used_hook_are_named() {
    let lab = lab();
    let listener = lab.client().run(|| TcpListener::bind("192.0.2.2:0").unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let taken = crafter(&lab, &["get", "--source-port", &port, WEB]);
    taken.fails(exit::PORT_TAKEN, &format!("TCP port {port} on 0.0.0.0 is in use by "));
    drop(listener);
    // A process that another test starts may hold it between fork() and exec().
    let get = || crafter(&lab, &["get", "-q", "-o", "/dev/null", "--source-port", &port, WEB]);
    eventually(|| Some(get()).filter(|done| done.code != i32::from(exit::PORT_TAKEN))).succeeds();

    let mut other =
        command(&lab, &["get", "-v", &format!("{WEB}/slow?ms=20000")]).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(other.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    let forced = crafter(&lab, &["get", "--attach", "native", WEB]);
    forced.fails(exit::ATTACH, &format!("held by crafter, pid {}", other.id()));
    let beside = crafter(&lab, &["get", WEB]);
    beside.succeeds();
    assert!(
        beside.stderr.contains(&format!("{} + ring buffer", classifier())) && beside.stderr.contains("is taken by"),
        "{beside:?}"
    );
    other.kill().unwrap();
    other.wait().unwrap();
    crafter(&lab, &["get", "-q", "-o", "/dev/null", "--attach", "native", WEB]).succeeds();
}

#[test]
fn signal_ends_the_service_without_leftovers() {
    let lab = lab();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut child = command(&lab, &["get", "-v", &format!("{WEB}/slow?ms=20000")]);
        let mut child = child.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        // The SYN shows that the program is attached.
        stderr.read_line(&mut line).unwrap();
        let start = Instant::now();
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        assert_eq!(wait(&mut child), 128 + signal as i32);
        // The page takes 20 s.
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        // Native mode works again, so the hook is free.
        crafter(&lab, &["get", "-q", "-o", "/dev/null", "--attach", "native", WEB]).succeeds();
    }
}

/// The number of bytes in a pipe (FIONREAD, ioctl_pipe(2)).
fn waiting(pipe: &std::process::ChildStdout) -> i32 {
    let mut count = 0;
    // SAFETY: the kernel writes one int.
    let done = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    assert_eq!(done, 0);
    count
}

#[test]
fn stopped_client_does_not_block_others() {
    let lab = lab();
    let mut child = command(&lab, &["get", &format!("{WEB}/bytes/100M")]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // The pipe and the receive window are full.
    let stuck = || {
        let count = waiting(child.stdout.as_ref().unwrap());
        std::thread::sleep(Duration::from_millis(500));
        count > 0 && waiting(child.stdout.as_ref().unwrap()) == count
    };
    eventually(|| stuck().then_some(()));
    // A blocked pipe does not delay signals.
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let stdout = child.stdout.take();
    assert_eq!(wait(&mut child), 130);
    drop(stdout);
    // A slow reader loses nothing.
    let mut slow = lab.command("sh");
    slow.args(["-c", "\"$0\" get -q \"$1\" | { sleep 1; sha256sum; }", env!("CARGO_BIN_EXE_crafter")]);
    slow.arg(format!("{WEB}/bytes/20M"));
    let done = super::run(slow);
    assert_eq!(done.text().split(' ').next(), Some(lab::sha256(20 << 20).as_str()), "{done:?}");
}
