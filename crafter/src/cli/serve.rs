//! `crafter serve`: runs the service.

mod socket;

use std::{path::PathBuf, time::Duration};

use self::socket::{Access, bind};
use crate::cli::exit;
use crafter::{
    Error, Options, Result,
    datapath::{
        features, guard,
        program::{self, Attach, LoadOptions},
    },
    service::{
        KEEP_ATTACHED, ServeOptions, Signals,
        host::{privileges, systemd},
        serve,
    },
};
use nix::unistd::{Gid, Group};

use super::{Globals, account, complete, interface, service::Socket, signals};

/// `crafter serve`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    socket: Socket,
    /// Group that may connect [default: crafter if that group exists, else root's]
    #[arg(long, value_name = "GROUP", add = complete::groups())]
    group: Option<String>,
    /// Let all users connect; the policy decides what they may do
    #[arg(long, conflicts_with = "group")]
    everybody: bool,
    /// User to switch to; keeps four capabilities, and a fifth if locked memory is limited
    #[arg(long, value_name = "USER", add = complete::users())]
    user: Option<String>,
    /// Read the policy from FILE [default: /etc/crafter/crafter.toml if it exists, else the shipped policy]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Exit after this idle time [default: 60 if systemd opened the socket, else never]
    #[arg(long, value_name = "TIME", value_parser = signals::duration)]
    idle: Option<Duration>,
    /// How long an interface stays attached after its last lease, so that the next one begins at once, 0 to detach at
    /// once; keep_attached of the policy takes precedence
    #[arg(long, value_name = "SECONDS", default_value_t = KEEP_ATTACHED.as_secs() as u32, value_parser = clap::value_parser!(u32).range(..=86_400), help_heading = "Engine", hide_short_help = true)]
    keep_attached: u32,
    /// Ingress hook: native or generic XDP, tc, or the fastest that is available
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = interface::attach(), help_heading = "Engine", hide_short_help = true)]
    attach: Attach,
    /// Entries of the flow map, which all interfaces share
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Engine", hide_short_help = true)]
    flows: u32,
    /// Do not install the system call filter, to find out what it blocks
    #[arg(long, help_heading = "Engine", hide_short_help = true)]
    no_seccomp: bool,
}

const HELP: &str = "\
Owns the hooks for its clients: unprivileged users lease ports from it, as the policy allows
(`crafter policy`). It attaches to an interface with the first lease, and detaches 30 seconds
after the last (--keep-attached), so that the next lease begins at once.
It needs CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_PERFMON, and drops all other capabilities.

SIGHUP reloads the policy; if the new policy has an error, the current one stays in force.
SIGTERM and SIGINT end the service and all leases; after that the kernel handles the ports
again.
Exit codes: 0 ended by a signal or idle; 2 an error in an option or in the policy; 3 a
capability is missing.
--json: nothing is printed.

Examples:
  sudo crafter serve
  sudo crafter serve --user crafter --policy ./crafter.toml --socket /run/crafter/crafter.sock
  crafter policy check && sudo pkill -HUP -x crafter";

/// Idle time before exit if systemd opened the socket: it starts the service again on the next connection.
const ACTIVATED_IDLE: Duration = Duration::from_secs(60);

/// Serves until a signal arrives or the service is idle.
///
/// # Errors
/// Those of the socket, of the privileges and of the policy.
pub async fn run(args: Args, _: &Globals) -> anyhow::Result<u8> {
    // On an old kernel every lease would fail: fail at the start, where the service manager sees it.
    program::supported()?;
    let signals = Signals::listen()?;
    let activated = systemd::listener()?;
    let mut idle = args.idle;
    let (listener, _own) = match activated {
        Some(listener) => {
            idle = idle.or(Some(ACTIVATED_IDLE));
            (listener, None)
        }
        None => {
            let path = args.socket.path();
            let access = Access { group: group(&args)?, everybody: args.everybody };
            let (listener, file) = bind(&path, &access)?;
            (listener, Some(file))
        }
    };
    // The confinement below forbids starting programs: the guard process of old kernels starts first.
    let needs_guard = features::needs_guard()?;
    privileges::confine_beside(args.user.as_deref(), needs_guard.then_some(&guard::start_ahead))
        .map_err(account::option_error)?;
    let load = LoadOptions { flow_entries: args.flows, ..LoadOptions::default() };
    let open = Options { attach: args.attach, load };
    let keep_attached = Some(Duration::from_secs(args.keep_attached.into()));
    let options = ServeOptions { policy: args.policy, open, idle, keep_attached, without_filter: args.no_seccomp };
    let served = serve(options, listener, signals, systemd::Notifier::new()).await;
    log::logger().flush();
    served?;
    Ok(exit::SUCCESS)
}

fn group(args: &Args) -> Result<Option<Gid>> {
    let failed = |errno: nix::Error| Error::Io { action: "look up a group".to_owned(), source: errno.into() };
    let name = args.group.as_deref().unwrap_or("crafter");
    if let Ok(number) = name.parse() {
        return Ok(Some(Gid::from_raw(number)));
    }
    match Group::from_name(name).map_err(failed)? {
        None if args.group.is_some() => {
            Err(Error::invalid("--group", format_args!("no group '{name}' on this host; `getent group` lists them")))
        }
        group => Ok(group.map(|group| group.gid)),
    }
}
