//! `crafter monitor`: prints events of the service as they occur.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use crate::cli::exit;
use crafter::protocol::{
    control::Subscription,
    wire::{Event, MonitorCall},
};
use serde_json::{Value, json};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    Globals,
    leases::ports,
    service::Socket,
    signals::{self, Interruption, Limit, Phase, Signals},
    who::{Users, printable},
};

/// Shortest interval that the service accepts.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// `crafter monitor`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Stop after N events
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    limit: Limit,
    /// Time between two reports of packet counts
    #[arg(long, value_name = "TIME", default_value = "1", value_parser = interval)]
    interval: Duration,
    #[command(flatten)]
    service: Socket,
}

const HELP: &str = "\
Prints one line for each event of the running service: of all leases if its policy lets this
user observe, else of the user's own. Beginning and end of leases, and interfaces attached,
detached or lost (hook-lost), are reported at once; packets delivered, suppressed, lost and
refused are counted and reported at every --interval. Times are UTC. Stops with Ctrl-C, after
--count events, at --timeout, or when the reader closes the pipe.
--json: one object per line as events occur, distinguished by type: event, then one summary (events:
how many). An event has event (lease-begun, lease-ended, delivered, suppressed, lost, refused,
hook-lost, attached, detached), time_ns, interface, lease, user, protocol, first_port, last_port,
count (packets since the last event of this kind and lease), bytes, message; null if it does not
apply (docs/schema/v1/monitor.json).
Exit code 0: stopped as above; 1: the service does not answer, or stopped; before --count events,
5: --timeout passed; 130: Ctrl-C.

Examples:
  crafter monitor
  crafter monitor --interval 0.1 --json
  crafter monitor --count 10";

fn interval(text: &str) -> Result<Duration, String> {
    let interval = signals::duration(text)?;
    if interval < MIN_INTERVAL { Err("too short; give at least 0.1 seconds".to_owned()) } else { Ok(interval) }
}

/// Prints events.
///
/// # Errors
/// Those of the service and of writing.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let mut signals = Signals::new(args.limit)?;
    let interval_ms = u64::try_from(args.interval.as_millis()).ok();
    let opening = async { args.service.open().await?.subscribe(&MonitorCall { interval_ms }).await };
    let events = match signals.unless(opening).await {
        Ok(events) => events?,
        Err(interruption @ Interruption::Signal(_)) => {
            if globals.json {
                super::print::json(&summary(0))?;
            }
            return Ok(interruption.usual_code(args.count.is_none()));
        }
        Err(interruption) => return Err(interruption.into()),
    };
    signals.clock().set_phase(Phase::Exchange);
    let mut printed = 0;
    let printing = print(events, args.count.unwrap_or(u64::MAX), globals.json, &mut printed);
    let until_end = async {
        tokio::select! {
            ended = printing => ended,
            () = stdout_closed() => Ok(()),
        }
    };
    let ended = signals.unless(until_end).await;
    if globals.json {
        super::print::json(&summary(printed))?;
    }
    match ended {
        Ok(Err(error)) if super::print::is_broken_pipe(&error) => Ok(exit::SUCCESS),
        Ok(ended) => ended.map(|()| exit::SUCCESS),
        Err(interruption) => Ok(interruption.usual_code(args.count.is_none())),
    }
}

/// The last record of JSON.
fn summary(events: u64) -> Value {
    json!({ "type": "summary", "events": events })
}

/// An event as a record of JSON.
fn record(event: &Event) -> serde_json::Result<Value> {
    let mut record = serde_json::to_value(event)?;
    record["type"] = json!("event");
    super::print::rename_microseconds(&mut record, "time", "time_ns");
    Ok(record)
}

async fn print(mut events: Subscription<MonitorCall>, count: u64, json: bool, printed: &mut u64) -> anyhow::Result<()> {
    let mut users = Users::default();
    while let Some(page) = events.next().await? {
        let mut text = Vec::new();
        for event in page.events {
            match json {
                true => serde_json::to_writer(&mut text, &record(&event)?)?,
                false => text.extend_from_slice(line(&event, &mut users).as_bytes()),
            }
            text.push(b'\n');
            *printed += 1;
            if *printed == count {
                break;
            }
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(&text)?;
        stdout.flush()?;
        if *printed == count {
            return Ok(());
        }
    }
    anyhow::bail!("the service has ended the subscription; see its log, then start `crafter monitor` again")
}

/// Returns when stdout is a pipe and its reader closes it. A write would fail only at the next event.
async fn stdout_closed() {
    // Registration fails for a file, which has no reader.
    // SAFETY: stdout is neither closed nor replaced while this process runs.
    let stdout = unsafe { AsyncFd::register_with_interest(io::stdout(), Interest::ERROR) };
    if let Ok(stdout) = stdout
        && let Ok(_closed) = stdout.ready(Interest::ERROR).await
    {
        return;
    }
    std::future::pending().await
}

fn line(event: &Event, users: &mut Users) -> String {
    let time = Duration::from_micros(event.time);
    let time = format!("{}.{:06}", super::print::time_of_day(time), time.subsec_micros());
    let mut words = vec![time, printable(&event.event)];
    words.extend(event.interface.as_deref().map(printable));
    words.extend(event.lease.map(|lease| format!("lease {lease}")));
    words.extend(event.user.map(|user| format!("user {}", users.label(user))));
    words.extend(event.protocol.clone());
    words.extend(event.first_port.map(|port| ports(Some(port), event.last_port)));
    words.extend(event.count.map(|count| super::print::counted(count, "packet")));
    words.extend(event.bytes.map(|bytes| format!("{bytes} bytes")));
    words.extend(event.message.as_deref().map(|message| format!("({})", printable(message))));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_of_an_event() {
        let mut users = Users::default();
        let time = 1_700_000_000_000_042;
        let attached = Event { event: "attached".into(), time, interface: Some("lab0".into()), ..Event::default() };
        assert_eq!(line(&attached, &mut users), "22:13:20.000042 attached lab0");
        let refused = Event {
            event: "refused".into(),
            lease: Some(5),
            user: Some(0),
            protocol: Some("tcp".into()),
            first_port: Some(50_000),
            last_port: Some(50_059),
            count: Some(1),
            bytes: Some(40),
            message: Some("rule 2:\x1b[2J".into()),
            ..attached
        };
        assert_eq!(
            line(&refused, &mut users),
            "22:13:20.000042 refused lab0 lease 5 user root tcp 50000-50059 1 packet 40 bytes (rule 2:?[2J)"
        );
    }

    #[test]
    fn short_interval_is_rejected() {
        assert_eq!(interval("0.1"), Ok(MIN_INTERVAL));
        assert!(interval("0.099").is_err() && interval("x").is_err());
    }
}
