//! `crafter get`: fetches a URL over a crafted TCP stream.

mod http;
mod request;
mod response;
mod sink;
mod summary;
mod target;
mod trace;

use std::{
    io::{self, ErrorKind::BrokenPipe, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crafter::{Crafter, Error, Lease, Stream, StreamOptions, engine::Impair, packet::Transport};
use hyper::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use self::{
    http::Use,
    request::Request,
    response::{Decoder, Head},
    sink::Sink,
    summary::Summary,
    target::Target,
    trace::Trace,
};
use super::{
    Globals,
    exchange::Capture,
    exit, interface, print,
    recording::Recording,
    signals::{self, Interruption, Limit, Phase, Signals},
};

/// Time limit for closing the connection after a complete response.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Part of that time in which the server may close first.
const PEER_CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// `crafter get`
#[derive(Debug, clap::Args)]
// `-i` is `--include`, as in curl.
#[command(
    after_help = HELP,
    mut_arg("interface", |arg| arg.short(None)),
    mut_arg("timeout", |arg| arg.alias("max-time"))
)]
pub struct Args {
    /// The URL, [http://]HOST[:PORT][/PATH]; HOST is a name, an IPv4 address or an [IPv6] address
    url: String,
    /// Write the body to FILE instead of stdout
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write the status line and the header fields of the response before the body
    #[arg(long, short)]
    include: bool,
    /// Follow redirects, each over a connection of its own
    #[arg(long, short = 'L')]
    location: bool,
    /// Follow at most N redirects
    #[arg(long, value_name = "N", default_value_t = 10)]
    max_redirs: usize,
    #[command(flatten)]
    request: request::Args,
    /// Print a line per segment on stderr, as tcpdump does, with the time since the first segment
    #[arg(long, short)]
    verbose: bool,
    /// Drop this share of the segments in both directions
    #[arg(long, value_name = "N%", default_value = "0", value_parser = percent)]
    loss: f64,
    /// Duplicate this share of the segments in both directions
    #[arg(long, value_name = "N%", default_value = "0", value_parser = percent)]
    duplicate: f64,
    /// Delay this share of the segments in both directions, so that they arrive out of order
    #[arg(long, value_name = "N%", default_value = "0", value_parser = percent)]
    reorder: f64,
    /// Seed of the random numbers of --loss, --duplicate and --reorder
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    limit: Limit,
    /// Time to wait for the next hop's address (ARP, neighbour discovery), and again for the SYN-ACK
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = signals::duration)]
    connect_timeout: Duration,
    /// Offer TCP timestamps (RFC 7323)
    #[arg(long)]
    timestamps: bool,
    /// Use only IPv4 addresses of HOST
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Use only IPv6 addresses of HOST
    #[arg(short = '6', long)]
    ipv6: bool,
    #[command(flatten)]
    capture: Capture,
    #[command(flatten)]
    interface: interface::Args,
}

impl Args {
    /// Limits the resolution of the next hop and the connection, too, by `--timeout`.
    pub fn bounded(mut self) -> Self {
        self.connect_timeout = self.limit.timeout.map_or(self.connect_timeout, |limit| limit.min(self.connect_timeout));
        self.interface.link.hop_timeout = Some(self.connect_timeout);
        self
    }
}

const HELP: &str = "\
Writes the body to stdout or FILE as it arrives. If the transfer fails, the part received so far
remains there, and the message states its length. -i is --include, as in curl; in other commands
it is --interface. Prints a summary on stderr: handshake time, segments
and bytes in each direction, retransmissions, RSTs suppressed, mechanism.
--json: the summary as one JSON object, on stdout with -o FILE, else on stderr: url, redirects,
output, local, remote, status, content_length, body_bytes, setup_ns, duration_ns, bytes_per_second,
handshake_ns, timestamps, segments_sent, segments_received, bytes_sent, bytes_received,
retransmissions, duplicates, out_of_order, resets, hook_drops, no_room, rsts_suppressed,
rsts_passed, mechanism, notes, error and exit_code (docs/schema/v1/get.json).
Exit code 4: refused; 5: no answer in time; 6: HTTP status 400 or higher (the body is still
written); 7: reset by the peer; others as `crafter --help` lists them.

Examples:
  crafter get 192.0.2.1
  crafter get -o page.html --json http://[2001:db8::1]:8080/page
  crafter get --source-port 50000 --rst pass web.example.org/page";

/// Reads a share, `10%` or `10`.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>();
    match number {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err("not a percentage; give 0 to 100, e.g. 10%".to_owned()),
    }
}

/// Fetches.
///
/// # Errors
/// An invalid URL, and errors of the interface, the connection and the file.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let mut target = Target::parse(&args.url)?;
    let mut request = args.request.request()?;
    if args.loss + args.duplicate + args.reorder > 1.0 {
        let reason = "the sum with --duplicate and --reorder exceeds 100%; lower one of them";
        return Err(Error::invalid("--loss", reason).into());
    }
    let to_stdout = args.output.as_deref().is_none_or(|path| path == Path::new("-"));
    if to_stdout && args.capture.is_stdout() {
        let reason = "- writes to stdout, where the body goes; write one of them to a file";
        return Err(Error::invalid("--write", reason).into());
    }
    let mut signals = Signals::new(args.limit)?;
    let recording = Recording::create(&args.capture)?;
    let mut sink = Sink::new(args.output.as_deref(), print::is_quiet() || args.verbose || globals.json);
    let mut summary = Summary::new(&target, args.output.as_deref());
    let fetched = loop {
        let exchange = (&target, &request);
        let fetched = fetch(&args, exchange, &recording, &mut sink, &mut summary, &mut signals).await;
        match (fetched, summary.redirect.take()) {
            (Ok(Ok(())), Some((status, location))) if args.location => {
                match next(&args, &target, &location, &summary) {
                    Ok(next) => {
                        request = request.redirected(status, next.is_same_host(&target));
                        target = next;
                        summary.redirected(&target);
                    }
                    Err(error) => break Ok(Err(error)),
                }
            }
            (fetched, _) => break fetched,
        }
    };
    let error = match fetched {
        Ok(result) => {
            let finished = tokio::select! {
                finished = sink.finish() => Some(finished),
                interruption = signals.next() => {
                    summary.interrupt(interruption);
                    None
                }
            };
            match finished {
                Some(finished) => {
                    summary.body_bytes = finished.bytes;
                    match finished.error {
                        // The reader of stdout needs no more of the body (`crafter get ... | head`).
                        Some(Error::Io { source, .. }) if sink.is_stdout() && source.kind() == BrokenPipe => {
                            summary.notes.push("the reader of the body closed the pipe before its end".to_owned());
                            None
                        }
                        // If the body cannot be written, that is the cause of the failure.
                        error => error.map_or(result, Err).err().map(anyhow::Error::new),
                    }
                }
                None => {
                    summary.body_bytes = sink.abandon().await;
                    None
                }
            }
        }
        Err(interruption) => {
            summary.body_bytes = sink.abandon().await;
            summary.interrupt(interruption);
            None
        }
    };
    let error = error.or(recording.finish().err().map(anyhow::Error::new));
    if let Some(error) = &error {
        summary.exit_code = exit::code_of(error);
        summary.error = Some(print::sentence(error));
    }
    if globals.json {
        match args.output.is_some() && !args.capture.is_stdout() {
            true => print::json(&summary)?,
            false => print::stderr(serde_json::to_string(&summary)?),
        }
    } else {
        if !print::is_quiet() {
            let _ = io::stderr().lock().write_all(summary.to_string().as_bytes());
        }
        if let Some(sentence) = &summary.error {
            print::message(format_args!("{sentence}{}", summary.partial()));
        } else if let Some(status) = summary.http_error() {
            print::message(http_error(&args.url, status));
        }
    }
    Ok(summary.exit_code)
}

/// Message for an HTTP status of 400 or higher.
pub fn http_error(url: &str, status: StatusCode) -> String {
    format!("{url}: the server answered {status}; the body may give the reason")
}

/// The target of a redirect.
///
/// # Errors
/// [`Error::Io`] if it cannot be fetched, or after too many redirects.
fn next(args: &Args, target: &Target, location: &str, summary: &Summary) -> Result<Target, Error> {
    let failed = |reason: String| Error::Io {
        action: format!("follow the redirect of {} to {location}", target.url),
        source: io::Error::other(reason),
    };
    if summary.redirects() >= args.max_redirs {
        return Err(failed(format!("{} redirects came before it; raise --max-redirs", summary.redirects())));
    }
    target.join(location).map_err(|error| failed(error.to_string()))
}

/// A connection with its lease and driver, which are dropped in this order.
struct Connection {
    stream: Stream,
    lease: Lease,
    crafter: Crafter,
}

/// Fetches. After an interruption, the connection is reset and `summary` has its counters.
async fn fetch(
    args: &Args,
    (target, request): (&Target, &Request),
    recording: &Recording,
    sink: &mut Sink,
    summary: &mut Summary,
    signals: &mut Signals,
) -> Result<Result<(), Error>, Interruption> {
    let start = Instant::now();
    let clock = signals.clock();
    clock.set_phase(Phase::LookUp);
    let addresses = match signals.unless(target.addresses()).await? {
        Ok(addresses) => addresses,
        Err(error) => return Ok(Err(error)),
    };
    clock.set_phase(Phase::Opening);
    let connected = signals.unless(connect(args, target, addresses, recording, summary)).await?;
    let Connection { mut stream, lease, crafter } = match connected {
        Ok(connection) => connection,
        Err(error) => return Ok(Err(error)),
    };
    clock.set_phase(Phase::Exchange);
    summary.connected(&stream, crafter.report(), start.elapsed());
    let connected = Instant::now();
    let includes_head = args.include || args.request.head;
    let on_head = |head: &Head, sink: &mut Sink| {
        summary.head(head);
        sink.start();
        if args.location && summary.redirect.is_some() {
            return Use::Nothing;
        }
        sink.expect_body(head.length);
        Use::Body
    };
    let (bytes, decoder) = (request.encode(target), Decoder::new(request.is_head()));
    let transferred = tokio::select! {
        transferred = http::exchange(&mut stream, (target, &bytes), decoder, sink, includes_head, on_head) => Ok(transferred),
        interruption = signals.next() => Err(interruption),
    };
    summary.transfer = Some(connected.elapsed());
    let (transferred, mut interruption) = match transferred {
        Ok(transferred) => (transferred, None),
        Err(interruption) => (Ok(false), Some(interruption)),
    };
    // The stream's own error is the cause of the error that reading returned, so it takes precedence.
    let is_complete = transferred.map_err(|error| stream.error().unwrap_or(error));
    if matches!(is_complete, Ok(true)) {
        let closed = async {
            // The side that closes first waits in TIME-WAIT: `Connection: close` lets the server be that side.
            let _ = tokio::time::timeout(PEER_CLOSE_TIMEOUT, stream.read(&mut [0])).await;
            let _ = stream.shutdown().await;
            stream.closed().await
        };
        let closed = tokio::select! {
            closed = tokio::time::timeout(CLOSE_TIMEOUT, closed) => Some(closed),
            last = signals.next() => {
                // The response is complete: a time limit only shortens the wait.
                interruption = Some(last).filter(|last| !last.is_timeout());
                None
            }
        };
        match closed {
            Some(Ok(Ok(()))) | None => {}
            Some(Ok(Err(e))) => summary.notes.push(format!("after the complete response: {e}")),
            Some(Err(_)) => summary
                .notes
                .push(format!("the peer did not close within {CLOSE_TIMEOUT:?} after the complete response")),
        }
    }
    summary.stream = stream.stats();
    let counters = crafter.counters().map(|counters| summary.counted(&counters, &crafter.stats()));
    let result = is_complete.and(counters);
    // Dropping a stream that is still open sends a RST.
    drop(stream);
    drop(lease);
    let closed = tokio::select! {
        () = interface::close(crafter) => None,
        last = signals.next() => Some(last).filter(|last| !last.is_timeout()),
    };
    interruption.or(closed).map_or(Ok(result), Err)
}

/// Connects to the first address that accepts the connection.
async fn connect(
    args: &Args,
    target: &Target,
    found: Vec<SocketAddr>,
    recording: &Recording,
    summary: &mut Summary,
) -> Result<Connection, Error> {
    let wanted = |address: &SocketAddr| match args.interface.link.source {
        Some(source) => source.is_ipv4() == address.is_ipv4(),
        None => !(args.ipv4 && address.is_ipv6() || args.ipv6 && address.is_ipv4()),
    };
    let addresses: Vec<SocketAddr> = found.into_iter().filter(wanted).collect();
    let mut failed = None;
    for remote in addresses {
        if let Some(error) = failed.replace(match connect_to(args, remote, recording).await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        }) {
            summary.notes.push(error.to_string());
        }
        let try_next = matches!(
            failed,
            Some(
                Error::Refused { .. }
                    | Error::TimedOut { .. }
                    | Error::Unreachable { .. }
                    | Error::NoRoute { .. }
                    | Error::NoNeighbour { .. }
            )
        );
        if !try_next {
            break;
        }
    }
    Err(failed.unwrap_or_else(|| target.not_found("of the requested IP version")))
}

async fn connect_to(args: &Args, remote: SocketAddr, recording: &Recording) -> Result<Connection, Error> {
    let crafter = args.interface.link.open(remote).await?;
    // Traces and impairments apply to single segments.
    let coalesce = !args.verbose && impairment(args).is_none() && !recording.is_active();
    let request = args.interface.request(Transport::Tcp).coalesce(coalesce);
    let connected = async {
        let lease = crafter.lease(request).await?;
        let options = StreamOptions {
            hook: Trace::hook(args.verbose, impairment(args), recording, &crafter.interface().name),
            connect_timeout: Some(args.connect_timeout),
            timestamps: args.timestamps,
            ..StreamOptions::default()
        };
        let stream = lease.connect(remote, options).await?;
        Ok((stream, lease))
    };
    match connected.await {
        Ok((stream, lease)) => Ok(Connection { stream, lease, crafter }),
        Err(error) => {
            interface::close(crafter).await;
            Err(error)
        }
    }
}

fn impairment(args: &Args) -> Option<Impair> {
    let Args { loss, duplicate, reorder, seed, .. } = *args;
    (loss + duplicate + reorder > 0.0).then(|| {
        let mut impair = Impair::new(seed);
        (impair.loss, impair.duplicate, impair.reorder) = (loss, duplicate, reorder);
        impair
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_out_of_range_are_rejected() {
        for (text, share) in [("10%", 0.1), ("10", 0.1), ("0.5%", 0.005), ("100 %", 1.0), ("0", 0.0)] {
            assert_eq!(percent(text), Ok(share), "{text}");
        }
        for text in ["", "%", "-1%", "101", "NaN", "ten"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }
}
