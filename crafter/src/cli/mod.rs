//! The commands, one file each. To add one: `mod NAME;`, a variant of
//! [`Command`], and its line in [`Command::run`].

use clap::{Args, Parser, Subcommand};

pub mod build;
pub mod counters;
pub mod dns;
pub mod doctor;
#[cfg(test)]
mod documentation;
pub mod exchange;
pub mod exit;
pub mod flows;
pub mod get;
pub mod host;
pub mod info;
pub mod interface;
pub mod lab;
pub mod leases;
pub mod logger;
pub mod ls;
pub mod man;
pub mod monitor;
pub mod pages;
pub mod ping;
pub mod policy;
pub mod print;
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
  0   all went well
  1   failure without a code of its own, such as a service that does not answer; doctor:
      nothing can work here
  2   wrong option or value
  3   no permission (the message names the capability)
  4   refused: by a RST to the SYN, by an ICMP unreachable, or by the policy of the service
  5   no answer in time
  6   the server answered with an error (HTTP 400 and up, DNS not NOERROR)
  7   the peer reset an established connection
  8   the port is taken
  9   unknown interface, no route, or the next hop does not answer
  10  the forced attach mode cannot be had
  11  the kernel is too old
lab run ends with the exit code of the command that it ran; 128 and more: ended by that
signal (130: Ctrl-C).

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
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Globals {
    /// Print one JSON object instead of text for humans
    #[arg(long, global = true)]
    pub json: bool,
    /// Log to stderr: off, error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn", env = "CRAFTER_LOG")]
    pub log: log::LevelFilter,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what crafter can do on this host, and why not more
    Doctor(doctor::Args),
    /// A throw-away network with a web server and a DNS server in it
    Lab(lab::Args),
    /// Fetch a URL over a crafted TCP stream
    Get(get::Args),
    /// Ask a DNS server over crafted packets
    Dns(dns::Args),
    /// Send packets in their text form
    Send(send::Args),
    /// Send packets and match what answers them
    Sr(sr::Args),
    /// Send one packet and show what answers it
    Sr1(sr::OneArgs),
    /// Ask a host whether it is there, by ICMP, TCP or UDP
    Ping(ping::Args),
    /// Show the routers on the way to a host
    Traceroute(traceroute::Args),
    /// Build packets from their text form: hex digits, bytes or a capture file
    Build(build::Args),
    /// List the layers, or the fields of one
    Ls(ls::Args),
    /// Show packets of a capture file or hex digits, field by field
    Show(show::Args),
    /// Print or write the packets of an interface as they come
    Sniff(sniff::Args),
    /// Send the packets of a capture file again
    Replay(replay::Args),
    /// Type packets by hand, with results in variables
    Shell(shell::Args),
    /// Say how the service runs, and which interfaces it is attached to
    Info(info::Args),
    /// List the leases of the service
    Leases(leases::Args),
    /// Serve others: unprivileged users lease ports from this process
    Serve(serve::Args),
    /// Show the flows of the service, or of running crafters
    Flows(flows::Args),
    /// Show the packet counters of the service, or of running crafters
    Counters(counters::Args),
    /// Print what happens in the service, as it happens
    Monitor(monitor::Args),
    /// Watch the leases, flows and interfaces of the service in a terminal
    Top(top::Args),
    /// Say what the service's policy allows, check one, have it read again
    Policy(policy::Args),
    /// Write the manual pages of all commands
    #[command(hide = true)]
    Man(man::Args),
    /// Print a script with which a shell completes commands and options
    Completions(man::CompletionsArgs),
}

impl Command {
    /// Runs the command; its result is the exit code.
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
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
