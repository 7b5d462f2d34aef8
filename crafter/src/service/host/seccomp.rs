//! The system call filter of the running service. It limits what an attacker can do who controls the process.
//!
//! | system call | result | why |
//! |---|---|---|
//! | needed by the service | as without the filter | |
//! | needed, with arguments that are not needed | EPERM | other socket families, files to write, writable and
//! executable memory, new processes |
//! | execve, ptrace, mount, ... | kills the process | only an attacker calls them |
//! | all others | ENOSYS | as on an older kernel, which libraries support: glibc falls back from clone3 after ENOSYS,
//! but not after EPERM |
//!
//! The filter cannot check paths, and the capabilities of [`privileges`](super::privileges) allow more than it hides:
//! it is a second line of defence.

use std::{collections::BTreeMap, env::consts::ARCH, io};

use libc::{c_int, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads,
};

use crate::error::{Error, Result};

/// System calls of the running service and its libraries.
const ALLOWED: &[c_long] = &[
    // Descriptors and files; `forbidden` limits opening.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_statfs,
    libc::SYS_statx,
    // The name of its own socket.
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting and time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    // Sockets.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socket,
    libc::SYS_socketpair,
    // BPF programs, maps and links.
    libc::SYS_bpf,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads.
    libc::SYS_clone,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_prctl,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    // Signals; abort() ends the process by tgkill.
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // Facts about itself and the host.
    libc::SYS_capget,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Older variants of these calls, which newer architectures lack.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// System calls that only an attacker makes.
const KILLING: &[c_long] = &[
    // Other programs, other processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    // Namespaces and mounts.
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    // The kernel and the clock.
    libc::SYS_acct,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    // Frequent in attacks on kernels.
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
];

/// Socket families: clients, the manager and the journal; reservations and routes; crafted packets.
const FAMILIES: &[c_int] =
    &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_XDP];

/// Non-blocking descriptors, terminals and their width, properties of interfaces.
#[allow(clippy::unnecessary_cast, reason = "libcs differ in the type of requests")]
const REQUESTS: &[u64] = &[
    libc::FIONBIO as u64,
    libc::FIONREAD as u64,
    libc::FIOCLEX as u64,
    libc::TCGETS as u64,
    libc::TIOCGWINSZ as u64,
    libc::SIOCGIFINDEX as u64,
    libc::SIOCGIFNAME as u64,
    libc::SIOCGIFFLAGS as u64,
    libc::SIOCGIFMTU as u64,
    libc::SIOCGIFHWADDR as u64,
    SIOCETHTOOL,
];

/// linux/sockios.h; not in libc for every architecture.
const SIOCETHTOOL: u64 = 0x8946;

/// Names of threads and of memory, and the calls that seccompiler makes before each filter.
const PROCESS_OPTIONS: &[c_int] = &[libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA, libc::PR_SET_NO_NEW_PRIVS];

/// Installs the filter on all threads of this process and on future ones, permanently. Call it when the service has
/// started. Sets `PR_SET_NO_NEW_PRIVS`, without which Linux requires CAP_SYS_ADMIN.
///
/// # Errors
/// [`Error::Io`] if the kernel has no seccomp, or a thread has a filter of its own.
pub fn install() -> Result<()> {
    for program in programs().map_err(|error| failed(error.to_string()))? {
        apply_filter_all_threads(&program).map_err(|error| failed(error.to_string()))?;
    }
    Ok(())
}

fn failed(reason: String) -> Error {
    Error::Io { action: "install the filter of system calls".to_owned(), source: io::Error::other(reason) }
}

/// The filters in the order of installing: the last one forbids seccomp() itself. The strictest result of all filters
/// applies; killing is stricter than an error.
fn programs() -> Result<[BpfProgram; 3], seccompiler::BackendError> {
    let architecture = ARCH.try_into()?;
    let unconditional = |calls: &[c_long]| -> Rules { calls.iter().map(|&call| (call, vec![])).collect() };
    let errno = |errno: c_int| SeccompAction::Errno(errno as u32);
    let compile = |rules, otherwise, matching| -> Result<BpfProgram, seccompiler::BackendError> {
        SeccompFilter::new(rules, otherwise, matching, architecture)?.try_into()
    };
    let allow = SeccompAction::Allow;
    Ok([
        compile(unconditional(KILLING), allow.clone(), SeccompAction::KillProcess)?,
        compile(forbidden()?, allow.clone(), errno(libc::EPERM))?,
        compile(unconditional(&[ALLOWED, ALLOWED_HERE].concat()), errno(libc::ENOSYS), allow)?,
    ])
}

/// Alternatives of arguments for each call; none: any arguments.
type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Forbidden arguments of allowed calls.
fn forbidden() -> Result<Rules, seccompiler::BackendError> {
    let condition = |argument, operator, value| -> Result<_, seccompiler::BackendError> {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
    };
    let bits = |argument, mask: c_int, value: c_int| {
        SeccompRule::new(vec![condition(argument, SeccompCmpOp::MaskedEq(mask as u32 as u64), value as u32 as u64)?])
    };
    let none_of = |argument, values: &[u64]| {
        let conditions = values.iter().map(|&value| condition(argument, SeccompCmpOp::Ne, value & 0xffff_ffff));
        SeccompRule::new(conditions.collect::<Result<_, _>>()?)
    };
    let numbers = |values: &[c_int]| values.iter().map(|&value| value as u64).collect::<Vec<_>>();
    let both = libc::PROT_WRITE | libc::PROT_EXEC;
    let namespaces = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    // Threads, but no processes.
    let mut clone = vec![bits(0, libc::CLONE_THREAD, 0)?];
    for namespace in namespaces {
        clone.push(bits(0, namespace, namespace)?);
    }
    // Limits can be read, but not set.
    let limits = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)?;
    Ok(BTreeMap::from([
        (
            libc::SYS_openat,
            vec![
                bits(2, libc::O_ACCMODE, libc::O_WRONLY)?,
                bits(2, libc::O_ACCMODE, libc::O_RDWR)?,
                bits(2, libc::O_ACCMODE, libc::O_ACCMODE)?,
                bits(2, libc::O_CREAT, libc::O_CREAT)?,
                bits(2, libc::O_TRUNC, libc::O_TRUNC)?,
            ],
        ),
        (libc::SYS_socket, vec![none_of(0, &numbers(FAMILIES))?]),
        (libc::SYS_socketpair, vec![none_of(0, &numbers(&[libc::AF_UNIX]))?]),
        (libc::SYS_ioctl, vec![none_of(1, REQUESTS)?]),
        (libc::SYS_prctl, vec![none_of(0, &numbers(PROCESS_OPTIONS))?]),
        (libc::SYS_mmap, vec![bits(2, both, both)?]),
        (libc::SYS_mprotect, vec![bits(2, libc::PROT_EXEC, libc::PROT_EXEC)?]),
        (libc::SYS_clone, clone),
        (libc::SYS_prlimit64, vec![SeccompRule::new(vec![limits])?]),
    ]))
}

#[cfg(test)]
mod tests;
