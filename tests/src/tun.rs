//! A tunnel between two namespaces, without link-layer headers: what one tun device sends, the other receives.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use crafter::lab::NetNs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The device `tun0` in both namespaces, and the thread that carries packets between them.
pub struct Tunnel {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Makes the devices, down and without addresses.
    pub fn between(one: &NetNs, other: &NetNs) -> Self {
        let open = |namespace: &NetNs| {
            namespace.run(|| open_device("tun0", libc::IFF_TUN)).expect("enter a namespace").expect("make tun0")
        };
        let ends = [open(one), open(other)];
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                carry(&ends);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Transfers pending packets, or waits up to 50 ms for some.
fn carry(ends: &[File; 2]) {
    let mut polled = [0, 1].map(|end| PollFd::new(ends[end].as_fd(), PollFlags::POLLIN));
    let _ = poll(&mut polled, PollTimeout::from(50_u16));
    let mut packet = [0; 65_536];
    for (mut from, mut to) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
        // Bounded, so that the other direction is served too.
        for _ in 0..64 {
            let Ok(length) = from.read(&mut packet) else { break };
            // A write fails if the device is down or its queue is full; the packet is then lost, as on any link.
            let _ = to.write(&packet[..length]);
        }
    }
}

/// Opens a new tun or TAP device (`kind`: `IFF_TUN` or `IFF_TAP`) in the calling thread's namespace, non-blocking and
/// without packet information.
pub(crate) fn open_device(name: &str, kind: libc::c_int) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (kind | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq that outlives the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}
