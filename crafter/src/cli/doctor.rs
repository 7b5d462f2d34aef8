//! `crafter doctor`: what crafter can do on this host, and why not more.
//!
//! It asks the kernel and loads the smallest of programs and maps to see whether
//! it may; it attaches nothing.

mod served;

use std::{fmt::Write as _, path::Path};

use crate::cli::exit;
use crafter::datapath::{
    features::{self, Host, XdpFeatures, version},
    interface::{self, Interface},
    program::OLDEST_KERNEL,
};
use serde::Serialize;

use self::served::Served;
use super::{Globals, print, service::Socket};

/// What `setcap` is to give the binary so that every user works without the service: of these the last is useful only.
const CAPABILITIES: &str = "cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock+ep";

/// Oldest kernel that the tests run on.
const OLDEST_TESTED: (u32, u32) = (6, 1);
/// Since when drivers tell their XDP features (netdev generic netlink family).
const FEATURES_KERNEL: (u32, u32) = (6, 3);

/// `crafter doctor`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    service: Socket,
}

const HELP: &str = "\
First the service is asked what this user may do; then this process looks what it may do itself.
Where capabilities are missing for that, the `setcap` line is printed that gives them.
Nothing is attached: which mode an interface gets is what its driver tells.
--json: an object with works, service (works, finding, socket, and what it said: version, abi,
user, rule), direct (whether this process can work by itself), setcap (the line, or null), checks
(name, state: good, weak or bad, finding) and interfaces, each with its facts (name, mtu,
addresses, ...), xdp_features, attach (by this process: native, generic, tc or null), delivery and
notes.
Exit code: 0 if crafter can work, through the service or on at least one interface by itself; 1 if
it cannot.

Examples:
  crafter doctor
  crafter doctor --json | jq -r '.interfaces[] | .name + \" \" + .attach'";

/// Looks, prints, and attaches nothing.
///
/// # Errors
/// If the kernel does not answer.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let service = Served::ask(&args.service).await;
    let report = Report::new(service, features::host()?, interface::interfaces().await?);
    if globals.json {
        print::json(&report)?;
    } else {
        print::out(report.to_text())?;
    }
    Ok(if report.works { exit::SUCCESS } else { exit::FAILURE })
}

/// All findings.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether this user can work, in one way or the other.
    works: bool,
    service: Served,
    /// Whether at least one interface can be used by this process itself.
    direct: bool,
    /// What gives the binary the capabilities that are missing.
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
    /// It works, but less well.
    Weak,
    /// Without it nothing works but through the service.
    Bad,
}

/// What crafter would get on one interface.
#[derive(Debug, Serialize)]
struct Prospect {
    #[serde(flatten)]
    interface: Interface,
    xdp_features: Option<XdpFeatures>,
    /// `native`, `generic` or `tc`; none if nothing can work on this host.
    attach: Option<&'static str>,
    /// `AF_XDP` or `ring buffer`.
    delivery: Option<&'static str>,
    /// Why it is nothing better, and what to know.
    notes: Vec<String>,
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
        // Nothing is wrong with this host where the service does all that needs privileges.
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
        let rows: Vec<[String; 5]> = self.interfaces.iter().map(Prospect::row).collect();
        let head = ["INTERFACE", "KIND", "STATE", "ATTACHES", "REPLIES BY"].map(String::from);
        let widths: [usize; 5] = std::array::from_fn(|column| {
            rows.iter().chain([&head]).map(|row| row[column].chars().count()).max().unwrap_or(0)
        });
        let mut line = |row: &[String; 5]| {
            let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            let _ = writeln!(text, "{}", cells.join("  ").trim_end());
        };
        line(&[(); 5].map(|()| String::new()));
        line(&head);
        rows.iter().for_each(&mut line);
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
        _ if version < OLDEST_KERNEL => (State::Bad, format!("too old, {major}.{minor} or later is needed")),
        _ if version < OLDEST_TESTED => {
            (State::Weak, format!("older than {tested_major}.{tested_minor}, the oldest tested"))
        }
        _ => (State::Good, format!("{major}.{minor} or later is needed")),
    };
    Check { name: "kernel", state, finding: format!("{release} ({note})") }
}

/// The line that gives a binary all capabilities.
fn setcap(binary: &Path) -> String {
    let path = binary.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    let path = if path.chars().all(is_plain) { path } else { format!("'{}'", path.replace('\'', "'\\''")) };
    format!("sudo setcap {CAPABILITIES} {path}")
}

/// The check that `setcap` can turn.
const CAPABILITY_CHECK: &str = "capabilities";

fn capabilities(host: &Host) -> Check {
    // CAP_SYS_ADMIN still stands in for the two that were split off it (Linux 5.8).
    let has = |name: &str| host.has(name) || (host.has("CAP_SYS_ADMIN") && matches!(name, "CAP_BPF" | "CAP_PERFMON"));
    let missing =
        |names: &[&'static str]| names.iter().filter(|name| !has(name)).copied().collect::<Vec<_>>().join(", ");
    let needed = missing(&["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"]);
    let useful = missing(&["CAP_IPC_LOCK"]);
    let (state, finding) = match (needed.as_str(), useful.as_str()) {
        ("", "") => (State::Good, "CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and CAP_PERFMON are there".to_owned()),
        ("", useful) => (State::Weak, format!("without {useful}, locked memory is limited (`ulimit -l`)")),
        (needed, _) => (State::Bad, format!("{needed} missing (run as root, or `setcap` the binary as below)")),
    };
    Check { name: CAPABILITY_CHECK, state, finding }
}

/// Whether programs and maps of the kinds in use can be made: not where the kernel
/// is built without them, nor where a container's seccomp filter forbids bpf().
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
        // Refused as such, the rest would only repeat it.
        Some(error) => format!("the bpf() system call fails: {}", error.root_cause()),
        None => {
            let missing = all.iter().filter(|(_, supported)| matches!(supported, Ok(false)));
            missing.map(|(what, _)| format!("the kernel has no {what}")).collect::<Vec<_>>().join("; ")
        }
    };
    match finding.is_empty() {
        true => Check { name: "eBPF", state: State::Good, finding: "programs and maps can be made".into() },
        false => Check { name: "eBPF", state: State::Bad, finding },
    }
}

fn btf(there: bool) -> Check {
    let finding = match there {
        true => "/sys/kernel/btf/vmlinux is there",
        false => "no /sys/kernel/btf/vmlinux: crafter does without, bpftool shows its maps less well",
    };
    Check { name: "BTF", state: if there { State::Good } else { State::Weak }, finding: finding.into() }
}

fn jit(enabled: Option<u8>) -> Check {
    let (state, finding) = match enabled {
        Some(0) => (State::Weak, "off, programs are interpreted (`sysctl net.core.bpf_jit_enable=1`)"),
        Some(_) => (State::Good, "on"),
        None => (State::Good, "not to be seen from this network namespace"),
    };
    Check { name: "JIT", state, finding: finding.into() }
}

fn classifier(release: &str) -> Check {
    let finding = match features::has_tcx(release) {
        true => "tcx",
        false => "clsact (tcx came with 6.6)",
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
            Some(features) => Native::Told(features.basic && features.redirect),
            None => Native::Untold { too_old: version < FEATURES_KERNEL },
        };
        let (attach, mut notes) = mode(interface.ethernet, interface.loopback, holder.as_deref(), native);
        if !interface.up {
            notes.push(format!("it is down (`ip link set {} up`)", interface.name));
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

/// What is known about native XDP of a driver.
#[derive(Debug, Clone, Copy)]
enum Native {
    /// The driver says whether it passes, drops and redirects frames.
    Told(bool),
    /// It does not say.
    Untold { too_old: bool },
}

/// Which ingress hook crafter would get, and why not a faster one.
fn mode(ethernet: bool, loopback: bool, holder: Option<&str>, native: Native) -> (&'static str, Vec<String>) {
    if !ethernet && !loopback {
        return ("tc", vec!["packets have no Ethernet header, so no XDP".into()]);
    }
    // One program for each device, and no second one in the other mode.
    if let Some(holder) = holder {
        return ("tc", vec![format!("the XDP hook is taken by {holder}")]);
    }
    match native {
        Native::Told(true) => ("native", vec![]),
        Native::Told(false) => ("generic", vec!["its driver has no native XDP".into()]),
        Native::Untold { too_old } => {
            let why = if too_old { "kernels before 6.3 do not tell" } else { "the kernel does not tell" };
            ("generic", vec![format!("native is tried first; {why} whether the driver has it")])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
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
    fn the_line_for_setcap() {
        let line = |path: &str| setcap(Path::new(path));
        let plain = "sudo setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock+ep /usr/bin/crafter";
        assert_eq!(line("/usr/bin/crafter"), plain);
        assert!(line("/opt/a b/it's").ends_with(r"+ep '/opt/a b/it'\''s'"));
    }

    #[test]
    fn modes() {
        let told = Native::Told;
        let silent = Native::Untold { too_old: true };
        for (ethernet, loopback, holder, native, expected) in [
            (true, false, None, told(true), "native"),
            (true, false, None, told(false), "generic"),
            (true, false, None, silent, "generic"),
            (false, true, None, told(false), "generic"),
            (true, false, Some("other"), told(true), "tc"),
            (false, false, None, told(true), "tc"),
        ] {
            let (attach, notes) = mode(ethernet, loopback, holder, native);
            assert_eq!(attach, expected);
            assert_eq!(notes.is_empty(), attach == "native", "anything but native says why: {notes:?}");
        }
    }
}
