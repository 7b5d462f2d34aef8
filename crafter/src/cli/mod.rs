//! The commands, one file for each. To add one: `mod NAME;`, a variant of [`Command`], and a line in
//! [`Command::run`].

use clap::{Args, Parser, Subcommand};

pub mod build;
pub mod counters;
pub mod dns;
pub mod doctor;
#[cfg(test)]
mod documentation;
#[cfg(test)]
mod errors_page;
pub mod exchange;
pub mod exit;
pub mod flows;
pub mod get;
pub mod info;
pub mod interface;
pub mod lab;
pub mod leases;
pub mod live;
pub mod logger;
pub mod ls;
pub mod man;
pub mod monitor;
pub mod pages;
pub mod ping;
pub mod policy;
pub mod print;
pub mod probe;
pub mod replay;
pub mod running;
pub mod send;
pub mod serve;
pub mod service;
pub mod shell;
pub mod show;
pub mod sniff;
pub mod sr;
pub mod system_names;
pub mod top;
pub mod traceroute;
pub mod who;

const EXIT_CODES: &str = "\
Exit codes, the same for every command:
  0   success
  1   a failure without its own code, e.g. the service does not answer; doctor: crafter cannot
      work on this host
  2   invalid option or value
  3   no permission (the message names the capability)
  4   refused: by a RST to the SYN, by an ICMP unreachable, or by the policy of the service
  5   no answer in time
  6   the server answered with an error (HTTP 400 and up, DNS other than NOERROR)
  7   the peer reset an established connection
  8   the port is in use
  9   unknown interface or host name, no route, or the next hop does not answer
  10  the attach mode that --attach forces is not available
  11  the kernel is too old
lab run ends with the exit code of the command that it ran. 128 + N: ended by signal N
(130: Ctrl-C).

Examples:
  crafter doctor
  crafter sr1 'IP(dst=\"192.0.2.1\")/TCP(dport=80, flags=\"S\")'
  crafter ls TCP
  crafter sr --help";

/// Craft TCP and UDP by hand on Linux without the kernel answering with a RST.
#[derive(Debug, Parser)]
#[command(name = "crafter", version, about, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub globals: Globals,
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Globals {
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Log to stderr: off, error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn", env = "CRAFTER_LOG")]
    pub log: log::LevelFilter,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what crafter can do on this host, and what it lacks
    Doctor(doctor::Args),
    /// Run commands in a temporary network with a web server and a DNS server
    Lab(lab::Args),
    /// Fetch a URL over a crafted TCP stream
    Get(get::Args),
    /// Query a DNS server with crafted packets
    Dns(dns::Args),
    /// Send packets given as text
    Send(send::Args),
    /// Send packets and match the replies
    Sr(sr::Args),
    /// Send one packet and show the first reply
    Sr1(sr::OneArgs),
    /// Test whether a host answers, by ICMP, TCP or UDP
    Ping(ping::Args),
    /// Show the routers on the path to a host
    Traceroute(traceroute::Args),
    /// Build packets given as text: prints hex digits or bytes, or writes a capture file
    Build(build::Args),
    /// List the layers, or the fields of one layer
    Ls(ls::Args),
    /// Show packets of a capture file or hex digits, field by field
    Show(show::Args),
    /// Capture the packets of an interface: print them, or write a capture file
    Sniff(sniff::Args),
    /// Send the packets of a capture file
    Replay(replay::Args),
    /// Craft packets at a prompt, with results in variables
    Shell(shell::Args),
    /// Show the state of the service and its interfaces
    Info(info::Args),
    /// List the leases of the service
    Leases(leases::Args),
    /// Run the service: unprivileged users lease ports from it
    Serve(serve::Args),
    /// Show the flows of the service, or of running crafters
    Flows(flows::Args),
    /// Show the packet counters of the service, or of running crafters
    Counters(counters::Args),
    /// Print events of the service as they occur
    Monitor(monitor::Args),
    /// Watch the leases, flows and interfaces of the service in a terminal
    Top(top::Args),
    /// Show, check, explain or reload the policy of the service
    Policy(policy::Args),
    /// Write the manual pages of all commands
    #[command(hide = true)]
    Man(man::Args),
    /// Print a completion script for a shell
    Completions(man::CompletionsArgs),
}

impl Command {
    /// Runs the command; returns the exit code.
    pub async fn run(self, globals: &Globals) -> anyhow::Result<u8> {
        match self {
            Self::Doctor(args) => doctor::run(args, globals).await,
            Self::Lab(args) => lab::run(args, globals).await,
            Self::Get(args) => get::run(args, globals).await,
            Self::Dns(args) => dns::run(args, globals).await,
            Self::Send(args) => send::run(args, globals).await,
            Self::Sr(args) => sr::run(args, globals).await,
            Self::Sr1(args) => sr::run_one(args, globals).await,
            Self::Ping(args) => ping::run(args, globals).await,
            Self::Traceroute(args) => traceroute::run(args, globals).await,
            Self::Build(args) => build::run(args, globals).await,
            Self::Ls(args) => ls::run(args, globals).await,
            Self::Show(args) => show::run(args, globals).await,
            Self::Sniff(args) => sniff::run(args, globals).await,
            Self::Replay(args) => replay::run(args, globals).await,
            Self::Shell(args) => shell::run(args, globals).await,
            Self::Info(args) => info::run(args, globals).await,
            Self::Leases(args) => leases::run(args, globals).await,
            Self::Serve(args) => serve::run(args, globals).await,
            Self::Flows(args) => flows::run(args, globals).await,
            Self::Counters(args) => counters::run(args, globals).await,
            Self::Monitor(args) => monitor::run(args, globals).await,
            Self::Top(args) => top::run(args, globals).await,
            Self::Policy(args) => policy::run(args, globals).await,
            Self::Man(args) => man::run(&args, globals),
            Self::Completions(args) => Ok(man::completions(&args)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
