//! The service with an unprivileged client, compared with a single privileged process.

use std::{
    borrow::Cow,
    io::{BufRead as _, BufReader, Write as _},
    net::UdpSocket,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{Xdp, loaded_programs};
use aya_obj::programs::xdp::XdpAttachType;
use crafter::{
    lab::{CLIENT_V4, INTERFACE, Lab, LabOptions, SERVER_V4},
    protocol::control::SOCKET_VARIABLE,
    session::{Session, SessionOptions},
};
use crafter_tests::{executable, foreign::drop_all, frame, peer::Nginx, service::open_directory};
use nix::{
    sys::{
        resource::{Resource, getrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use crate::{
    download, exchange,
    handshake::listen_on,
    table::{Row, Target, median},
    verdict,
};

/// User id and group id of `nobody`, as in the policy.
const USER: &str = "65534";
const POLICY: &str = "
[[rule]]
user = 65534
protocols = [\"any\"]
packets_per_second = \"unlimited\"
max_leases = \"unlimited\"
max_ports = \"unlimited\"
max_flows = \"unlimited\"

# The users who disturb, with the limits of members.
[[rule]]
everybody = true
protocols = [\"any\"]
";
const PORT: u16 = 8000;
const ROUNDS: usize = 5;
/// Number of leases and ports per lease; fewer leases if the descriptor limit is low, because each port takes one.
const LEASES: u64 = 1000;
const PORTS: u64 = 60;

/// `crafter serve` in the client namespace of a lab.
pub struct Service {
    child: Child,
    directory: tempfile::TempDir,
}

impl Service {
    /// Starts the service and waits until it accepts connections.
    pub fn start(lab: &Lab) -> Result<Self> {
        let directory = open_directory("crafter-bench-");
        let policy = directory.path().join("crafter.toml");
        std::fs::write(&policy, POLICY)?;
        let binary = std::env::current_exe()?.with_file_name("crafter");
        let mut command = lab.client().command(&binary);
        command.arg("serve").arg("--everybody").arg("--socket").arg(directory.path().join("socket"));
        command.arg("--policy").arg(&policy).stderr(Stdio::null());
        let child =
            command.spawn().with_context(|| format!("{}; build it with `cargo xtask build`", binary.display()))?;
        let service = Self { child, directory };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(service.socket()).is_err() {
            ensure!(Instant::now() < deadline, "the service does not answer");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(service)
    }

    /// Directory of the socket, accessible to every user.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Path of the socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Resident memory in MiB, and CPU time in clock ticks.
    fn costs(&self) -> Result<(f64, u64)> {
        let process = procfs::process::Process::new(self.child.id() as i32)?;
        let stat = process.stat()?;
        let resident = process.status()?.vmrss.context("no VmRSS")?;
        Ok((resident as f64 / 1024.0, stat.utime + stat.stime))
    }

    /// Runs `bench client` as an unprivileged user.
    pub fn client(&self, lab: &Lab, arguments: &[&str]) -> Result<Command> {
        self.client_of(USER, lab, arguments)
    }

    /// Runs `bench client` as this user.
    pub fn client_of(&self, user: &str, lab: &Lab, arguments: &[&str]) -> Result<Command> {
        let bench = unprivileged(self.directory.path())?;
        let mut command = as_other(user, lab, &bench);
        command.arg("client").args(arguments).env(SOCKET_VARIABLE, self.socket()).stdout(Stdio::piped());
        Ok(command)
    }

    /// A command that runs `program` as the unprivileged user.
    pub fn as_user(&self, lab: &Lab, program: &Path) -> Command {
        as_other(USER, lab, program)
    }

    fn number(&self, lab: &Lab, arguments: &[&str]) -> Result<f64> {
        let output = self.client(lab, arguments)?.output()?;
        ensure!(output.status.success(), "bench client {arguments:?}: {}", output.status);
        Ok(String::from_utf8(output.stdout)?.trim().parse()?)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// A command that runs `program` as a user.
fn as_other(user: &str, lab: &Lab, program: &Path) -> Command {
    let mut command = lab.client().command("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups", "--"]).arg(program);
    command
}

/// Path of this program where every user may run it.
fn unprivileged(directory: &Path) -> Result<PathBuf> {
    let copy = directory.join("bench");
    if !copy.exists() {
        executable::place(&std::env::current_exe()?, &copy)?;
    }
    Ok(copy)
}

/// A lab without servers.
pub fn quiet() -> LabOptions {
    LabOptions { web: false, dns: false, ..LabOptions::default() }
}

/// Measures one SYN and its answer.
pub fn exchanges() -> Result<Vec<Row>> {
    let (here, there) = (Lab::new(&quiet())?, Lab::new(&quiet())?);
    for lab in [&here, &there] {
        listen_on(lab, &[PORT])?;
    }
    let service = Service::start(&there)?;
    let (mut own, mut served) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        own.push(here.client().run(|| -> Result<f64> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let session = Session::new(SessionOptions::default());
                let median = exchange::syns(&session, PORT).await?;
                session.close().await;
                Ok(median)
            })
        })??);
        served.push(service.number(&there, &["sr1", &PORT.to_string()])?);
    }
    let (own, served) = (median(own), median(served));
    Ok(vec![Row {
        what: "sr1(SYN) by an unprivileged client of the service, median".to_owned(),
        crafter: format!("{:.1} us", served * 1e6),
        peer: format!("in process {:.1} us", own * 1e6),
        value: served / own,
        unit: "x",
        target: Target::AtMost(2.5),
    }])
}

/// Measures small packets through one lease, sent and received.
pub fn packets() -> Result<Vec<Row>> {
    const COUNT: u64 = 1_000_000;
    let lab = Lab::new(&quiet())?;
    let service = Service::start(&lab)?;
    // A peer that drops everything does not answer ARP either.
    let [server, hardware] = [SERVER_V4.to_string(), "02:00:00:00:00:99".to_owned()];
    let neighbour = ["neigh", "replace", &server, "lladdr", &hardware, "dev", INTERFACE, "nud", "permanent"];
    ensure!(lab.client().command("ip").args(neighbour).status()?.success(), "ip neigh replace");
    let out = {
        let _drop: OwnedFd = lab.server().run(|| drop_all(INTERFACE))??;
        let rates = (0..3).map(|_| service.number(&lab, &["send", &COUNT.to_string()]));
        median(rates.collect::<Result<_>>()?)
    };
    let mut within = Vec::new();
    for port in [20_000_u16, 20_001, 20_002] {
        let mut client = service.client(&lab, &["receive", &port.to_string(), "1500"])?.spawn()?;
        let mut lines = BufReader::new(client.stdout.take().context("no output")?).lines();
        ensure!(lines.next().context("the client ended")?? == "ready");
        lab.server().run(|| flood(port, Duration::from_millis(2500)))??;
        let line = lines.next().context("the client ended")??;
        ensure!(client.wait()?.success());
        within.push(line.split_whitespace().next().context("no number")?.parse()?);
    }
    let row = |direction: &str, rate: f64| Row {
        what: format!("small packets through one lease's socket, {direction}"),
        crafter: format!("{:.0}/s", rate),
        peer: "-".to_owned(),
        value: rate / 1000.0,
        unit: " k/s",
        target: Target::AtLeast(300.0),
    };
    Ok(vec![row("out", out), row("in", median(within))])
}

/// Sends datagrams of 18 bytes to a port of the client as fast as the kernel can.
fn flood(port: u16, time: Duration) -> Result<()> {
    let socket = UdpSocket::bind((SERVER_V4, 0))?;
    socket.connect((CLIENT_V4, port))?;
    let messages = [[0x55_u8; 18]; 64];
    let start = Instant::now();
    let mut headers = nix::sys::socket::MultiHeaders::<()>::preallocate(messages.len(), None);
    use std::os::fd::AsRawFd as _;
    while start.elapsed() < time {
        let slices: Vec<[std::io::IoSlice<'_>; 1]> =
            messages.iter().map(|bytes| [std::io::IoSlice::new(bytes)]).collect();
        // A full queue is expected.
        let _ = nix::sys::socket::sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &slices,
            vec![None::<()>; messages.len()],
            [],
            nix::sys::socket::MsgFlags::empty(),
        );
    }
    Ok(())
}

/// Measures a download of 100 MB.
pub fn downloads() -> Result<Vec<Row>> {
    let options = || LabOptions { offloads: false, ..quiet() };
    let (here, there) = (Lab::new(&options())?, Lab::new(&options())?);
    let pages = [Nginx::with_big(here.server()), Nginx::with_big(there.server())];
    let page = pages[0].big.as_ref().context("nginx has no big page")?;
    let other = pages[1].big.as_ref().context("nginx has no big page")?;
    let service = Service::start(&there)?;
    let (mut own, mut served) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        own.push(here.client().run(|| download::stream(page.path, page.length))??);
        served.push(service.number(&there, &["get", other.path, &other.length.to_string()])?);
    }
    let rate = |times: Vec<f64>| page.length as f64 / median(times) / 1e6;
    let (own, served) = (rate(own), rate(served));
    Ok(vec![Row {
        what: format!("download of {} MB through the service, offloads off", page.length / 1_000_000),
        crafter: format!("{served:.0} MB/s"),
        peer: format!("in process {own:.0} MB/s"),
        value: served / own,
        unit: "x",
        target: Target::AtLeast(0.7),
    }])
}

/// Measures the cost of leases: for the client, for the idle service, and for packets to unowned ports.
pub fn leases() -> Result<Vec<Row>> {
    let lab = Lab::new(&quiet())?;
    let service = Service::start(&lab)?;
    let (memory, before) = service.costs()?;
    thread::sleep(Duration::from_secs(2));
    let (_, after) = service.costs()?;
    let lease = service.number(&lab, &["lease", "1000"])?;

    // The first lease keeps the service's program attached to the interface.
    let first = holder(&service, &lab, 1, 1, 65_000)?;
    let mut program = program()?;
    let frame = unowned();
    let mut least = || -> Result<f64> {
        let rounds = (0..15).map(|_| verdict::nanos(&mut program, &frame));
        Ok(rounds.collect::<Result<Vec<f64>>>()?.into_iter().fold(f64::MAX, f64::min))
    };
    let alone = least()?;
    let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // The service keeps a sixteenth of its descriptors for others.
    let held = LEASES.min(limit / 10 * 9 / (PORTS + 2));
    let many = holder(&service, &lab, held, PORTS, 1024)?;
    let loaded_verdict = least()?;
    let (loaded, _) = service.costs()?;
    drop(many);
    let again = least()?;
    drop(first);
    let alone = alone.min(again);
    Ok(vec![
        Row {
            what: "lease and release of a port, median".to_owned(),
            crafter: format!("{:.0} us", lease * 1e6),
            peer: "-".to_owned(),
            value: lease * 1e6,
            unit: " us",
            target: Target::AtMost(200.0),
        },
        Row {
            what: "resident memory of the idle service".to_owned(),
            crafter: format!("{memory:.1} MiB"),
            peer: format!("{} clock ticks of CPU time in 2 s", after - before),
            value: memory,
            unit: " MiB",
            target: Target::AtMost(25.0),
        },
        Row {
            what: format!("verdict, unowned segment, {held} leases of {PORTS} ports"),
            crafter: format!("{loaded_verdict:.1} ns ({loaded:.1} MiB resident)"),
            peer: format!("1 lease {alone:.1} ns"),
            value: loaded_verdict / alone,
            unit: "x",
            target: Target::AtMost(1.1),
        },
    ])
}

/// A process that holds leases until dropped.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(mut input) = self.0.stdin.take() {
            let _ = input.write_all(b".");
        }
        let _ = self.0.wait();
    }
}

fn holder(service: &Service, lab: &Lab, leases: u64, ports: u64, base: u64) -> Result<Holder> {
    let mut command = service.client(lab, &["hold", &leases.to_string(), &ports.to_string(), &base.to_string()])?;
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    ensure!(lines.next().context("the client ended")?? == "ready");
    Ok(Holder(child))
}

/// The service's XDP program: the last one loaded with this name.
fn program() -> Result<Xdp> {
    let mut found = None;
    for info in loaded_programs() {
        let info = info?;
        if info.name_as_str() == Some("crafter_xdp") {
            found = Some(info);
        }
    }
    let info = found.context("the service has no program loaded")?;
    Ok(Xdp::from_program_info(info, Cow::Borrowed("crafter_xdp"), XdpAttachType::Interface)?)
}

/// A segment to a port that is not leased.
fn unowned() -> Vec<u8> {
    let tcp = frame::Tcp::new(0x10, 1, 1).with(&[0x55; 1460]);
    frame::framed(&tcp.ip((SERVER_V4, 80).into(), (CLIENT_V4, 500).into()))
}
