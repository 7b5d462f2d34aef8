//! Filtered children: the service's own calls succeed, others fail or kill the process.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, UdpSocket},
    os::unix::net::UnixStream,
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{signal::Signal, wait::WaitStatus},
};

use super::*;
use crate::{
    LeaseRequest, Options,
    datapath::{features, interface},
    layer::Udp,
    service::host::{child, privileges},
};

/// The result of a system call.
fn call(number: c_long, arguments: [c_long; 4]) -> Result<c_long, Errno> {
    let [a, b, c, d] = arguments;
    // SAFETY: the filter refuses these calls before they read any argument, or they take no pointers.
    Errno::result(unsafe { libc::syscall(number, a, b, c, d) })
}

/// Everything below the control socket: attaches to an interface, leases a port, sends and receives a packet, in a
/// filtered process of an unprivileged user with four capabilities, whose /proc contains only processes
/// (`ProcSubset=pid`).
#[test]
fn filtered_service_leases_sends_and_receives() {
    // AF_XDP needs locked memory; without root, its limit depends on the host.
    let confined = lease_send_receive(|| privileges::confine(Some("nobody")).unwrap());
    assert!(["done", "done with AF_XDP"].contains(&confined.as_str()), "{confined}");
    assert_eq!(lease_send_receive(|| ()), "done with AF_XDP");
}

fn lease_send_receive(confine: impl FnOnce()) -> String {
    let ended = child::run(|| {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        mount(none, "/", none, private, none).unwrap();
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), Some("subset=pid,hidepid=invisible")).unwrap();
        assert!(!std::path::Path::new("/proc/sys").exists());
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        confine();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        install().unwrap();
        let sockets = runtime.block_on(async {
            assert!(features::host().unwrap().has("CAP_BPF"));
            assert!(interface::interface("lo").await.unwrap().loopback);
            let crafter = crate::Crafter::open("lo", Options::default()).await.unwrap();
            let request = LeaseRequest::udp().address("127.0.0.1".parse().unwrap());
            let lease = crafter.lease(request).await.unwrap();
            let here = SocketAddr::from(([127, 0, 0, 1], lease.port()));
            let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
            peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            peer.send_to(b"to a leased port", here).unwrap();
            let received = lease.recv_timeout(Duration::from_secs(5)).await.unwrap().unwrap();
            assert!(received.ip.ends_with(b"to a leased port"));
            let crafted = Udp::new().between(here, peer.local_addr().unwrap()) / "from a leased port";
            lease.send(&crafted.build().unwrap()).await.unwrap();
            let mut buffer = [0; 64];
            assert_eq!(peer.recv_from(&mut buffer).unwrap(), (18, here));
            assert!(tokio::task::spawn_blocking(|| fs::read_to_string("/etc/passwd")).await.unwrap().is_ok());
            drop(lease);
            let sockets = crafter.report().sockets;
            assert!(crafter.close(Duration::from_secs(5)).await);
            sockets
        });
        if sockets > 0 { "done with AF_XDP".to_owned() } else { "done".to_owned() }
    });
    ended.unwrap()
}

#[test]
fn arguments_are_filtered() {
    let ended = child::run(|| {
        install().unwrap();
        let (mut one, mut other) = UnixStream::pair().unwrap();
        one.write_all(b"x").unwrap();
        other.read_exact(&mut [0]).unwrap();
        one.set_nonblocking(true).unwrap();
        assert!(File::open("/proc/self/status").is_ok());
        assert!(nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).is_ok());

        let eperm = Some(libc::EPERM);
        assert_eq!(File::create("/tmp/crafter-seccomp").unwrap_err().raw_os_error(), eperm);
        assert_eq!(File::options().append(true).open("/dev/null").unwrap_err().raw_os_error(), eperm);
        assert_eq!(File::options().read(true).write(true).open("/dev/null").unwrap_err().raw_os_error(), eperm);
        let fails =
            |number, arguments| assert_eq!(call(number, arguments), Err(Errno::EPERM), "{number} {arguments:?}");
        fails(libc::SYS_openat, [libc::AT_FDCWD.into(), 0, libc::O_TRUNC.into(), 0]);
        for family in [libc::AF_BLUETOOTH, libc::AF_VSOCK, libc::AF_ALG, libc::AF_KEY] {
            fails(libc::SYS_socket, [family.into(), libc::SOCK_STREAM.into(), 0, 0]);
        }
        fails(libc::SYS_mprotect, [0, 4096, libc::PROT_EXEC.into(), 0]);
        fails(libc::SYS_mmap, [0, 4096, (libc::PROT_WRITE | libc::PROT_EXEC).into(), libc::MAP_PRIVATE.into()]);
        fails(libc::SYS_ioctl, [0, libc::TIOCSTI as c_long, 0, 0]);
        fails(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1, 0, 0]);
        fails(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0]);
        let thread = libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM;
        fails(libc::SYS_clone, [(thread | libc::CLONE_NEWNET).into(), 0, 0, 0]);
        fails(libc::SYS_prlimit64, [0, 7, 1, 0]);
        // Nor by the number of another ABI.
        let unknown = |number| assert_eq!(call(number, [0; 4]), Err(Errno::ENOSYS), "{number}");
        for number in [libc::SYS_clone3, libc::SYS_kill, libc::SYS_seccomp, libc::SYS_capset, libc::SYS_setresuid] {
            unknown(number);
        }
        for number in [libc::SYS_io_uring_setup, libc::SYS_perf_event_open, libc::SYS_memfd_create, 9999] {
            unknown(number);
        }
        #[cfg(target_arch = "x86_64")]
        for number in [libc::SYS_fork, libc::SYS_vfork, libc::SYS_open, 0x4000_0000 | libc::SYS_execve] {
            unknown(number);
        }
        // So a process cannot be started, and trying does not kill the caller.
        Command::new("/bin/true").status().unwrap_err().to_string()
    });
    assert_eq!(ended.unwrap(), "Operation not permitted (os error 1)");
}

#[test]
fn filter_applies_to_all_threads() {
    let ended = child::run(|| {
        let (go, waiting) = mpsc::channel();
        let before = thread::spawn(move || {
            waiting.recv().unwrap();
            File::create("/tmp/crafter-seccomp").unwrap_err().raw_os_error()
        });
        install().unwrap();
        go.send(()).unwrap();
        let after = thread::spawn(|| File::create("/tmp/crafter-seccomp").unwrap_err().raw_os_error());
        format!("{:?} {:?}", before.join().unwrap(), after.join().unwrap())
    });
    assert_eq!(ended.unwrap(), "Some(1) Some(1)");
}

#[test]
fn forbidden_calls_kill_the_process() {
    for &number in KILLING {
        let ended = child::run(|| {
            install().unwrap();
            format!("alive after {number}: {:?}", call(number, [0; 4]))
        });
        assert!(matches!(ended, Err(WaitStatus::Signaled(_, Signal::SIGSYS, _))), "{number}: {ended:?}");
    }
}

#[test]
fn no_call_is_in_two_lists() {
    let allowed = [ALLOWED, ALLOWED_HERE].concat();
    assert!(KILLING.iter().all(|call| !allowed.contains(call)));
    assert!(forbidden().unwrap().keys().all(|call| allowed.contains(call)));
    let mut sorted = allowed.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), allowed.len());
}
