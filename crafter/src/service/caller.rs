//! The caller of a method, by the credentials of the socket.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    rc::Rc,
};

use zlink::connection::socket::{FetchPeerCredentials as _, UnixSocket};

use super::served_lease::Tally;
use crate::policy::Subject;

/// The maximum number of groups of a caller. Each connection and each lease keeps them.
const MOST_GROUPS: usize = 4096;

/// The caller.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) subject: Subject,
    pub(super) pid: Option<u32>,
    /// Counters of all leases of this connection.
    pub(super) total: Rc<Tally>,
}

/// A Unix socket, for zlink's trait.
#[derive(Debug)]
struct Peer<'a>(BorrowedFd<'a>);

impl AsFd for Peer<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0
    }
}

impl UnixSocket for Peer<'_> {}

impl Caller {
    /// The caller at the other end of a connection (`SO_PEERCRED`, `SO_PEERGROUPS`). Never waits.
    ///
    /// # Errors
    /// Those of getsockopt(2), and more than [`MOST_GROUPS`] groups.
    pub(super) async fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let credentials = Peer(socket).fetch_peer_credentials().await?;
        let others = credentials.unix_supplementary_group_ids();
        if others.len() > MOST_GROUPS {
            // Leaving some out could change the rule that decides.
            return Err(io::Error::other(format!("the client has more than {MOST_GROUPS} groups")));
        }
        let mut groups = vec![credentials.unix_primary_group_id().as_raw()];
        groups.extend(others.iter().map(|group| group.as_raw()));
        let subject = Subject { user: credentials.unix_user_id().as_raw(), groups };
        let pid = u32::try_from(credentials.process_id().as_raw_pid()).ok();
        Ok(Self { subject, pid, total: Rc::default() })
    }

    /// Whether the caller is root or the service's own user, who may reload the policy.
    pub(super) fn is_trusted(&self) -> bool {
        [0, nix::unistd::Uid::effective().as_raw()].contains(&self.subject.user)
    }
}
