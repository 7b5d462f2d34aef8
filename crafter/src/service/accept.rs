//! Accepts control connections.

use std::{
    cell::{Cell, RefCell},
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    net::{UnixListener, UnixStream},
    task::{spawn_local, yield_now},
    time::sleep,
};

use super::{
    admission::{Admitted, Kind},
    call::Channel,
    caller::Caller,
    connection, methods,
    peer_socket::PeerSocket,
    state::Service,
};

/// Descriptors that are kept for a shortage: for connections of root, and for what `Reload` opens.
const SPARE: usize = 8;

/// How long a shortage of descriptors lasts after it was noticed.
const SHORTAGE: Duration = Duration::from_secs(1);

/// The delay after a failure without spare descriptors, and while too many descriptors wait to be closed.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Connections to accept before other tasks run.
const BURST: u64 = 64;

/// How often the log has a line about failures.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Descriptors that make room for others in a shortage.
#[derive(Default)]
pub(super) struct Spare {
    held: RefCell<Vec<OwnedFd>>,
    /// When a shortage was last noticed.
    released: Cell<Option<Instant>>,
}

impl Spare {
    /// Closes the descriptors in a shortage; `false` if there are none.
    pub(super) fn release(&self) -> bool {
        self.released.set(Some(Instant::now()));
        !self.held.take().is_empty()
    }

    fn is_short(&self) -> bool {
        self.released.get().is_some_and(|released| released.elapsed() < SHORTAGE)
    }

    /// Makes copies of `descriptor`, as far as the process may have more.
    fn refill(&self, descriptor: &impl AsFd) {
        let mut held = self.held.borrow_mut();
        let copies = (held.len()..SPARE).map_while(|_| descriptor.as_fd().try_clone_to_owned().ok());
        held.extend(copies);
    }
}

/// Accepts connections until the service ends.
pub(super) async fn run(service: Rc<Service>, listener: UnixListener) {
    let (mut accepted, mut logged): (u64, Option<Instant>) = (0, None);
    loop {
        while service.closer.is_full() {
            sleep(RETRY_DELAY).await;
        }
        if !service.spare.is_short() {
            service.spare.refill(&listener);
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                admit(&service, stream).await;
                accepted += 1;
                if accepted % BURST == 0 {
                    yield_now().await;
                }
            }
            Err(error) => {
                if logged.is_none_or(|logged| logged.elapsed() > LOG_INTERVAL) {
                    logged = Some(Instant::now());
                    let hint = "raise the limit of open files (`ulimit -n`)";
                    log::warn!("cannot accept a control connection: {error}; {hint}");
                }
                if !service.spare.release() {
                    service.connections.close_one();
                    sleep(RETRY_DELAY).await;
                }
            }
        }
    }
}

/// Serves a connection if there is room for it.
async fn admit(service: &Rc<Service>, stream: UnixStream) {
    let peer = stream.peer_cred();
    let Ok(socket) = stream.into_std().map(OwnedFd::from) else { return };
    if let Ok(peer) = peer
        && service.connections.has_most(service.users.account(peer.uid()))
    {
        // Closed before the calls below, which cost more: a client may connect in an endless loop.
        drop(PeerSocket::accepted(socket, &service.closer, peer.uid()));
        return;
    }
    let mut caller = Caller::of(socket.as_fd()).await;
    // Identifying the caller needs a descriptor for a moment.
    if caller.is_err() && service.spare.release() {
        caller = Caller::of(socket.as_fd()).await;
    }
    // If the user is unknown, the socket is closed on the thread of no particular user.
    let account = caller.as_ref().map_or(u32::MAX, |caller| service.users.account(caller.subject.user));
    let socket = PeerSocket::accepted(socket, &service.closer, account);
    let caller = match caller {
        Ok(caller) => caller,
        Err(error) => return log::debug!("closed a control connection: {error}"),
    };
    let kind = match () {
        () if caller.is_trusted() => Kind::Trusted,
        () if methods::known(service, &caller).is_ok() => Kind::Named,
        () => Kind::Unnamed,
    };
    let Some(admitted) = service.connections.admit(account, kind, service.spare.is_short()) else {
        log::debug!("closed a control connection of user {account}, who has too many");
        return;
    };
    match Channel::new(socket, service.users.kept_bytes(account)) {
        Ok(channel) => drop(spawn_local(serve(service.clone(), caller, channel, admitted, kind))),
        Err(error) => log::debug!("closed a control connection: {error}"),
    }
}

async fn serve(service: Rc<Service>, caller: Caller, channel: Channel, admitted: Admitted, kind: Kind) {
    let is_named = kind != Kind::Unnamed;
    if let Err(error) = connection::run(&service, caller, channel, &admitted.activity, is_named).await {
        log::debug!("a control connection ended: {error}");
    }
    drop(admitted);
    service.quiet.notify_one();
}
