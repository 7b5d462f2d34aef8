//! Runs the program `holder` as a second process, which leases or downloads until its input ends or it is killed.

use std::{
    io::{BufRead, BufReader},
    process::{ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use crate::peer::Process;

/// Timeout for each expected line of output.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// A running `holder`.
pub struct Holder {
    process: Process,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// The leased port.
    pub port: u16,
    /// The attach mode, and the notes of the report.
    pub report: String,
}

impl Holder {
    /// Starts `command`, which is `holder` with its arguments, and waits until it has a lease.
    pub fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("holder");
        let mut process = Process(child);
        let stdin = process.0.stdin.take();
        let stdout = process.0.stdout.take().expect("holder's output");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut holder = Self { process, stdin, lines, port: 0, report: String::new() };
        let ready = holder.wait_for("ready ");
        let (port, report) = ready.split_once(' ').expect("a port and a report");
        holder.port = port.parse().expect("a port");
        holder.report = report.to_owned();
        holder
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The rest of the next output line that begins with `prefix`.
    pub fn wait_for(&mut self, prefix: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(crate::slow::allow(REPLY_TIMEOUT));
            let line = line.unwrap_or_else(|e| panic!("holder prints no line that begins with {prefix:?}: {e}"));
            if let Some(rest) = line.strip_prefix(prefix) {
                return rest.to_owned();
            }
        }
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Ends its input and waits until it exits successfully.
    pub fn end(mut self) {
        drop(self.stdin.take());
        let status = self.process.0.wait().expect("wait for holder");
        assert!(status.success(), "holder exited with {status}");
    }
}
