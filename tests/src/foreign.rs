//! Foreign BPF programs: a native XDP program that drops every frame before the peer's stack sees it, tcx programs
//! attached before or after crafter's, and the program of a crafter of another version.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crafter::datapath::program::Hook as Programs;
use crafter_common::{
    attached::Attached,
    flow::{FlowKey, FlowValue},
    map,
    reason::REASONS,
};

static LICENSE: &[u8; 4] = b"GPL\0";

/// Program type, attach type and link flags (`enum bpf_prog_type`, `enum bpf_attach_type`).
struct Hook {
    program: u32,
    attach: u32,
    flags: u32,
}

/// bpf(2) with the leading 32-bit words of `union bpf_attr`.
fn bpf(command: libc::c_long, words: &mut [u32; 32]) -> io::Result<OwnedFd> {
    // SAFETY: the attribute is a readable and writable buffer of the size given, which outlives the call, as
    // does what it points to.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_mut_ptr(), size_of_val(words)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the commands used here return a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Drops all frames received on an interface of the calling thread's namespace, until the descriptor is closed.
///
/// # Errors
/// Errors of the kernel.
pub fn drop_all(interface: &str) -> io::Result<OwnedFd> {
    const XDP_DROP: i32 = 1;
    // BPF_PROG_TYPE_XDP, BPF_XDP, XDP_FLAGS_DRV_MODE
    attach(interface, XDP_DROP, &Hook { program: 6, attach: 37, flags: 4 })
}

/// Attaches a tcx program that returns `verdict` for every packet (-1: continue with the next program; 0: pass), first
/// or last in the list, until the descriptor is closed.
///
/// # Errors
/// Errors of the kernel.
pub fn attach_tcx(interface: &str, verdict: i32, egress: bool, before: bool) -> io::Result<OwnedFd> {
    // BPF_PROG_TYPE_SCHED_CLS; BPF_TCX_INGRESS, BPF_TCX_EGRESS; BPF_F_BEFORE, BPF_F_AFTER
    let hook = Hook { program: 3, attach: 46 + u32::from(egress), flags: if before { 1 << 3 } else { 1 << 4 } };
    attach(interface, verdict, &hook)
}

/// Loads the program of a crafter whose flow map has longer keys than that of this version. It is attached nowhere, and
/// unloaded when the descriptor is closed.
///
/// # Errors
/// Errors of the kernel.
pub fn other_version() -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: libc::c_long = 0;
    // BPF_MAP_TYPE_LRU_HASH, BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_ARRAY; bytes of a key and of a value; entries.
    let maps = [
        (map::FLOWS, [9, size_of::<FlowKey>() as u32 + 4, size_of::<FlowValue>() as u32, 16]),
        (map::COUNTERS, [6, 4, 8, REASONS]),
        (map::LINKS, [2, 4, size_of::<Attached>() as u32, 1]),
    ];
    let (mut open, mut code) = (Vec::new(), Vec::new());
    for (named, layout) in maps {
        let mut create = [0; 32];
        create[..4].copy_from_slice(&layout);
        create[7..11].copy_from_slice(&name(named));
        let map = bpf(BPF_MAP_CREATE, &mut create)?;
        // r1 = the map (ld_imm64 with BPF_PSEUDO_MAP_FD), so that the program uses it.
        let [a, b, c, d] = map.as_raw_fd().to_le_bytes();
        code.extend([[0x18, 0x11, 0, 0, a, b, c, d], [0; 8]]);
        open.push(map);
    }
    code.extend([returning(0), EXIT]);
    load(3, Programs::Egress.program(), &code)
}

type Instruction = [u8; 8];

const EXIT: Instruction = [0x95, 0, 0, 0, 0, 0, 0, 0];

/// `mov r0, value`
fn returning(value: i32) -> Instruction {
    let [a, b, c, d] = value.to_le_bytes();
    [0xb7, 0, 0, 0, a, b, c, d]
}

/// The name of a program or map as words of `union bpf_attr`: at most 15 bytes, then zeroes.
fn name(text: &str) -> [u32; 4] {
    let mut bytes = [0; 16];
    let length = text.len().min(15);
    bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
    let (words, _) = bytes.as_chunks::<4>();
    [0, 1, 2, 3].map(|at| u32::from_ne_bytes(words[at]))
}

/// Loads a program of this type (`enum bpf_prog_type`).
fn load(kind: u32, named: &str, code: &[Instruction]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    let halves = |pointer: u64| {
        let bytes = pointer.to_ne_bytes();
        [0, 4].map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
    };
    let mut load = [0; 32];
    load[..2].copy_from_slice(&[kind, code.len() as u32]);
    load[2..4].copy_from_slice(&halves(code.as_ptr() as u64));
    load[4..6].copy_from_slice(&halves(LICENSE.as_ptr() as u64));
    load[12..16].copy_from_slice(&name(named));
    bpf(BPF_PROG_LOAD, &mut load)
}

/// Loads and attaches the program `mov r0, verdict; exit`.
fn attach(interface: &str, verdict: i32, hook: &Hook) -> io::Result<OwnedFd> {
    const BPF_LINK_CREATE: libc::c_long = 28;
    let program = load(hook.program, "", &[returning(verdict), EXIT])?;
    let index = nix::net::if_::if_nametoindex(interface)?;
    let mut link = [0; 32];
    link[..4].copy_from_slice(&[program.as_raw_fd() as u32, index, hook.attach, hook.flags]);
    bpf(BPF_LINK_CREATE, &mut link)
}

/// Number of frames that an interface of the calling thread's namespace has received, dropped ones included.
///
/// # Errors
/// If there is no such interface.
pub fn received(interface: &str) -> io::Result<u64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
    let count = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    count.ok_or_else(|| io::ErrorKind::NotFound.into())
}
