use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::{
    super::{
        features::{holder_of_program, host, xdp_features},
        interface::{AttachedXdp, XdpMode, interface},
    },
    *,
};

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

/// An XDP program called `pass_all` that passes everything, or `drop_all`.
fn program(name: &[u8; 8]) -> OwnedFd {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_XDP: u32 = 6;
    // r0 = XDP_PASS (or XDP_DROP); exit
    static PASS: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    static DROP: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    static LICENSE: &[u8; 4] = b"GPL\0";
    let code = if name == b"drop_all" { &DROP } else { &PASS };
    let mut words = [0; 32];
    let pointer = |words: &mut [u32; 32], at: usize, value: u64| {
        (words[at], words[at + 1]) = if cfg!(target_endian = "little") {
            (value as u32, (value >> 32) as u32)
        } else {
            ((value >> 32) as u32, value as u32)
        };
    };
    (words[0], words[1]) = (BPF_PROG_TYPE_XDP, code.len() as u32);
    pointer(&mut words, 2, code.as_ptr() as u64);
    pointer(&mut words, 4, LICENSE.as_ptr() as u64);
    // prog_name is at byte 48.
    words[12] = u32::from_ne_bytes([name[0], name[1], name[2], name[3]]);
    words[13] = u32::from_ne_bytes([name[4], name[5], name[6], name[7]]);
    bpf(BPF_PROG_LOAD, &mut words).unwrap()
}

/// Attached as long as the descriptor is open.
fn attach(program: &OwnedFd, ifindex: u32, flags: u32) -> OwnedFd {
    const BPF_LINK_CREATE: libc::c_long = 28;
    const BPF_XDP: u32 = 37;
    let mut words = [0; 32];
    words[..4].copy_from_slice(&[program.as_raw_fd() as u32, ifindex, BPF_XDP, flags]);
    bpf(BPF_LINK_CREATE, &mut words).unwrap()
}

/// Makes `ifindex` of this thread's namespace drop all frames in native mode, before a stack sees them.
pub(super) fn drop_all(ifindex: u32) -> OwnedFd {
    attach(&program(b"drop_all"), ifindex, 4)
}

#[test]
fn attached_programs_are_reported_with_their_holder() {
    pair(|_peer| async move {
        let program = program(b"pass_all");
        let index = interface("v0").await.unwrap().ifindex;
        // XDP_FLAGS_DRV_MODE and XDP_FLAGS_SKB_MODE
        for (flags, mode) in [(4, XdpMode::Native), (2, XdpMode::Generic)] {
            let link = attach(&program, index, flags);
            let AttachedXdp { mode: seen, program_id } = interface("v0").await.unwrap().xdp.unwrap();
            assert_eq!(seen, mode);
            let text = holder_of_program(program_id).unwrap();
            let pid = std::process::id();
            assert!(text.starts_with(&format!("pass_all (id {program_id}, held by ")), "{text}");
            assert!(text.ends_with(&format!(", pid {pid})")), "{text}");
            drop(link);
            // A child that another test forks holds a copy of the link until it executes its program.
            for _ in 0..500 {
                if interface("v0").await.unwrap().xdp.is_none() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            assert_eq!(interface("v0").await.unwrap().xdp, None);
        }
        assert_eq!(holder_of_program(u32::MAX), None);
    });
}

#[test]
fn xdp_features_of_drivers_are_reported() {
    let kernel = host().unwrap().kernel;
    let numbers: Vec<u32> = kernel.split(['.', '-']).map_while(|part| part.parse().ok()).collect();
    pair(move |_peer| async move {
        let veth = xdp_features(interface("v0").await.unwrap().ifindex);
        let lo = xdp_features(interface("lo").await.unwrap().ifindex);
        if numbers < vec![6, 3] {
            assert_eq!((veth, lo), (None, None));
            return;
        }
        let (veth, lo) = (veth.unwrap(), lo.unwrap());
        assert!(veth.basic && veth.redirect && !veth.zero_copy && !veth.offload, "{veth:?}");
        assert!(!lo.basic && !lo.redirect, "{lo:?}");
        assert_eq!(xdp_features(9999), None);
    });
}

#[test]
fn host_facts() {
    let host = host().unwrap();
    assert!(host.kernel.starts_with(|first: char| first.is_ascii_digit()), "{host:?}");
    assert!(host.has("CAP_NET_ADMIN") && host.has("CAP_NET_RAW") && !host.has("CAP_NET_RA"), "{host:?}");
}
