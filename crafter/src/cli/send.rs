//! `crafter send`: packets sent, answers not waited for.

use std::io::{self, Write as _};

use crate::cli::exit;
use crafter::session::{Event, SrOptions};
use serde_json::json;

use super::{
    Globals,
    exchange::{self, Closed},
    interface::{self, Ended},
    print,
};

/// `crafter send`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    exchange: exchange::Args,
}

const HELP: &str = "\
A packet begins with IP, IPv6, Ether or ARP. What it leaves unset is filled in: source
address and next hop by the route, the source port (or ICMP identifier) by a lease that
lasts until all is sent. `sr` waits for answers, and keeps the kernel's RSTs away meanwhile:
a SYN-ACK that comes when `send` has ended, the kernel resets.
A line on stderr tells what was sent.
--json: an object with account and mechanism.
Exit code 0: all of it was handed to the kernel, or the account says what was not; others as
`crafter --help` lists them.

Examples:
  crafter send 'IP(dst=\"192.0.2.1\")/UDP(dport=9)/\"hello\"'
  crafter send --json 'IP(dst=\"192.0.2.0/28\")/ICMP()'";

/// Sends.
///
/// # Errors
/// Those of the expression, of values that do not fit, and of sending.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let args = &args.exchange;
    let set = args.set()?;
    let packets = args.packets(&set)?;
    let session = match interface::until_signal(args.session()).await? {
        Ended::Itself(session) => session?,
        Ended::Signal(code) => return Ok(code),
    };
    let mut recorder = args.recorder()?;
    let options = SrOptions { pace: args.pace(), ..SrOptions::default() };
    let observer = &mut |event: &Event<'_>| recorder.handle(event);
    let ended = interface::until_signal(session.send_with(packets, &options, observer)).await?;
    let Closed { reports, reset, signal } =
        exchange::close(session, options.pace, &mut |event| recorder.handle(event)).await?;
    let (mut account, recorded) = match exchange::settle(ended, reset, recorder)? {
        Ended::Itself(result) => result,
        Ended::Signal(code) => return Ok(code),
    };
    account.half_open_reset += reset;
    if globals.json && !args.writes_to_stdout() {
        print::json(&json!({ "account": account, "mechanism": reports }))?;
    } else {
        // Nothing is left to complain to when stderr is gone.
        let _ = writeln!(io::stderr().lock(), ";; {}", account.sending());
        print::half_open_reset(account.half_open_reset);
    }
    recorded?;
    Ok(signal.unwrap_or(exit::SUCCESS))
}
