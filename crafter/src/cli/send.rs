//! `crafter send`: sends packets without waiting for replies.

use std::cell::RefCell;

use crate::cli::exit;
use crafter::session::{Account, Event, Outcome, SrOptions};
use serde_json::json;

use super::{
    Globals,
    exchange::{self, Closed},
    live::{Counts, Live},
    print,
    signals::{Limit, Signals},
};

/// `crafter send`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    limit: Limit,
    #[command(flatten)]
    exchange: exchange::Args,
}

impl Args {
    /// Bounds the wait for the next hop, too, by `--timeout`.
    pub fn bounded(mut self) -> Self {
        self.exchange.link.hop_timeout = self.limit.timeout;
        self
    }
}

const HELP: &str = "\
A packet begins with IP, IPv6, Ether or ARP. Unset fields are filled in: source address and
next hop from the route, the source port (or ICMP identifier) from a lease that ends when all
packets are sent. After that the kernel answers a late SYN-ACK with a RST; `sr` waits for
replies and suppresses such RSTs while it waits.
Prints one line on stderr: the numbers of packets sent and not sent.
Ctrl-C and --timeout stop and print the account so far; a second Ctrl-C ends it at once.
--json: an object with account, mechanism, error and exit_code (docs/schema/v1/send.json).
Exit code 0: the kernel took all packets, or refused some, which the account counts;
5: --timeout passed before all were sent; 130: Ctrl-C; others as `crafter --help` lists them.

Examples:
  crafter send 'IP(dst=\"192.0.2.1\")/UDP(dport=9)/\"hello\"'
  crafter send --json 'IP(dst=\"192.0.2.0/28\")/ICMP()'";

/// Sends.
///
/// # Errors
/// Those of the expression, of values that do not fit, and of sending.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let mut signals = Signals::new(args.limit)?;
    let args = &args.exchange;
    let set = match args.set(&mut signals).await? {
        Ok(set) => set,
        Err(interruption) => return finish(args, globals, Account::default(), Closed::early(interruption)),
    };
    let packets = args.packets(&set)?;
    let options = SrOptions { pace: args.pace(), fragment: args.fragment(), ..SrOptions::default() };
    let total = args.total(&set);
    let counts = Counts { total: Some(total), ..Counts::default() };
    let live = RefCell::new(Live::new(args.capture.is_stdout(), counts));
    let on_event = |event: &Event<'_>| {
        if matches!(event.outcome, Outcome::Sent { .. }) {
            live.borrow_mut().count(|counts| counts.sent += 1);
        }
    };
    let sending = args.run(&mut signals, &live, on_event, async |session, observer| {
        session.send_with(packets, &options, observer).await
    });
    let (mut account, mut closed): (Account, _) = sending.await?;
    account.half_open_reset += closed.reset;
    closed.complete_if(account.requests == total);
    finish(args, globals, account, closed)
}

/// Prints the account; returns the exit code.
fn finish(args: &exchange::Args, globals: &Globals, account: Account, mut closed: Closed) -> anyhow::Result<u8> {
    if globals.json && !args.capture.is_stdout() {
        let mut object = json!({});
        closed.add_to(&mut object, &account, exit::SUCCESS);
        print::json(&object)?;
    } else {
        print::note(account.sending());
        print::half_open_reset(account.half_open_reset);
    }
    closed.check_recorded()?;
    Ok(closed.end(exit::SUCCESS))
}
