//! Drops privileges: keeps [four capabilities](NEEDED), and [a fifth](OF_LIMITED) if locked memory is limited, and
//! changes to an unprivileged user.
//!
//! Capabilities belong to threads, so this happens before the first thread is started.

use std::{fs, io};

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError, securebits::set_keepcaps};
use nix::{
    errno::Errno,
    sys::{
        prctl::set_no_new_privs,
        resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
    },
    unistd::{Uid, User, geteuid, initgroups, setresgid, setresuid},
};

use crate::{
    error::{Error, Result},
    service::names::USER,
};

/// The required capabilities (capabilities(7)), and their purpose.
pub const NEEDED: [(Capability, &str, &str); 4] = [
    (Capability::CAP_NET_ADMIN, "CAP_NET_ADMIN", "attach programs to interfaces, mark packets, AF_XDP"),
    (Capability::CAP_NET_RAW, "CAP_NET_RAW", "packet and raw sockets, which send crafted packets"),
    (Capability::CAP_BPF, "CAP_BPF", "load programs and create maps"),
    (Capability::CAP_PERFMON, "CAP_PERFMON", "let the verifier accept variable offsets on packet pointers"),
];

/// Kept if the process has it, and RLIMIT_MEMLOCK is limited and cannot be raised. Without it, memory that AF_XDP pins
/// counts against the limit of the user (`xdp_umem_account_pages()`). The kernel does not undo that if a process is
/// killed while its memory is being pinned, so each such kill reduces the limit that is left to the user until the host
/// restarts.
pub const OF_LIMITED: (Capability, &str) = (Capability::CAP_IPC_LOCK, "CAP_IPC_LOCK");

/// The capability of the process that [`confine_beside`] starts, which removes filters and qdiscs.
pub const OF_HELPER: Capability = Capability::CAP_NET_ADMIN;

/// The wanted limit of descriptors: each leased port costs one.
const DESCRIPTORS: u64 = 524_288;

/// Raises the limits, changes to `user` (a name or a number) unless the process already runs as that user, and keeps
/// [`NEEDED`], and [`OF_LIMITED`] if a limit requires it. All other capabilities are removed from the permitted,
/// effective, inheritable, ambient and, if the process may, the bounding set. Executed programs cannot gain privileges
/// (`PR_SET_NO_NEW_PRIVS`).
///
/// Works for root, and for a service whose manager gave it the capabilities (`User=`, `AmbientCapabilities=`).
///
/// # Errors
/// [`Error::Permission`] for a missing capability; [`Error::Invalid`] for an unknown user; [`Error::Io`] if there are
/// several threads already, or if the kernel refuses. After an error some steps may be done: the process should end.
pub fn confine(user: Option<&str>) -> Result<()> {
    confine_beside(user, None)
}

/// Like [`confine`]. Before the last steps, `start` starts a process of the same user that has only [`OF_HELPER`].
///
/// # Errors
/// Those of [`confine`] and of `start`.
pub fn confine_beside(user: Option<&str>, start: Option<&dyn Fn() -> Result<()>>) -> Result<()> {
    alone()?;
    let is_limited = raise_limits();
    has_needed()?;
    let mut kept: CapsHashSet = NEEDED.iter().map(|(capability, ..)| *capability).collect();
    if is_limited && holds(CapSet::Permitted, OF_LIMITED.0)? {
        kept.insert(OF_LIMITED.0);
    }
    let user = user.map(account).transpose()?.filter(|user| user.uid != geteuid());
    // Needs CAP_SETPCAP. A manager that removed it has limited the bounding set itself, and this prevents gaining the
    // rest:
    set_no_new_privs().map_err(|errno| failed("give up new privileges", errno))?;
    if holds(CapSet::Effective, Capability::CAP_SETPCAP)? {
        let helpers = start.map(|_| OF_HELPER);
        for capability in caps::runtime::thread_all_supported().into_iter().filter(|own| Some(*own) != helpers) {
            caps::drop(None, CapSet::Bounding, capability).map_err(refused)?;
        }
    }
    if let Some(user) = user {
        change_to(&user)?;
    }
    if let Some(start) = start {
        with_helpers_capability(start)?;
    }
    caps::clear(None, CapSet::Ambient).map_err(refused)?;
    caps::clear(None, CapSet::Inheritable).map_err(refused)?;
    // In this order: effective capabilities must be permitted.
    caps::set(None, CapSet::Effective, &kept).map_err(refused)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(refused)?;
    for (set, expected) in [
        (CapSet::Permitted, &kept),
        (CapSet::Effective, &kept),
        (CapSet::Inheritable, &CapsHashSet::new()),
        (CapSet::Ambient, &CapsHashSet::new()),
    ] {
        let held = caps::read(None, set).map_err(refused)?;
        if held != *expected {
            return Err(other(format!("the {set:?} set still contains {held:?}")));
        }
    }
    Ok(())
}

/// Calls `start`, whose children inherit [`OF_HELPER`], and then removes it from the bounding set if this process may.
fn with_helpers_capability(start: &dyn Fn() -> Result<()>) -> Result<()> {
    // Programs of root get the bounding set; those of other users get ambient capabilities, which must be inheritable.
    caps::set(None, CapSet::Inheritable, &CapsHashSet::from([OF_HELPER])).map_err(refused)?;
    caps::set(None, CapSet::Ambient, &CapsHashSet::from([OF_HELPER])).map_err(refused)?;
    start()?;
    if holds(CapSet::Permitted, Capability::CAP_SETPCAP)? {
        // A change of user cleared it.
        caps::raise(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(refused)?;
        caps::drop(None, CapSet::Bounding, OF_HELPER).map_err(refused)?;
    }
    Ok(())
}

/// Raises the limits of descriptors, and of locked memory, which AF_XDP's rings and buffers (and maps before Linux
/// 5.11) count against, as far as the process may. `true` if locked memory remains limited.
fn raise_limits() -> bool {
    let raise = |resource, wanted: u64| {
        let Ok((soft, hard)) = getrlimit(resource) else { return false };
        let wanted = wanted.max(hard);
        // Raising the hard limit needs CAP_SYS_RESOURCE.
        let is_short = soft < wanted && setrlimit(resource, wanted, wanted).is_err();
        if is_short {
            let _ = setrlimit(resource, hard, hard);
        }
        is_short
    };
    raise(Resource::RLIMIT_NOFILE, DESCRIPTORS);
    raise(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY)
}

fn alone() -> Result<()> {
    let threads = fs::read_dir("/proc/self/task")
        .map_err(|source| Error::Io { action: "count the threads of this process".to_owned(), source })?
        .count();
    if threads == 1 {
        return Ok(());
    }
    Err(other(format!("{threads} threads run, each with its own capabilities; call this before starting threads")))
}

fn has_needed() -> Result<()> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(refused)?;
    let missing: Vec<&'static str> =
        NEEDED.iter().filter(|(capability, ..)| !permitted.contains(capability)).map(|(_, name, _)| *name).collect();
    let Some((capability, others)) = missing.split_first() else { return Ok(()) };
    let mut action = "serve".to_owned();
    if !others.is_empty() {
        action += &format!(" ({} {} missing too)", others.join(", "), if others.len() == 1 { "is" } else { "are" });
    }
    Err(Error::Permission { capability, action })
}

fn account(user: &str) -> Result<User> {
    let found = match user.parse() {
        Ok(id) => User::from_uid(Uid::from_raw(id)),
        Err(_) => User::from_name(user),
    };
    found.map_err(|errno| failed(&format!("look up the user '{user}'"), errno))?.ok_or_else(|| {
        Error::invalid(USER, format_args!("there is no user '{user}' on this host; use an existing one"))
    })
}

/// Changes to a user with all groups of a login; keeps the permitted capabilities.
fn change_to(user: &User) -> Result<()> {
    let name =
        std::ffi::CString::new(user.name.as_str()).map_err(|_| Error::invalid(USER, "the name contains a NUL"))?;
    let action = format!("become the user '{}'", user.name);
    let changed = |capability: &'static str| {
        let action = action.clone();
        move |errno: Errno| Error::io(action, capability, errno.into())
    };
    initgroups(&name, user.gid).map_err(changed("CAP_SETGID"))?;
    setresgid(user.gid, user.gid, user.gid).map_err(changed("CAP_SETGID"))?;
    set_keepcaps(true).map_err(refused)?;
    setresuid(user.uid, user.uid, user.uid).map_err(changed("CAP_SETUID"))?;
    set_keepcaps(false).map_err(refused)
}

fn holds(set: CapSet, capability: Capability) -> Result<bool> {
    caps::has_cap(None, set, capability).map_err(refused)
}

fn refused(error: CapsError) -> Error {
    other(error.to_string())
}

fn other(reason: String) -> Error {
    Error::Io { action: "give up privileges".to_owned(), source: io::Error::other(reason) }
}

fn failed(action: &str, errno: Errno) -> Error {
    Error::Io { action: action.to_owned(), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, thread};

    use nix::{
        sys::socket::{AddressFamily, SockFlag, SockType, socket},
        unistd::{getgroups, getuid},
    };

    use super::*;
    use crate::service::host::child;

    /// Bits 12, 13, 38, 39.
    const MASK: &str = "000000c000003000";
    /// And bit 14.
    const MASK_OF_LIMITED: &str = "000000c000007000";
    const NONE: &str = "0000000000000000";
    const NOBODY: u32 = 65534;

    fn status(field: &str) -> String {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap().trim().to_owned()
    }

    /// All sets of this process in /proc.
    fn sets() -> [String; 6] {
        ["CapPrm", "CapEff", "CapInh", "CapAmb", "CapBnd", "NoNewPrivs"].map(status)
    }

    /// The expected sets of a confined process; they depend on whether the host allows to raise the limit.
    fn mask() -> &'static str {
        let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
        if hard == RLIM_INFINITY { MASK } else { MASK_OF_LIMITED }
    }

    fn packet_socket() -> nix::Result<std::os::fd::OwnedFd> {
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None)
    }

    fn said(result: Result<()>) -> String {
        result.map_or_else(|error| error.to_string(), |()| "confined".to_owned())
    }

    #[test]
    fn root_keeps_four_capabilities() {
        let ended = child::run(|| {
            let group_of_root = File::open("/etc/shadow").unwrap();
            confine(None).unwrap();
            assert_eq!(sets(), [mask(), mask(), NONE, NONE, NONE, "1"].map(str::to_owned));
            assert!(getuid().is_root());
            packet_socket().unwrap();
            // CAP_CHOWN and CAP_SETUID were dropped.
            assert_eq!(nix::unistd::fchown(&group_of_root, Some(Uid::from_raw(1)), None), Err(Errno::EPERM));
            assert_eq!(nix::unistd::setuid(Uid::from_raw(NOBODY)), Err(Errno::EPERM));
            let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
            assert_eq!(soft, hard, "the soft limit is raised");
            said(confine(None))
        });
        assert_eq!(ended.unwrap(), "confined", "a second call changes nothing");
    }

    #[test]
    fn a_user_gets_them_from_root() {
        let ended = child::run(|| {
            confine(Some("nobody")).unwrap();
            assert_eq!(sets(), [mask(), mask(), NONE, NONE, NONE, "1"].map(str::to_owned));
            assert_eq!(getuid().as_raw(), NOBODY);
            assert_eq!(status("Uid"), "65534\t65534\t65534\t65534");
            assert!(getgroups().unwrap().iter().all(|group| group.as_raw() != 0), "root's groups were dropped");
            packet_socket().unwrap();
            assert_eq!(File::open("/etc/shadow").unwrap_err().raw_os_error(), Some(libc::EACCES));
            assert_eq!(nix::unistd::setuid(Uid::from_raw(0)), Err(Errno::EPERM));
            // The same user again, by number.
            said(confine(Some("65534")))
        });
        assert_eq!(ended.unwrap(), "confined");
    }

    /// The permitted, ambient and bounding set of the started program.
    fn beside(user: Option<&str>) -> String {
        let start = || {
            let shown = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap();
            let shown = String::from_utf8(shown.stdout).unwrap();
            let has = |field: &str| shown.lines().any(|line| line.split_whitespace().eq([field, "0000000000001000"]));
            assert!(has("CapPrm:") && has("CapEff:") && has("CapBnd:"), "{shown}");
            Ok(())
        };
        said(confine_beside(user, Some(&start)))
    }

    #[test]
    fn a_helper_has_one_capability() {
        for user in [None, Some("nobody")] {
            let ended = child::run(|| {
                let result = beside(user);
                assert_eq!(sets(), [mask(), mask(), NONE, NONE, NONE, "1"].map(str::to_owned));
                result
            });
            assert_eq!(ended.unwrap(), "confined", "{user:?}");
        }
    }

    /// Like a unit with `User=` and `AmbientCapabilities=`.
    #[test]
    fn a_service_managers_capabilities_are_enough() {
        let ended = child::run(|| {
            let needed: CapsHashSet = NEEDED.iter().map(|(capability, ..)| *capability).collect();
            set_keepcaps(true).unwrap();
            setresuid(Uid::from_raw(NOBODY), Uid::from_raw(NOBODY), Uid::from_raw(NOBODY)).unwrap();
            caps::set(None, CapSet::Effective, &needed).unwrap();
            caps::set(None, CapSet::Permitted, &needed).unwrap();
            caps::set(None, CapSet::Inheritable, &needed).unwrap();
            for capability in needed {
                caps::raise(None, CapSet::Ambient, capability).unwrap();
            }
            assert_eq!(status("CapAmb"), MASK);
            let bounding = status("CapBnd");
            confine(Some("nobody")).unwrap();
            assert_eq!(sets(), [MASK, MASK, NONE, NONE, bounding.as_str(), "1"].map(str::to_owned));
            packet_socket().unwrap();
            said(confine(Some("root")))
        });
        assert_eq!(
            ended.unwrap(),
            "no permission to become the user 'root': CAP_SETGID is needed (run as root, or `setcap` the binary)"
        );
    }

    #[test]
    fn missing_capability_is_named() {
        let without = |missing: &[Capability]| {
            let ended = child::run(|| {
                for &capability in missing {
                    caps::drop(None, CapSet::Effective, capability).unwrap();
                    caps::drop(None, CapSet::Permitted, capability).unwrap();
                }
                let result = confine(Some("nobody"));
                assert!(getuid().is_root(), "the user was not changed");
                said(result)
            });
            ended.unwrap()
        };
        let end = "is needed (run as root, or `setcap` the binary)";
        for (capability, name, _) in NEEDED {
            assert_eq!(without(&[capability]), format!("no permission to serve: {name} {end}"));
        }
        assert_eq!(
            without(&[Capability::CAP_PERFMON, Capability::CAP_BPF]),
            format!("no permission to serve (CAP_PERFMON is missing too): CAP_BPF {end}")
        );
    }

    #[test]
    fn capability_is_kept_if_the_memory_limit_cannot_be_raised() {
        let with_limit = |missing: &[Capability], expected: &str| {
            let ended = child::run(|| {
                for &capability in missing {
                    caps::drop(None, CapSet::Effective, capability).unwrap();
                    caps::drop(None, CapSet::Permitted, capability).unwrap();
                }
                setrlimit(Resource::RLIMIT_MEMLOCK, 65_536, 65_536).unwrap();
                let result = confine(Some("nobody"));
                assert_eq!(status("CapEff"), expected);
                said(result)
            });
            assert_eq!(ended.unwrap(), "confined");
        };
        with_limit(&[Capability::CAP_SYS_RESOURCE], MASK_OF_LIMITED);
        with_limit(&[Capability::CAP_SYS_RESOURCE, OF_LIMITED.0], MASK);
        let may_raise = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).unwrap();
        with_limit(&[], if may_raise { MASK } else { MASK_OF_LIMITED });
    }

    #[test]
    fn second_thread_and_unknown_user_are_rejected() {
        let ended = child::run(|| {
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            let thread = thread::spawn(move || stopped.recv());
            let result = said(confine(None));
            drop(stop);
            assert!(thread.join().unwrap().is_err());
            result
        });
        let expected =
            "give up privileges: 2 threads run, each with its own capabilities; call this before starting threads";
        assert_eq!(ended.unwrap(), expected);
        let ended = child::run(|| said(confine(Some("nobody-of-that-name"))));
        assert_eq!(ended.unwrap(), "user: there is no user 'nobody-of-that-name' on this host; use an existing one");
    }
}
