//! Reads counters of each CPU without /sys: aya asks `/sys/devices/system/cpu/possible` for the number of values, which
//! containers may lack.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use aya::{
    maps::{IterableMap as _, MapData, MapError, PerCpuArray},
    util::nr_cpus,
};

/// `BPF_MAP_LOOKUP_ELEM` of linux/bpf.h.
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;

/// The largest number of CPUs of a kernel for x86-64 (`CONFIG_NR_CPUS`).
const MAX_CPUS: usize = 8192;

/// The first members of `union bpf_attr` for one element.
#[repr(C)]
struct Attributes {
    map_fd: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The sum of a counter over all CPUs.
///
/// # Errors
/// Those of bpf(2).
pub(super) fn sum(map: &PerCpuArray<MapData, u64>, index: u32) -> Result<u64, MapError> {
    match map.get(&index, 0) {
        Ok(values) => Ok(values.iter().sum()),
        Err(error) => match nr_cpus() {
            Ok(_) => Err(error),
            Err(_) => Ok(lookup(map.map().fd().as_fd(), index).map_err(MapError::IoError)?.iter().sum()),
        },
    }
}

/// The values of an element: those of the possible CPUs, then zeros.
fn lookup(map: BorrowedFd<'_>, index: u32) -> io::Result<Vec<u64>> {
    let mut values = vec![0_u64; MAX_CPUS];
    let attributes = Attributes {
        map_fd: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(&index) as u64,
        value: values.as_mut_ptr() as u64,
        flags: 0,
    };
    let (pointer, size) = (std::ptr::from_ref(&attributes), size_of::<Attributes>());
    // SAFETY: the kernel reads one u32 at `key`, and writes one u64 for each possible CPU at `value`, of which there are
    // at most MAX_CPUS; both outlive the call.
    match unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_ELEM, pointer, size) } {
        0.. => Ok(values),
        _ => Err(io::Error::last_os_error()),
    }
}
