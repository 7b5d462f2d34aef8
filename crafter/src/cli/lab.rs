//! `crafter lab`: a throw-away network.

use std::{
    ffi::OsString,
    io::{self, Write as _},
};

use clap::Subcommand;
use crafter::{
    Error,
    lab::{self, Ending, Lab, LabOptions, SignalForwarding},
};

use super::Globals;

/// `crafter lab`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run a command in a throw-away network, then take all of it down
    #[command(after_help = RUN_HELP)]
    Run(RunArgs),
}

const HELP: &str = "\
Network namespaces that end with the command: nothing of this host is changed.

Examples:
  crafter lab run crafter get http://192.0.2.1/";

const RUN_HELP: &str = "\
The command runs in a client namespace, 192.0.2.2 and 2001:db8::2 on lab0, joined
by a veth pair to a server, 192.0.2.1 and 2001:db8::1, with
  a web server on port 80: / /bytes/100M /sha256/100M /status/404 /slow?ms=100
                           /close /reset /rsts /rsts/clear
  a DNS server on port 53: lab.test with web, www, client, text, long and big
                           below it (A, AAAA, CNAME, MX, NS, SOA, TXT), and PTR
The command's environment:
  CRAFTER_LAB_WEB        http://192.0.2.1
  CRAFTER_LAB_WEB6       http://[2001:db8::1]
  CRAFTER_LAB_DNS        192.0.2.1
  CRAFTER_LAB_DNS6       2001:db8::1
  CRAFTER_LAB_INTERFACE  lab0
SIGINT, SIGTERM, SIGHUP and SIGQUIT are passed on to the command. What it leaves
running ends with it, and all of it ends with the lab, whoever kills whom.
Afterwards stderr tells how many RST segments reached the server.
--json: an object on stderr instead, with exit_code and rsts_received.

Exit code: that of the command; 128 + the signal's number if a signal killed it;
126 if it cannot be executed, 127 if it is not there; 3 without CAP_SYS_ADMIN.

Examples:
  crafter lab run bash
  crafter lab run crafter dns --server 192.0.2.1 www.lab.test
  crafter lab run --mtu 1280 -- sh -c 'crafter get $CRAFTER_LAB_WEB6/bytes/1M | wc -c'";

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// MTU of the link in bytes, 1280 to 65535
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    mtu: u32,
    /// Switch TSO, GSO and GRO off on both ends, so that each segment crosses by itself
    #[arg(long)]
    no_offload: bool,
    /// Print nothing at the end
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the command.
///
/// # Errors
/// Those of setting the lab up.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let Action::Run(args) = args.action;
    // Before the lab starts threads; the runtime's only thread is this one.
    let signals = SignalForwarding::block()?;
    let options = LabOptions { mtu: args.mtu, offloads: !args.no_offload, ..LabOptions::default() };
    let lab = Lab::new(&options)?;
    let ending = match lab::run(&lab, &args.command, Some(&signals)) {
        Ok(ending) => ending,
        Err(error) => {
            let code = match &error {
                // What shells, env(1) and timeout(1) say.
                Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
                Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => 126,
                _ => return Err(error.into()),
            };
            super::print::error(&error.into());
            return Ok(code);
        }
    };
    drop(lab);
    if !args.quiet {
        report(ending, globals.json)?;
    }
    Ok(ending.code)
}

/// On stderr, since stdout is the command's.
fn report(ending: Ending, json: bool) -> anyhow::Result<()> {
    let line = match json {
        true => serde_json::json!({ "exit_code": ending.code, "rsts_received": ending.rsts }).to_string(),
        false => format!("lab: RST segments that reached the server: {}", ending.rsts),
    };
    // Nothing is left to complain to when stderr is gone.
    let _ = writeln!(io::stderr().lock(), "{line}");
    Ok(())
}
