//! Reads whole hash maps by bpf(2)'s `BPF_MAP_LOOKUP_BATCH` (Linux 5.6), which aya lacks. Reading key by key takes two
//! system calls for each entry, and restarts whenever the current key was removed.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use aya::maps::{HashMap, IterableMap as _, MapData};
use crafter_common::flow::{FlowKey, FlowValue};

/// `BPF_MAP_LOOKUP_BATCH` of linux/bpf.h.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// Entries of one call, which takes a few hundred microseconds.
const ENTRIES: usize = 2048;

/// The maximum number of entries of one call. The kernel returns whole buckets, which have a few entries.
const MOST_ENTRIES: usize = 1 << 20;

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls `take` for each entry of the flow map. An entry that is added or removed meanwhile may be missing. Returns the
/// number of system calls: at most one for each bucket, whatever changes meanwhile.
///
/// # Errors
/// Those of bpf(2); `take` was called for a part of the entries then.
pub(super) fn read(
    map: &HashMap<MapData, FlowKey, FlowValue>,
    mut take: impl FnMut(FlowKey, FlowValue),
) -> io::Result<usize> {
    let descriptor = map.map().fd().as_fd();
    let mut entries = ENTRIES;
    let mut buffer = Buffer::new(entries);
    // The number of a bucket; `None`: the beginning of the map.
    let mut position: Option<u32> = None;
    let mut calls = 0;
    loop {
        calls += 1;
        let (count, next, result) = buffer.lookup(descriptor, position);
        let is_last = match result {
            Ok(()) => false,
            Err(error) => match error.raw_os_error() {
                // The end of the map.
                Some(libc::ENOENT) => true,
                // The next bucket has more entries than the buffer.
                Some(libc::ENOSPC) if entries < MOST_ENTRIES => {
                    entries *= 2;
                    buffer = Buffer::new(entries);
                    continue;
                }
                _ => return Err(error),
            },
        };
        buffer.keys.iter().zip(&buffer.values).take(count).for_each(|(key, value)| take(*key, *value));
        if is_last {
            return Ok(calls);
        }
        position = Some(next);
    }
}

struct Buffer {
    keys: Vec<FlowKey>,
    values: Vec<FlowValue>,
}

impl Buffer {
    fn new(entries: usize) -> Self {
        let key = FlowKey {
            link: 0,
            lease: 0,
            local: [0; 16],
            remote: [0; 16],
            local_port: [0; 2],
            remote_port: [0; 2],
            protocol: [0; 4],
        };
        Self { keys: vec![key; entries], values: vec![FlowValue::default(); entries] }
    }

    /// Reads the entries after `position`. Returns their number, the next position, and the result of the system call,
    /// which is ENOENT with the last entries.
    fn lookup(&mut self, map: BorrowedFd<'_>, position: Option<u32>) -> (usize, u32, io::Result<()>) {
        let mut next = 0_u32;
        let mut attributes = Attributes {
            in_batch: position.as_ref().map_or(0, |position| std::ptr::from_ref(position) as u64),
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: self.keys.as_mut_ptr() as u64,
            values: self.values.as_mut_ptr() as u64,
            count: self.keys.len() as u32,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        let (pointer, size) = (std::ptr::from_mut(&mut attributes), size_of::<Attributes>());
        // The kernel reads one position, and writes one position and at most `count` keys and values of this map's sizes.
        // SAFETY: `attributes` has the layout of the union's member; the buffers have room for `count` entries, outlive
        // the call, and every bit pattern of a key and a value is valid.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, pointer, size) };
        let result = if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        let is_filled = result.as_ref().err().is_none_or(|error| error.raw_os_error() == Some(libc::ENOENT));
        let count = if is_filled { (attributes.count as usize).min(self.keys.len()) } else { 0 };
        (count, next, result)
    }
}
