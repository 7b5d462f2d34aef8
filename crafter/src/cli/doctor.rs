//! `crafter doctor`: what crafter can do on this host, and what it lacks.
//!
//! It queries the kernel and creates minimal programs and maps to test for permission; it attaches nothing.

mod served;

use std::{fmt::Write as _, io, path::Path};

use crate::cli::exit;
use crafter::datapath::{
    features::{self, Host, XdpFeatures, version},
    interface::{self, Interface},
    nat,
    program::OLDEST_KERNEL,
};
use serde::Serialize;

use self::served::Served;
use super::{
    Globals, paint, print,
    service::Socket,
    style::{self, Paint},
};

/// Capabilities with which the binary works for every user without the service. The last one is optional.
const CAPABILITIES: &str = "cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock+ep";

/// Oldest kernel that the tests run on: major and minor version.
const OLDEST_TESTED: (u32, u32) = (6, 1);
/// First kernel on which drivers report their XDP features (netdev generic netlink family).
const FEATURES_KERNEL: (u32, u32) = (6, 3);

/// `crafter doctor`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    service: Socket,
}

const HELP: &str = "\
Checks what the service allows this user, then what this process can do without the service. If
capabilities are missing, it prints the `setcap` command that adds them. It attaches nothing: the
mode of an interface is derived from what its driver reports.
--json: an object with works, service (works, finding, socket, and from the service: version, abi,
user, rule), direct (whether this process works without the service), setcap (the command, or
null), checks (name, state: good, weak or bad, finding) and interfaces, each with its properties
(name, mtu, addresses, ...), xdp_features, attach (of this process: native, generic, tc or null),
delivery and notes.
Exit code: 0 if crafter can work, through the service or without it on at least one interface; 1
if it cannot.

Examples:
  crafter doctor
  crafter doctor --json | jq -r '.interfaces[] | .name + \" \" + .attach'";

/// Checks and prints the findings; attaches nothing.
///
/// # Errors
/// If the interfaces cannot be listed.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let service = Served::query(&args.service).await;
    let report = Report::new(service, features::host()?, interface::interfaces().await?);
    if globals.json {
        print::json(&report)?;
    } else {
        let text = paint::fill(&report.to_text(), style::columns(&io::stdout()));
        print::out(Paint::stdout().checks(&text))?;
    }
    Ok(if report.works { exit::SUCCESS } else { exit::FAILURE })
}

/// All findings.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether crafter works, through the service or directly.
    works: bool,
    service: Served,
    /// Whether this process can use at least one interface without the service.
    direct: bool,
    /// The command that adds the missing capabilities to the binary.
    setcap: Option<String>,
    checks: Vec<Check>,
    interfaces: Vec<Prospect>,
}

/// One finding about the host.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    finding: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Good,
    /// Works, with a limitation.
    Weak,
    /// Required to work without the service.
    Bad,
}

/// What crafter can use on one interface.
#[derive(Debug, Serialize)]
struct Prospect {
    #[serde(flatten)]
    interface: Interface,
    xdp_features: Option<XdpFeatures>,
    /// `native`, `generic` or `tc`; `None` if crafter cannot work on this host.
    attach: Option<&'static str>,
    /// `AF_XDP` or `ring buffer`.
    delivery: Option<&'static str>,
    /// Why no faster mode is available, and other remarks.
    notes: Vec<String>,
}

/// Whether the host translates addresses: then a lease can take packets of flows that have no socket.
fn nat(tables: io::Result<Vec<String>>) -> Check {
    let (state, finding) = match tables {
        Ok(tables) if tables.is_empty() => (State::Good, "the host translates no addresses".to_owned()),
        Ok(tables) => {
            let finding = format!(
                "{}: flows that the host translates have ports without a socket, and a lease of such a port takes their \
                 packets, because XDP and tc see them before conntrack does; in the policy, allow only ports outside of \
                 net.ipv4.ip_local_port_range and of published ports, and have masquerade use others (`masquerade to \
                 :PORT-PORT`)",
                tables.join(", ")
            );
            (State::Weak, finding)
        }
        Err(error) => (State::Weak, format!("cannot list what translates addresses: {error}; it takes CAP_NET_ADMIN")),
    };
    Check { name: "NAT", state, finding }
}

impl Report {
    fn new(service: Served, host: Host, interfaces: Vec<Interface>) -> Self {
        let version = version(&host.kernel);
        let checks = vec![
            kernel(&host.kernel, version),
            capabilities(&host),
            bpf(),
            btf(host.btf),
            jit(host.jit),
            classifier(&host.kernel),
            nat(nat::tables()),
        ];
        let can_work = checks.iter().all(|check| check.state != State::Bad);
        let interfaces: Vec<_> =
            interfaces.into_iter().map(|interface| Prospect::new(interface, can_work, version)).collect();
        let direct = interfaces.iter().any(|prospect| prospect.attach.is_some() && prospect.interface.up);
        let lacks = checks.iter().any(|check| check.name == CAPABILITY_CHECK && check.state == State::Bad);
        let setcap = std::env::current_exe().ok().filter(|_| lacks).map(|path| setcap(&path));
        Self { works: direct || service.works, service, direct, setcap, checks, interfaces }
    }

    fn to_text(&self) -> String {
        // A missing privilege is not a fault of the host if the service works.
        let (works, failed) = match self.service.works {
            true => ("works", "note"),
            false => ("does not work", "FAIL"),
        };
        let mut text = format!("through the service: {works}: {}\n", self.service.finding);
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        for Check { name, state, finding } in &self.checks {
            let state = match state {
                State::Good => "ok  ",
                State::Weak => "note",
                State::Bad => failed,
            };
            // Writing to a String cannot fail, here and below.
            let _ = writeln!(text, "{state}  {name:width$}  {finding}");
        }
        let heading = ["INTERFACE", "KIND", "STATE", "ATTACHES", "REPLIES BY"];
        text.push('\n');
        text += &print::table(heading, &heading, self.interfaces.iter().map(Prospect::row));
        if self.interfaces.iter().any(|prospect| !prospect.notes.is_empty()) {
            text.push('\n');
        }
        for Prospect { interface, notes, .. } in &self.interfaces {
            for note in notes {
                let _ = writeln!(text, "{}: {note}", interface.name);
            }
        }
        if let Some(line) = &self.setcap {
            let _ = writeln!(text, "\nFor every user to work without the service:\n  {line}");
        }
        text += match (self.direct, self.service.works) {
            (true, _) => "\ncrafter can work here.\n",
            (false, true) => "\ncrafter can work here, through the service.\n",
            (false, false) => "\ncrafter cannot work here.\n",
        };
        text
    }
}

fn kernel(release: &str, version: (u32, u32)) -> Check {
    let ((major, minor), (tested_major, tested_minor)) = (OLDEST_KERNEL, OLDEST_TESTED);
    let (state, note) = match version {
        _ if version < OLDEST_KERNEL => (State::Bad, format!("too old; upgrade to {major}.{minor} or later")),
        _ if version < OLDEST_TESTED => {
            (State::Weak, format!("older than {tested_major}.{tested_minor}, the oldest that is tested"))
        }
        _ => (State::Good, format!("{major}.{minor} or later is required")),
    };
    Check { name: "kernel", state, finding: format!("{release} ({note})") }
}

/// The command that adds all capabilities to a binary.
fn setcap(binary: &Path) -> String {
    let path = binary.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    let path = if path.chars().all(is_plain) { path } else { format!("'{}'", path.replace('\'', "'\\''")) };
    format!("sudo setcap {CAPABILITIES} {path}")
}

/// Name of the check that `setcap` can change.
const CAPABILITY_CHECK: &str = "capabilities";

fn capabilities(host: &Host) -> Check {
    // CAP_SYS_ADMIN includes the two capabilities that Linux 5.8 split off from it.
    let has = |name: &str| host.has(name) || (host.has("CAP_SYS_ADMIN") && matches!(name, "CAP_BPF" | "CAP_PERFMON"));
    let missing =
        |names: &[&'static str]| names.iter().filter(|name| !has(name)).copied().collect::<Vec<_>>().join(", ");
    let needed = missing(&["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"]);
    let useful = missing(&["CAP_IPC_LOCK"]);
    let (state, finding) = match (needed.as_str(), useful.as_str()) {
        ("", "") => (State::Good, "has CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and CAP_PERFMON".to_owned()),
        ("", useful) => {
            (State::Weak, format!("no {useful}: locked memory is limited; raise the limit with `ulimit -l`"))
        }
        (needed, _) => (State::Bad, format!("no {needed}; run as root, or `setcap` the binary as below")),
    };
    Check { name: CAPABILITY_CHECK, state, finding }
}

/// Whether programs and maps of the required types can be created. A kernel may be built without them, and the seccomp
/// filter of a container may block bpf().
fn bpf() -> Check {
    use aya::{
        maps::MapType,
        programs::ProgramType,
        sys::{is_map_supported, is_program_supported},
    };
    let programs = [("XDP programs", ProgramType::Xdp), ("classifiers", ProgramType::SchedClassifier)];
    let maps = [("XSKMAP", MapType::XskMap), ("ring buffers", MapType::RingBuf), ("LRU hashes", MapType::LruHash)];
    let programs = programs.map(|(what, kind)| (what, is_program_supported(kind).map_err(anyhow::Error::new)));
    let maps = maps.map(|(what, kind)| (what, is_map_supported(kind).map_err(anyhow::Error::new)));
    let all: Vec<_> = programs.into_iter().chain(maps).collect();
    let finding = match all.iter().find_map(|(_, supported)| supported.as_ref().err()) {
        // All others fail for the same reason.
        Some(error) => format!(
            "the bpf() system call fails: {}; see the capabilities above, and the seccomp filter of a container",
            error.root_cause()
        ),
        None => {
            let missing = all.iter().filter(|(_, supported)| matches!(supported, Ok(false)));
            missing.map(|(what, _)| format!("the kernel has no {what}")).collect::<Vec<_>>().join("; ")
        }
    };
    match finding.is_empty() {
        true => Check { name: "eBPF", state: State::Good, finding: "programs and maps can be created".into() },
        false => Check { name: "eBPF", state: State::Bad, finding },
    }
}

fn btf(exists: bool) -> Check {
    let finding = match exists {
        true => "/sys/kernel/btf/vmlinux exists",
        false => "no /sys/kernel/btf/vmlinux; crafter works without it, bpftool shows maps in less detail",
    };
    Check { name: "BTF", state: if exists { State::Good } else { State::Weak }, finding: finding.into() }
}

fn jit(enabled: Option<u8>) -> Check {
    let (state, finding) = match enabled {
        Some(0) => (State::Weak, "off: programs are interpreted; enable it with `sysctl net.core.bpf_jit_enable=1`"),
        Some(_) => (State::Good, "on"),
        None => (State::Good, "unknown: not visible in this network namespace"),
    };
    Check { name: "JIT", state, finding: finding.into() }
}

fn classifier(release: &str) -> Check {
    let finding = match features::has_tcx(release) {
        true => "tcx",
        false => "clsact (tcx requires Linux 6.6)",
    };
    Check { name: "egress filter", state: State::Good, finding: finding.into() }
}

impl Prospect {
    fn new(interface: Interface, can_work: bool, version: (u32, u32)) -> Self {
        let features = features::xdp_features(interface.ifindex);
        let holder = interface.xdp.map(|xdp| {
            let program = features::holder_of_program(xdp.program_id);
            let program = program.unwrap_or_else(|| format!("program {}", xdp.program_id));
            format!("{program}, {} mode", xdp.mode)
        });
        let native = match features {
            Some(features) => Native::Known(features.basic && features.redirect),
            None => Native::Unknown { too_old: version < FEATURES_KERNEL },
        };
        let (attach, mut notes) = mode(interface.ethernet, interface.loopback, holder.as_deref(), native);
        if !interface.up {
            notes.push(format!("it is down; bring it up with `ip link set {} up`", interface.name));
        } else if !interface.carrier {
            notes.push("it has no carrier".into());
        }
        let attach = can_work.then_some(attach);
        let delivery = attach.map(|attach| if attach == "tc" { "ring buffer" } else { "AF_XDP" });
        Self { interface, xdp_features: features, attach, delivery, notes }
    }

    fn row(&self) -> [String; 5] {
        let kind = match (&self.interface.kind, self.interface.loopback) {
            (Some(kind), _) => kind,
            (None, true) => "loopback",
            (None, false) => "hardware",
        };
        let state = match (self.interface.up, self.interface.carrier) {
            (false, _) => "down",
            (true, false) => "no carrier",
            (true, true) => "up",
        };
        let attach = self.attach.unwrap_or("nothing");
        [&self.interface.name, kind, state, attach, self.delivery.unwrap_or("-")].map(String::from)
    }
}

/// Whether a driver supports native XDP.
#[derive(Debug, Clone, Copy)]
enum Native {
    /// The driver reports whether it can pass, drop and redirect frames.
    Known(bool),
    /// The driver does not report it.
    Unknown { too_old: bool },
}

/// The ingress hook that crafter can use, and why no faster one.
fn mode(ethernet: bool, loopback: bool, holder: Option<&str>, native: Native) -> (&'static str, Vec<String>) {
    if !ethernet && !loopback {
        return ("tc", vec!["XDP is not possible: its packets have no Ethernet header".into()]);
    }
    // A device has one XDP program, in one mode.
    if let Some(holder) = holder {
        return ("tc", vec![format!("the XDP hook is in use by {holder}")]);
    }
    match native {
        Native::Known(true) => ("native", vec![]),
        Native::Known(false) => ("generic", vec!["its driver does not support native XDP".into()]),
        Native::Unknown { too_old } => {
            let why = if too_old { "kernels before 6.3 do not report" } else { "the driver does not report" };
            ("generic", vec![format!("native is tried first; {why} whether it is supported")])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_weak_or_bad() {
        for (release, expected) in [("6.18.0", (6, 18)), ("6.1.0-28-cloud-amd64", (6, 1)), ("5.18-rc1", (5, 18))] {
            assert_eq!(version(release), expected, "{release}");
        }
        for (release, state) in [
            ("5.17.99", State::Bad),
            ("4.19", State::Bad),
            ("5.18.0", State::Weak),
            ("6.1.0", State::Good),
            ("10.0", State::Good),
            ("", State::Bad),
        ] {
            assert_eq!(kernel(release, version(release)).state, state, "{release}");
        }
    }

    #[test]
    fn setcap_quotes_the_path() {
        let line = |path: &str| setcap(Path::new(path));
        let plain = "sudo setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock+ep /usr/bin/crafter";
        assert_eq!(line("/usr/bin/crafter"), plain);
        assert!(line("/opt/a b/it's").ends_with(r"+ep '/opt/a b/it'\''s'"));
    }

    #[test]
    fn mode_depends_on_link_and_driver() {
        let known = Native::Known;
        let unknown = Native::Unknown { too_old: true };
        for (ethernet, loopback, holder, native, expected) in [
            (true, false, None, known(true), "native"),
            (true, false, None, known(false), "generic"),
            (true, false, None, unknown, "generic"),
            (false, true, None, known(false), "generic"),
            (true, false, Some("other"), known(true), "tc"),
            (false, false, None, known(true), "tc"),
        ] {
            let (attach, notes) = mode(ethernet, loopback, holder, native);
            assert_eq!(attach, expected);
            assert_eq!(notes.is_empty(), attach == "native", "a slower mode has a note: {notes:?}");
        }
    }
}
