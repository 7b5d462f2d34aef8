//! Closes descriptors that clients passed (SCM_RIGHTS) on other threads.
//!
//! close(2) runs code that the sender of a descriptor chose: a TCP socket with SO_LINGER and unsent data waits for its
//! peer, a file of FUSE for its daemon, and a Unix socket closes the descriptors that are queued in it. Up to [`LANES`]
//! threads close descriptors, each one descriptor after the other. The user id selects the thread (a lane), so a close
//! that blocks delays only that user, and users with the same id modulo [`LANES`].

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use nix::sys::socket::{setsockopt, sockopt};

/// The maximum number of lanes, and so of threads.
const LANES: u32 = 32;

/// Descriptors that wait to be closed, above which the service accepts no connection until some are closed. Only
/// kernels before 6.16 reach it, on which a client can pass descriptors at all.
const MOST_PENDING: usize = 4096;

/// The size of the stack of a lane's thread, in bytes.
const STACK: usize = 64 << 10;

/// The lanes. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Closer(Arc<Lanes>);

#[derive(Debug, Default)]
struct Lanes {
    /// The waiting descriptors of each lane; a lane has an entry while its thread runs.
    waiting: Mutex<HashMap<u32, VecDeque<OwnedFd>>>,
    /// The number of descriptors that wait or are being closed.
    pending: AtomicUsize,
}

impl Closer {
    /// Closes descriptors of a user on the user's lane. Returns at once.
    pub(super) fn close(&self, user: u32, descriptors: impl IntoIterator<Item = OwnedFd>) {
        let lane = user % LANES;
        let mut descriptors: VecDeque<OwnedFd> = descriptors.into_iter().collect();
        if descriptors.is_empty() {
            return;
        }
        self.0.pending.fetch_add(descriptors.len(), Ordering::Relaxed);
        let mut lanes = self.0.lock();
        if let Some(waiting) = lanes.get_mut(&lane) {
            waiting.append(&mut descriptors);
            return;
        }
        lanes.insert(lane, descriptors);
        drop(lanes);
        let shared = self.0.clone();
        let thread = thread::Builder::new().name("close".to_owned()).stack_size(STACK);
        if let Err(error) = thread.spawn(move || shared.run(lane)) {
            // The process may have no more threads. The descriptors stay open: closing them here could block.
            log::error!("cannot start a thread to close descriptors of user {user}: {error}");
            let kept = self.0.lock().remove(&lane);
            kept.into_iter().flatten().for_each(std::mem::forget);
        }
    }

    /// Whether so many descriptors wait that no more may be accepted.
    pub(super) fn is_full(&self) -> bool {
        self.0.pending.load(Ordering::Relaxed) >= MOST_PENDING
    }
}

impl Lanes {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, VecDeque<OwnedFd>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the descriptors of a lane until none is left.
    fn run(&self, lane: u32) {
        loop {
            let next = {
                let mut lanes = self.lock();
                let next = lanes.get_mut(&lane).and_then(VecDeque::pop_front);
                if next.is_none() {
                    lanes.remove(&lane);
                }
                next
            };
            let Some(descriptor) = next else { return };
            // The kernel then sends the rest of a TCP stream in the background. Fails if the descriptor is not a
            // socket.
            let _ = setsockopt(&descriptor.as_fd(), sockopt::Linger, &libc::linger { l_onoff: 0, l_linger: 0 });
            drop(descriptor);
            self.pending.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{TcpListener, TcpStream},
        os::unix::net::UnixStream,
        time::{Duration, Instant},
    };

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::fd::AsRawFd as _;

    use super::*;

    /// The close of the returned socket waits 20 s: it has unsent data and a peer that does not read.
    fn lingering() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 20 }).unwrap();
        stream.set_nonblocking(true).unwrap();
        while stream.write(&[0; 65_536]).is_ok() {}
        (stream.into(), peer)
    }

    /// A Unix socket in whose queue a lingering socket waits.
    fn queued() -> (OwnedFd, TcpStream) {
        let (lingering, peer) = lingering();
        let (a, b) = UnixStream::pair().unwrap();
        let numbers = [lingering.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&numbers)];
        sendmsg::<()>(a.as_raw_fd(), &[std::io::IoSlice::new(b"x")], &rights, MsgFlags::empty(), None).unwrap();
        (b.into(), peer)
    }

    fn wait_until(what: &str, is_true: impl Fn() -> bool) {
        let began = Instant::now();
        while !is_true() {
            assert!(began.elapsed() < Duration::from_secs(10), "{what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn lingering_socket_is_closed_without_its_linger_time() {
        let closer = Closer::default();
        let (socket, _peer) = lingering();
        closer.close(7, [socket]);
        wait_until("the close", || closer.0.pending.load(Ordering::Relaxed) == 0);
        wait_until("the end of the thread", || closer.0.lock().is_empty());
    }

    /// A socket in the queue of another keeps its linger time, so the lane blocks.
    #[test]
    fn blocked_lane_delays_neither_the_caller_nor_other_users() {
        let closer = Closer::default();
        let (socket, peer) = queued();
        let began = Instant::now();
        closer.close(1, [socket]);
        for user in [2, 3] {
            closer.close(user, [UnixStream::pair().unwrap().0.into()]);
        }
        wait_until("the closes of other users", || closer.0.pending.load(Ordering::Relaxed) == 1);
        assert!(began.elapsed() < Duration::from_secs(15), "the caller waited");
        assert_eq!(closer.0.lock().len(), 1, "one lane is blocked");
        assert!(!closer.is_full());
        // Its peer resets the connection, and the close returns.
        drop(peer);
        wait_until("the blocked close", || closer.0.pending.load(Ordering::Relaxed) == 0);
    }
}
