//! The kernel half on an interface: attached, and detached when it is dropped.

mod report;

use std::{io, os::fd::RawFd, panic::resume_unwind, sync::Arc, thread};

use aya::{
    maps::{MapData, RingBuf},
    programs::{
        ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::LinkOrder,
        tc::{SchedClassifierLink, TcAttachOptions},
        xdp::XdpLink,
    },
};
use crafter_common::{DEFAULT_MARK, attached::SLOTS, map};

use self::report::HELD_BY;
pub use self::report::{Attach, Mode, Report};
use super::{
    accepted::Accepted,
    clsact::Clsact,
    failure::{bpf_error, by_name, os_error},
    features,
    interface::{self, Interface},
    maps::OwnerMaps,
    programs::{Hooks, Slot, load_classifier, load_xdp},
    xsk::FRAME_BYTES,
};
use crate::{
    error::{Error, Result},
    scoped,
};

/// The eBPF object, as the build script made it: an ELF file, little-endian on x86-64. Public for those who
/// look into the programs without loading them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/crafter.bpf.o"));

/// Oldest kernel that has all that the programs use: `bpf_xdp_load_bytes` is in 5.18 and newer.
pub const OLDEST_KERNEL: (u32, u32) = (5, 18);

/// Sizes and constants that are set when the programs are loaded. Interfaces of a process with the same options, apart
/// from sizes of each interface, share the programs and their maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// (port, address) pairs that can be owned at once, on all interfaces together.
    pub owned_entries: u32,
    /// Peers of leases that receive packets of known peers only, on all interfaces together.
    pub peer_entries: u32,
    /// Flows that are remembered, on all interfaces together; the least recently used is evicted first.
    pub flow_entries: u32,
    /// Bytes of the ring buffer of each interface: a power of two, at least a page.
    pub ring_bytes: u32,
    /// Bytes of AF_XDP frames of each interface, over all queues; at least 64 frames for each queue.
    pub frame_bytes: u32,
    /// Interfaces that can share the programs, each with 48 KiB of maps: a power of two, at most 64.
    pub interfaces: u32,
    /// The socket mark of crafted packets.
    pub mark: u32,
    /// Whether the programs log each packet that they consume or drop, through aya-log.
    pub debug: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            owned_entries: map::OWNED_ENTRIES,
            peer_entries: map::PEER_ENTRIES,
            flow_entries: map::FLOW_ENTRIES,
            ring_bytes: map::RING_BYTES,
            frame_bytes: FRAME_BYTES,
            interfaces: SLOTS,
            mark: DEFAULT_MARK,
            debug: false,
        }
    }
}

impl LoadOptions {
    /// Options for few packets at a time, as `sr1` sends and receives: less memory, and so a start that is several
    /// milliseconds earlier.
    pub fn small() -> Self {
        Self {
            owned_entries: 1024,
            peer_entries: 4096,
            flow_entries: 4096,
            ring_bytes: 256 << 10,
            frame_bytes: 1 << 20,
            interfaces: 4,
            ..Self::default()
        }
    }
}

/// One of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `crafter_xdp`.
    Xdp,
    /// `crafter_ingress`, the classifier.
    Ingress,
    /// `crafter_egress`, the classifier.
    Egress,
    /// `crafter_empty`, which passes everything: for benchmarks.
    Empty,
}

impl Hook {
    /// The program's name in the object.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Xdp => "crafter_xdp",
            Self::Ingress => "crafter_ingress",
            Self::Egress => "crafter_egress",
            Self::Empty => "crafter_empty",
        }
    }
}

/// The kernel half on one interface. Only file descriptors hold attachments, programs and maps, so they are removed
/// when this is dropped or the process exits.
pub struct Kernel {
    xdp: Option<XdpLink>,
    classifiers: Vec<SchedClassifierLink>,
    /// Filters under clsact outlive their descriptor; this removes them.
    clsact: Option<Clsact>,
    /// The last field, so that everything is detached before the ports are released.
    slot: Arc<Slot>,
}

impl Kernel {
    /// Prepares `interface`, with the programs and maps that other interfaces of this process already use if possible.
    /// `link_header` is 14 for Ethernet devices, 0 for devices without a link-layer header. Frames longer than
    /// `socket_frame` bytes are delivered by the ring buffer.
    ///
    /// # Errors
    /// [`Error::KernelTooOld`], [`Error::Permission`], [`Error::Invalid`] for sizes that do not fit,
    /// [`Error::Bpf`] with the verifier's words.
    pub fn open(
        interface: &Interface,
        options: &LoadOptions,
        link_header: u32,
        socket_frame: u32,
    ) -> Result<(Self, OwnerMaps)> {
        supported()?;
        check_sizes(options)?;
        // In native mode, a bond's programs see the index of the port that a frame arrived at.
        if options.debug || interface::has_ports(interface.ifindex) {
            let slot = Slot::alone(options, link_header, socket_frame)?;
            slot.set_accepted(&Accepted::by_kernel(interface))?;
            return Ok(Self::in_slot(slot));
        }
        let slot = Slot::shared(options, link_header, interface.ifindex, socket_frame)?;
        slot.set_accepted(&Accepted::by_kernel(interface))?;
        Ok(Self::in_slot(slot))
    }

    /// As [`Kernel::open`], but with programs and maps that no other interface uses and that treat every frame as one
    /// of this interface.
    ///
    /// # Errors
    /// Those of [`Kernel::open`].
    pub fn load(options: &LoadOptions, link_header: u32, socket_frame: u32) -> Result<(Self, OwnerMaps)> {
        supported()?;
        check_sizes(options)?;
        Ok(Self::in_slot(Slot::alone(options, link_header, socket_frame)?))
    }

    fn in_slot(slot: Slot) -> (Self, OwnerMaps) {
        let slot = Arc::new(slot);
        let maps = OwnerMaps::new(slot.clone());
        (Self { xdp: None, classifiers: Vec::new(), clsact: None, slot }, maps)
    }

    /// Creates the ring buffer of this interface, which replaces an earlier one.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub fn ring(&self) -> Result<RingBuf<MapData>> {
        self.slot.ring()
    }

    /// Redirects packets of `queue` into an AF_XDP socket, until that is closed.
    ///
    /// # Errors
    /// [`Error::Bpf`] if the kernel refuses.
    pub fn set_socket(&self, queue: u32, socket: RawFd) -> Result<()> {
        self.slot.set_socket(queue, socket)
    }

    /// Calls `work` with an XDP program ([`Hook::Xdp`] or [`Hook::Empty`]) that is loaded into the kernel.
    ///
    /// # Errors
    /// [`Error::Permission`], [`Error::Bpf`] with the verifier's words; those of `work`.
    pub fn xdp<T>(&self, hook: Hook, work: impl FnOnce(&mut Xdp) -> Result<T>) -> Result<T> {
        if hook == Hook::Empty {
            return self.slot.programs.with_empty(work);
        }
        self.slot.programs.with_hooks(|hooks| {
            load_xdp(hooks.xdp, hook)?;
            work(hooks.xdp)
        })
    }

    /// Calls `work` with a classifier that is loaded into the kernel.
    ///
    /// # Errors
    /// [`Error::Permission`], [`Error::Bpf`] with the verifier's words; those of `work`.
    pub fn classifier<T>(&self, hook: Hook, work: impl FnOnce(&mut SchedClassifier) -> Result<T>) -> Result<T> {
        self.slot.programs.with_hooks(|hooks| {
            let program = if hook == Hook::Egress { hooks.egress } else { hooks.ingress };
            load_classifier(program, hook)?;
            work(program)
        })
    }

    /// Attaches the egress and ingress hooks, and creates the ring buffer. No port is owned yet, so their order does
    /// not matter: two threads load the programs in parallel, while a third waits for the map of ring buffers, where
    /// each update waits for an RCU grace period (`maybe_wait_bpf_programs()`).
    ///
    /// # Errors
    /// [`Error::Attach`] if the forced mode, or every mode, is refused; [`Error::Permission`].
    pub fn attach(&mut self, interface: &Interface, wanted: Attach) -> Result<(Report, RingBuf<MapData>)> {
        let slot = self.slot.clone();
        thread::scope(|scope| {
            let ring = scoped::spawn(scope, || slot.ring()).map_err(no_thread)?;
            let report = slot.programs.with_hooks(|hooks| self.attach_hooks(hooks, interface, wanted));
            let ring = ring.join().unwrap_or_else(|panic| resume_unwind(panic));
            Ok((report?, ring?))
        })
    }

    /// Detaches the programs, all at once: the kernel waits for RCU grace periods for each of them.
    pub fn detach(&mut self) {
        let (xdp, clsact) = (self.xdp.take(), self.clsact.take());
        thread::scope(|scope| {
            // Without a thread, this one closes it.
            let _ = scoped::spawn(scope, move || drop(xdp));
            self.classifiers.clear();
            drop(clsact);
        });
    }

    fn attach_hooks(&mut self, hooks: Hooks<'_>, interface: &Interface, wanted: Attach) -> Result<Report> {
        let mut notes = Vec::new();
        let modes: &[Mode] = match wanted {
            // Without a link-layer header there is no XDP frame to parse.
            Attach::Auto if !interface.ethernet && !interface.loopback => {
                notes.push(format!("{} has no Ethernet header: tc instead of XDP", interface.name));
                &[Mode::Tc]
            }
            Attach::Auto if interface::has_vlans(&interface.name) => {
                let reason = "has VLAN devices, and XDP does not see a tag that the device has removed";
                notes.push(format!("{} {reason}: tc instead of XDP", interface.name));
                &[Mode::Tc]
            }
            Attach::Auto => &[Mode::Native, Mode::Generic, Mode::Tc],
            Attach::Native => &[Mode::Native],
            Attach::Generic => &[Mode::Generic],
            Attach::Tc => &[Mode::Tc],
        };
        let Self { xdp, classifiers, clsact, .. } = self;
        let mut attach = |program, hook| attach_classifier(program, interface, hook, classifiers, clsact);
        let (classifier, mode) = thread::scope(|scope| -> Result<_> {
            let egress = scoped::spawn(scope, || attach(hooks.egress, Hook::Egress)).map_err(no_thread)?;
            let ingress = match modes {
                [Mode::Tc] => load_classifier(hooks.ingress, Hook::Ingress).map(|()| None),
                _ => attach_xdp(hooks.xdp, interface, modes, xdp, &mut notes),
            };
            Ok((egress.join().unwrap_or_else(|panic| resume_unwind(panic)), ingress))
        })?;
        let classifier = classifier?;
        let mode = match mode? {
            Some(mode) => mode,
            None => {
                attach(hooks.ingress, Hook::Ingress)?;
                Mode::Tc
            }
        };
        Ok(Report { interface: interface.name.clone(), mode, classifier, sockets: 0, notes })
    }
}

fn no_thread(source: io::Error) -> Error {
    Error::Io { action: "start a thread that loads a program".into(), source }
}

/// Attaches XDP in the first of `modes` that the kernel accepts; `None` where a classifier is to be attached instead.
///
/// # Errors
/// [`Error::Permission`]; [`Error::Attach`] where there is no other mode.
fn attach_xdp(
    program: &mut Xdp,
    interface: &Interface,
    modes: &[Mode],
    attached: &mut Option<XdpLink>,
    notes: &mut Vec<String>,
) -> Result<Option<Mode>> {
    let mut held = false;
    for &mode in modes {
        let flags = match mode {
            // The hook that refused native with EBUSY refuses generic too.
            Mode::Generic if held => continue,
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
            Mode::Tc => return Ok(None),
        };
        let error = match link_xdp(program, interface, flags) {
            Ok(link) => {
                *attached = Some(link);
                return Ok(Some(mode));
            }
            Err(error) => error,
        };
        if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) {
            return Err(Error::io(format!("attach XDP to {}", interface.name), "CAP_NET_ADMIN", error));
        }
        held = matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST));
        let reason = if held { who_holds(interface) } else { explain(&error, mode) };
        if modes.len() == 1 {
            return Err(Error::Attach { interface: interface.name.clone(), mode: mode.name(), reason });
        }
        notes.push(format!("{} XDP not used: {reason}", mode.name()));
    }
    Ok(None)
}

fn link_xdp(program: &mut Xdp, interface: &Interface, mode: XdpMode) -> io::Result<XdpLink> {
    load_xdp(program, Hook::Xdp).map_err(io::Error::other)?;
    let link = program.attach_to_if_index(interface.ifindex, mode).and_then(|link| program.take_link(link));
    link.map_err(|e| os_error(&e).unwrap_or_else(|| io::Error::other(e.to_string())))
}

/// Attaches a classifier: tcx where the kernel has it (6.6), else clsact.
fn attach_classifier(
    program: &mut SchedClassifier,
    interface: &Interface,
    hook: Hook,
    links: &mut Vec<SchedClassifierLink>,
    clsact: &mut Option<Clsact>,
) -> Result<&'static str> {
    let direction = if hook == Hook::Egress { TcAttachType::Egress } else { TcAttachType::Ingress };
    let name = &interface.name;
    let failed = |e: &ProgramError| match os_error(e) {
        Some(error) => Error::io(format!("attach {} to {name}", hook.program()), "CAP_NET_ADMIN", by_name(error)),
        None => bpf_error(&format!("attach {} to {name}", hook.program()), e),
    };
    load_classifier(program, hook)?;
    if !features::is_clsact_forced() {
        // First in the order: a program that passes a packet ends the chain, and later programs do not see it. Ours
        // handles only packets of owned ports, and hands all others to the next program.
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = program.attach_with_options(name, direction, order).and_then(|link| program.take_link(link));
        match link {
            Ok(link) => {
                links.push(link);
                return Ok("tcx");
            }
            // Kernels before 6.6 do not know the attach type.
            Err(e) if os_error(&e).is_some_and(|e| e.raw_os_error() == Some(libc::EINVAL)) => {}
            Err(e) => return Err(failed(&e)),
        }
    }
    let mut opened = match clsact.take() {
        Some(opened) => opened,
        None => Clsact::open(interface)?,
    };
    let options = opened.prepare(direction)?;
    let link = program
        .attach_with_options(name, direction, TcAttachOptions::Netlink(options))
        .and_then(|link| program.take_link(link))
        .map_err(|e| failed(&e))?;
    opened.hold(link);
    *clsact = Some(opened);
    Ok("clsact")
}

fn who_holds(interface: &Interface) -> String {
    match interface.xdp.and_then(|xdp| features::holder_of_program(xdp.program_id)) {
        Some(holder) => format!("the XDP hook of {}{HELD_BY}{holder}", interface.name),
        None => format!("the XDP hook of {}{HELD_BY}another program", interface.name),
    }
}

/// Checks that this kernel is new enough, for callers that would otherwise fail only later.
///
/// # Errors
/// [`Error::KernelTooOld`].
pub fn supported() -> Result<()> {
    check_kernel(&features::host()?.kernel)
}

fn check_kernel(release: &str) -> Result<()> {
    if features::version(release) >= OLDEST_KERNEL {
        return Ok(());
    }
    let missing = "bpf_xdp_load_bytes, which Linux has since 5.18".into();
    Err(Error::KernelTooOld { release: release.to_owned(), missing })
}

fn check_sizes(options: &LoadOptions) -> Result<()> {
    // SAFETY: no memory is involved.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u32;
    if !options.ring_bytes.is_power_of_two() || options.ring_bytes < page {
        let reason = format_args!("{} is not a power of two of at least {page}", options.ring_bytes).to_string();
        return Err(Error::invalid("ring buffer size", reason));
    }
    let sizes = [
        ("owned entries", options.owned_entries),
        ("peer entries", options.peer_entries),
        ("flow entries", options.flow_entries),
    ];
    for (what, entries) in sizes {
        if entries == 0 {
            return Err(Error::invalid(what, "0 is too few; at least 1"));
        }
    }
    if !options.interfaces.is_power_of_two() || options.interfaces > SLOTS {
        let reason = format!("{} is not a power of two up to {SLOTS}", options.interfaces);
        return Err(Error::invalid("number of interfaces", reason));
    }
    Ok(())
}

/// Why XDP was refused, in words.
fn explain(error: &io::Error, mode: Mode) -> String {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) if mode == Mode::Native => "the driver has none".into(),
        Some(libc::ERANGE) => "the MTU is too large for the driver".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_too_old_names_the_missing_feature() {
        for release in ["5.18.0", "6.1.0-44-cloud-amd64", "6.18.44-fc", "10.0"] {
            assert!(check_kernel(release).is_ok(), "{release}");
        }
        for release in ["5.17.99", "5.4.0-generic", "4.19", "?"] {
            let error = check_kernel(release).expect_err(release);
            assert!(matches!(error, Error::KernelTooOld { .. }), "{error}");
            assert!(error.to_string().contains("5.18"), "{error}");
        }
    }

    #[test]
    fn invalid_sizes_are_rejected_by_name() {
        let options = LoadOptions { ring_bytes: 5000, ..LoadOptions::default() };
        assert!(check_sizes(&options).expect_err("no power of two").to_string().starts_with("ring buffer size: 5000"));
        let options = LoadOptions { flow_entries: 0, ..LoadOptions::default() };
        assert!(check_sizes(&options).expect_err("none").to_string().starts_with("flow entries: 0"));
        assert!(check_sizes(&LoadOptions::default()).is_ok());
    }
}
