//! Classifiers on kernels before 6.6, which have no tcx: filters under a clsact qdisc.
//!
//! Such a filter belongs to the device, not to a file descriptor, and so outlives its owner. A
//! guard process therefore waits for the end of its standard input, which comes when the owner
//! drops the other end or dies in whatever way, and then takes down what was put up.

use std::{
    io::Write,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

use aya::programs::{
    TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcError, TcHandle, qdisc_add_clsact},
};

use super::{failure::os_error, interface::Interface};
use crate::error::{Error, Result};

/// Collects one `tc` command per line, and at the end of input runs them, latest first. `$1` is the
/// device; `$2` is `1` if the qdisc is ours to remove, once nobody else has a filter there.
const GUARD: &str = r#"
trap '' INT TERM HUP QUIT
todo=
while IFS= read -r line; do todo="$line
$todo"; done
printf '%s' "$todo" | tc -force -batch - 2>/dev/null
if [ "$2" = 1 ] && [ -z "$(tc filter show dev "$1" ingress; tc filter show dev "$1" egress)" ]; then
    tc qdisc del dev "$1" clsact 2>/dev/null
fi
"#;

/// Filters of ours under clsact on one device, and their guard.
pub struct Clsact {
    interface: String,
    guard: Child,
    links: Vec<SchedClassifierLink>,
}

impl Clsact {
    /// Starts the guard, and adds the qdisc where it is missing.
    ///
    /// # Errors
    /// [`Error::Permission`] without CAP_NET_ADMIN; [`Error::Io`] without the program `tc`.
    pub fn open(interface: &Interface) -> Result<Self> {
        let name = &interface.name;
        let failed = |source| Error::Io {
            action: "run `tc` (package iproute2), which removes the filters on this kernel".into(),
            source,
        };
        let mut show = Command::new("tc");
        let shown = show.args(["qdisc", "show", "dev", name]).stdin(Stdio::null()).output().map_err(failed)?;
        let ours = !String::from_utf8_lossy(&shown.stdout).contains("clsact");
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new("sh");
        // A group of its own: what the terminal sends to ours must not reach the guard.
        command
            .args(["-c", GUARD, "crafter-guard", name, if ours { "1" } else { "0" }])
            .process_group(0)
            .stdin(Stdio::piped());
        let guard = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(failed)?;
        // The guard first: whoever is ended between the two leaves nothing. It goes with `opened` after an error, too.
        let opened = Self { interface: name.clone(), guard, links: Vec::new() };
        match qdisc_add_clsact(name) {
            Ok(()) | Err(TcError::AlreadyAttached) => Ok(opened),
            Err(e) => match os_error(&e) {
                Some(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(opened),
                Some(e) => Err(Error::io(format!("add a clsact qdisc to {name}"), "CAP_NET_ADMIN", e)),
                None => Err(Error::Bpf { action: format!("adding a clsact qdisc to {name}"), reason: e.to_string() }),
            },
        }
    }

    /// Where the next filter goes; the guard knows of it before it is there.
    ///
    /// # Errors
    /// [`Error::Io`] when the guard is gone.
    pub fn prepare(&mut self, direction: TcAttachType) -> Result<NlOptions> {
        // Nobody else's: if attaching failed because there is such a filter, the guard would remove that one. A priority
        // and a handle that together no two processes have, and a handle for each filter of this one.
        static FILTERS: AtomicU16 = AtomicU16::new(0);
        let pid = std::process::id();
        let priority = 20_000 + (pid % 20_000) as u16;
        let (major, minor) = (pid as u16, FILTERS.fetch_add(1, Ordering::Relaxed) | 0x8000);
        let side = if direction == TcAttachType::Ingress { "ingress" } else { "egress" };
        let handle = u32::from(major) << 16 | u32::from(minor);
        let line = format!("filter del dev {} {side} pref {priority} handle {handle:#x} bpf\n", self.interface);
        self.guard
            .stdin
            .as_mut()
            .map_or(Ok(()), |stdin| stdin.write_all(line.as_bytes()))
            .map_err(|source| Error::Io { action: "tell the guard of the filters".into(), source })?;
        Ok(NlOptions { priority, handle: TcHandle::new(major, minor), classid: None })
    }

    /// Keeps `link` until the end.
    pub fn hold(&mut self, link: SchedClassifierLink) {
        self.links.push(link);
    }
}

impl Drop for Clsact {
    fn drop(&mut self) {
        self.links.clear();
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}
