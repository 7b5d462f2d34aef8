//! `crafter policy`: reads a policy as the service does, and says what it means; or asks the service.

use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::cli::exit;
use crafter::{
    Error,
    packet::Transport,
    policy::{Explanation, Policy, Problem, Question, SHIPPED},
    service::names,
};
use serde::Serialize;

use super::{Globals, print};

mod served;

/// The host's own policy.
const FILE: &str = "/etc/crafter/crafter.toml";

/// `crafter policy`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Say what the running service allows this user
    Show(served::ShowArgs),
    /// Have the running service read its policy again
    Reload(served::ReloadArgs),
    /// Say all that is wrong with a policy
    Check(CheckArgs),
    /// Say which rule decides on a packet, and why
    Explain(ExplainArgs),
}

const HELP: &str = "\
The policy says which users and groups may send what by the service. show and reload ask the
service that runs; check and explain read a file, and need neither a service nor privileges.
Each has its own --help, exit codes and JSON.

Examples:
  crafter policy show
  crafter policy check crafter.toml
  crafter policy explain --user nobody --dst 192.0.2.1 --port 80
  crafter policy reload";

/// `crafter policy check`
#[derive(Debug, clap::Args)]
#[command(after_help = CHECK_HELP)]
struct CheckArgs {
    /// The policy; without: /etc/crafter/crafter.toml if it exists, else the shipped default
    file: Option<PathBuf>,
}

const CHECK_HELP: &str = "\
Exit code 0: the service would take it, maybe with warnings (on stderr); 2: it would not,
and every reason is told.
--json: file, ok, rules (how many), errors and warnings (line, column, key, message).

Examples:
  crafter policy check
  crafter policy check --json crafter.toml";

/// `crafter policy explain`
#[derive(Debug, clap::Args)]
#[command(after_help = EXPLAIN_HELP)]
struct ExplainArgs {
    /// Who sends: a name or a number, with the groups that the user has
    #[arg(long, value_name = "USER")]
    user: String,
    /// A group that the user shall be in too (may be repeated)
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    /// Destination address
    #[arg(long, value_name = "ADDRESS")]
    dst: IpAddr,
    /// Destination port
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// tcp, udp or icmp
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp")]
    protocol: Protocol,
    /// Source address
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpAddr>,
    /// Source port; the identifier of an ICMP query
    #[arg(long, value_name = "PORT")]
    sport: Option<u16>,
    /// Interface to send by
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// The policy; without: /etc/crafter/crafter.toml if it exists, else the shipped default
    file: Option<PathBuf>,
}

const EXPLAIN_HELP: &str = "\
Exit code 0: allowed; 4: refused. What is not asked (such as --sport) is taken for allowed,
which is said. Rates and counts are not decided here.
--json: file, allowed, verdict, rule, line, destination_line, sentence, text (the rule's),
assumed.

Examples:
  crafter policy explain --user nobody --dst 192.0.2.1 --port 80
  crafter policy explain --user 1000 --group crafter --dst 2001:db8::1 --protocol icmp --json
  crafter policy explain --user nobody --dst 192.0.2.1 --source 192.0.2.7 crafter.toml";

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

/// A policy's text, and where it is from.
struct Source {
    name: String,
    text: String,
}

#[derive(Serialize)]
struct Checked {
    file: String,
    ok: bool,
    rules: usize,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

#[derive(Serialize)]
struct Explained {
    file: String,
    #[serde(flatten)]
    explanation: Explanation,
}

/// Checks or explains.
///
/// # Errors
/// A file that cannot be read; a user who does not exist; for `explain` also a text that is no policy.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    match args.command {
        Command::Show(args) => served::show(args, globals).await,
        Command::Reload(args) => served::reload(args, globals).await,
        Command::Check(args) => check(&args, globals),
        Command::Explain(args) => explain(args, globals),
    }
}

fn check(args: &CheckArgs, globals: &Globals) -> anyhow::Result<u8> {
    let source = Source::read(args.file.as_deref())?;
    let mut checked = Checked { file: source.name, ok: false, rules: 0, errors: Vec::new(), warnings: Vec::new() };
    match Policy::parse(&source.text) {
        Ok(mut policy) => {
            policy.resolve(&names::HostNames)?;
            checked.ok = true;
            checked.rules = policy.rules().len();
            checked.warnings = policy.warnings();
        }
        Err(rejected) => checked.errors = rejected.problems,
    }
    // Humans and scripts both see these on stderr, one a line.
    for error in &checked.errors {
        say(&format!("{}: {error}", checked.file));
    }
    for warning in &checked.warnings {
        say(&format!("{}: warning: {warning}", checked.file));
    }
    if globals.json {
        print::json(&checked)?;
    } else if checked.ok {
        let rules = if checked.rules == 1 { "rule" } else { "rules" };
        print::out(format!("{}: fine, {} {rules}\n", checked.file, checked.rules))?;
    }
    Ok(if checked.ok { exit::SUCCESS } else { exit::USAGE })
}

fn explain(args: ExplainArgs, globals: &Globals) -> anyhow::Result<u8> {
    let source = Source::read(args.file.as_deref())?;
    let policy = Policy::load(&source.text, &names::HostNames)?;
    let subject = names::subject(&args.user, &args.group)?;
    let (addresses, broadcasts) = names::addresses()?;
    let question = Question {
        interface: args.interface,
        source: args.source,
        source_port: args.sport,
        destination: args.dst,
        port: args.port,
        transport: match args.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
            Protocol::Icmp => Transport::Icmp,
        },
        addresses,
        broadcasts,
    };
    let explanation = policy.explain(&subject, &question);
    let code = if explanation.allowed { exit::SUCCESS } else { exit::REFUSED };
    if globals.json {
        print::json(&Explained { file: source.name, explanation })?;
    } else {
        print::out(text(&source.name, &explanation))?;
    }
    Ok(code)
}

fn text(file: &str, explanation: &Explanation) -> String {
    let mut text = format!("{}\n", explanation.sentence);
    if !explanation.assumed.is_empty() {
        text += &format!("assumed: {}\n", explanation.assumed.join(", "));
    }
    match (&explanation.text, explanation.line) {
        (Some(rule), Some(line)) => {
            text += &format!("{file}, line {line}:\n");
            for line in rule.lines() {
                text += format!("  {line}").trim_end();
                text.push('\n');
            }
        }
        _ => text += &format!("policy: {file}\n"),
    }
    text
}

impl Source {
    fn read(file: Option<&Path>) -> Result<Self, Error> {
        let name = file.unwrap_or(Path::new(FILE));
        match fs::read_to_string(name) {
            Ok(text) => Ok(Self { name: name.display().to_string(), text }),
            Err(error) if file.is_none() && error.kind() == io::ErrorKind::NotFound => {
                Ok(Self { name: format!("the shipped default ({FILE} does not exist)"), text: SHIPPED.to_owned() })
            }
            Err(source) => Err(Error::Io { action: format!("read {}", name.display()), source }),
        }
    }
}

fn say(line: &str) {
    // Nothing is left to complain to when stderr is gone.
    let _ = writeln!(io::stderr().lock(), "crafter: {line}");
}
