//! Lists of flows for clients.
//!
//! The flow map is read once for a list, on another thread and for one list after the other. The result is a snapshot,
//! from which the pages are taken. A client that reads slowly holds nothing but the page that is being sent: snapshots
//! are bounded for each user and in all, and that which was not used for longest is dropped for a new one. If a client
//! continues a list whose snapshot was dropped, the map is read again, from the flow on at which the list continues.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use crafter_common::flow::{FlowKey, FlowValue};
use tokio::{
    sync::{Mutex, OwnedMutexGuard, Semaphore},
    time::{Instant, sleep_until},
};

use super::state::Service;
use crate::{
    Error, Result,
    datapath::maps::{self, Counters, MapReader},
    protocol::wire::{Flow, Flows},
};

/// The maximum number of bytes of the snapshots of one user, and so of one snapshot. A list of more flows takes
/// several.
const MOST_OF_USER: usize = 8 << 20;

/// The maximum number of bytes of all snapshots.
const MOST: usize = 32 << 20;

/// Bytes that a snapshot counts in addition to its flows, so that a user has at most a few hundred snapshots.
const OVERHEAD: usize = 16 << 10;

/// How long an unused snapshot is kept for the next page.
const KEPT: Duration = Duration::from_secs(5);

/// A user's next read of the maps begins this many times the duration of the previous one after its end, so that lists
/// take at most a quarter of a processor.
const PAUSE: u32 = 3;

/// What a list contains.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Selection {
    /// The owner of the flows' leases; `None`: all flows.
    pub(super) whose: Option<u32>,
    pub(super) interface: Option<String>,
    pub(super) protocol: Option<String>,
    /// The local or the remote port.
    pub(super) port: Option<u16>,
    pub(super) remote: Option<IpAddr>,
}

impl Selection {
    fn has(&self, key: &FlowKey, value: &FlowValue, owned: &Owned) -> bool {
        if self.whose.is_none() && self.protocol.is_none() && self.port.is_none() && self.remote.is_none() {
            return true;
        }
        let flow = &maps::flow(key, value);
        self.protocol.as_ref().is_none_or(|protocol| protocol == flow.protocol)
            && self.port.is_none_or(|port| [flow.local.port(), flow.remote.port()].contains(&port))
            && self.remote.is_none_or(|remote| flow.remote.ip() == remote)
            && (self.whose.is_none() || owned.contains(&(key.link, key.lease)))
    }
}

/// An interface to read flows or counters of.
pub(super) struct Source {
    pub(super) name: String,
    pub(super) reader: MapReader,
    /// The driver's numbers of the selected user's leases.
    pub(super) leases: Vec<u32>,
}

/// The leases of a user, as keys of flows have them: link and lease. Flows of leases that have ended are in none.
type Owned = HashSet<(u32, u32)>;

fn owned<'s>(sources: impl Iterator<Item = &'s Source>) -> Owned {
    sources.flat_map(|source| source.leases.iter().map(|lease| (source.reader.link(), *lease))).collect()
}

/// A flow of a snapshot: the index of its interface's name, and the entry of the map.
type Entry = (u32, FlowKey, FlowValue);

/// The maximum number of flows of a snapshot.
const MOST_FLOWS: usize = (MOST_OF_USER - OVERHEAD) / size_of::<Entry>();

/// The flows that begin after a point in time, sorted by their beginning.
#[derive(Default)]
struct Snapshot {
    /// The flows begin after this time.
    begin: u64,
    names: Vec<String>,
    entries: Vec<Entry>,
    /// Whether the map had more flows than a snapshot.
    is_cut: bool,
}

impl Snapshot {
    /// Reads the flows of `sources` that are selected and begin after `begin`.
    fn read(sources: &[Source], selection: &Selection, begin: u64, most: usize) -> Result<Self> {
        let mut snapshot = Self { begin, ..Self::default() };
        snapshot.names.extend(sources.iter().map(|source| source.name.clone()));
        let mut loads: Vec<usize> = sources.iter().map(|source| source.reader.load()).collect();
        loads.sort_unstable();
        loads.dedup();
        for load in loads {
            let of_load = || sources.iter().enumerate().filter(|(_, source)| source.reader.load() == load);
            let owned = owned(of_load().map(|(_, source)| source));
            let names: HashMap<u32, u32> =
                of_load().map(|(name, source)| (source.reader.link(), name as u32)).collect();
            let Some((_, source)) = of_load().next() else { continue };
            source.reader.read_flows(|key, value| {
                let Some(&name) = names.get(&key.link) else { return };
                if value.first_seen > begin && selection.has(key, value, &owned) {
                    snapshot.add((name, *key, *value), most);
                }
            })?;
        }
        snapshot.finish(most);
        Ok(snapshot)
    }

    /// Adds a flow; at most twice `most` are kept while the map is read.
    fn add(&mut self, entry: Entry, most: usize) {
        if self.entries.len() >= most * 2 {
            self.entries.select_nth_unstable_by_key(most, beginning);
            self.entries.truncate(most);
            self.is_cut = true;
        }
        self.entries.push(entry);
    }

    /// Sorts the flows, and keeps the first `most`.
    fn finish(&mut self, most: usize) {
        self.entries.sort_unstable_by_key(beginning);
        self.is_cut |= self.entries.len() > most;
        self.entries.truncate(most);
        self.entries.shrink_to_fit();
    }

    fn bytes(&self) -> usize {
        OVERHEAD + self.entries.capacity() * size_of::<Entry>()
    }

    /// A page: the first `limit` flows that begin after `after`, and all that begin at the same time as the last of
    /// these. `None` if the snapshot does not contain the flows after `after`.
    fn page(&self, after: u64, limit: usize) -> Option<Flows> {
        if after < self.begin {
            return None;
        }
        let begin = self.entries.partition_point(|entry| beginning(entry).0 <= after);
        if begin == self.entries.len() && self.is_cut {
            return None;
        }
        let mut end = (begin + limit).min(self.entries.len());
        // The next page begins after this time, so all flows of this time belong to this page.
        let last = end.checked_sub(1).filter(|_| end > begin).map(|last| beginning(&self.entries[last]).0);
        end += self.entries[end..].iter().take_while(|entry| Some(beginning(entry).0) == last).count();
        let flows = self.entries[begin..end].iter().map(|(name, key, value)| {
            Flow::of_map(self.names.get(*name as usize).cloned().unwrap_or_default(), &maps::flow(key, value))
        });
        let is_last = end == self.entries.len() && !self.is_cut;
        Some(Flows { flows: flows.collect(), next: last.filter(|_| !is_last) })
    }
}

/// When a flow began, and what distinguishes it from others of that time.
fn beginning((_, key, value): &Entry) -> (u64, [u8; 16], [u8; 2], [u8; 16], [u8; 2]) {
    (value.first_seen, key.local, key.local_port, key.remote, key.remote_port)
}

/// The snapshots of all users.
pub(super) struct Snapshots {
    kept: RefCell<Vec<Kept>>,
    /// One permit: the thread that reads the maps.
    reading: Arc<Semaphore>,
    /// When each user may read next.
    users: RefCell<HashMap<u32, Arc<Mutex<Instant>>>>,
}

struct Kept {
    user: u32,
    selection: Selection,
    snapshot: Arc<Snapshot>,
    /// A time shortly before the map was read.
    reading: Instant,
    used: Instant,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { kept: RefCell::default(), reading: Arc::new(Semaphore::new(1)), users: RefCell::default() }
    }
}

impl Snapshots {
    /// A page of a list that continues after `after`; `None`: the beginning of a new list.
    ///
    /// # Errors
    /// Those of reading the maps.
    pub(super) async fn page(
        service: &Rc<Service>,
        user: u32,
        selection: &Selection,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Flows> {
        let own = &service.snapshots;
        if let Some(after) = after
            && let Some(page) = own.find(user, selection).and_then(|snapshot| snapshot.page(after, limit))
            // A client may also wait for new flows after the last one.
            && !page.flows.is_empty()
        {
            return Ok(page);
        }
        let (asked, begin) = (Instant::now(), after.unwrap_or(0));
        let turn = own.turn(user).await;
        // While this list waited, another list of the user may have been read.
        if let Some(page) = own.find_since(user, selection, asked).and_then(|snapshot| snapshot.page(begin, limit)) {
            return Ok(page);
        }
        let (sources, selected) = (service.flow_sources(selection), selection.clone());
        let read = move || Snapshot::read(&sources, &selected, begin, MOST_FLOWS);
        let reading = Instant::now();
        let snapshot = Arc::new(own.off_thread(turn, read).await?);
        let page = snapshot.page(begin, limit).unwrap_or_default();
        if page.next.is_some() {
            own.keep(user, selection.clone(), snapshot, reading);
            forget_later(service);
        }
        Ok(page)
    }

    /// The counters of interfaces.
    ///
    /// # Errors
    /// Those of reading the maps.
    pub(super) async fn counters(&self, user: u32, sources: Vec<Source>) -> Result<Vec<(String, Counters)>> {
        let read = move || sources.into_iter().map(|source| Ok((source.name, source.reader.counters()?))).collect();
        self.off_thread(self.turn(user).await, read).await
    }

    /// Waits until the user may read the maps: one list at a time, and in order.
    async fn turn(&self, user: u32) -> OwnedMutexGuard<Instant> {
        let gate = self.users.borrow_mut().entry(user).or_insert_with(|| Arc::new(Mutex::new(Instant::now()))).clone();
        let next = gate.lock_owned().await;
        sleep_until(*next).await;
        next
    }

    /// Runs `read` on another thread, one of all users at a time and in order.
    async fn off_thread<T: Send + 'static>(
        &self,
        mut turn: OwnedMutexGuard<Instant>,
        read: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let failed = |source| Error::Io { action: "read the maps".to_owned(), source };
        let permit = self.reading.clone().acquire_owned().await;
        let permit = permit.map_err(|error| failed(std::io::Error::other(error)))?;
        // The thread holds both even if the client disconnects meanwhile.
        let work = move || {
            let began = Instant::now();
            let result = read();
            *turn = Instant::now() + began.elapsed() * PAUSE;
            drop(permit);
            result
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| failed(error.into()))?
    }

    fn find(&self, user: u32, selection: &Selection) -> Option<Arc<Snapshot>> {
        let mut kept = self.kept.borrow_mut();
        let found = kept.iter_mut().find(|kept| kept.user == user && kept.selection == *selection)?;
        found.used = Instant::now();
        Some(found.snapshot.clone())
    }

    /// A snapshot that was read after `since`.
    fn find_since(&self, user: u32, selection: &Selection, since: Instant) -> Option<Arc<Snapshot>> {
        let is_new = |kept: &&Kept| kept.user == user && kept.selection == *selection && kept.reading >= since;
        self.kept.borrow().iter().find(is_new).map(|kept| kept.snapshot.clone())
    }

    fn keep(&self, user: u32, selection: Selection, snapshot: Arc<Snapshot>, reading: Instant) {
        let mut kept = self.kept.borrow_mut();
        kept.retain(|other| other.user != user || other.selection != selection);
        let bytes = snapshot.bytes();
        drop_oldest(&mut kept, |other| other.user == user, MOST_OF_USER.saturating_sub(bytes));
        drop_oldest(&mut kept, |_| true, MOST.saturating_sub(bytes));
        kept.push(Kept { user, selection, snapshot, reading, used: Instant::now() });
    }

    /// Drops the snapshots that were not used for [`KEPT`]. `false` if none is left.
    fn forget_unused(&self) -> bool {
        let mut kept = self.kept.borrow_mut();
        kept.retain(|other| other.used.elapsed() < KEPT);
        if kept.is_empty() {
            self.users.borrow_mut().retain(|_, gate| Arc::strong_count(gate) > 1);
        }
        !kept.is_empty()
    }
}

/// Drops those that fit and were not used for longest, until at most `most` bytes are left.
fn drop_oldest(kept: &mut Vec<Kept>, fits: impl Fn(&Kept) -> bool, most: usize) {
    while kept.iter().filter(|other| fits(other)).map(|other| other.snapshot.bytes()).sum::<usize>() > most {
        let oldest = kept.iter().enumerate().filter(|(_, other)| fits(other)).min_by_key(|(_, other)| other.used);
        let Some((at, _)) = oldest else { return };
        kept.swap_remove(at);
    }
}

/// Drops unused snapshots later, if that is not planned yet.
fn forget_later(service: &Rc<Service>) {
    if service.snapshots.kept.borrow().len() == 1 {
        let service = service.clone();
        tokio::task::spawn_local(async move {
            while service.snapshots.forget_unused() {
                tokio::time::sleep(KEPT).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u32, first_seen: u64) -> Entry {
        let [.., high, low] = number.to_be_bytes();
        let key = FlowKey {
            link: 1,
            lease: 7,
            local: crafter_common::mapped([192, 0, 2, 2]),
            remote: crafter_common::mapped([192, 0, 2, 1]),
            local_port: 4000_u16.to_be_bytes(),
            remote_port: [high, low],
            protocol: u32::from(crafter_common::UDP).to_le_bytes(),
        };
        (0, key, FlowValue { first_seen, ..FlowValue::default() })
    }

    fn snapshot(times: impl Iterator<Item = u64>, most: usize) -> Snapshot {
        let mut snapshot = Snapshot { names: vec!["lab0".to_owned()], ..Snapshot::default() };
        for (number, time) in times.enumerate() {
            snapshot.add(entry(number as u32, time), most);
            assert!(snapshot.entries.len() <= most * 2, "memory is bounded while the map is read");
        }
        snapshot.finish(most);
        snapshot
    }

    /// The beginnings of all pages.
    fn pages(snapshot: &Snapshot, limit: usize) -> Vec<Vec<u64>> {
        let (mut after, mut pages) = (0, Vec::new());
        while let Some(page) = snapshot.page(after, limit) {
            pages.push(page.flows.iter().map(|flow| flow.first_seen_ns).collect());
            let Some(next) = page.next else { break };
            after = next;
        }
        pages
    }

    #[test]
    fn pages_contain_each_flow_once() {
        let times = [5, 3, 9, 3, 7, 3];
        assert_eq!(pages(&snapshot(times.into_iter(), 10), 2), [vec![3, 3, 3], vec![5, 7], vec![9]]);
        assert_eq!(pages(&snapshot(times.into_iter(), 10), 100), [[3, 3, 3, 5, 7, 9]]);
        assert_eq!(pages(&snapshot(std::iter::empty(), 10), 2), [[0_u64; 0]]);
    }

    #[test]
    fn snapshot_of_a_large_map_is_cut_and_says_so() {
        let cut = snapshot((1..=1000).rev(), 10);
        assert!(cut.is_cut);
        assert_eq!(cut.entries.len(), 10);
        assert_eq!(pages(&cut, 4), [vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![9, 10]]);
        // The list continues with another snapshot.
        assert_eq!(cut.page(8, 4).unwrap().next, Some(10));
        assert!(cut.page(10, 4).is_none());
        let continued = Snapshot { begin: 10, ..snapshot(11..=12, 10) };
        assert_eq!(pages(&continued, 4), [[0_u64; 0]; 0], "it lacks the beginning");
        assert_eq!(continued.page(10, 4).unwrap().flows.len(), 2);
    }

    #[test]
    fn bytes_are_bounded_for_each_user_and_in_all() {
        let snapshots = Snapshots::default();
        let selection = |port| Selection { port: Some(port), ..Selection::default() };
        let large = Arc::new(snapshot(1..=MOST_FLOWS as u64 / 2 - 100, MOST_FLOWS));
        let bytes = |user: Option<u32>| {
            let kept = snapshots.kept.borrow();
            let own = kept.iter().filter(|kept| user.is_none_or(|user| kept.user == user));
            own.map(|kept| kept.snapshot.bytes()).sum::<usize>()
        };
        for port in 0..100 {
            snapshots.keep(1, selection(port), large.clone(), Instant::now());
        }
        assert_eq!(bytes(Some(1)), large.bytes() * 2);
        assert!(bytes(Some(1)) <= MOST_OF_USER);
        assert!(snapshots.find(1, &selection(97)).is_none());
        for user in 2..100 {
            snapshots.keep(user, selection(0), large.clone(), Instant::now());
            // In use: another one is dropped.
            assert!(snapshots.find(1, &selection(99)).is_some());
        }
        assert!(bytes(None) <= MOST);
        assert!(snapshots.find(99, &selection(0)).is_some());
        assert!(snapshots.find(2, &selection(0)).is_none());
        assert_eq!(bytes(Some(1)), large.bytes());
    }

    #[test]
    fn flows_belong_to_their_lease() {
        let (_, key, value) = entry(1, 1);
        let own = Selection { whose: Some(1000), ..Selection::default() };
        let has = |link, lease| own.has(&key, &value, &Owned::from([(link, lease), (3, 3)]));
        assert!(has(1, 7));
        assert!(!has(2, 7), "on another interface");
        assert!(!has(1, 8), "the next owner of the port");
        assert!(Selection::default().has(&key, &value, &Owned::default()), "all flows");
    }
}
