//! The driver task: handles every deadline, and the replies that no other task waits for.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use tokio::{io::unix::AsyncFd, sync::Notify};

use super::{core::Core, shared::Shared};
use crate::{
    datapath::{
        address::{AddressWatch, local_addresses},
        interface::interfaces,
    },
    error::{Error, Result},
};

/// How long the driver task busy-polls for the next burst before it sleeps.
const BURST_POLL_TIME: Duration = Duration::from_micros(50);

/// Dropped with the driver task, also at the end of the runtime. Streams that close in the background keep their lease
/// and all shared state alive, so they are removed then.
struct DriverGuard(Weak<Shared>);

impl Drop for DriverGuard {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.lock().give_up_orphans();
        }
    }
}

/// Makes an epoll instance for all sources of replies: a network card can have more queues than a task should watch one
/// by one.
pub(super) fn epoll(core: &Core) -> Result<AsyncFd<OwnedFd>> {
    let failed = |e: nix::Error| Error::Io { action: "watch the sockets for replies".into(), source: e.into() };
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
    for (index, source) in core.backend.sources().into_iter().enumerate() {
        epoll.add(source, EpollEvent::new(EpollFlags::EPOLLIN, index as u64)).map_err(failed)?;
    }
    crate::datapath::watch(epoll.0, "the sockets for replies")
}

/// Runs the driver: drains replies, handles deadlines, then sleeps. It holds no strong reference while it sleeps, so
/// that the state can be dropped.
pub(super) async fn drive(shared: Weak<Shared>, rearm: Arc<Notify>, ready: AsyncFd<OwnedFd>, watch: AddressWatch) {
    let mut watch = Some(watch);
    let _guard = DriverGuard(shared.clone());
    // Whether the latest drain found replies.
    let mut busy = false;
    loop {
        let deadline = {
            let Some(shared) = shared.upgrade() else { return };
            let mut core = shared.lock();
            core.handle_timeouts(Instant::now());
            core.arm()
        };
        let deadline = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            biased;
            guard = ready.readable() => {
                let Ok(mut guard) = guard else { return };
                let Some(shared) = shared.upgrade() else { return };
                // Readiness is cleared only after a drain that found nothing.
                let count = shared.lock().drain(Instant::now());
                if count == 0 && !(busy && poll_burst(&shared)) {
                    busy = false;
                    guard.clear_ready();
                } else {
                    busy = true;
                }
            }
            () = tokio::time::sleep_until(deadline.into()) => {}
            () = rearm.notified() => {}
            changed = changed(&mut watch) => {
                if changed
                    && let (Ok(addresses), Ok(interfaces)) = (local_addresses().await, interfaces().await)
                    && let Some(shared) = shared.upgrade()
                {
                    let ifindex = shared.interface.ifindex;
                    shared.handle_change(&addresses, interfaces.iter().find(|one| one.ifindex == ifindex));
                }
            }
        }
        // Lets other tasks of this thread run between two batches.
        tokio::task::yield_now().await;
    }
}

/// Busy-polls after a burst: the next one is usually in flight already, and a context switch takes longer than its
/// arrival, above all in a virtual machine. `true` if it arrived.
fn poll_burst(shared: &Shared) -> bool {
    let until = Instant::now() + BURST_POLL_TIME;
    loop {
        let now = Instant::now();
        if shared.lock().drain(now) > 0 {
            return true;
        }
        if now >= until {
            return false;
        }
        if shared.yields {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}

/// Waits for a change of addresses or links; a watch that fails is dropped.
async fn changed(watch: &mut Option<AddressWatch>) -> bool {
    let ok = match watch {
        Some(watch) => watch.changed().await.is_ok(),
        None => std::future::pending().await,
    };
    if !ok {
        *watch = None;
    }
    ok
}
