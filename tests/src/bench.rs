//! The kernel half loaded but not attached to any interface; `BPF_PROG_TEST_RUN` runs one frame at a time.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use aya::programs::{TestRun as _, TestRunOptions};
use crafter::{
    datapath::{
        accepted::Accepted,
        maps::{Counters, OwnerMaps, Terms},
        peers::Peers,
        program::{Hook, Kernel, LoadOptions},
        ring::Ring,
        xsk::{Frames, Socket},
    },
    packet::Transport,
};
use crafter_common::{
    reason::{Reason, Verdict},
    reply::ReplyHeader,
    share::Mark,
};

use crate::views::Views;

/// Any local address, as an argument of [`OwnerMaps::own`].
pub const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Offset of `mark` in `struct __sk_buff`, and the size of that struct, in bytes (linux/bpf.h).
const SKB_MARK: usize = 8;
const SKB_SIZE: usize = 192;

/// Lease terms without `report`, with packets of all peers.
pub const fn terms(observe: bool, suppress: bool) -> Terms {
    Terms { observe, suppress, report: false, peers: Peers::Any, user: 0 }
}

/// Result of running one frame.
#[derive(Debug)]
pub struct Outcome {
    /// The only counter that was incremented.
    pub reason: Reason,
    /// The program's return value.
    pub action: i32,
    /// The frame after the program ran.
    pub frame: Vec<u8>,
    /// Records from the ring buffer; empty if `Bench::drain` is off.
    pub delivered: Vec<(ReplyHeader, Vec<u8>)>,
}

/// The loaded programs and their maps.
pub struct Bench {
    pub(crate) kernel: Kernel,
    /// Maps of port ownership.
    pub maps: OwnerMaps,
    ring: Ring,
    socket: Option<Socket>,
    /// Whether the ring buffer is emptied after each frame.
    pub drain: bool,
    /// Whether leases ask for copies of suppressed answers in the ring buffer.
    pub report: bool,
    /// Number of frames run.
    pub ran: u64,
    /// Every reason counted so far.
    pub reached: BTreeSet<u32>,
}

impl Bench {
    /// Loads the programs. `socket`: open an AF_XDP socket on queue 0 of `lo`, the interface and queue on which
    /// TEST_RUN makes frames arrive.
    pub fn new(options: &LoadOptions, link_header: u32, socket: bool) -> Self {
        let frames = Frames::plan(1500, 1, options.frame_bytes);
        let (kernel, mut maps) = Kernel::load(options, link_header, frames.longest()).expect("load the kernel half");
        let station = (link_header > 0).then_some(crate::frame::STATION);
        let accepted = Accepted { station, sources: true, ..Accepted::default() };
        maps.set_accepted(&accepted).expect("set what is accepted");
        let ring = Ring::new(kernel.ring().expect("the ring buffer"));
        let socket = socket.then(|| {
            let lo = nix::net::if_::if_nametoindex("lo").expect("lo has an index");
            let socket = Socket::open(lo, 0, frames).expect("an AF_XDP socket on lo");
            use std::os::fd::AsRawFd as _;
            kernel.set_socket(0, socket.as_raw_fd()).expect("list the socket");
            socket
        });
        Self { kernel, maps, ring, socket, drain: true, report: false, ran: 0, reached: BTreeSet::new() }
    }

    /// Load options with small maps, sufficient for these tests.
    pub fn small() -> LoadOptions {
        LoadOptions {
            owned_entries: 256,
            peer_entries: 1 << 16,
            flow_entries: 1024,
            ring_bytes: 1 << 20,
            ..LoadOptions::default()
        }
    }

    /// Whether there is an AF_XDP socket to redirect into.
    pub fn has_socket(&self) -> bool {
        self.socket.is_some()
    }

    /// Owns a port.
    pub fn own(&mut self, transport: Transport, address: IpAddr, port: u16, terms: Terms) {
        let terms = Terms { report: self.report, ..terms };
        self.maps.own(u32::from(port), transport, address, port, terms).expect("own a port");
    }

    /// The maps as the kernel has them.
    pub fn views(&self) -> Views {
        Views::open(&self.kernel)
    }

    /// All counters.
    pub fn counters(&self) -> Counters {
        self.maps.counters().expect("the counters")
    }

    /// Runs `frame` through the program at `hook`, with `mark` if it is a classifier. Returns the action and the length
    /// of the frame after the run, whose bytes are in `out`. Checks nothing.
    pub(crate) fn execute(&mut self, hook: Hook, frame: &[u8], mark: u32, out: &mut [u8]) -> (i32, usize) {
        let mut context = [0; SKB_SIZE];
        context[SKB_MARK..SKB_MARK + 4].copy_from_slice(&mark.to_ne_bytes());
        let mut options = TestRunOptions { data_in: Some(frame), data_out: Some(out), ..TestRunOptions::new() };
        let result = match hook {
            Hook::Xdp | Hook::Empty => self.kernel.xdp(hook, |program| Ok(program.test_run(options))),
            _ => {
                options.ctx_in = Some(&context);
                self.kernel.classifier(hook, |program| Ok(program.test_run(options)))
            }
        };
        let result = result
            .expect("a program")
            .unwrap_or_else(|e| panic!("TEST_RUN of {} bytes at {hook:?}: {e:?}", frame.len()));
        (result.return_value as i32, result.data_size_out as usize)
    }

    /// Runs `frame` through the program at `hook`, with `mark` if it is a classifier.
    ///
    /// # Panics
    /// If the run does not increment exactly one counter by exactly one.
    pub fn run(&mut self, hook: Hook, frame: &[u8], mark: u32) -> Outcome {
        let before = self.counters();
        // Larger than the frame, so that a frame that grows is noticed.
        let mut out = vec![0; frame.len() + 64];
        let (action, length) = self.execute(hook, frame, mark, &mut out);
        out.truncate(length);
        self.ran += 1;

        let after = self.counters();
        let changes: Vec<(Reason, u64)> = Reason::ALL
            .into_iter()
            .map(|reason| (reason, after.get(reason) - before.get(reason)))
            .filter(|(_, change)| *change != 0)
            .collect();
        let [(reason, 1)] = changes[..] else { panic!("one frame at {hook:?} changed these counters: {changes:?}") };
        self.reached.insert(reason as u32);
        Outcome { reason, action, frame: out, delivered: self.take_delivered() }
    }

    pub(crate) fn take_delivered(&mut self) -> Vec<(ReplyHeader, Vec<u8>)> {
        let mut delivered = Vec::new();
        if self.drain {
            self.ring.drain(|header, packet| delivered.push((*header, packet.to_vec())));
        }
        delivered
    }

    /// Runs a frame and checks everything that follows from `reason`: the action, that the frame is unchanged, and that
    /// the delivered packet is complete.
    ///
    /// # Errors
    /// A description of the first difference.
    pub fn expect(&mut self, hook: Hook, frame: &[u8], mark: u32, reason: Reason, start: usize) -> Result<(), String> {
        let got = self.run(hook, frame, mark);
        let differs = |what: &str, got: &dyn std::fmt::Debug, wanted: &dyn std::fmt::Debug| {
            Err(format!("at {hook:?}: {what} is {got:?}, not {wanted:?}"))
        };
        if got.reason != reason {
            return differs("the reason", &got.reason, &reason);
        }
        // linux/bpf.h: XDP_DROP, XDP_PASS, XDP_REDIRECT; TC_ACT_SHOT, TCX_NEXT.
        let action = match (hook, reason.verdict()) {
            (Hook::Xdp, Verdict::Drop) => 1,
            (Hook::Xdp, Verdict::Pass) => 2,
            (Hook::Xdp, Verdict::Redirect) => 4,
            (_, Verdict::Drop) => 2,
            (_, Verdict::Pass | Verdict::Redirect) => -1,
        };
        if got.action != action {
            return differs("the action", &got.action, &action);
        }
        // The place of the lease's share replaces the first bytes of a redirected frame.
        let changed = if reason == Reason::Redirected { size_of::<Mark>() } else { 0 };
        if got.frame.len() != frame.len() || got.frame[changed..] != frame[changed..] {
            return differs("the frame after the run", &got.frame, &frame);
        }
        if !self.drain {
            return Ok(());
        }
        let copied = match reason {
            Reason::Copied | Reason::Observed => true,
            Reason::RstSuppressed | Reason::UnreachableSuppressed => self.report,
            _ => false,
        };
        match (copied, got.delivered.as_slice()) {
            (true, [(header, packet)]) => {
                if packet != &frame[start..] {
                    return differs("the packet in the ring", packet, &&frame[start..]);
                }
                let length = (frame.len() - start) as u32;
                let fields = (header.captured, header.length, header.reason);
                if fields != (length, length, reason as u32) {
                    return differs("the record's header", &fields, &(length, length, reason as u32));
                }
                Ok(())
            }
            (false, []) => Ok(()),
            (_, records) => differs("the number of records", &records.len(), &usize::from(copied)),
        }
    }
}
