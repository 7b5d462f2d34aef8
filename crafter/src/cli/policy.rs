//! `crafter policy`: checks and explains a policy file; shows and reloads the policy of the service.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::cli::exit;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use crafter::{
    Error,
    packet::Transport,
    policy::{Explanation, Policy, Problem, Question, SHIPPED},
    service::names,
};
use serde::Serialize;

use super::{Globals, account, complete, print};

mod served;

/// The policy file of the host.
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
    /// Show what the running service allows this user
    Show(served::ShowArgs),
    /// Let the running service reload its policy
    Reload(served::ReloadArgs),
    /// Report all errors of a policy file
    Check(CheckArgs),
    /// Show which rule of a policy applies to a packet, and why
    Explain(ExplainArgs),
}

const HELP: &str = "\
The policy defines what users and groups may send through the service. show and reload use the
running service; check and explain read a file, and need neither a service nor privileges.
Each has its own --help with exit codes and JSON keys.

Examples:
  crafter policy show
  crafter policy check crafter.toml
  crafter policy explain --user nobody --dst 192.0.2.1 --port 80
  crafter policy reload";

/// `crafter policy check`
#[derive(Debug, clap::Args)]
#[command(after_help = CHECK_HELP)]
struct CheckArgs {
    /// The policy file [default: /etc/crafter/crafter.toml if it exists, else the shipped policy]
    file: Option<PathBuf>,
}

const CHECK_HELP: &str = "\
Exit code 0: the service would accept the policy; warnings are on stderr; 2: it would not, and
all errors are on stderr.
--json: file, ok, rules (how many), errors and warnings (line, column, key, message).

Examples:
  crafter policy check
  crafter policy check --json crafter.toml";

/// `crafter policy explain`
#[derive(Debug, clap::Args)]
#[command(after_help = EXPLAIN_HELP)]
struct ExplainArgs {
    /// User who sends, by name or number; the user's groups are included
    #[arg(long, value_name = "USER", add = complete::users())]
    user: String,
    /// Group of the user, in addition (may be repeated)
    #[arg(long, value_name = "GROUP", add = complete::groups())]
    group: Vec<String>,
    /// Destination address
    #[arg(long, value_name = "ADDR")]
    dst: IpAddr,
    /// Port of the destination
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Protocol: tcp, udp or icmp
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp", value_parser = transport())]
    protocol: Transport,
    /// Source address of the packet
    #[arg(long, value_name = "ADDR")]
    source: Option<IpAddr>,
    /// Source port, or the identifier of an ICMP query
    #[arg(long, alias = "sport", value_name = "PORT")]
    source_port: Option<u16>,
    /// Interface to send on
    #[arg(long, short, visible_alias = "iface", value_name = "IF", add = complete::interfaces())]
    interface: Option<String>,
    /// The policy file [default: /etc/crafter/crafter.toml if it exists, else the shipped policy]
    file: Option<PathBuf>,
}

const EXPLAIN_HELP: &str = "\
Exit code 0: allowed; 4: refused. What no option sets, e.g. the source port, is assumed to be
allowed; the output lists it. Rates, max_leases and other maximum numbers are not checked.
--json: file, allowed, verdict, rule, line, destination_line, sentence, text (the rule's),
assumed.

Examples:
  crafter policy explain --user nobody --dst 192.0.2.1 --port 80
  crafter policy explain --user 1000 --group crafter --dst 2001:db8::1 --protocol icmp --json
  crafter policy explain --user nobody --dst 192.0.2.1 --source 192.0.2.7 crafter.toml";

/// Parser of protocols.
fn transport() -> impl TypedValueParser<Value = Transport> {
    PossibleValuesParser::new(["tcp", "udp", "icmp"]).map(|name| match name.as_str() {
        "udp" => Transport::Udp,
        "icmp" => Transport::Icmp,
        _ => Transport::Tcp,
    })
}

/// The text of a policy, and its origin.
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
/// For a file that cannot be read or an unknown user; for `explain` also for an invalid policy.
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
    // On stderr, one per line, with and without --json.
    for error in &checked.errors {
        print::report(format_args!("{}: {error}", checked.file), &[&error.excerpt(&source.text)]);
    }
    for warning in &checked.warnings {
        print::warning(Some(&checked.file), warning, &[&warning.excerpt(&source.text)]);
    }
    if globals.json {
        print::json(&checked)?;
    } else if checked.ok {
        print::out(format!("{}: valid, {}\n", checked.file, print::counted(checked.rules as u64, "rule")))?;
    }
    Ok(if checked.ok { exit::SUCCESS } else { exit::USAGE })
}

fn explain(args: ExplainArgs, globals: &Globals) -> anyhow::Result<u8> {
    let source = Source::read(args.file.as_deref())?;
    let policy = Policy::load(&source.text, &names::HostNames)?;
    let subject = names::subject(&args.user, &args.group).map_err(account::option_error)?;
    let (addresses, broadcasts) = names::addresses()?;
    let question = Question {
        interface: args.interface,
        source: args.source,
        source_port: args.source_port,
        destination: args.dst,
        port: args.port,
        transport: args.protocol,
        addresses,
        broadcasts,
    };
    let explanation = policy.explain(&subject, &question);
    let code = if explanation.allowed { exit::SUCCESS } else { exit::REFUSED };
    print::result(globals, &Explained { file: source.name, explanation }, text)?;
    Ok(code)
}

fn text(Explained { file, explanation }: &Explained) -> String {
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
                Ok(Self { name: format!("the shipped policy ({FILE} does not exist)"), text: SHIPPED.to_owned() })
            }
            Err(source) => Err(Error::Io { action: format!("read {}", name.display()), source }),
        }
    }
}
