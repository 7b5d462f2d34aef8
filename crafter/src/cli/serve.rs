//! `crafter serve`: the service.

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
        ServeOptions, Signals,
        host::{privileges, systemd},
        serve,
    },
};
use nix::unistd::{Gid, Group, chown};

use super::{Globals, interface, service::Socket};

/// `crafter serve`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    socket: Socket,
    /// The group that may connect; without: crafter, if there is such a group, else root's
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Everybody may connect; the policy decides what they may do
    #[arg(long, conflicts_with = "group")]
    everybody: bool,
    /// Run as this user from now on, with four capabilities, and a fifth where locked memory is limited
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// The policy [default: /etc/crafter/crafter.toml if it exists, else the shipped one]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// End when there was nothing to do for so long [default: 60 where systemd opened the socket, else never]
    #[arg(long, value_name = "SECONDS", value_parser = interface::seconds)]
    idle: Option<Duration>,
    /// Ingress hook: native or generic XDP, tc, or the fastest that can be had
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = interface::attach())]
    attach: Attach,
    /// Entries of the flow map, which all interfaces share
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..))]
    flows: u32,
    /// Install no filter of system calls, to find out what it refuses
    #[arg(long)]
    no_seccomp: bool,
}

const HELP: &str = "\
Owns the hooks for all others: unprivileged users lease ports from it, as the policy says
(`crafter policy`). Attaches to an interface with its first lease, detaches a second after
its last. Needs CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_PERFMON, and gives up all else.

SIGHUP reads the policy again: all of it or, if something is wrong with it, nothing. SIGTERM
and SIGINT end it; leases end with it, and the kernel behaves as before.
Exit codes: 0 ended as told; 2 something is wrong with an option or the policy; 3 a capability
is missing.
--json: nothing is printed.

Examples:
  sudo crafter serve
  sudo crafter serve --user crafter --policy ./crafter.toml --socket /run/crafter/crafter.sock
  crafter policy check && sudo pkill -HUP -x crafter";

/// How long it waits for work where systemd starts it again.
const ACTIVATED_IDLE: Duration = Duration::from_secs(60);

/// Serves until it is told to end.
///
/// # Errors
/// Those of the socket, of the privileges and of the policy.
pub async fn run(args: Args, _: &Globals) -> anyhow::Result<u8> {
    // Every lease would be refused: the service manager is told now.
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
    // From here on no program can be started: what old kernels need one for is started now.
    let needs_guard = features::needs_guard()?;
    privileges::confine_beside(args.user.as_deref(), needs_guard.then_some(&guard::start_ahead))?;
    let load = LoadOptions { flow_entries: args.flows, ..LoadOptions::default() };
    let open = Options { attach: args.attach, load };
    let options = ServeOptions { policy: args.policy, open, idle, without_filter: args.no_seccomp };
    serve(options, listener, signals, systemd::Notifier::new()).await?;
    Ok(exit::SUCCESS)
}

/// A socket's file, removed when the service ends.
struct Bound(PathBuf);

impl Drop for Bound {
    fn drop(&mut self) {
        // Its directory may be another user's by now; what is left there is taken over by the next one.
        let _ = fs::remove_file(&self.0);
    }
}

fn bind(path: &Path, args: &Args) -> Result<UnixListener> {
    let failed = |source: io::Error| Error::Io { action: format!("listen on {}", path.display()), source };
    if UnixStream::connect(path).is_ok() {
        let reason = "another service answers there: end that one, or name another socket";
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
    // Nobody else may connect before it is whose it is to be.
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
    match &args.group {
        None => Ok(Group::from_name("crafter").map_err(failed)?.map(|group| group.gid)),
        Some(name) => match name.parse::<u32>() {
            Ok(number) => Ok(Some(Gid::from_raw(number))),
            Err(_) => match Group::from_name(name).map_err(failed)? {
                Some(group) => Ok(Some(group.gid)),
                None => Err(Error::invalid("--group", format_args!("there is no group '{name}' on this host"))),
            },
        },
    }
}
