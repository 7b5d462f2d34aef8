//! Routes and next hops for clients, within limits.
//!
//! A neighbour that does not answer costs three seconds and an entry of the kernel's table, which the whole host
//! shares. Therefore one netlink socket serves all lookups, users share a limited number of lookups in progress, a
//! queue for each user is bounded, neighbours that did not answer are remembered, and entries that the service created
//! are removed.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, VecDeque},
    hash::Hash,
    net::IpAddr,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use tokio::{
    sync::{OnceCell, oneshot, watch},
    task::spawn_local,
    time::timeout,
};

use super::shares::{Pool, Share};
use crate::{
    Error, Result,
    datapath::{
        neighbour::{Hop, HopKey, Known, Neighbours, RESOLVE, Resolution},
        route::{Found, Route},
    },
};

/// The least and the greatest value of the maximum number of entries that the service creates in the kernel's neighbour
/// table. Between them it is half of `gc_thresh1` (128 by default), above which the kernel begins to collect entries.
const ENTRIES: [usize; 2] = [8, 256];
/// Divisor: this part of the entries (a quarter) may belong to neighbours that answered; the others are for lookups in
/// progress.
const KEPT_PART: usize = 4;
/// Entries for a lookup in progress: of an IPv6 address, and of the group to which solicitations for it are sent.
const ENTRIES_OF_LOOKUP: usize = 2;
/// How long an entry stays after its last lookup; routes in use are looked up more often.
const KEEP_TIME: Duration = Duration::from_secs(12);

/// Lookups of one user that wait for their turn.
const QUEUE: usize = 1024;
/// How long they wait: a little longer than a neighbour may take to answer.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a neighbour may take while other lookups wait for their turn.
const RESOLVE_CONTENDED: Duration = Duration::from_secs(1);

/// Time for which a neighbour that did not answer is not asked again: as long as it had to answer.
const ABSENCE_TIME: Duration = RESOLVE;
/// Maximum number of absent neighbours, and of destinations that are reached through them, to remember.
const ABSENCES: usize = 2048;

/// Interface, destination, and source address of a lookup.
type Wanted = (Option<Box<str>>, IpAddr, Option<IpAddr>);

type Mac = [u8; 6];

/// The end of a resolution, for all that wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Found(Mac),
    /// No answer within this time.
    Absent(Duration),
    /// The error number of a system call.
    Failed(i32),
}

/// Looks up routes and next hops.
#[derive(Default)]
pub(super) struct NextHops {
    /// Set by the first lookup.
    turns: OnceCell<Rc<Turns>>,
    socket: RefCell<Weak<Neighbours>>,
    /// Next hops that are being resolved.
    pending: RefCell<HashMap<HopKey, watch::Receiver<Option<Outcome>>>>,
    /// Neighbours that did not answer, and how long they were given.
    absent: RefCell<Recent<HopKey, Duration>>,
    /// Lookups that failed for that reason.
    unreached: RefCell<Recent<Wanted, (Hop, Duration)>>,
    /// Entries of the kernel's table that the service created.
    created: RefCell<Recent<HopKey, ()>>,
}

impl NextHops {
    /// The turns for lookups: as many as the threshold of the kernel's tables permits.
    async fn turns(&self, socket: &Neighbours) -> &Rc<Turns> {
        let read = async || {
            let [least, most] = ENTRIES;
            let threshold = socket.collection_threshold().await.unwrap_or(0);
            let entries = (threshold as usize / 2).clamp(least, most);
            let kept = entries / KEPT_PART;
            self.created.borrow_mut().most = kept;
            Turns::new((entries - kept) / ENTRIES_OF_LOOKUP)
        };
        self.turns.get_or_init(read).await
    }

    /// The route to `destination`, over `interface` and from `source` if those are given. Its next hop is resolved only
    /// if `check` allows the route.
    ///
    /// # Errors
    /// [`Error::NoRoute`], [`Error::NoNeighbour`]; [`Error::Io`] if too many lookups of `user` wait; those of `check`.
    pub(super) async fn find<E: From<Error>>(
        self: &Rc<Self>,
        user: u32,
        interface: Option<&str>,
        destination: IpAddr,
        source: Option<IpAddr>,
        check: impl FnOnce(&Route) -> Result<(), E>,
    ) -> Result<Route, E> {
        let wanted: Wanted = (interface.map(Box::from), destination, source);
        if let Some((hop, after)) = self.unreached.borrow().get(&wanted, ABSENCE_TIME) {
            return Err(hop.no_neighbour(*after).into());
        }
        let socket = self.socket()?;
        let turn = self.turns(&socket).await.take(user).await.ok_or_else(|| busy(destination))?;
        let Found { mut route, hop } = socket.route(destination, interface, source).await?;
        check(&route)?;
        let Some(hop) = hop else { return Ok(route) };
        match self.resolve(turn, socket, &hop).await? {
            Outcome::Found(mac) => route.set_next_hop(mac),
            Outcome::Absent(after) => {
                let error = hop.no_neighbour(after);
                self.unreached.borrow_mut().insert(wanted, (hop, after));
                return Err(error.into());
            }
            Outcome::Failed(errno) => return Err(hop.failed(std::io::Error::from_raw_os_error(errno)).into()),
        }
        Ok(route)
    }

    /// Whether another lookup of `user` can begin, or wait for its turn.
    pub(super) fn has_room(&self, user: u32) -> bool {
        self.turns.get().is_none_or(|turns| turns.has_room(user))
    }

    async fn resolve(self: &Rc<Self>, turn: Turn, socket: Rc<Neighbours>, hop: &Hop) -> Result<Outcome> {
        let known = socket.known(hop).await?;
        if let Known::Usable(mac) = known {
            self.created.borrow_mut().touch(&hop.key);
            return Ok(Outcome::Found(mac));
        }
        if known == Known::Unknown
            && let Some(after) = self.absent.borrow().get(&hop.key, ABSENCE_TIME)
        {
            return Ok(Outcome::Absent(*after));
        }
        let pending = self.pending.borrow().get(&hop.key).cloned();
        let mut pending = pending.unwrap_or_else(|| self.begin(turn, socket, hop.clone(), known));
        let outcome = pending.wait_for(Option::is_some).await.ok().and_then(|outcome| *outcome);
        Ok(outcome.unwrap_or(Outcome::Failed(libc::ECANCELED)))
    }

    /// Resolves a next hop in a task of its own: it keeps its turn even if the client that wanted it closes its
    /// connection.
    fn begin(
        self: &Rc<Self>,
        turn: Turn,
        socket: Rc<Neighbours>,
        hop: Hop,
        known: Known,
    ) -> watch::Receiver<Option<Outcome>> {
        let (result, pending) = watch::channel(None);
        self.pending.borrow_mut().insert(hop.key, pending.clone());
        let hops = self.clone();
        spawn_local(async move {
            let limit = if turn.turns.is_contended() { RESOLVE_CONTENDED } else { RESOLVE };
            let Resolution { found, created } = socket.resolve(&hop, known, limit).await;
            let outcome = match found {
                Ok(mac) => Outcome::Found(mac),
                Err(Error::NoNeighbour { after, .. }) => Outcome::Absent(after),
                Err(Error::Io { source, .. }) => Outcome::Failed(source.raw_os_error().unwrap_or(libc::EIO)),
                Err(_) => Outcome::Failed(libc::EPERM),
            };
            if let Outcome::Absent(after) = outcome {
                hops.absent.borrow_mut().insert(hop.key, after);
            }
            let replaced = if created { hops.created.borrow_mut().insert(hop.key, ()) } else { None };
            hops.pending.borrow_mut().remove(&hop.key);
            result.send_replace(Some(outcome));
            remove(&socket, replaced).await;
            drop(turn);
        });
        pending
    }

    /// Asks again for all neighbours that did not answer: the network has changed.
    pub(super) fn forget_absent(&self) {
        self.absent.borrow_mut().clear();
        self.unreached.borrow_mut().clear();
    }

    /// Removes the entries of the kernel's table that the service created and that were not looked up lately, or all.
    pub(super) async fn remove_entries(&self, all: bool) {
        let age = if all { Duration::ZERO } else { KEEP_TIME };
        let old = self.created.borrow_mut().remove_older(age);
        self.absent.borrow_mut().remove_older(ABSENCE_TIME);
        self.unreached.borrow_mut().remove_older(ABSENCE_TIME);
        if !old.is_empty()
            && let Ok(socket) = self.socket()
        {
            remove(&socket, old).await;
        }
    }

    /// The socket, which is open while lookups are in progress.
    fn socket(&self) -> Result<Rc<Neighbours>> {
        if let Some(open) = self.socket.borrow().upgrade() {
            return Ok(open);
        }
        let socket = Rc::new(Neighbours::open()?);
        self.socket.replace(Rc::downgrade(&socket));
        Ok(socket)
    }
}

async fn remove(socket: &Neighbours, keys: impl IntoIterator<Item = HopKey>) {
    for key in keys {
        if let Err(error) = socket.remove(key).await {
            log::debug!("cannot remove the neighbour entry of {}: {error}", key.address);
        }
    }
}

fn busy(destination: IpAddr) -> Error {
    let reason = "too many lookups of this user wait for neighbours; send to fewer new destinations at once";
    Error::Io { action: format!("look up the route to {destination}"), source: std::io::Error::other(reason) }
}

/// Turns for lookups. The number of those in progress is limited for each user and in all; the next turn is given to
/// the user who has the fewest.
struct Turns {
    pool: Rc<Pool>,
    queues: RefCell<BTreeMap<u32, VecDeque<oneshot::Sender<Turn>>>>,
}

/// A lookup in progress.
struct Turn {
    turns: Rc<Turns>,
    /// `None` once it is returned.
    share: Option<Share>,
}

impl Turns {
    fn new(count: usize) -> Rc<Self> {
        Rc::new(Self { pool: Pool::new(count, [count, 1]), queues: RefCell::default() })
    }

    /// Waits for a turn. `None` if too many lookups of the user wait already, or if none becomes free in time.
    async fn take(self: &Rc<Self>, user: u32) -> Option<Turn> {
        let is_first = !self.queues.borrow().contains_key(&user);
        if let Some(share) = is_first.then(|| self.pool.take(user, 1)).flatten() {
            return Some(self.turn(share));
        }
        let (sender, turn) = oneshot::channel();
        {
            let mut queues = self.queues.borrow_mut();
            let queue = queues.entry(user).or_default();
            if !has_room(queue) {
                return None;
            }
            queue.push_back(sender);
        }
        timeout(QUEUE_TIMEOUT, turn).await.ok()?.ok()
    }

    /// Whether lookups wait.
    fn is_contended(&self) -> bool {
        !self.queues.borrow().is_empty()
    }

    /// Whether another lookup of `user` can wait.
    fn has_room(&self, user: u32) -> bool {
        self.queues.borrow_mut().get_mut(&user).is_none_or(has_room)
    }

    fn turn(self: &Rc<Self>, share: Share) -> Turn {
        Turn { turns: self.clone(), share: Some(share) }
    }

    /// Gives free turns to those that wait.
    fn give(self: &Rc<Self>) {
        loop {
            let mut queues = self.queues.borrow_mut();
            queues.retain(|_, queue| {
                while queue.front().is_some_and(oneshot::Sender::is_closed) {
                    queue.pop_front();
                }
                !queue.is_empty()
            });
            let waiting = queues.keys().copied().filter(|user| self.pool.room(*user) > 0);
            let Some(user) = waiting.min_by_key(|user| self.pool.held(*user)) else { return };
            let next = queues.get_mut(&user).and_then(VecDeque::pop_front);
            drop(queues);
            if let (Some(next), Some(share)) = (next, self.pool.take(user, 1)) {
                // The receiver was not closed when the queue was searched.
                let _ = next.send(self.turn(share));
            }
        }
    }
}

/// Whether a queue has room, after the lookups that no longer wait are removed if necessary.
fn has_room(queue: &mut VecDeque<oneshot::Sender<Turn>>) -> bool {
    if queue.len() >= QUEUE {
        queue.retain(|waiting| !waiting.is_closed());
    }
    queue.len() < QUEUE
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.share = None;
        self.turns.give();
    }
}

/// A bounded map that remembers when its entries were last touched, and replaces the oldest.
struct Recent<K, V> {
    most: usize,
    entries: HashMap<K, (Instant, V)>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { most: ABSENCES, entries: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    /// Inserts an entry; returns the key of the entry that it replaces if the map is full.
    fn insert(&mut self, key: K, value: V) -> Option<K> {
        let is_full = self.entries.len() >= self.most && !self.entries.contains_key(&key);
        let oldest = is_full.then(|| self.entries.iter().min_by_key(|(_, (touched, _))| *touched)).flatten();
        let oldest = oldest.map(|(key, _)| key.clone());
        if let Some(oldest) = &oldest {
            self.entries.remove(oldest);
        }
        self.entries.insert(key, (Instant::now(), value));
        oldest
    }

    /// An entry that was touched less than `age` ago.
    fn get(&self, key: &K, age: Duration) -> Option<&V> {
        self.entries.get(key).filter(|(touched, _)| touched.elapsed() < age).map(|(_, value)| value)
    }

    fn touch(&mut self, key: &K) {
        if let Some((touched, _)) = self.entries.get_mut(key) {
            *touched = Instant::now();
        }
    }

    /// Removes the entries that were touched at least `age` ago.
    fn remove_older(&mut self, age: Duration) -> Vec<K> {
        self.entries.extract_if(|_, (touched, _)| touched.elapsed() >= age).map(|(key, _)| key).collect()
    }

    fn clear(&mut self) {
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn free_turn_is_given_to_the_user_with_the_fewest() {
        let turns = Turns::new(4);
        let [first, second] = [turns.take(1).await, turns.take(1).await];
        assert!(first.is_some() && second.is_some());
        let mut third = Box::pin(turns.take(1));
        assert!(third.as_mut().now_or_never().is_none(), "half is left for others");
        let others = [turns.take(2).await, turns.take(3).await];
        let late = turns.take(4).await.expect("the least, though none is left");
        drop(first);
        assert!(third.as_mut().now_or_never().is_none(), "user 1 has one, and none is left");
        let mut second_of_4 = Box::pin(turns.take(4));
        assert!(second_of_4.as_mut().now_or_never().is_none());
        drop((second, others, late));
        let [third, second_of_4] = [third.await, second_of_4.await];
        assert!(third.is_some() && second_of_4.is_some());
        assert!(turns.queues.borrow().is_empty());
    }

    #[tokio::test]
    async fn queue_of_a_user_is_bounded() {
        let turns = Turns::new(2);
        let first = turns.take(1).await;
        let mut waiting: Vec<_> = (0..QUEUE).map(|_| Box::pin(turns.take(1))).collect();
        assert!(waiting.iter_mut().all(|turn| turn.as_mut().now_or_never().is_none()));
        assert!(turns.take(1).await.is_none(), "refused at once");
        assert!(turns.take(2).await.is_some(), "another user");
        waiting.truncate(1);
        drop(first);
        assert!(waiting.remove(0).await.is_some(), "those that no longer wait are skipped");
    }

    #[test]
    fn oldest_entry_is_replaced() {
        let mut recent = Recent { most: 2, ..Recent::default() };
        assert_eq!([recent.insert('a', 1), recent.insert('b', 2)], [None, None]);
        recent.touch(&'a');
        assert_eq!(recent.insert('a', 3), None);
        assert_eq!(recent.insert('c', 4), Some('b'));
        assert_eq!(recent.get(&'a', Duration::from_secs(3600)), Some(&3));
        assert_eq!(recent.get(&'a', Duration::ZERO), None);
        assert_eq!(recent.remove_older(Duration::ZERO).len(), 2);
    }
}
