//! The far end of a sender under test: a link that drops every frame in native XDP, before a stack sees it.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// `mov r0, XDP_DROP; exit`
static CODE: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
static LICENSE: &[u8; 4] = b"GPL\0";

/// bpf(2), with the leading 32-bit words of `union bpf_attr`.
fn bpf(command: libc::c_long, words: &mut [u32; 32]) -> io::Result<OwnedFd> {
    // SAFETY: the attribute is a readable and writable buffer of the size given, which outlives the call; what it
    // points to are statics.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_mut_ptr(), size_of_val(words)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the commands used here return a new descriptor, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Makes a link of this thread's namespace drop all frames, as long as the descriptor is open.
///
/// # Errors
/// The kernel's.
pub fn drop_all(interface: &str) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_LINK_CREATE: libc::c_long = 28;
    const BPF_PROG_TYPE_XDP: u32 = 6;
    const BPF_XDP: u32 = 37;
    const XDP_FLAGS_DRV_MODE: u32 = 4;
    let halves = |pointer: u64| {
        let bytes = pointer.to_ne_bytes();
        [0, 4].map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
    };
    let mut load = [0; 32];
    load[..2].copy_from_slice(&[BPF_PROG_TYPE_XDP, CODE.len() as u32]);
    load[2..4].copy_from_slice(&halves(CODE.as_ptr() as u64));
    load[4..6].copy_from_slice(&halves(LICENSE.as_ptr() as u64));
    let program = bpf(BPF_PROG_LOAD, &mut load)?;
    let index = nix::net::if_::if_nametoindex(interface)?;
    let mut link = [0; 32];
    link[..4].copy_from_slice(&[program.as_raw_fd() as u32, index, BPF_XDP, XDP_FLAGS_DRV_MODE]);
    bpf(BPF_LINK_CREATE, &mut link)
}

/// Frames that a link of this thread's namespace has received, dropped ones included.
///
/// # Errors
/// That there is no such link.
pub fn received(interface: &str) -> io::Result<u64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
    let count = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    count.ok_or_else(|| io::ErrorKind::NotFound.into())
}
