//! A socket filter that discards everything. The sockets that reserve UDP ports are never read; with it they hold no
//! datagrams either, such as broadcasts, which any program may send.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd as _, OwnedFd},
    sync::{Arc, Mutex, Weak},
};

use crate::datapath::lock;

/// The program, loaded once for all sockets of this process that exist at a time.
#[derive(Debug)]
pub(super) struct Discard(OwnedFd);

static LOADED: Mutex<Weak<Discard>> = Mutex::new(Weak::new());

/// `mov r0, 0; exit`: keep no byte of the packet.
static CODE: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
static LICENSE: &[u8; 4] = b"GPL\0";

/// Attempts to load the program when signals interrupt the verifier.
const TRIES: u32 = 5;

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[derive(Default)]
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log: [u64; 3],
    name: [u8; 16],
}

impl Discard {
    /// The program; loads it if no socket has it.
    ///
    /// # Errors
    /// Those of `bpf(2)`.
    pub(super) fn shared() -> io::Result<Arc<Self>> {
        let mut loaded = lock(&LOADED);
        if let Some(program) = loaded.upgrade() {
            return Ok(program);
        }
        let program = Arc::new(Self::load()?);
        *loaded = Arc::downgrade(&program);
        Ok(program)
    }

    fn load() -> io::Result<Self> {
        const BPF_PROG_LOAD: libc::c_long = 5;
        const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
        let load = Load {
            kind: BPF_PROG_TYPE_SOCKET_FILTER,
            instructions: CODE.len() as u32,
            code: CODE.as_ptr() as u64,
            license: LICENSE.as_ptr() as u64,
            log: [0; 3],
            name: *b"crafter_discard\0",
        };
        let mut tries = 0;
        loop {
            tries += 1;
            // SAFETY: the attribute, the code and the licence are readable during the call, and the size is the
            // attribute's.
            let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
            if fd >= 0 {
                // SAFETY: the call has just returned this descriptor, so nothing else owns it.
                return Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }));
            }
            let error = io::Error::last_os_error();
            // A signal is pending (`bpf_check` in the kernel).
            if error.raw_os_error() != Some(libc::EAGAIN) || tries == TRIES {
                return Err(error);
            }
        }
    }

    /// Attaches the program to a socket, until the socket is closed.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`.
    pub(super) fn attach(&self, socket: impl AsFd) -> io::Result<()> {
        let (socket, program) = (socket.as_fd().as_raw_fd(), self.0.as_raw_fd());
        let size = size_of_val(&program) as libc::socklen_t;
        // SAFETY: the value is an int that is valid during the call, and the size is an int's.
        let set = unsafe {
            libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, (&raw const program).cast(), size)
        };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
