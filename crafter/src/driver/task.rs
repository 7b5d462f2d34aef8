//! The driver task: replies that no other task waits for, and every deadline.

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

/// Belongs to the driver task, and so notices its end: also when the runtime goes first. Streams that
/// close by themselves keep their lease, and with it all that is shared; nobody would end them now.
struct DriverGuard(Weak<Shared>);

impl Drop for DriverGuard {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.lock().give_up_orphans();
        }
    }
}

/// One descriptor that is readable when any source of replies is: a network card can have more
/// queues than a task should watch one by one.
pub(super) fn epoll(core: &Core) -> Result<AsyncFd<OwnedFd>> {
    let failed = |e: nix::Error| Error::Io { action: "watch the sockets for replies".into(), source: e.into() };
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
    for (index, source) in core.sources().into_iter().enumerate() {
        epoll.add(source, EpollEvent::new(EpollFlags::EPOLLIN, index as u64)).map_err(failed)?;
    }
    crate::datapath::watch(epoll.0, "the sockets for replies")
}

/// The driver: replies first, then what is due, then sleep until one of both. Holds no strong
/// reference while it sleeps, or nothing would ever be dropped.
pub(super) async fn drive(shared: Weak<Shared>, rearm: Arc<Notify>, ready: AsyncFd<OwnedFd>, watch: AddressWatch) {
    let mut watch = Some(watch);
    let _guard = DriverGuard(shared.clone());
    // Whether the latest drain found something.
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
                // Readiness is given back only once all is drained: what comes later says so anew.
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
        // Between two batches others on this thread get their turn.
        tokio::task::yield_now().await;
    }
}

/// Busy-polls for a moment after a burst: the next one is mostly in flight already, and to sleep and be
/// woken takes longer than it takes to arrive, above all on a virtual machine. Whether it arrived.
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

/// Waits for a change of addresses or links; a watch that fails is given up.
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
