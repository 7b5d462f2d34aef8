//! Unprivileged users of the service: all commands, exclusive ports, isolation from each other, and release of ports.

mod fairness;
mod isolation;
mod limits;
mod release;

use std::{
    io::{BufRead as _, BufReader},
    net::{IpAddr, SocketAddr},
    process::{ChildStdin, ChildStdout, Stdio},
};

use crafter::{
    lab::{INTERFACE, SERVER_V4, SERVER_V6},
    protocol::wire::LeaseCall,
};
use crafter_tests::{
    capture::{CONTROL, Capture},
    exit,
    leak::Parallel,
    manual::sha256,
    peer::{Dnsmasq, HOST, Nginx, Process, wait_for},
    service::{self, Credentials, NOBODY, REPLY_TIMEOUT, Service, lease_call},
    testbed::{CONTROL_PORT, ENDS, lab, run, unowned_syn, wait_for_rst},
};
use serde_json::Value;

/// Rules for two users, for a third one who may observe, and for the group of [`NOBODY`].
const POLICY: &str = "\
[[rule]]
user = 0
observe = true

[[rule]]
user = 71001
ports = [\"50000-50999\"]
max_ports = 200

[[rule]]
user = 71002
ports = [\"50000-51999\"]
max_ports = 200

[[rule]]
user = 71003
observe = true

[[rule]]
group = 54321
packets_per_second = \"unlimited\"
";

const ONE: Credentials = Credentials { user: 71_001, group: 71_001 };
const TWO: Credentials = Credentials { user: 71_002, group: 71_002 };
const OBSERVER: Credentials = Credentials { user: 71_003, group: 71_003 };

/// A running `tenant`.
struct Tenant {
    process: Process,
    stdin: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    lease: u64,
}

impl Tenant {
    fn start(
        service: &Service,
        credentials: Credentials,
        protocol: &str,
        first: u16,
        last: u16,
        more: &[&str],
    ) -> Self {
        let binary = service.place(env!("CARGO_BIN_EXE_tenant").as_ref());
        let mut command = service.namespace().command(binary);
        command.arg(&service.socket).args([INTERFACE, protocol, &first.to_string(), &last.to_string()]).args(more);
        service::drop_to(&mut command, credentials);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tenant");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("its output"));
        let mut tenant = Self { process: Process(child), stdin, lines: BufReader::new(stdout), lease: 0 };
        tenant.lease = tenant.read_line("ready ").parse().expect("a number");
        tenant
    }

    /// The rest of its next line of output, which must begin with `prefix`.
    #[track_caller]
    fn read_line(&mut self, prefix: &str) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("its output");
        line.trim_end().strip_prefix(prefix).unwrap_or_else(|| panic!("no {prefix:?}: {line:?}")).to_owned()
    }

    /// Ends its input; returns its counts: packets read, packets among them for other ports, messages that are not
    /// packets, lost packets.
    fn end(mut self) -> [u64; 4] {
        drop(self.stdin.take());
        let counts = self.read_line("read ");
        let numbers: Vec<u64> = counts.split(' ').filter_map(|word| word.parse().ok()).collect();
        numbers.try_into().expect("four numbers")
    }
}

fn udp(port: u16) -> LeaseCall {
    lease_call("udp", Some(port), None)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn every_command_works_for_an_unprivileged_user() {
    let _parallel = Parallel::begin();
    let lab = lab();
    let nginx = Nginx::with(lab.server(), Some(10_000_000));
    let _dnsmasq = Dnsmasq::start(lab.server());
    let service = Service::start(lab.client(), POLICY);

    let mut status = lab.client().command("cat");
    service::drop_to(status.arg("/proc/self/status"), NOBODY);
    let status = run(&mut status);
    for line in ["Uid:\t65534\t65534\t65534\t65534", "Gid:\t54321\t54321\t54321\t54321", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "no {line:?}: {status}");
    }

    let capture = Capture::start(lab.server(), INTERFACE, Some(CONTROL));
    // Connections that the commands report as reset.
    let mut reset = 0;
    for server in [IpAddr::from(SERVER_V4), SERVER_V6.into()] {
        let layer = if server.is_ipv4() { "IP" } else { "IPv6" };
        let syn = |ports: &str| format!("{layer}(dst=\"{server}\")/TCP(dport={ports}, flags=\"S\")");
        let answer = json(&service.succeed(NOBODY, &["sr1", "--json", &syn("80")]));
        assert!(answer.to_string().contains("\"SA\""), "{answer}");
        let text = service.succeed(NOBODY, &["sr", "--json", &syn("[80,81,82]")]);
        let answers = json(text.lines().last().unwrap_or_default());
        assert_eq!((text.lines().count(), &answers["account"]["answered"]), (4, &3.into()), "{text}");
        reset += [&answer, &answers]
            .map(|each| each["account"]["half_open_reset"].as_u64().expect("a count"))
            .iter()
            .sum::<u64>();
        let text = service.succeed(NOBODY, &["ping", "--json", "-c", "3", "--interval", "0.05", &server.to_string()]);
        assert_eq!(json(text.lines().last().unwrap_or_default())["received"], 3, "{text}");
        for probe in ["--icmp", "--udp"] {
            service.succeed(NOBODY, &["traceroute", "--json", probe, &server.to_string()]);
        }
        for page in [&nginx.small, nginx.big.as_ref().expect("10 MB")] {
            let url = format!("http://{}{}", SocketAddr::new(server, 80), page.path);
            let output = service.run(NOBODY, &["get", "-q", &url]);
            assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
            assert_eq!((output.stdout.len() as u64, sha256(&output.stdout)), (page.length, page.sha256), "{url}");
        }
        let text = service.succeed(NOBODY, &["dns", "--json", "--server", &server.to_string(), HOST]);
        assert!(text.contains("198.51.100.80"), "{text}");
    }
    let tenant = Tenant::start(&service, NOBODY, "tcp", 50_100, 50_109, &[]);
    let leases = json(&service.succeed(NOBODY, &["leases", "--json"]))["leases"].clone();
    assert_eq!(leases.as_array().map(Vec::len), Some(1), "{leases}");
    let (lease, user, last) = (&leases[0]["lease"], &leases[0]["user"], &leases[0]["last_port"]);
    assert_eq!((lease.as_u64(), user.as_u64(), last.as_u64()), (Some(tenant.lease), Some(65_534), Some(50_109)));
    assert_eq!(tenant.end(), [0; 4]);

    let wire = capture.finish();
    let clients: Vec<_> = wire.iter().filter(|packet| ENDS.iter().any(|(own, _)| packet.source.ip() == *own)).collect();
    let (syns, fins) = (clients.iter().filter(|p| p.is_syn()).count(), clients.iter().filter(|p| p.is_fin()).count());
    let rsts = clients.iter().filter(|packet| packet.is_rst()).count() as u64;
    println!("sent by the client: {syns} SYNs, {fins} FINs, {rsts} RSTs");
    assert!(syns >= 12 && fins >= 4, "{syns} SYNs, {fins} FINs");
    // Crafted by the commands, which leave port 80 half-open twice per address; none sent by the kernel.
    assert_eq!((rsts, reset), (4, 4), "RSTs of the client");

    // Positive controls: without the service the commands lack permission, and the kernel resets an unowned port.
    let syn = format!("IP(dst=\"{SERVER_V4}\")/TCP(dport=80, flags=\"S\")");
    for arguments in [&["sr1", "--direct", &syn][..], &["get", "--direct", "http://192.0.2.1/small"]] {
        let output = service.run(NOBODY, arguments);
        assert_eq!(output.status.code(), Some(i32::from(exit::PERMISSION)), "{arguments:?}: {output:?}");
    }
    // The service detaches from the interface one second after its last lease.
    wait_for("the release of all leases", REPLY_TIMEOUT, || service.leases().is_empty().then_some(()));
    unowned_syn(&lab, ENDS[0], CONTROL_PORT);
    wait_for_rst(&lab, SocketAddr::new(ENDS[0].0, CONTROL_PORT));
}
