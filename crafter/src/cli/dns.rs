//! `crafter dns`: a DNS query over crafted packets.

mod ask;
mod record;
mod resolver;
mod words;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::cli::exit;
use anyhow::Context as _;
use crafter::{Error, Result, datapath::program::Report, layer::Dns};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{DNSClass, Name, Record, RecordType},
};
use serde_json::json;

use self::{
    ask::{Answer, Asker},
    words::Words,
};
use super::{
    Globals,
    exchange::Capture,
    interface, print,
    recording::Recording,
    signals::{self, Limit, Phase, Signals},
    style::Paint,
};

/// How long to wait for the answer to each query by default.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// `crafter dns`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP, override_usage = "crafter dns [OPTIONS] NAME [TYPE] [CLASS] [@SERVER]")]
pub struct Args {
    /// The name to query, and in any order a record type, a class (IN, CH, HS) and @SERVER; an
    /// address is queried as its name in in-addr.arpa or ip6.arpa
    #[arg(required = true, value_name = "NAME")]
    words: Vec<String>,
    /// Same as @SERVER: the address of the server, with a port unless it is 53 ([2001:db8::1]:5353)
    /// [default: the servers of /etc/resolv.conf]
    #[arg(long, short_alias = 's', value_name = "ADDR[:PORT]", value_parser = words::parse_server)]
    server: Option<SocketAddr>,
    /// Same as TYPE: the record type, or e.g. TYPE64 for a type without a name [default: A; PTR for an address]
    #[arg(long = "type", short = 't', value_name = "TYPE", value_parser = record::parse_type)]
    kind: Option<RecordType>,
    // Not `Limit`: `-t` is `--type`, as in dig and host.
    /// Time limit for the whole command, from look-ups of names to the end [default: none]
    #[arg(long, value_name = "TIME", value_parser = signals::duration)]
    timeout: Option<Duration>,
    /// Time to wait for the answer to each query [default: 2; with --timeout that time, divided by the tries]
    #[arg(long, short = 'W', value_name = "TIME", value_parser = signals::duration)]
    wait: Option<Duration>,
    /// Send the query up to N times
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    tries: u32,
    /// Largest size of an answer over UDP, offered with EDNS; 0: no EDNS, 512 bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1232)]
    edns: u16,
    /// Query over TCP from the start
    #[arg(long)]
    tcp: bool,
    #[command(flatten)]
    capture: Capture,
    #[command(flatten)]
    interface: interface::Args,
}

impl Args {
    /// Bounds the wait for the next hop, too.
    pub fn bounded(mut self) -> Self {
        self.interface.link.hop_timeout = self.limit().next_hop(self.wait, 1);
        self
    }

    fn limit(&self) -> Limit {
        Limit { timeout: self.timeout }
    }
}

const HELP: &str = "\
Without a server, those of /etc/resolv.conf are queried in turn: the next one if a server cannot
be reached, does not answer, or answers SERVFAIL, REFUSED or NOTIMP. If every word is a type or a
class, as in mx a, the first word is the name.
Prints the records of the answer on stdout, one per line in the format of zone files, and the
response code, flags, time and transport on stderr after ;;. If the answer is truncated, the
query is repeated over TCP.
--json: an object with name, class, type, server, transport, rcode, flags, answers, authority and
additional (name, ttl, class, type, data), rtt_ns, bytes, attempts, truncated_over_udp, mechanism.
Exit code 0: NOERROR, with or without records; 4: an ICMP unreachable; 5: no answer in time;
6: NXDOMAIN, SERVFAIL, REFUSED, ...; others as `crafter --help` lists them.

Examples:
  crafter dns example.com
  crafter dns @192.0.2.53 example.com AAAA
  crafter dns @192.0.2.53 version.bind TXT CH
  crafter dns --server 2001:db8::53 --type MX --json example.com";

/// Queries and prints the answer.
///
/// # Errors
/// Those of the query.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let mut signals = Signals::new(args.limit())?;
    let recording = Recording::create(&args.capture)?;
    let clock = signals.clock();
    let work = async {
        let resolved = resolve(&args, globals, &recording, &|| clock.set_phase(Phase::Exchange)).await;
        recording.finish()?;
        resolved
    };
    let ended = signals.unless(work).await;
    // After an interruption, what was recorded so far.
    recording.finish()?;
    ended?
}

/// Queries, and calls `on_query` when a query is sent.
async fn resolve(args: &Args, globals: &Globals, recording: &Recording, on_query: &dyn Fn()) -> anyhow::Result<u8> {
    let words = Words::read(&args.words)?;
    let (name, kind) = question(words.name, only("TYPE", words.kind, "--type", args.kind)?)?;
    let class = words.class.unwrap_or(DNSClass::IN);
    let query = ask::query(name.clone(), kind, class, args.edns)?;
    let (reply, server) = match only("@SERVER", words.server, "--server", args.server)? {
        Some(server) => (query_server(args, server, &query, recording, on_query).await?, server),
        None => query_in_turn(args, &resolver::servers()?, &query, recording, on_query).await?,
    };
    let code = match reply.answer.message.metadata.response_code {
        ResponseCode::NoError => exit::SUCCESS,
        _ => exit::SERVER_ERROR,
    };
    if args.capture.is_stdout() {
        return Ok(code);
    }
    if globals.json {
        print_json(server, &name, (kind, class), &reply)?;
    } else {
        print_text(server, &reply)?;
    }
    Ok(code)
}

/// The value of a word or of the option with the same meaning.
///
/// # Errors
/// [`Error::Invalid`] if they differ.
fn only<T: PartialEq>(word: &str, by_word: Option<T>, option: &'static str, by_option: Option<T>) -> Result<Option<T>> {
    match (by_word, by_option) {
        (Some(one), Some(other)) if one != other => {
            Err(Error::invalid(option, format_args!("{word} has a different value; leave one of them out")))
        }
        (by_word, by_option) => Ok(by_word.or(by_option)),
    }
}

/// The reply of a server.
struct Reply {
    answer: Answer,
    /// Whether the first answer, over UDP, was truncated.
    truncated: bool,
    report: Report,
}

/// Queries the servers in turn until one gives a final answer. If none does, returns the last answer.
async fn query_in_turn(
    args: &Args,
    servers: &[SocketAddr],
    query: &Message,
    recording: &Recording,
    on_query: &dyn Fn(),
) -> anyhow::Result<(Reply, SocketAddr)> {
    let mut answered = None;
    for (at, &server) in servers.iter().enumerate() {
        let is_last = at + 1 == servers.len();
        match query_server(args, server, query, recording, on_query).await {
            Ok(reply) if !is_last && !is_final(&reply) => {
                let code = Dns::rcode_name(reply.answer.message.metadata.response_code.into());
                log::warn!("{server} answered {code}; querying the next server");
                answered = Some((reply, server));
            }
            Ok(reply) => return Ok((reply, server)),
            Err(error) if !is_last && concerns_server(&error) => log::warn!("{error}; querying the next server"),
            Err(error) if answered.is_some() && concerns_server(&error) => log::warn!("{error}"),
            Err(error) => {
                let from = resolver::RESOLV_CONF;
                return Err(error)
                    .with_context(|| format!("query {server} from {from} (@SERVER selects another server)"));
            }
        }
    }
    answered.ok_or_else(|| Error::invalid("server", "none is given; give one, e.g. @192.0.2.53").into())
}

/// Whether the answer is final; other servers are queried for the same codes as in glibc's resolver
/// (resolv/res_send.c).
fn is_final(reply: &Reply) -> bool {
    let code = reply.answer.message.metadata.response_code;
    !matches!(code, ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp)
}

/// Whether an error concerns one server, so that another may answer.
fn concerns_server(error: &Error) -> bool {
    use Error::{Forbidden, NoNeighbour, NoRoute, Refused, Reset, TimedOut, Unreachable};
    matches!(
        error,
        TimedOut { .. }
            | Unreachable { .. }
            | Refused { .. }
            | Reset { .. }
            | NoRoute { .. }
            | NoNeighbour { .. }
            | Forbidden { .. }
    )
}

async fn query_server(
    args: &Args,
    server: SocketAddr,
    query: &Message,
    recording: &Recording,
    on_query: &dyn Fn(),
) -> Result<Reply> {
    let crafter = args.interface.link.open(server).await?;
    // Received packets have no zone.
    let server = SocketAddr::new(server.ip(), server.port());
    let report = crafter.report().clone();
    log::info!("{report}");
    let timeout = args.limit().wait(args.wait, ANSWER_TIMEOUT, args.tries);
    let asker = Asker {
        crafter: &crafter,
        port: &args.interface,
        server,
        query: query.clone(),
        timeout,
        tries: args.tries,
        total: args.timeout.filter(|_| args.wait.is_none()).unwrap_or(timeout.saturating_mul(args.tries)),
        recording,
        on_query,
    };
    let answer = answer(&asker, args.tcp).await;
    interface::close(crafter).await;
    let (answer, truncated) = answer?;
    Ok(Reply { answer, truncated, report })
}

/// The answer, and whether an answer over UDP was truncated before.
async fn answer(asker: &Asker<'_>, tcp: bool) -> Result<(Answer, bool)> {
    if !tcp {
        let answer = asker.udp().await?;
        if !answer.message.metadata.truncation {
            return Ok((answer, false));
        }
        log::info!("the answer over UDP is truncated: querying over TCP");
    }
    Ok((asker.tcp().await?, !tcp))
}

/// Name and type to query. An address without a type, or with type PTR, becomes its reverse name.
fn question(text: &str, kind: Option<RecordType>) -> Result<(Name, RecordType)> {
    if let (Ok(address), None | Some(RecordType::PTR)) = (text.parse::<IpAddr>(), kind) {
        let mut name = Name::from(address);
        name.set_fqdn(true);
        return Ok((name, RecordType::PTR));
    }
    let invalid = |reason: &dyn std::fmt::Display| Error::invalid("NAME", format_args!("'{text}': {reason}"));
    if text.is_empty() {
        return Err(invalid(&"not a domain name; give one, e.g. example.org"));
    }
    // Only the last label of a name, that of the root, is empty (RFC 1035, section 3.1).
    if text != "." && (text.starts_with('.') || text.contains("..")) {
        return Err(invalid(&"a label is empty; remove the extra dot"));
    }
    let mut name = Name::from_str_relaxed(text).map_err(|e| invalid(&e))?;
    name.set_fqdn(true);
    Ok((name, kind.unwrap_or(RecordType::A)))
}

fn flags(message: &Message) -> Vec<&'static str> {
    let meta = &message.metadata;
    [
        (true, "qr"),
        (meta.authoritative, "aa"),
        (meta.truncation, "tc"),
        (meta.recursion_desired, "rd"),
        (meta.recursion_available, "ra"),
        (meta.authentic_data, "ad"),
        (meta.checking_disabled, "cd"),
    ]
    .into_iter()
    .filter_map(|(set, name)| set.then_some(name))
    .collect()
}

fn print_text(server: SocketAddr, Reply { answer, truncated, .. }: &Reply) -> anyhow::Result<()> {
    let message = &answer.message;
    let lines: Vec<String> = message.answers.iter().map(|record| record::line(record) + "\n").collect();
    print::out(Paint::stdout().table(&lines.concat()))?;
    let again = match answer.attempts {
        _ if *truncated => ", truncated over UDP".to_owned(),
        1 => String::new(),
        attempts => format!(", {attempts} queries"),
    };
    print::note(format_args!(
        "{}, flags: {}; {} answers, {} authority, {} additional; {:.3} ms, {} {server}, {} bytes{again}",
        Dns::rcode_name(message.metadata.response_code.into()),
        flags(message).join(" "),
        message.answers.len(),
        message.authorities.len(),
        message.additionals.len(),
        answer.time.as_secs_f64() * 1e3,
        answer.transport,
        answer.size,
    ));
    Ok(())
}

fn print_json(
    server: SocketAddr,
    name: &Name,
    (kind, class): (RecordType, DNSClass),
    reply: &Reply,
) -> anyhow::Result<()> {
    let Reply { answer, truncated, report } = reply;
    let message = &answer.message;
    let records = |records: &[Record]| records.iter().map(record::object).collect::<Vec<_>>();
    print::json(&json!({
        "name": name.to_ascii(),
        "class": record::class_name(class),
        "type": record::type_name(kind),
        "server": server,
        "transport": answer.transport.name().to_lowercase(),
        "rcode": Dns::rcode_name(message.metadata.response_code.into()),
        "flags": flags(message),
        "answers": records(&message.answers),
        "authority": records(&message.authorities),
        "additional": records(&message.additionals),
        "rtt_ns": print::nanoseconds(answer.time),
        "bytes": answer.size,
        "attempts": answer.attempts,
        "truncated_over_udp": truncated,
        "mechanism": report,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_becomes_its_reverse_name() {
        let ask = |text: &str, kind| question(text, kind).map(|(name, kind)| (name.to_ascii(), kind));
        assert_eq!(ask("lab.test", None).unwrap(), ("lab.test.".into(), RecordType::A));
        assert_eq!(ask("192.0.2.1", None).unwrap(), ("1.2.0.192.in-addr.arpa.".into(), RecordType::PTR));
        assert_eq!(ask("192.0.2.1", Some(RecordType::A)).unwrap().0, "192.0.2.1.");
        assert_eq!(ask("_dns.lab.test.", Some(RecordType::SRV)).unwrap().0, "_dns.lab.test.");
        assert_eq!(ask(".", Some(RecordType::NS)).unwrap().0, ".");
        assert!(ask("2001:db8::1", None).unwrap().0.ends_with("8.b.d.0.1.0.0.2.ip6.arpa."));
        for text in ["", "..", "a..b", ".a", &"a".repeat(64), &"a.".repeat(128)] {
            assert!(matches!(ask(text, None), Err(Error::Invalid { what, .. }) if what == "NAME"), "{text}");
        }
    }
}
