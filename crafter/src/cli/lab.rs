//! `crafter lab`: a temporary network.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
};

use clap::Subcommand;
use crafter::{
    Error,
    lab::{self, Ending, Lab, LabOptions, SERVER_V4, SERVER_V6, SignalForwarding},
};

use super::{Globals, exit, print};

/// `crafter lab`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run a command or a shell in a temporary network, then remove the network
    #[command(after_help = RUN_HELP)]
    Run(RunArgs),
}

const HELP: &str = "\
The network consists of network namespaces that end with the command. Interfaces, routes and
files of this host are not changed.

Examples:
  crafter lab run
  crafter lab run crafter get web.lab.test";

const RUN_HELP: &str = "\
Without a command it runs $SHELL, or /bin/sh if that is not set. On a terminal the prompt begins
with (lab); otherwise the shell reads commands from stdin. `exit` or Ctrl-D ends it.

The command runs in a client namespace, 192.0.2.2 and 2001:db8::2 on lab0, joined
by a veth pair to a server, 192.0.2.1 and 2001:db8::1, with
  a web server on port 80: / /bytes/100M /sha256/100M /status/404 /slow?ms=100
                           /close /reset /rsts /rsts/clear
  a DNS server on port 53: lab.test with web, www, client, text, long and big
                           below it (A, AAAA, CNAME, MX, NS, SOA, TXT), and PTR
Names are looked up in /etc/hosts, then at that DNS server. The command has its own
/etc/resolv.conf and /etc/nsswitch.conf, and does not see systemd-resolved, nscd or the
crafter service of the host; the files of the host are not changed.
The command's environment:
  CRAFTER_LAB_WEB        http://192.0.2.1
  CRAFTER_LAB_WEB6       http://[2001:db8::1]
  CRAFTER_LAB_DNS        192.0.2.1
  CRAFTER_LAB_DNS6       2001:db8::1
  CRAFTER_LAB_INTERFACE  lab0
SIGINT, SIGTERM, SIGHUP and SIGQUIT are forwarded to the command. When the command or the lab
ends, also by SIGKILL, all processes in the lab end.
At the end it prints on stderr how many RST segments reached the server.
--json: instead an object on stderr, with exit_code and rsts_received.

Exit code: that of the command; 128 + the signal's number if a signal killed it;
126 if it cannot be executed, 127 if it does not exist; 3 without CAP_SYS_ADMIN.

Examples:
  crafter lab run
  crafter lab run curl http://web.lab.test/
  crafter lab run crafter dns www.lab.test AAAA
  echo 'curl -s http://web.lab.test/bytes/1M | wc -c' | crafter lab run -q
  crafter lab run --mtu 1280 -- sh -c 'crafter get $CRAFTER_LAB_WEB6/bytes/1M | wc -c'";

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// MTU of the link, 1280 to 65535
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    mtu: u32,
    /// Switch off TSO, GSO and GRO at both ends, so that the link carries single segments
    #[arg(long)]
    no_offload: bool,
    /// The command and its arguments [default: a shell, $SHELL]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the command.
///
/// # Errors
/// Those of creating the lab.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let Action::Run(args) = args.action;
    // Threads inherit the signal mask: block signals before the lab starts threads.
    let signals = SignalForwarding::block()?;
    let options = LabOptions { mtu: args.mtu, offloads: !args.no_offload, ..LabOptions::default() };
    let lab = Lab::new(&options)?;
    let ended = match args.command.as_slice() {
        [] => {
            if !globals.quiet && !globals.json && io::stdin().is_terminal() {
                greet();
            }
            let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
            lab::run_shell(&lab, &shell.unwrap_or_else(|| "/bin/sh".into()), Some(&signals))
        }
        command => lab::run(&lab, command, Some(&signals)),
    };
    let ending = match ended {
        Ok(ending) => ending,
        Err(error) => {
            let code = match &error {
                // As shells, env(1) and timeout(1) do.
                Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => exit::NOT_FOUND,
                Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => exit::NOT_EXECUTABLE,
                _ => return Err(error.into()),
            };
            print::error(&error.into());
            return Ok(code);
        }
    };
    drop(lab);
    if globals.json || !globals.quiet {
        report(ending, globals.json);
    }
    Ok(ending.code)
}

/// Prints the servers of the lab before the prompt.
fn greet() {
    print::stderr(format_args!(
        "lab: web server http://web.lab.test/, DNS server for lab.test, both at {SERVER_V4} and {SERVER_V6}\n\
         lab: the network ends with this shell; `exit` or Ctrl-D ends the shell"
    ));
}

/// Prints the number of RSTs on stderr: stdout belongs to the command.
fn report(ending: Ending, json: bool) {
    print::stderr(match json {
        true => serde_json::json!({ "exit_code": ending.code, "rsts_received": ending.rsts }).to_string(),
        false => format!("lab: RST segments that reached the server: {}", ending.rsts),
    });
}
