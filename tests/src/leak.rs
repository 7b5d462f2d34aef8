//! Checks for leaked BPF objects, by id, and for leaked attachments, by interface.
//!
//! Ids are unique in the whole kernel, so BPF objects of other processes do not disturb the checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    process::Command,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use aya::{
    maps::loaded_maps,
    programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_links, loaded_programs},
};
use crafter::{
    datapath::{features, interface::interface},
    lab::NetNs,
};

use crate::{peer::wait_for, slow};

/// Kernel ids of BPF objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfObjects {
    /// Ids of programs.
    pub programs: BTreeSet<u32>,
    /// Ids of maps.
    pub maps: BTreeSet<u32>,
    /// Ids of links.
    pub links: BTreeSet<u32>,
}

impl BpfObjects {
    /// The objects that a process holds open.
    pub fn of(pid: u32) -> Self {
        let mut found = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let field = |name: &str| -> Option<u32> {
                text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
            };
            found.programs.extend(field("prog_id"));
            found.maps.extend(field("map_id"));
            found.links.extend(field("link_id"));
        }
        found
    }

    /// The objects among these that still exist in the kernel.
    pub fn alive(&self) -> Self {
        let programs: BTreeSet<u32> = loaded_programs().flatten().map(|program| program.id()).collect();
        let maps: BTreeSet<u32> = loaded_maps().flatten().map(|map| map.id()).collect();
        let links: BTreeSet<u32> = loaded_links().flatten().map(|link| link.id()).collect();
        let both = |a: &BTreeSet<u32>, b: &BTreeSet<u32>| a.intersection(b).copied().collect();
        Self {
            programs: both(&self.programs, &programs),
            maps: both(&self.maps, &maps),
            links: both(&self.links, &links),
        }
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Waits until the kernel has freed all of them, which it does in the background.
    pub fn wait_until_freed(&self, timeout: Duration) {
        let mut left = Self::default();
        let freed = || {
            left = self.alive();
            left.is_empty().then_some(())
        };
        wait_for("the release of all programs, maps and links", timeout, freed);
    }
}

/// Whether this kernel has tcx (Linux 6.6), so that classifiers attach as links.
pub fn has_tcx() -> bool {
    features::has_tcx(&features::host().expect("the host's facts").kernel)
}

/// Asserts that nothing is attached to an interface. A process that another test forks holds copies of the hooks'
/// descriptors until its `execve`, so it waits up to 10 s.
///
/// # Panics
/// If something is still attached.
#[track_caller]
pub fn assert_detached(namespace: &NetNs, name: &str) {
    let mut left = Vec::new();
    slow::wait_until(Duration::from_secs(10), || {
        left = attached(namespace, name);
        left.is_empty()
    });
    assert_eq!(left, Vec::<String>::new());
}

/// Everything attached to an interface: XDP, tcx programs of both directions, and filters of clsact.
pub fn attached(namespace: &NetNs, name: &str) -> Vec<String> {
    namespace
        .run(|| {
            let mut found = Vec::new();
            let xdp = crate::block_on(interface(name)).expect("the interface").xdp;
            found.extend(xdp.map(|xdp| format!("XDP program {} ({})", xdp.program_id, xdp.mode)));
            for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
                let programs = match SchedClassifier::query_tcx(name, direction) {
                    Ok((_, programs)) => programs,
                    Err(_) if !has_tcx() => Vec::new(),
                    Err(e) => panic!("query tcx: {e}"),
                };
                found.extend(
                    programs
                        .iter()
                        .map(|program| format!("{} at tcx {direction:?}", program.name_as_str().unwrap_or_default())),
                );
                let side = if direction == TcAttachType::Egress { "egress" } else { "ingress" };
                let filters = crate::testbed::run(Command::new("tc").args(["filter", "show", "dev", name, side]));
                found.extend(filters.lines().filter(|line| line.contains(" handle ")).map(str::to_owned));
            }
            found
        })
        .expect("enter the namespace")
}

/// The clsact qdisc of an interface, as shown by `tc`.
pub fn clsact(namespace: &NetNs, name: &str) -> Vec<String> {
    let shown = crate::testbed::run(namespace.command("tc").args(["qdisc", "show", "dev", name]));
    shown.lines().filter(|line| line.contains("clsact")).map(str::to_owned).collect()
}

/// Ids of the programs in the kernel whose name begins with `crafter`.
fn crafter_programs() -> BTreeSet<u32> {
    let ours = |program: &ProgramInfo| program.name_as_str().is_some_and(|name| name.starts_with("crafter"));
    loaded_programs().flatten().filter(ours).map(|program| program.id()).collect()
}

/// Those of [`crafter_programs`] that no process holds: filters of clsact, pinned programs, and programs that are being
/// freed. A crafter that runs, in another test or elsewhere on this kernel, holds its programs; in a PID namespace of its
/// own a test does not see such a process outside of it, and finds the programs of that process, too.
pub fn unheld_programs() -> BTreeSet<u32> {
    let mut found = crafter_programs();
    // Reading the descriptors of all processes takes longer than listing the programs. One listed before is held now, or
    // its process has ended.
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if found.is_empty() {
            break;
        }
        if let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) {
            let held = BpfObjects::of(pid).programs;
            found.retain(|id| !held.contains(id));
        }
    }
    found
}

/// Waits until nothing of crafter is left: no program without a holder ([`unheld_programs`]) that was not there `before`
/// and was loaded before this call, nothing attached to the interface, no clsact qdisc, and nothing that `others` returns.
///
/// # Panics
/// If something is left; `point` names the situation in the message.
pub fn assert_nothing_left(
    (namespace, name): (&NetNs, &str),
    before: &BTreeSet<u32>,
    point: &str,
    others: impl Fn() -> Vec<String>,
) {
    let mut left = Vec::new();
    let loaded = crafter_programs();
    // The programs of a crafter outside of this PID namespace are unloaded when it ends.
    let limit = Duration::from_secs(if in_first_pid_namespace() { 5 } else { 60 });
    let clean = slow::wait_until(limit, || {
        left = attached(namespace, name);
        left.extend(clsact(namespace, name));
        let unheld = &unheld_programs() & &loaded;
        left.extend(unheld.difference(before).map(|id| format!("program {id}")));
        left.extend(others());
        left.is_empty()
    });
    assert!(clean, "{point}: left behind {left:?}");
}

/// Whether every process of this kernel is visible here: the kernel gives its first PID namespace a fixed inode number
/// (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
fn in_first_pid_namespace() -> bool {
    fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == 0xeffffffc)
}

/// Number of open descriptors of a process by kind: `socket`, `net` (a namespace), `anon_inode:bpf-map`, or a path.
pub fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        // The descriptor of this read_dir is closed by the time its link is read by another call.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy();
        let kind = target.split_once(":[").map_or(&*target, |(kind, _)| kind);
        if !kind.ends_with("/fd") {
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
    }
    kinds
}

/// The kinds of descriptors of which `now` has more than `before`, with the difference.
pub fn more(now: &BTreeMap<String, usize>, before: &BTreeMap<String, usize>) -> Vec<String> {
    let than = |kind: &String| before.get(kind).copied().unwrap_or(0);
    let more = now.iter().filter(|(kind, count)| **count > than(kind));
    more.map(|(kind, count)| format!("{} of {kind}", count - than(kind))).collect()
}

/// A test that runs alone: most of these tests keep two CPUs busy, and this guard checks what this process holds. When
/// it is dropped, after everything else in the test, this process must have as many descriptors of each kind as before:
/// programs, maps, links, sockets, namespaces, files.
pub struct Serial {
    before: BTreeMap<String, usize>,
    _lock: RwLockWriteGuard<'static, ()>,
}

/// Lock of all tests of an executable, which `cargo test` runs on several threads.
static LOCK: RwLock<()> = RwLock::new(());

impl Serial {
    /// Waits until no other test runs and this process holds no BPF objects.
    pub fn begin() -> Self {
        // A failed test poisons the lock and is reported by itself.
        let lock = LOCK.write().unwrap_or_else(PoisonError::into_inner);
        wait_for("a process without BPF objects", Duration::from_secs(10), || {
            BpfObjects::of(std::process::id()).is_empty().then_some(())
        });
        // The first runtime of a process opens a pair of sockets for signals, which stay open.
        crate::block_on(async {});
        Self { before: descriptors(std::process::id()), _lock: lock }
    }

    /// The BPF objects of this process; asserts that there are some, so that a broken check is noticed.
    pub fn objects(&self) -> BpfObjects {
        let objects = BpfObjects::of(std::process::id());
        let counts = [objects.programs.len(), objects.maps.len(), objects.links.len()];
        // Filters of clsact are not links.
        let wanted = if has_tcx() { &counts[..] } else { &counts[..2] };
        assert!(wanted.iter().all(|count| *count > 0), "programs, maps, links: {counts:?}");
        assert_eq!(objects.alive(), objects);
        objects
    }

    /// Asserts that nothing of `objects` is left and nothing is attached.
    pub fn finish(&self, objects: &BpfObjects, namespace: &NetNs, interface: &str) {
        assert_eq!(BpfObjects::of(std::process::id()), BpfObjects::default(), "this process still holds");
        objects.wait_until_freed(Duration::from_secs(10));
        assert_eq!(attached(namespace, interface), Vec::<String>::new());
    }
}

/// A test that may run in parallel with others of this kind, but not with a [`Serial`] test.
pub struct Parallel {
    _lock: RwLockReadGuard<'static, ()>,
}

impl Parallel {
    /// Waits until no [`Serial`] test runs.
    pub fn begin() -> Self {
        Self { _lock: LOCK.read().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut left = Vec::new();
        let clean = slow::wait_until(Duration::from_secs(5), || {
            left = more(&descriptors(std::process::id()), &self.before);
            left.is_empty()
        });
        assert!(clean, "this process still has these descriptors: {left:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::IoSlice,
        os::{fd::AsRawFd as _, unix::net::UnixStream},
    };

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;
    use crate::foreign::other_version;

    #[test]
    fn only_programs_without_a_holder_are_left() {
        let own = || BpfObjects::of(std::process::id()).programs;
        assert_eq!(own(), BTreeSet::new());
        let program = other_version().expect("a program");
        let own = own();
        assert_eq!(own.len(), 1);
        assert!(unheld_programs().is_disjoint(&own), "a program of a running process");
        // A descriptor that is being sent belongs to no process.
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let descriptors = [program.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&descriptors)];
        sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(b"x")], &message, MsgFlags::empty(), None).expect("send it");
        drop(program);
        // A process that another test forks holds a copy until its `execve`.
        let is_unheld = || unheld_programs().is_superset(&own);
        assert!(slow::wait_until(Duration::from_secs(10), is_unheld), "a program that no process holds");
        drop((ours, theirs));
        assert!(slow::wait_until(Duration::from_secs(10), || unheld_programs().is_disjoint(&own)));
    }
}
