//! The commands, one file for each. To add one: `mod NAME;`, a variant of [`Command`], a line in [`Command::run`], its
//! group in `groups.rs`, and its options in `crafter/docs/options.md`.

use std::{ffi::OsString, mem::ManuallyDrop, process::ExitCode};

use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use config::defaults::Defaults;

pub mod account;
pub mod blocked;
pub mod build;
pub mod complete;
pub mod config;
#[cfg(test)]
mod contract;
pub mod counters;
pub mod dns;
pub mod doctor;
#[cfg(test)]
mod documentation;
#[cfg(test)]
mod errors_page;
mod excerpt;
pub mod exchange;
pub mod exit;
pub mod flows;
pub mod get;
mod groups;
pub mod hang_up;
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
mod paint;
pub mod ping;
pub mod policy;
pub mod print;
pub mod probe;
pub mod recording;
pub mod replay;
pub mod running;
pub mod send;
pub mod serve;
pub mod service;
pub mod shell;
pub mod show;
pub mod signals;
pub mod sniff;
pub mod sr;
pub mod style;
pub mod system_names;
pub mod top;
pub mod traceroute;
mod version;
pub mod who;
mod zone;

/// The longest lines of the help, in columns.
const MAX_HELP_WIDTH: usize = 100;

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
#[command(name = "crafter", styles = style::CLAP, version, long_version = version::long(), about, after_help = EXIT_CODES, propagate_version = true)]
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
    /// Use colours: auto (on terminals), always or never
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_possible_values = true)]
    pub color: style::When,
    /// Print less: only results and errors, no notes, no summary on stderr, no progress
    #[arg(long, short, global = true)]
    pub quiet: bool,
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
    /// Show the defaults of options that the user's file sets
    Config(config::Args),
    /// Print a completion script for a shell
    Completions(man::CompletionsArgs),
}

/// The definition of the command line, without the user's defaults.
pub fn plain_command() -> clap::Command {
    Cli::command()
}

/// The definition of the command line, with groups of commands in its help.
pub fn command() -> clap::Command {
    groups::with_groups(plain_command()).term_width(help_width(style::columns(&std::io::stdout())))
}

/// The width of the help in columns: that of the terminal, else `COLUMNS`, within the widths that are readable.
fn help_width(terminal: Option<usize>) -> usize {
    let columns = || std::env::var("COLUMNS").ok()?.trim().parse().ok();
    // A terminal that reports 0 columns has an unknown width.
    terminal.or_else(columns).filter(|width| *width > 0).unwrap_or(MAX_HELP_WIDTH).clamp(40, MAX_HELP_WIDTH)
}

/// Whether an argument is clap's own: `--help`, `--version`.
pub fn is_builtin(arg: &clap::Arg) -> bool {
    matches!(
        arg.get_action(),
        clap::ArgAction::Help | clap::ArgAction::HelpShort | clap::ArgAction::HelpLong | clap::ArgAction::Version
    )
}

/// Parses the command line of this process, with the user's defaults. On failure prints the reason, and returns the
/// exit code.
///
/// # Errors
/// The exit code.
pub fn parse() -> Result<Cli, ExitCode> {
    let words: Vec<OsString> = std::env::args_os().collect();
    style::choose(style::given(&words));
    let defaults = Defaults::read(plain_command).or_else(|error| {
        // Help and version do not need the file.
        match command().try_get_matches_from(&words) {
            Err(help) if !help.use_stderr() => Ok(Defaults::default()),
            _ => Err(error),
        }
    });
    let defaults = defaults.map_err(|error| {
        let error = anyhow::Error::new(error);
        print::error(&error);
        ExitCode::from(exit::code_of(&error))
    })?;
    let parsed = matches(&defaults, words.into_iter()).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = parsed.map_err(|error| print::usage(&error))?;
    style::choose(cli.globals.color);
    print::set_quiet(cli.globals.quiet);
    Ok(cli)
}

/// Parses a command line. An option of the command line that excludes one of the defaults removes that default.
///
/// # Errors
/// Those of clap; help and version are also errors.
pub fn matches(defaults: &Defaults, words: impl Iterator<Item = OsString> + Clone) -> Result<ArgMatches, clap::Error> {
    // Freeing the definitions takes a tenth of the time of a short command, which ends soon.
    let mut defined = ManuallyDrop::new(defaults.apply(command(), &[]));
    let matches = defined.try_get_matches_from_mut(words.clone())?;
    let overridden = if defaults.is_empty() { Vec::new() } else { defaults.overridden(&plain_command(), &matches) };
    if overridden.is_empty() {
        return Ok(matches);
    }
    defaults.apply(command(), &overridden).try_get_matches_from(words)
}

impl Command {
    /// Whether the command handles SIGINT and SIGTERM itself. They end the others at once.
    pub fn handles_signals(&self) -> bool {
        matches!(
            self,
            Self::Get(_)
                | Self::Dns(_)
                | Self::Send(_)
                | Self::Sr(_)
                | Self::Sr1(_)
                | Self::Ping(_)
                | Self::Traceroute(_)
                | Self::Sniff(_)
                | Self::Replay(_)
                | Self::Shell(_)
                | Self::Monitor(_)
                | Self::Top(_)
        )
    }

    /// Runs the command; returns the exit code.
    pub async fn run(self, globals: &Globals) -> anyhow::Result<u8> {
        match self {
            Self::Doctor(args) => doctor::run(args, globals).await,
            Self::Lab(args) => lab::run(args, globals).await,
            Self::Get(args) => get::run(args.bounded(), globals).await,
            Self::Dns(args) => dns::run(args.bounded(), globals).await,
            Self::Send(args) => send::run(args.bounded(), globals).await,
            Self::Sr(args) => sr::run(args.bounded(), globals).await,
            Self::Sr1(args) => sr::run_one(args.bounded(), globals).await,
            Self::Ping(args) => ping::run(args.bounded(), globals).await,
            Self::Traceroute(args) => traceroute::run(args.bounded(), globals).await,
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
            Self::Config(args) => config::run(&args, globals),
            Self::Completions(args) => Ok(man::completions(&args)?),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn help_fits_the_terminal() {
        for (terminal, width) in [(Some(40), 40), (Some(80), 80), (Some(200), 100), (Some(0), 100), (Some(7), 40)] {
            assert_eq!(super::help_width(terminal), width);
            let mut root = super::command().term_width(width);
            root.build();
            for name in ["sr", "get", "dns", "serve"] {
                let command = root.find_subcommand_mut(name).unwrap();
                for help in [command.render_help(), command.render_long_help()] {
                    for line in help.to_string().lines().filter(|line| line.chars().count() > width) {
                        // clap wraps neither the usage nor a word, such as a URL.
                        let is_whole = line.starts_with("Usage: ") || line.split_whitespace().count() == 1;
                        assert!(is_whole, "{name}, {width} columns: {line}");
                    }
                }
            }
        }
    }

    #[test]
    fn command_line_is_consistent() {
        super::command().debug_assert();
    }
}
