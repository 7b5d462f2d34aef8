//! The tutorial's script with crafter-scapy as an unprivileged user, compared with Scapy as root and a firewall rule
//! that drops RSTs.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use crafter::lab::{Lab, LabOptions, SERVER_V4};
use crafter_tests::{
    peer::Nginx,
    python::{PYTHON, Packages},
    service::Service,
    unprivileged::GROUP,
};

use crate::table::{Row, Target, median};

const TUTORIAL: &str = include_str!("../../../tests/namespaces/scapy_service/tutorial.py");
const ROUNDS: usize = 5;

fn lab() -> Result<Lab> {
    Ok(Lab::new(&LabOptions { web: false, dns: false, ..LabOptions::default() })?)
}

/// Time in seconds of the whole program, including the start of the interpreter.
fn time(command: &mut Command) -> Result<f64> {
    let start = Instant::now();
    let output = command.output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && output.stdout.len() > 200, "{command:?}: {}: {message}", output.status);
    Ok(start.elapsed().as_secs_f64())
}

/// Measures the tutorial's complete script.
pub fn tutorial() -> Result<Vec<Row>> {
    let (here, there) = (lab()?, lab()?);
    let pages = [Nginx::start(here.server()), Nginx::start(there.server())];
    let packages = Packages::copy();
    let rule = "-A OUTPUT -p tcp --tcp-flags RST RST -j DROP";
    ensure!(here.client().command("iptables").args(rule.split(' ')).status()?.success(), "iptables {rule}");
    let plain = packages.write("plain.py", TUTORIAL);
    let ours = packages.write("ours.py", &format!("import crafter_scapy; crafter_scapy.install()\n{TUTORIAL}"));
    let policy = format!("[[rule]]\ngroup = {GROUP}\n");
    let service = Service::for_group(there.client(), &policy, &[]);
    let (mut root, mut nobody) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (command, script, page, times) in [
            (here.client().command(PYTHON), &plain, pages[0].small.path, &mut root),
            (service.program(PYTHON), &ours, pages[1].small.path, &mut nobody),
        ] {
            let mut command = command;
            times.push(time(packages.configure(&mut command).arg(script).arg(SERVER_V4.to_string()).arg(page))?);
            // Waits for retransmissions of nginx: the script does not close its connections.
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    let (root, nobody) = (median(root), median(nobody));
    Ok(vec![Row {
        what: "tutorial script through crafter-scapy, as nobody".to_owned(),
        crafter: format!("{nobody:.2} s"),
        peer: format!("Scapy as root with a firewall rule {root:.2} s"),
        value: nobody / root,
        unit: "x",
        // Two runs of the same program differ by about a tenth.
        target: Target::AtMost(1.1),
    }])
}
