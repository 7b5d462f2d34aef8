//! `crafter serve`: runs the service.

use std::{
    fs, io,
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

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
use nix::unistd::{Gid, Group, chown};

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
            let listener = bind(&path, &args)?;
            (listener, Some(Bound(path)))
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

/// The file of a bound socket; removed on drop.
struct Bound(PathBuf);

impl Drop for Bound {
    fn drop(&mut self) {
        // Fails if the service has switched users and may not write the directory; the next start replaces the file.
        let _ = fs::remove_file(&self.0);
    }
}

fn bind(path: &Path, args: &Args) -> Result<UnixListener> {
    let failed = |source: io::Error| Error::Io { action: format!("listen on {}", path.display()), source };
    if UnixStream::connect(path).is_ok() {
        let reason = "another service is listening on it; stop that service, or choose another socket";
        return Err(Error::invalid(format!("--socket {}", path.display()), reason));
    }
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let group = group(args)?;
    // No other user may connect before owner and mode are set.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = listener.map_err(failed)?;
    chown(path, None, group).map_err(|errno| failed(errno.into()))?;
    let mode = if args.everybody { 0o666 } else { 0o660 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
    Ok(listener)
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
