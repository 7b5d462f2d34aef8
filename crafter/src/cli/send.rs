//! `crafter send`: packets sent, answers not waited for.

use std::io::{self, Write as _};

use crafter::{error::exit, session::SrOptions};
use serde_json::json;

use super::{
    Globals, exchange,
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
    match interface::until_signal(send(&args.exchange, globals)).await? {
        Ended::Itself(result) => result,
        Ended::Signal(code) => Ok(code),
    }
}

async fn send(args: &exchange::Args, globals: &Globals) -> anyhow::Result<u8> {
    let set = args.set()?;
    let packets = args.packets(&set)?;
    let session = args.session().await?;
    let mut recorder = args.recorder()?;
    let options = SrOptions { pace: args.pace(), ..SrOptions::default() };
    let sent = session.send_with(packets, &options, &mut |event| recorder.handle(event)).await;
    let reports = session.reports().await;
    let reset = session.reset_half_open(options.pace, &mut |event| recorder.handle(event)).await;
    session.close().await;
    let (mut account, recorded) = (sent?, recorder.finish());
    account.half_open_reset += reset;
    if globals.json && !args.writes_to_stdout() {
        print::json(&json!({ "account": account, "mechanism": reports }))?;
    } else {
        // Nothing is left to complain to when stderr is gone.
        let _ = writeln!(io::stderr().lock(), ";; {}", account.sending());
        print::half_open_reset(account.half_open_reset);
    }
    recorded?;
    Ok(exit::SUCCESS)
}
