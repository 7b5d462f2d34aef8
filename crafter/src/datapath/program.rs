//! The kernel half as user space holds it: loaded, attached, and gone when it is dropped.

use std::io;

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{MapData, RingBuf, XskMap},
    programs::{ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode, links::LinkOrder, tc::TcAttachOptions},
};
use crafter_common::{DEFAULT_MARK, map};
use serde::Serialize;

use super::{
    clsact::Clsact,
    failure::{bpf_error, os_error},
    features,
    interface::Interface,
    maps::OwnerMaps,
};
use crate::error::{Error, Result};

/// The eBPF object, as the build script made it: an ELF file, little-endian on x86-64. Public for those who
/// look into the programs without loading them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/crafter.bpf.o"));

/// Oldest kernel that has all that the programs use: `bpf_xdp_load_bytes` came with 5.18.
pub const OLDEST_KERNEL: (u32, u32) = (5, 18);

/// Sizes and constants that are set when the programs are loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// (port, address) pairs that can be owned at once.
    pub owned_entries: u32,
    /// Flows that are remembered; the least recently used goes first.
    pub flow_entries: u32,
    /// Bytes of the ring buffer: a power of two, at least a page.
    pub ring_bytes: u32,
    /// The socket mark of crafted packets.
    pub mark: u32,
    /// Whether the programs log each packet that they consume or drop, through aya-log.
    pub debug: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            owned_entries: map::OWNED_ENTRIES,
            flow_entries: map::FLOW_ENTRIES,
            ring_bytes: map::RING_BYTES,
            mark: DEFAULT_MARK,
            debug: false,
        }
    }
}

/// Which ingress hook to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// Native XDP, else generic XDP, else tc.
    #[default]
    Auto,
    /// XDP in the driver, or fail.
    Native,
    /// XDP in the kernel's generic receive path, or fail.
    Generic,
    /// A tc classifier with the ring buffer, or fail.
    Tc,
}

impl std::str::FromStr for Attach {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "generic" => Ok(Self::Generic),
            "tc" => Ok(Self::Tc),
            _ => Err(Error::invalid("attach mode", format_args!("'{text}' is none of auto, native, generic, tc"))),
        }
    }
}

/// The ingress hook that was got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// XDP in the driver.
    Native,
    /// XDP in the kernel's generic receive path.
    Generic,
    /// A tc classifier.
    Tc,
}

impl Mode {
    /// `native`, `generic` or `tc`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tc => "tc",
        }
    }
}

/// What was attached, and why it was not something faster.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The interface.
    pub interface: String,
    /// The ingress hook.
    pub mode: Mode,
    /// `tcx` or `clsact`: what carries the classifiers.
    pub classifier: &'static str,
    /// AF_XDP sockets that take replies; none: they come through the ring buffer.
    pub sockets: usize,
    /// Why a faster way was not taken, a sentence each.
    pub notes: Vec<String>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let delivery = if self.sockets > 0 { "AF_XDP" } else { "ring buffer" };
        let ingress = match self.mode {
            Mode::Native => "native XDP",
            Mode::Generic => "generic XDP",
            Mode::Tc => self.classifier,
        };
        write!(f, "{ingress} + {delivery} on {}, {} egress", self.interface, self.classifier)
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

/// The kernel half, loaded. Programs, maps and attachments go when this is dropped, or when the
/// process dies: all are held by file descriptors only.
pub struct Kernel {
    ebpf: Ebpf,
    /// Filters under clsact outlive their descriptor; this takes them down. Declared after
    /// `ebpf`, which detaches what it can.
    clsact: Option<Clsact>,
    log: Option<tokio::task::JoinHandle<()>>,
}

impl Kernel {
    /// Loads programs and maps. `link_header` is 14 for Ethernet devices, 0 for those without a
    /// link-layer header; frames longer than `socket_frame` bytes take the ring buffer.
    ///
    /// # Errors
    /// [`Error::KernelTooOld`], [`Error::Permission`], [`Error::Invalid`] for sizes that do not fit,
    /// [`Error::Bpf`] with the verifier's words.
    pub fn load(options: &LoadOptions, link_header: u32, socket_frame: u32) -> Result<(Self, OwnerMaps)> {
        supported()?;
        check_sizes(options)?;
        let mut loader = EbpfLoader::new();
        loader
            .verifier_log_level(VerifierLogLevel::STATS)
            .override_global(map::LINK_HEADER, &link_header, true)
            .override_global(map::SOCKET_FRAME, &socket_frame, true)
            .override_global(map::MARK, &options.mark, true)
            // aya-log's level: 0 compiles to nothing, 5 is everything.
            .override_global("AYA_LOG_LEVEL", if options.debug { &5_u8 } else { &0_u8 }, true)
            .map_max_entries(map::OWNED, options.owned_entries)
            .map_max_entries(map::FLOWS, options.flow_entries)
            .map_max_entries(map::RING, options.ring_bytes);
        let mut ebpf = loader.load(OBJECT).map_err(|e| bpf_error("load the eBPF maps", &e))?;
        let maps = OwnerMaps::take(&mut ebpf)?;
        let log = if options.debug { log_task(&mut ebpf)? } else { None };
        Ok((Self { ebpf, clsact: None, log }, maps))
    }

    /// The ring buffer; to be called once.
    ///
    /// # Errors
    /// [`Error::Bpf`] the second time.
    pub fn take_ring(&mut self) -> Result<RingBuf<MapData>> {
        let map = self.ebpf.take_map(map::RING).ok_or_else(|| missing(map::RING))?;
        RingBuf::try_from(map).map_err(|e| bpf_error("open the ring buffer", &e))
    }

    /// The map of AF_XDP sockets; to be called once, and to be kept until the programs are
    /// loaded, which refer to it. A socket leaves it when it is closed.
    ///
    /// # Errors
    /// [`Error::Bpf`] the second time.
    pub fn take_sockets(&mut self) -> Result<XskMap<MapData>> {
        let map = self.ebpf.take_map(map::SOCKETS).ok_or_else(|| missing(map::SOCKETS))?;
        XskMap::try_from(map).map_err(|e| bpf_error("open the map of AF_XDP sockets", &e))
    }

    /// An XDP program ([`Hook::Xdp`] or [`Hook::Empty`]), verified and loaded into the kernel if it is not yet.
    ///
    /// # Errors
    /// [`Error::Permission`], [`Error::Bpf`] with the verifier's words.
    pub fn xdp(&mut self, hook: Hook) -> Result<&mut Xdp> {
        let program: &mut Xdp = program(&mut self.ebpf, hook)?;
        if program.fd().is_err() {
            program.load().map_err(|e| bpf_error(&format!("load {}", hook.program()), &e))?;
        }
        Ok(program)
    }

    /// A classifier, verified and loaded into the kernel if it is not yet.
    ///
    /// # Errors
    /// [`Error::Permission`], [`Error::Bpf`] with the verifier's words.
    pub fn classifier(&mut self, hook: Hook) -> Result<&mut SchedClassifier> {
        let program: &mut SchedClassifier = program(&mut self.ebpf, hook)?;
        if program.fd().is_err() {
            program.load().map_err(|e| bpf_error(&format!("load {}", hook.program()), &e))?;
        }
        Ok(program)
    }

    /// Attaches egress, then ingress, so that nothing is consumed whose RST could still escape.
    ///
    /// # Errors
    /// [`Error::Attach`] where the forced mode, or every mode, is refused; [`Error::Permission`].
    pub fn attach(&mut self, interface: &Interface, wanted: Attach) -> Result<Report> {
        let classifier = self.attach_classifier(interface, Hook::Egress)?;
        let mut notes = Vec::new();
        let modes: &[Mode] = match wanted {
            // Without a link-layer header there is no XDP frame to parse.
            Attach::Auto if !interface.ethernet && !interface.loopback => {
                notes.push(format!("{} has no Ethernet header: tc instead of XDP", interface.name));
                &[Mode::Tc]
            }
            Attach::Auto => &[Mode::Native, Mode::Generic, Mode::Tc],
            Attach::Native => &[Mode::Native],
            Attach::Generic => &[Mode::Generic],
            Attach::Tc => &[Mode::Tc],
        };
        let mut held = false;
        for &mode in modes {
            let refused = match mode {
                // The hook that refused native with EBUSY refuses generic too.
                Mode::Generic if held => continue,
                Mode::Native => self.attach_xdp(interface, XdpMode::Driver),
                Mode::Generic => self.attach_xdp(interface, XdpMode::Skb),
                Mode::Tc => self.attach_classifier(interface, Hook::Ingress).map(|_| None)?,
            };
            let Some(error) = refused else {
                return Ok(Report { interface: interface.name.clone(), mode, classifier, sockets: 0, notes });
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
        Err(Error::Attach { interface: interface.name.clone(), mode: "any", reason: notes.join("; ") })
    }

    /// Attaches XDP in `mode`; `Some` is the kernel's refusal.
    fn attach_xdp(&mut self, interface: &Interface, mode: XdpMode) -> Option<io::Error> {
        let program = match self.xdp(Hook::Xdp) {
            Ok(program) => program,
            Err(e) => return Some(io::Error::other(e)),
        };
        match program.attach_to_if_index(interface.ifindex, mode) {
            Ok(_) => None,
            Err(e) => Some(os_error(&e).unwrap_or_else(|| io::Error::other(e.to_string()))),
        }
    }

    /// Attaches a classifier: tcx where the kernel has it (6.6), else clsact.
    fn attach_classifier(&mut self, interface: &Interface, hook: Hook) -> Result<&'static str> {
        let direction = if hook == Hook::Egress { TcAttachType::Egress } else { TcAttachType::Ingress };
        let name = interface.name.clone();
        let failed = |e: &ProgramError| match os_error(e) {
            Some(error) => Error::io(format!("attach {} to {name}", hook.program()), "CAP_NET_ADMIN", error),
            None => bpf_error(&format!("attach {} to {name}", hook.program()), e),
        };
        let program = self.classifier(hook)?;
        if !features::is_clsact_forced() {
            // Before all others: one that passes a packet hides it from those behind it. Ours takes only what is owned,
            // and leaves all else to the next.
            let order = TcAttachOptions::TcxOrder(LinkOrder::first());
            match program.attach_with_options(&name, direction, order) {
                Ok(_) => return Ok("tcx"),
                // Kernels before 6.6 do not know the attach type.
                Err(e) if os_error(&e).is_some_and(|e| e.raw_os_error() == Some(libc::EINVAL)) => {}
                Err(e) => return Err(failed(&e)),
            }
        }
        let mut clsact = match self.clsact.take() {
            Some(clsact) => clsact,
            None => Clsact::open(interface)?,
        };
        let options = clsact.prepare(direction)?;
        let program = self.classifier(hook)?;
        let link = program
            .attach_with_options(&name, direction, TcAttachOptions::Netlink(options))
            .and_then(|link| program.take_link(link))
            .map_err(|e| failed(&e))?;
        clsact.hold(link);
        self.clsact = Some(clsact);
        Ok("clsact")
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            log.abort();
        }
    }
}

fn who_holds(interface: &Interface) -> String {
    match interface.xdp.and_then(|xdp| features::holder_of_program(xdp.program_id)) {
        Some(holder) => format!("the XDP hook of {} is taken by {holder}", interface.name),
        None => format!("the XDP hook of {} is taken by another program", interface.name),
    }
}

fn program<'a, P>(ebpf: &'a mut Ebpf, hook: Hook) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(hook.program())
        .ok_or_else(|| missing(hook.program()))?
        .try_into()
        .map_err(|e: ProgramError| bpf_error("open a program of the eBPF object", &e))
}

fn missing(name: &str) -> Error {
    Error::Bpf { action: "open the eBPF object".into(), reason: format!("it holds no {name}") }
}

/// Whether this kernel is new enough, for those who would else learn it late.
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
    for (what, entries) in [("owned entries", options.owned_entries), ("flow entries", options.flow_entries)] {
        if entries == 0 {
            return Err(Error::invalid(what, "0 is too few; at least 1"));
        }
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

/// Prints what the programs log, until the kernel half is dropped.
fn log_task(ebpf: &mut Ebpf) -> Result<Option<tokio::task::JoinHandle<()>>> {
    let logger = aya_log::EbpfLogger::init(ebpf).map_err(|e| bpf_error("open the log of the eBPF programs", &e))?;
    let mut logger = super::watch(logger, "the log of the eBPF programs")?;
    Ok(Some(tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_told_what_they_lack() {
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
    fn sizes_that_cannot_be_are_refused_by_name() {
        let options = LoadOptions { ring_bytes: 5000, ..LoadOptions::default() };
        assert!(check_sizes(&options).expect_err("no power of two").to_string().starts_with("ring buffer size: 5000"));
        let options = LoadOptions { flow_entries: 0, ..LoadOptions::default() };
        assert!(check_sizes(&options).expect_err("none").to_string().starts_with("flow entries: 0"));
        assert!(check_sizes(&LoadOptions::default()).is_ok());
    }
}
