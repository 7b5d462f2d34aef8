//! Shares of the memory in which received packets wait for their owner.
//!
//! Packets wait in pools: the frames of an AF_XDP socket, one pool per queue, and the ring buffer. Each pool counts its
//! contents, and so do each lease and each user for their part of each pool. A packet is admitted by [`fits`]: the
//! fewer packets of a lease and of its user wait, the more of the pool they may take. A flood to one lease fills at
//! most half of a pool, and leaves room for a burst of every other lease. The thresholds are dynamic: no share has to
//! be configured, and none is reserved for a lease that receives nothing (A. K. Choudhury and E. L. Hahne, "Dynamic
//! Queue Length Thresholds for Shared-Memory Packet Switches", 1998).

use crate::reply::{CLASSES, ReplyHeader};

/// What one lease, one user or all together have in one pool. The kernel half adds to `taken` and `lost`, the user half
/// to `released`; none of them is ever reset. An entry of [`crate::map::SHARES`]. The entries of a lease, of a user and
/// of an interface are consecutive: one for each pool, that of [`RING_POOL`] first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Share {
    /// Units admitted: frames in a queue, [`RECORD`] bytes in the ring buffer.
    pub taken: u64,
    /// Units that the user half has read.
    pub released: u64,
    /// Packets that were not admitted.
    pub lost: u64,
    /// In the share of a lease: the position of its user's share of the same pool.
    pub user: u64,
}

/// Position of each field among the words of a [`Share`], and their number.
pub const TAKEN: usize = 0;
/// See [`TAKEN`].
pub const RELEASED: usize = 1;
/// See [`TAKEN`].
pub const LOST: usize = 2;
/// See [`TAKEN`].
pub const USER: usize = 3;
/// See [`TAKEN`].
pub const WORDS: usize = 4;

const _: () = assert!(size_of::<Share>() == 8 * WORDS);

/// The position of a lease's first share, in the form in which a redirected frame carries it: in place of the first
/// bytes of the Ethernet header.
pub type Mark = [u8; 4];

/// The pool of the ring buffer: its place among the shares of a lease, of a user and of an interface.
pub const RING_POOL: u32 = 0;

/// The pool of an AF_XDP socket's frames.
#[inline(always)]
pub const fn queue_pool(queue: u32) -> u32 {
    queue + 1
}

/// Bytes of the ring buffer that are one unit: a record of the smallest class, with the kernel's header of 8 bytes.
pub const RECORD: u32 = 8 + size_of::<ReplyHeader>() as u32 + CLASSES[0];

/// Units of a ring-buffer record of a class.
#[inline(always)]
pub const fn record_units(class: usize) -> u32 {
    (8 + size_of::<ReplyHeader>() as u32 + CLASSES[class]).div_ceil(RECORD)
}

/// The class of a record for `length` bytes of packet: the smallest that holds them, or the largest.
#[inline(always)]
pub const fn record_class(length: u32) -> usize {
    if length <= CLASSES[0] {
        0
    } else if length <= CLASSES[1] {
        1
    } else if length <= CLASSES[2] {
        2
    } else {
        3
    }
}

/// Whether a pool of `capacity` units admits `cost` more, when all, a user and a lease of that user have this much in
/// it. The counts may be a little below zero: the halves count without locks.
///
/// A lease that alone floods an empty pool is admitted up to half of it. A lease of another user then gets a quarter,
/// another lease of the same user an eighth, while the flood shrinks.
#[inline(always)]
pub const fn fits(capacity: u32, all: i64, user: i64, lease: i64, cost: u32) -> bool {
    2 * all + user + lease + 4 * cost as i64 <= 2 * capacity as i64
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    const CAPACITY: u32 = 4096;

    /// A pool and its leases, each of a user.
    struct Pool {
        used: std::vec::Vec<(usize, i64)>,
    }

    impl Pool {
        fn of(users: &[usize]) -> Self {
            Self { used: users.iter().map(|&user| (user, 0)).collect() }
        }

        fn offer(&mut self, lease: usize) -> bool {
            let (user, own) = self.used[lease];
            let all = self.used.iter().map(|(_, used)| used).sum();
            let of_user = self.used.iter().filter(|(other, _)| *other == user).map(|(_, used)| used).sum();
            let fits = fits(CAPACITY, all, of_user, own, 1);
            self.used[lease].1 += i64::from(fits);
            fits
        }

        /// Packets admitted for `lease` until the first that is not.
        fn flood(&mut self, lease: usize) -> usize {
            (0..CAPACITY + 1).take_while(|_| self.offer(lease)).count()
        }
    }

    #[test]
    fn flood_leaves_room_for_others() {
        let mut pool = Pool::of(&[1, 2, 1]);
        assert_eq!(pool.flood(0), CAPACITY as usize / 2);
        assert_eq!(pool.flood(1), CAPACITY as usize / 4, "a lease of another user");
        let mut pool = Pool::of(&[1, 2, 1]);
        pool.flood(0);
        assert_eq!(pool.flood(2), CAPACITY as usize / 8, "another lease of the same user");
    }

    #[test]
    fn user_with_many_leases_gets_no_more_than_half() {
        let mut users = std::vec![1; 64];
        users.push(2);
        let mut pool = Pool::of(&users);
        let taken: usize = (0..64).map(|lease| pool.flood(lease)).sum();
        assert!(taken <= CAPACITY as usize * 2 / 3, "{taken}");
        let other = pool.flood(64);
        assert!(other >= CAPACITY as usize / 6, "{other}");
    }

    #[test]
    fn pool_never_overflows() {
        let users: std::vec::Vec<usize> = (0..200).collect();
        let mut pool = Pool::of(&users);
        for _ in 0..CAPACITY {
            (0..200).for_each(|lease| {
                pool.offer(lease);
            });
        }
        let all: i64 = pool.used.iter().map(|(_, used)| used).sum();
        assert!(all <= i64::from(CAPACITY), "{all}");
        let (least, most) = (pool.used.iter().map(|used| used.1).min(), pool.used.iter().map(|used| used.1).max());
        assert!(least.unwrap() + 1 >= most.unwrap(), "equal shares: {least:?} to {most:?}");
    }

    #[test]
    fn record_costs_equal_their_sizes() {
        assert_eq!((0..4).map(record_units).collect::<std::vec::Vec<_>>(), [1, 8, 56, 224]);
        for (length, class) in [(0, 0), (256, 0), (257, 1), (2048, 1), (16_384, 2), (16_385, 3), (70_000, 3)] {
            assert_eq!(record_class(length), class, "{length}");
        }
    }
}
