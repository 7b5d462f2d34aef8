//! Whole processes, from their start to their exit: crafter's commands compared with hping3, nping, Scapy and curl.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use crafter::{
    lab::{Lab, LabOptions, SERVER_V4},
    protocol::control::SOCKET_VARIABLE,
};
use crafter_tests::{executable, peer::Nginx};

use crate::{
    handshake::listen_on,
    service::Service,
    table::{Row, Target, median},
};

const PORT: u16 = 8000;
const ROUNDS: usize = 11;
/// The service must keep its attachment during this pause.
const PAUSE: Duration = Duration::from_secs(20);
/// Rounds of `sr` of all ports, and of the pause.
const LONG_ROUNDS: usize = 3;
const SCAPY: &str = "
import sys
from scapy.all import IP, TCP, sr1, conf
conf.verb = 0
assert sr1(IP(dst=sys.argv[1])/TCP(sport=20000, dport=int(sys.argv[2]), flags='S'), timeout=2)[TCP].flags == 'SA'
";

/// A command line, with a name for the table.
struct Program {
    name: &'static str,
    arguments: Vec<String>,
}

impl Program {
    fn new(name: &'static str, arguments: &[&str]) -> Self {
        Self { name, arguments: arguments.iter().map(|&argument| argument.to_owned()).collect() }
    }

    /// Time in seconds until the process has ended and its output has been read; `None` if it is not installed.
    fn time(&self, lab: &Lab) -> Result<Option<f64>> {
        let (program, rest) = self.arguments.split_first().context("an empty command line")?;
        time(lab.client().command(program).args(rest))
    }
}

/// Time in seconds of a process that must succeed; `None` if the program is not installed.
fn time(command: &mut Command) -> Result<Option<f64>> {
    let start = Instant::now();
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("{command:?}")),
    };
    let took = start.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(Some(took))
}

/// Measures the programs alternately; returns the median of each in milliseconds.
fn alternate(lab: &Lab, programs: &[Program]) -> Result<Vec<Option<f64>>> {
    let mut times: Vec<Vec<f64>> = programs.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for (program, times) in programs.iter().zip(&mut times) {
            times.extend(program.time(lab)?);
        }
    }
    Ok(times.into_iter().map(|times| (!times.is_empty()).then(|| median(times) * 1e3)).collect())
}

fn row(what: &str, milliseconds: f64, peers: String, target: Target) -> Row {
    let crafter = format!("{milliseconds:.1} ms");
    Row { what: what.to_owned(), crafter, peer: peers, value: milliseconds, unit: " ms", target }
}

/// The medians of the peers, for the table; a program that is not installed is named.
fn peers(programs: &[Program], medians: &[Option<f64>]) -> String {
    let one = |(program, median): (&Program, &Option<f64>)| match median {
        Some(median) => format!("{} {median:.1} ms", program.name),
        None => format!("{} is not installed", program.name),
    };
    programs.iter().zip(medians).map(one).collect::<Vec<_>>().join(", ")
}

/// Measures `sr1`, `get`, `sr`, `--version` and `build` as whole processes.
pub fn measure() -> Result<Vec<Row>> {
    let options = || LabOptions { web: false, dns: false, ..LabOptions::default() };
    let (here, there) = (Lab::new(&options())?, Lab::new(&options())?);
    listen_on(&here, &[PORT])?;
    listen_on(&there, &[PORT])?;
    let mut rows = in_process(&here)?;
    rows.extend(through_service(&there)?);
    Ok(rows)
}

fn in_process(lab: &Lab) -> Result<Vec<Row>> {
    let crafter = std::env::current_exe()?.with_file_name("crafter");
    let crafter = crafter.to_str().context("the path of crafter is not UTF-8")?;
    let (server, port) = (SERVER_V4.to_string(), PORT.to_string());
    let syn = syn();
    let one = [
        Program::new("crafter", &[crafter, "sr1", "--direct", &syn]),
        Program::new("hping3", &["hping3", "-q", "-S", "-c", "1", "-p", &port, &server]),
        Program::new("nping", &["nping", "--tcp", "-c", "1", "-p", &port, &server]),
        Program::new("Scapy", &["/usr/bin/python3", "-c", SCAPY, &server, &port]),
    ];
    let ones = alternate(lab, &one)?;
    let mut rows = vec![row(
        "`crafter sr1` of a SYN in process",
        ones[0].context("crafter is not built")?,
        peers(&one[1..], &ones[1..]),
        Target::AtMost(60.0),
    )];

    let page = Nginx::start(lab.server());
    let url = format!("http://{server}{}", page.small.path);
    let get = [
        Program::new("crafter", &[crafter, "get", "--direct", &url]),
        Program::new("curl", &["curl", "--silent", &url]),
    ];
    let gets = alternate(lab, &get)?;
    rows.push(row(
        "`crafter get` of a small page in process",
        gets[0].context("crafter is not built")?,
        peers(&get[1..], &gets[1..]),
        Target::None,
    ));

    for (what, arguments) in [("`crafter --version`", &["--version"][..]), ("`crafter build`", &["build", &syn])] {
        let ours = Program::new("crafter", &[&[crafter], arguments].concat());
        let pair = [ours, Program::new("curl --version", &["curl", "--version"])];
        let medians = alternate(lab, &pair)?;
        rows.push(row(
            what,
            medians[0].context("crafter is not built")?,
            peers(&pair[1..], &medians[1..]),
            Target::AtMost(5.0),
        ));
    }

    let every = format!(r#"IP(dst="{server}")/TCP(dport=(1,65535), flags="S")"#);
    let scan = Program::new("crafter", &[crafter, "sr", "--direct", &every]);
    let mut scans = Vec::new();
    for _ in 0..LONG_ROUNDS {
        scans.extend(scan.time(lab)?);
    }
    rows.push(row(
        "`crafter sr` of 65,535 ports, output into a pipe",
        median(scans) * 1e3,
        "-".to_owned(),
        Target::AtMost(450.0),
    ));
    Ok(rows)
}

fn through_service(lab: &Lab) -> Result<Vec<Row>> {
    let service = Service::start(lab)?;
    let crafter = unprivileged(service.directory())?;
    let once = || -> Result<f64> {
        let mut command = service.as_user(lab, &crafter);
        command.args(["sr1", &syn()]).env(SOCKET_VARIABLE, service.socket());
        Ok(time(&mut command)?.context("crafter is not built")? * 1e3)
    };
    // The first call attaches the programs.
    once()?;
    let soon = median((0..ROUNDS).map(|_| once()).collect::<Result<_>>()?);
    let mut later = Vec::new();
    for _ in 0..LONG_ROUNDS {
        std::thread::sleep(PAUSE);
        later.push(once()?);
    }
    let what = "`crafter sr1` of a SYN through the service, by another user";
    Ok(vec![
        row(what, soon, "-".to_owned(), Target::AtMost(8.0)),
        row(
            &format!("the same after a pause of {} s", PAUSE.as_secs()),
            median(later),
            "-".to_owned(),
            Target::AtMost(8.0),
        ),
    ])
}

fn syn() -> String {
    format!(r#"IP(dst="{SERVER_V4}")/TCP(dport={PORT}, flags="S")"#)
}

/// Path of the program `crafter` where every user may run it.
fn unprivileged(directory: &Path) -> Result<PathBuf> {
    let copy = directory.join("crafter");
    executable::place(&std::env::current_exe()?.with_file_name("crafter"), &copy)?;
    Ok(copy)
}
