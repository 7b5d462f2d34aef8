//! Scapy as user `nobody` through the service with crafter-scapy: the tutorial's script with one additional line,
//! TCP_client, and refusals. Captures in the server's namespace show that the kernel sends no RST.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read},
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
    time::Duration,
};

use crafter::lab::{INTERFACE, Lab};
use crafter_tests::{
    capture::{CONTROL, Capture, Packet, from, rsts},
    leak::{Parallel, assert_detached},
    peer::{Nginx, Process, wait_for},
    python::{PYTHON, Packages, source},
    service::Service,
    testbed::{self, CONTROL_PORT, ENDS, assert_refuses, lab, run},
    unprivileged::{GROUP, as_nobody},
};
use sha2::{Digest, Sha256};

const LINE: &str = "import crafter_scapy; crafter_scapy.install()\n";
const TUTORIAL: &str = include_str!("scapy_service/tutorial.py");
const CLIENT: &str = include_str!("scapy_service/client.py");
const REFUSALS: &str = include_str!("scapy_service/refusals.py");
const FRAMES: &str = include_str!("scapy_service/frames.py");

/// The rule of the shipped policy, for the tests' group and with one denied address.
fn policy() -> String {
    format!(
        r#"
        [[rule]]
        group = {GROUP}
        ports = ["1024-65535"]
        allow = ["any"]
        deny = ["192.0.2.99"]
        packets_per_second = 10000
        burst = 1000
        "#
    )
}

/// The first bytes of a page, downloaded over the kernel's TCP.
fn curl(lab: &Lab, server: IpAddr, path: &str, length: u64) -> Vec<u8> {
    let url = format!("http://{}{path}", SocketAddr::new(server, 80));
    let mut curl = lab.client().command("curl");
    curl.args(["-sS", "-g", "--max-time", "20", "-r", &format!("0-{}", length - 1), &url]);
    let output = curl.output().expect("curl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The first output line of a script, which keeps running and holds its ports until the guard is dropped.
fn first_line(command: &mut Command) -> (Process, String) {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process::start(command);
    let mut line = String::new();
    BufReader::new(process.0.stdout.take().expect("its output")).read_line(&mut line).expect("read its output");
    if line.is_empty() {
        let mut errors = String::new();
        process.0.stderr.take().expect("its errors").read_to_string(&mut errors).expect("read its errors");
        panic!("{command:?}: {errors}");
    }
    (process, line.trim().to_owned())
}

/// Starts a capture, and proves by the RST of an unowned port that it records RSTs.
fn capture(lab: &Lab, ends: (IpAddr, IpAddr)) -> Capture<'_> {
    let capture = Capture::start(lab.server(), INTERFACE, Some(CONTROL));
    testbed::unowned_syn(lab, ends, CONTROL_PORT);
    testbed::wait_for_rst(lab, SocketAddr::new(ends.0, CONTROL_PORT));
    capture
}

/// Asserts that the RST of the control is the only one sent by the client.
fn assert_no_rst(packets: &[Packet], client: IpAddr) {
    let control = SocketAddr::new(client, CONTROL_PORT);
    assert!(rsts(packets, control) > 0, "the capture lacks the RST of the control");
    let others = packets.iter().filter(|packet| packet.source.ip() == client && packet.source != control);
    let found: Vec<&Packet> = others.filter(|packet| packet.is_rst()).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn tutorial_runs_as_nobody_with_one_additional_line() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let nginx = Nginx::start(lab.server());
    let packages = Packages::copy();
    // The sleep keeps the port owned: the server retransmits what the script does not acknowledge.
    let script = packages.write("tutorial.py", &format!("{LINE}{TUTORIAL}import time; time.sleep(60)\n"));
    let mut service = Service::for_group(lab.client(), &policy(), &[]);
    for ends in ENDS {
        let (client, server) = ends;
        let page = curl(&lab, server, nginx.small.path, 100);
        let capture = capture(&lab, ends);
        let mut command = service.program(PYTHON);
        packages.configure(&mut command).arg(&script).arg(server.to_string()).arg(nginx.small.path);
        let (process, output) = first_line(&mut command);
        let packets = capture.finish();
        let (port, hex) = output.split_once(' ').unwrap_or_else(|| panic!("unexpected output {output:?}"));
        let page: String = page.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, page, "the page");
        let own = SocketAddr::new(client, port.parse().expect("a port"));
        assert!(from(&packets, own).iter().any(|packet| packet.is_syn()), "the capture lacks the SYN");
        assert_no_rst(&packets, client);
        // The ports are released with the process, and the kernel refuses connections to them.
        drop(process);
        wait_for("the release of the port", Duration::from_secs(5), || {
            let error = testbed::connect_from_server(&lab, own).err()?;
            (error.kind() == io::ErrorKind::ConnectionRefused).then_some(())
        });
        assert_refuses(&lab, own);
    }
    assert_eq!(service.stop(), Some(0));
    assert_detached(lab.client(), INTERFACE);
}

#[test]
fn tutorial_without_the_line_lacks_permission() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let nginx = Nginx::start(lab.server());
    let packages = Packages::copy();
    let script = packages.write("tutorial.py", TUTORIAL);
    let mut command = as_nobody(lab.client(), PYTHON);
    packages.configure(&mut command).arg(&script).arg(ENDS[0].1.to_string()).arg(nginx.small.path);
    let output = command.output().expect("python3");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("PermissionError"), "{errors}");
}

#[test]
fn tcp_client_downloads_10_mb() {
    let _parallel = Parallel::begin();
    const LENGTH: u64 = 10_000_000;
    let lab = lab();
    let nginx = Nginx::with_big(lab.server());
    let big = nginx.big.as_ref().expect("a big page").path;
    let packages = Packages::copy();
    let script = packages.write("client.py", &format!("{LINE}{CLIENT}"));
    let mut service = Service::for_group(lab.client(), &policy(), &[]);
    let expected = Sha256::digest(curl(&lab, ENDS[0].1, big, LENGTH));
    let expected: String = expected.iter().map(|byte| format!("{byte:02x}")).collect();
    let capture = capture(&lab, ENDS[0]);
    let mut command = service.program(PYTHON);
    packages.configure(&mut command).arg(&script).arg(ENDS[0].1.to_string()).arg(big).arg(LENGTH.to_string());
    let output = run(&mut command);
    println!("TCP_client: {output}");
    assert_no_rst(&capture.finish(), ENDS[0].0);
    assert_eq!(output.split_once(' ').map(|(sum, _)| sum), Some(expected.as_str()), "{output}");
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn refusals_raise_exceptions() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let packages = Packages::copy();
    let script = packages.write("refusals.py", &format!("{LINE}{REFUSALS}"));
    let mut service = Service::for_group(lab.client(), &policy(), &[]);
    let mut command = service.program(PYTHON);
    packages
        .configure(&mut command)
        .arg(&script)
        .arg(ENDS[0].1.to_string())
        .arg("192.0.2.99")
        .arg(ENDS[1].1.to_string());
    let output = run(&mut command);
    let lines: Vec<&str> = output.lines().collect();
    let expected = [
        ("denied sr1|PolicyError|1|", "it denies"),
        ("denied send|PolicyError|1|", "it denies"),
        ("allowed send|NoneType|None|", "None"),
        ("privileged|PolicyError|1|", "set sport"),
        ("foreign|PolicyError|1|", "foreign_sources"),
        ("frames|PolicyError|1|", "raw_ethernet"),
        ("plain ping|str|None|IP / ICMP", "echo-reply 0"),
        ("plain ping, IPv6|str|None|IPv6 / ICMPv6 Echo Reply", "id: 0"),
        ("taken|PortTaken|None|", "is in use"),
    ];
    assert_eq!(lines.len(), expected.len(), "{output}");
    for (line, (begin, word)) in lines.iter().zip(expected) {
        assert!(line.starts_with(begin) && line.contains(word), "unexpected line {line}, expected {begin}...{word}");
    }
    assert_eq!(service.stop(), Some(0));
}

/// Every packet is received once, in every attach mode: leased packets are not also observed.
#[test]
fn granted_frames_and_observations_are_delivered_once() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let packages = Packages::copy();
    let script = packages.write("frames.py", &format!("{LINE}{FRAMES}"));
    let granted = policy() + "raw_ethernet = true\nobserve = true\nbroadcast = true\n";
    for attach in ["native", "generic", "tc"] {
        let mut service = Service::for_group(lab.client(), &granted, &["--attach", attach]);
        let mut command = service.program(PYTHON);
        packages.configure(&mut command).arg(&script).arg(ENDS[0].1.to_string()).arg(INTERFACE);
        assert_eq!(run(&mut command), "arp True\nsrp RA\nsniff RA S\n", "{attach}");
        assert_eq!(service.stop(), Some(0));
    }
}

#[test]
fn examples_run_without_scapy() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let packages = Packages::copy();
    let example =
        |name: &str| packages.write(name, &fs::read_to_string(source().join("examples").join(name)).expect(name));
    let mut service = Service::for_group(lab.client(), &policy(), &[]);
    let server = ENDS[0].1.to_string();
    for (port, answer) in [("80", "SYN-ACK"), ("81", "RST")] {
        let output = run(service.program(PYTHON).arg(example("syn.py")).args([&server, port]));
        assert!(
            output.starts_with(&format!("{server}:{port} answers {answer}, ")) && output.contains("ack 1001"),
            "{output}"
        );
    }
    let info = run(service.program("sh").arg(example("info.sh")));
    assert!(info.contains(env!("CARGO_PKG_VERSION")) && info.contains("\"leases\""), "{info}");
    let route = format!(r#"{{"destination":"{server}"}}"#);
    let route = run(service.program("sh").arg(example("info.sh")).args(["Route", &route]));
    assert!(route.contains(INTERFACE) && route.contains(&ENDS[0].0.to_string()), "{route}");
    assert_eq!(service.stop(), Some(0));
}

/// crafter-scapy's unit tests, which need no kernel, with the Scapy of the other tests.
#[test]
fn crafter_scapy_unit_tests_pass() {
    let _parallel = Parallel::begin();
    let packages = Packages::copy();
    let mut command = Command::new(PYTHON);
    packages.configure(&mut command).args(["-m", "unittest", "discover", "-q", "-t", ".", "-s", "tests"]);
    let output = command.current_dir(source()).output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Sends a SYN and waits for the answer; the port is released by the exit, by `release()`, or left half-open.
const HALF_OPEN: &str = r#"
import sys, crafter_scapy
from scapy.all import *
conf.verb = 0
server, sport, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
crafter_scapy.install(leave_open=how == "open")
IPX = IPv6 if ":" in server else IP
print(sr1(IPX(dst=server)/TCP(sport=sport, dport=80, flags="S", seq=1000), timeout=10)[TCP].flags)
if how == "release":
    assert crafter_scapy.release(sport) == 1
    crafter_scapy.uninstall()
"#;

#[test]
fn half_open_connections_are_reset_before_the_port_is_released() {
    let lab = lab();
    let _nginx = Nginx::start(lab.server());
    let packages = Packages::copy();
    let script = packages.write("half_open.py", HALF_OPEN);
    let service = Service::for_group(lab.client(), &policy(), &[]);
    let releases = [(40_001_u16, "exit"), (40_002, "release"), (40_003, "open")];
    let captured = Capture::start(lab.server(), INTERFACE, Some(CONTROL));
    for (_, server) in ENDS {
        for (port, release) in releases {
            let mut command = service.program(PYTHON);
            packages.configure(&mut command).arg(&script).args([&server.to_string(), &port.to_string(), release]);
            assert_eq!(run(&mut command).trim(), "SA", "{release}");
        }
    }
    // Linux retransmits a SYN-ACK after 1 s; a RST of the kernel would have been sent by then.
    std::thread::sleep(Duration::from_secs(3));
    let packets = captured.finish();
    for (client, _) in ENDS {
        for (port, release) in releases {
            let own = SocketAddr::new(client, port);
            let at = packets.iter().position(|packet| packet.source == own && packet.is_rst());
            let at = at.unwrap_or_else(|| panic!("{release}: no RST: {packets:?}"));
            let syn_acks = |packets: &[Packet]| packets.iter().filter(|packet| packet.destination == own).count();
            if release == "open" {
                assert!(
                    syn_acks(&packets[..at]) >= 2,
                    "{release}: no RST of the kernel after the second SYN-ACK: {packets:?}"
                );
                continue;
            }
            let reset = &packets[at];
            assert_eq!((reset.flags, reset.seq, reset.checksum), (Some(4), 1001, Some(true)), "{release}: {reset:?}");
            assert_eq!((rsts(&packets, own), syn_acks(&packets[at..])), (1, 0), "{release}: {packets:?}");
        }
    }
}
