//! Finds which processes hold ports and BPF programs, for messages to the user. Best effort.

use std::{collections::HashMap, fmt, fs, net::IpAddr, path::PathBuf};

use aya::programs::loaded_programs;
use nix::sys::socket::SockProtocol;
use procfs::{
    FromReadSI, current_system_info,
    net::{TcpNetEntries, TcpNetEntry, TcpState, UdpNetEntries},
    process::{FDTarget, all_processes},
};

use serde::Serialize;

use super::netlink;
use crate::packet::Transport;

/// The process that holds `port` on `address` or on an address that conflicts with it, e.g. `nginx (pid 12)`. `None` if
/// the kernel does not report it, as for sockets of other users without `CAP_SYS_PTRACE`.
pub(super) fn of_port(transport: Transport, address: IpAddr, port: u16) -> Option<String> {
    let mut sockets = match transport {
        Transport::Tcp => tcp_table(),
        Transport::Udp => udp_table(),
        Transport::Icmp => return None,
    };
    sockets.retain(|socket| socket.port == port && conflict(socket.address, address));
    // A listener or a bound socket is reported in preference to a connection, and an open socket to TIME-WAIT.
    sockets.sort_by_key(|socket| (socket.inode == 0, !socket.listening));
    let found = sockets.into_iter().next();
    let inode = match &found {
        Some(socket) if socket.inode == 0 => return Some(socket.state.to_owned()),
        Some(socket) => u64::from(socket.inode),
        None if transport == Transport::Tcp => bound_only(address, port)?,
        None => return None,
    };
    process_of(inode)
}

struct Bound {
    address: IpAddr,
    port: u16,
    listening: bool,
    inode: u32,
    /// The state, for the message about a socket that no process owns any more.
    state: &'static str,
}

/// Whether bind() to `wanted` conflicts with a socket on `held`; a socket on [::] may be dual-stack and hold IPv4 too.
fn conflict(held: IpAddr, wanted: IpAddr) -> bool {
    let (held, wanted) = (held.to_canonical(), wanted.to_canonical());
    wanted.is_unspecified() || held == wanted || held.is_unspecified() && (held.is_ipv6() || wanted.is_ipv4())
}

/// Reads the tables of this thread's network namespace; /proc/net has those of the main thread.
fn tcp_table() -> Vec<Bound> {
    let read = |file: &str| TcpNetEntries::from_file(file, current_system_info()).map_or(Vec::new(), |table| table.0);
    let entries = read("/proc/thread-self/net/tcp").into_iter().chain(read("/proc/thread-self/net/tcp6"));
    let bound = |entry: TcpNetEntry| Bound {
        address: entry.local_address.ip(),
        port: entry.local_address.port(),
        listening: entry.state == TcpState::Listen,
        inode: entry.inode as u32,
        state: match entry.state {
            TcpState::TimeWait => "a connection in TIME-WAIT",
            TcpState::NewSynRecv | TcpState::SynRecv => "a connection being accepted",
            _ => "a connection that is closing",
        },
    };
    entries.map(bound).collect()
}

fn udp_table() -> Vec<Bound> {
    let read = |file: &str| UdpNetEntries::from_file(file, current_system_info()).map_or(Vec::new(), |table| table.0);
    let entries = read("/proc/thread-self/net/udp").into_iter().chain(read("/proc/thread-self/net/udp6"));
    entries
        .map(|entry| Bound {
            address: entry.local_address.ip(),
            port: entry.local_address.port(),
            listening: entry.remote_address.port() == 0,
            inode: entry.inode as u32,
            state: "a socket of the kernel",
        })
        .collect()
}

/// The inode of a TCP socket that is bound but neither listens nor is connected, as our own reservations are.
/// /proc/net/tcp leaves those out; sock_diag(7) lists them since Linux 6.8 (TCP_BOUND_INACTIVE).
fn bound_only(address: IpAddr, port: u16) -> Option<u64> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const TCP_BOUND_INACTIVE: u32 = 13;
    [libc::AF_INET, libc::AF_INET6].into_iter().find_map(|family| {
        // struct inet_diag_req_v2: family, protocol, extensions, padding, states, then inet_diag_sockid.
        let mut request = [0; 56];
        request[0] = family as u8;
        request[1] = libc::IPPROTO_TCP as u8;
        request[4..8].copy_from_slice(&(1_u32 << TCP_BOUND_INACTIVE).to_ne_bytes());
        request[8..10].copy_from_slice(&port.to_be_bytes());
        let flags = libc::NLM_F_DUMP as u16;
        let answers = netlink::exchange(SockProtocol::NetlinkSockDiag, SOCK_DIAG_BY_FAMILY, flags, &request).ok()?;
        answers.iter().find_map(|answer| {
            // struct inet_diag_msg: family, state, timer, retrans; sport, dport, src[4], ...; inode last.
            let answer: &[u8; 72] = answer.first_chunk()?;
            let source: [u8; 16] = answer[8..24].try_into().ok()?;
            let held = match answer[0].into() {
                libc::AF_INET => IpAddr::from([source[0], source[1], source[2], source[3]]),
                _ => IpAddr::from(source),
            };
            let inode = u32::from_ne_bytes(answer[68..72].try_into().ok()?);
            (answer[4..6] == port.to_be_bytes() && conflict(held, address)).then_some(u64::from(inode))
        })
    })
}

fn process_of(inode: u64) -> Option<String> {
    all_processes().ok()?.flatten().find_map(|process| {
        let holds = process.fd().ok()?.flatten().any(|fd| matches!(fd.target, FDTarget::Socket(own) if own == inode));
        holds.then(|| process.stat().ok().map(|stat| format!("{} (pid {})", stat.comm, stat.pid)))?
    })
}

/// The name of a loaded BPF program and the process that holds it or its link,
/// e.g. `xdp_dispatcher (id 12, held by xdp-loader, pid 99)`.
///
/// `None` if no such program is loaded. The name needs `CAP_SYS_ADMIN` (Linux requires it to open a program by id);
/// processes of other users need `CAP_SYS_PTRACE`.
pub fn holder_of_program(id: u32) -> Option<String> {
    let holder = program_holder(id);
    let name = loaded_programs().flatten().find(|program| program.id() == id).map(|program| {
        let name = program.name_as_str().unwrap_or_default();
        if name.is_empty() { "a program without a name".to_owned() } else { name.to_owned() }
    });
    match (name, holder) {
        (Some(name), Some(holder)) => Some(format!("{name} (id {id}, held by {holder})")),
        (Some(name), None) => Some(format!("{name} (id {id}, held by no process: attached by netlink or pinned)")),
        (None, Some(holder)) => Some(format!("a program (id {id}, held by {holder})")),
        (None, None) => None,
    }
}

/// `xdp-loader, pid 99`. A process with the link is preferred over one that merely has the program open.
fn program_holder(id: u32) -> Option<String> {
    let mut with_program = None;
    for process in all_processes().ok()?.flatten() {
        let Ok(entries) = fs::read_dir(PathBuf::from(format!("/proc/{}/fdinfo", process.pid))) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(text) = fs::read_to_string(entry.path()) else {
                continue;
            };
            let field =
                |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
            if field("prog_id").and_then(|value| value.parse().ok()) != Some(id) {
                continue;
            }
            let named = process.stat().ok().map(|stat| format!("{}, pid {}", stat.comm, stat.pid));
            if field("link_type").is_some() {
                return named;
            }
            with_program = with_program.or(named);
        }
    }
    with_program
}

/// A process that holds something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its id, in the PID namespace of /proc.
    pub pid: i32,
    /// Its name, cut to 15 bytes as the kernel keeps it; `?` if it could not be read.
    pub name: String,
}

/// `crafter (pid 12)`
impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

/// The processes that hold each BPF program, by program id: those with a link that attaches the program, or, if there
/// is no link (as with clsact), those with the program itself. Processes of other users need `CAP_SYS_PTRACE`.
pub(super) fn holders_of_programs() -> HashMap<u32, Vec<Process>> {
    let mut holders: HashMap<u32, (bool, Vec<Process>)> = HashMap::new();
    for process in all_processes().into_iter().flatten().flatten() {
        let Ok(entries) = fs::read_dir(format!("/proc/{}/fdinfo", process.pid)) else { continue };
        for entry in entries.flatten() {
            let Ok(text) = fs::read_to_string(entry.path()) else { continue };
            let id = text.lines().find_map(|line| line.strip_prefix("prog_id:")).and_then(|id| id.trim().parse().ok());
            let Some(id) = id else { continue };
            let linked = text.contains("link_type:");
            let (by_link, known) = holders.entry(id).or_default();
            if *by_link && !linked {
                continue;
            }
            if linked && !*by_link {
                *by_link = true;
                known.clear();
            }
            if known.iter().all(|known| known.pid != process.pid) {
                let name = process.stat().map_or_else(|_| "?".to_owned(), |stat| stat.comm);
                known.push(Process { pid: process.pid, name });
            }
        }
    }
    holders.into_iter().map(|(id, (_, known))| (id, known)).collect()
}
