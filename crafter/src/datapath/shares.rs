//! The shares of interfaces, leases and users in the memory of received packets (see [`crafter_common::share`]).

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::maps::MapData;
use crafter_common::{
    map::{SHARE_ENTRIES, SOCKET_ENTRIES},
    share::{LOST, RELEASED, TAKEN, USER, WORDS},
};
use memmap2::{MmapOptions, MmapRaw};

use super::lock;
use crate::error::{Error, Result};

/// Number of entries in place 0, which all leases and users without a place of their own share: one entry for each pool
/// that an interface can have.
const COMMON: u32 = 1 + SOCKET_ENTRIES;

/// The maximum number of returned places that are searched for an empty one before an unused one is taken.
const MAX_TRIES: usize = 8;

/// The map of shares, mapped into this process: reading and writing it takes no system call.
pub(super) struct ShareMap {
    memory: MmapRaw,
    /// The programs refer to it by its descriptor until they are loaded.
    _map: MapData,
    places: Mutex<Places>,
}

/// Allocates places: ranges of consecutive entries of the map, named by the first one.
struct Places {
    /// The first entry that was never used; neither was any after it.
    next: u32,
    /// Returned places by their number of entries, those returned first in front. Their packets may not be released
    /// yet.
    free: HashMap<u32, VecDeque<u32>>,
}

impl Places {
    /// Allocates a place of `count` entries: a returned one for which `is_empty` is true, else an unused one, else
    /// place 0.
    fn take(&mut self, count: u32, is_empty: impl Fn(u32) -> bool) -> u32 {
        let returned = self.free.entry(count).or_default();
        for _ in 0..returned.len().min(MAX_TRIES) {
            let Some(place) = returned.pop_front() else { break };
            if is_empty(place) {
                return place;
            }
            returned.push_back(place);
        }
        if self.next + count > SHARE_ENTRIES {
            return 0;
        }
        self.next += count;
        self.next - count
    }

    fn put_back(&mut self, place: u32, count: u32) {
        if place != 0 {
            self.free.entry(count).or_default().push_back(place);
        }
    }
}

impl ShareMap {
    /// Maps the map into memory.
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel refuses.
    pub(super) fn open(map: MapData) -> Result<Self> {
        let length = SHARE_ENTRIES as usize * WORDS * size_of::<u64>();
        let memory = MmapOptions::new()
            .len(length)
            .map_raw(map.fd().as_fd().as_raw_fd())
            .map_err(|source| Error::Io { action: "map the shares of received packets".into(), source })?;
        Ok(Self { memory, _map: map, places: Mutex::new(Places { next: COMMON, free: HashMap::new() }) })
    }

    fn word(&self, share: u32, word: usize) -> &AtomicU64 {
        let at = (share.min(SHARE_ENTRIES - 1) as usize * WORDS + word.min(WORDS - 1)) * size_of::<u64>();
        // SAFETY: `at` is a multiple of 8 within the mapping, which begins at a page and exists as long as `self`. All
        // accesses of this process are atomic, and those of the kernel half are atomic instructions or aligned loads.
        unsafe { AtomicU64::from_ptr(self.memory.as_mut_ptr().add(at).cast()) }
    }

    fn get(&self, share: u32, word: usize) -> u64 {
        self.word(share, word).load(Ordering::Relaxed)
    }

    fn waiting(&self, share: u32) -> u64 {
        self.get(share, TAKEN).wrapping_sub(self.get(share, RELEASED))
    }

    /// Allocates a place for `count` shares.
    fn take(&self, count: u32) -> u32 {
        lock(&self.places).take(count, |place| (place..place + count).all(|share| self.waiting(share) == 0))
    }

    /// Releases all packets that are counted in a place, because they will not be read, and returns the place.
    fn write_off(&self, place: u32, count: u32) {
        if place == 0 {
            return;
        }
        for share in place..place + count {
            self.word(share, RELEASED).store(self.get(share, TAKEN), Ordering::Release);
        }
        lock(&self.places).put_back(place, count);
    }

    /// Releases `units` in a share. Several interfaces may share the common ones, so the addition is atomic.
    fn release(&self, share: u32, units: u64) {
        self.word(share, RELEASED).fetch_add(units, Ordering::Release);
    }
}

/// The shares of one interface: of all its packets, of each of its leases, and of the user of each.
pub(super) struct Shares {
    map: Arc<ShareMap>,
    /// Pools of the interface: its queues, and the ring buffer.
    pools: u32,
    /// The place of the interface.
    all: u32,
    /// The place of each lease, its user, and the packets that the place had lost when the lease began.
    leases: HashMap<u32, (u32, u32, u64)>,
    /// The place of each user, and the number of the user's leases.
    users: HashMap<u32, (u32, u32)>,
}

impl Shares {
    /// Allocates the shares of an interface with this many receive queues.
    pub(super) fn new(map: Arc<ShareMap>, queues: u32) -> Self {
        let pools = 1 + queues.clamp(1, SOCKET_ENTRIES);
        let all = map.take(pools);
        Self { map, pools, all, leases: HashMap::new(), users: HashMap::new() }
    }

    /// The place of the interface.
    pub(super) fn all(&self) -> u32 {
        self.all
    }

    /// The place of a lease of `user`, which begins with the first call.
    pub(super) fn of(&mut self, lease: u32, user: u32) -> u32 {
        if let Some((place, ..)) = self.leases.get(&lease) {
            return *place;
        }
        let (of_user, leases) = self.users.entry(user).or_insert_with(|| (self.map.take(self.pools), 0));
        *leases += 1;
        let (place, of_user) = (self.map.take(self.pools), *of_user);
        // Nothing else writes this word, and no owned port refers to the place yet. The user of place 0 is place 0.
        for pool in (0..self.pools).filter(|_| place != 0) {
            self.map.word(place + pool, USER).store((of_user + pool).into(), Ordering::Release);
        }
        self.leases.insert(lease, (place, user, self.map.get(place, LOST)));
        place
    }

    /// Ends the shares of a lease, whose ports are no longer owned. Packets that still wait stay counted in its place.
    pub(super) fn end(&mut self, lease: u32) {
        let Some((place, user, _)) = self.leases.remove(&lease) else { return };
        let mut places = lock(&self.map.places);
        places.put_back(place, self.pools);
        if let Some((place, leases)) = self.users.get_mut(&user) {
            *leases -= 1;
            if *leases == 0 {
                places.put_back(*place, self.pools);
                self.users.remove(&user);
            }
        }
    }

    /// Packets for a lease that found no room in its shares since it began.
    pub(super) fn lost(&self, lease: u32) -> u64 {
        let lost = |(place, _, before): &(u32, u32, u64)| self.map.get(*place, LOST).wrapping_sub(*before);
        self.leases.get(&lease).map_or(0, lost)
    }

    /// Packets for all leases that found no room in their shares.
    #[cfg(test)]
    pub(super) fn lost_by_all(&self) -> u64 {
        self.map.get(self.all, LOST)
    }

    /// Releases `units` in `pool` of the lease whose place is `share`: the packets were read.
    pub(super) fn release(&self, pool: u32, share: u32, units: u64) {
        let pool = pool.min(self.pools - 1);
        let share = share.saturating_add(pool);
        for share in [self.all + pool, self.map.get(share, USER) as u32, share] {
            self.map.release(share, units);
        }
    }

    /// Units of a lease that wait in all pools.
    #[cfg(test)]
    pub(super) fn waiting(&self, lease: u32) -> u64 {
        let Some((place, ..)) = self.leases.get(&lease) else { return 0 };
        (0..self.pools).map(|pool| self.map.waiting(place + pool)).sum()
    }
}

impl Drop for Shares {
    fn drop(&mut self) {
        let leases = self.leases.values().map(|(place, ..)| *place);
        for place in leases.chain(self.users.values().map(|(place, _)| *place)).chain([self.all]) {
            self.map.write_off(place, self.pools);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_reused_oldest_first_and_never_overlap() {
        let mut places = Places { next: COMMON, free: HashMap::new() };
        let taken: Vec<u32> = (0..3).map(|_| places.take(2, |_| true)).collect();
        assert_eq!(taken, [COMMON, COMMON + 2, COMMON + 4]);
        places.put_back(taken[1], 2);
        places.put_back(taken[0], 2);
        assert_eq!(places.take(3, |_| true), COMMON + 6);
        assert_eq!(places.take(2, |place| place != taken[1]), taken[0], "packets still wait in the older one");
        assert_eq!([places.take(2, |_| false), places.take(2, |_| true)], [COMMON + 9, taken[1]]);
        // Without a free place, place 0; it is never returned.
        places.next = SHARE_ENTRIES - 1;
        assert_eq!(places.take(2, |_| true), 0);
        places.put_back(0, 2);
        assert_eq!(places.take(2, |_| false), 0);
    }
}
