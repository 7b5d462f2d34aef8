//! `crafter lab`: a throw-away network.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Write as _},
};

use clap::Subcommand;
use crafter::{
    Error,
    lab::{self, Ending, Lab, LabOptions, SERVER_V4, SERVER_V6, SignalForwarding},
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
    /// Run a command or a shell in a throw-away network, then take all of it down
    #[command(after_help = RUN_HELP)]
    Run(RunArgs),
}

const HELP: &str = "\
Network namespaces that end with the command: nothing of this host is changed.

Examples:
  crafter lab run
  crafter lab run crafter get web.lab.test";

const RUN_HELP: &str = "\
Without a command it is $SHELL, /bin/sh if that is not set: with (lab) before its own
prompt on a terminal, otherwise it reads commands from stdin. `exit` or Ctrl-D leaves it.

The command runs in a client namespace, 192.0.2.2 and 2001:db8::2 on lab0, joined
by a veth pair to a server, 192.0.2.1 and 2001:db8::1, with
  a web server on port 80: / /bytes/100M /sha256/100M /status/404 /slow?ms=100
                           /close /reset /rsts /rsts/clear
  a DNS server on port 53: lab.test with web, www, client, text, long and big
                           below it (A, AAAA, CNAME, MX, NS, SOA, TXT), and PTR
Names are looked up in /etc/hosts, then at that DNS server: the command sees an
/etc/resolv.conf and an /etc/nsswitch.conf of its own, and no systemd-resolved, nscd or
crafter service of the host, whose own files stay as they are.
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
  crafter lab run
  crafter lab run curl http://web.lab.test/
  crafter lab run crafter dns www.lab.test AAAA
  echo 'curl -s http://web.lab.test/bytes/1M | wc -c' | crafter lab run -q
  crafter lab run --mtu 1280 -- sh -c 'crafter get $CRAFTER_LAB_WEB6/bytes/1M | wc -c'";

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// MTU of the link in bytes, 1280 to 65535
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    mtu: u32,
    /// Switch TSO, GSO and GRO off on both ends, so that each segment crosses by itself
    #[arg(long)]
    no_offload: bool,
    /// Print nothing of the lab's own on stderr
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// The command and its arguments [default: a shell, $SHELL]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
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
    let ended = match args.command.as_slice() {
        [] => {
            if !args.quiet && !globals.json && io::stdin().is_terminal() {
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

/// What the lab offers, printed before the prompt.
fn greet() {
    // Nothing is left to complain to when stderr is gone.
    let _ = writeln!(
        io::stderr().lock(),
        "lab: web server http://web.lab.test/, DNS server for lab.test, both at {SERVER_V4} and {SERVER_V6}\n\
         lab: all of it ends with this shell: leave by `exit` or Ctrl-D"
    );
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
