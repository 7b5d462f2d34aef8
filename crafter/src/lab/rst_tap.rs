//! Collects the TCP RSTs that the server receives.

use std::{
    io::{self, IoSliceMut},
    net::IpAddr,
    os::fd::AsRawFd as _,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessageOwned, MsgFlags, getsockopt, recvmsg, setsockopt, sockopt},
};
use serde::Serialize;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::{
    Error, Result,
    datapath::tx::link_address,
    packet::{IpPacket, ip},
};

/// RSTs kept; further ones are only counted.
const MAX_KEPT: usize = 65_536;
/// Receive buffer in bytes for each IP version: some 10,000 segments between two reads of the tap.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Bytes kept of each packet: more than the headers of a RST (IPv6, extension headers, TCP).
const SNAP: usize = 512;

/// A received RST.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rst {
    /// Source address.
    pub source: IpAddr,
    /// Source port.
    pub port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Whether ACK is set too.
    pub ack: bool,
    /// When the kernel received it: wall-clock time in seconds since 1970.
    pub time: f64,
}

/// Packet sockets that receive every RST of an interface, whether or not a TCP socket accepts it. They need no thread:
/// the kernel queues the packets, and each method reads them.
#[derive(Debug)]
pub struct RstTap {
    // One per IP version: unlike with ETH_P_ALL, they do not receive the packets that the host sends, and do not slow
    // them down.
    sockets: [Socket; 2],
    log: Mutex<RstLog>,
}

#[derive(Debug, Default)]
struct RstLog {
    segments: Vec<Rst>,
    /// Further RSTs, only counted.
    uncollected: u64,
}

impl RstTap {
    /// Opens a tap on an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Permission`] without CAP_NET_RAW, [`Error::Io`] otherwise.
    pub(super) fn open(interface: &str) -> Result<Self> {
        let open = || -> io::Result<Self> {
            let index = nix::net::if_::if_nametoindex(interface)?;
            let sockets = [packet_socket(index, libc::ETH_P_IP)?, packet_socket(index, libc::ETH_P_IPV6)?];
            Ok(Self { sockets, log: Mutex::default() })
        };
        open().map_err(|source| Error::io(format!("tap {interface}"), "CAP_NET_RAW", source))
    }

    /// The first 65,536 RSTs since the start or the last [`RstTap::clear`], in order of arrival for each IP version.
    ///
    /// # Errors
    /// [`Error::Io`] if a packet socket fails.
    pub fn segments(&self) -> Result<Vec<Rst>> {
        self.with_log(|log| log.segments.clone())
    }

    /// Number of RSTs since the start or the last [`RstTap::clear`], including those dropped because the receive buffer
    /// was full.
    ///
    /// # Errors
    /// [`Error::Io`] if a packet socket fails.
    pub fn count(&self) -> Result<u64> {
        self.with_log(|log| log.segments.len() as u64 + log.uncollected)
    }

    /// Forgets all RSTs so far.
    ///
    /// # Errors
    /// [`Error::Io`] if a packet socket fails.
    pub fn clear(&self) -> Result<()> {
        self.with_log(|log| *log = RstLog::default())
    }

    fn with_log<T>(&self, read: impl FnOnce(&mut RstLog) -> T) -> Result<T> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        self.drain(&mut log).map_err(|source| Error::io("read the lab's RST tap", "CAP_NET_RAW", source))?;
        Ok(read(&mut log))
    }

    fn drain(&self, log: &mut RstLog) -> io::Result<()> {
        for socket in &self.sockets {
            // Bounded: a flood may arrive as fast as this loop reads.
            for _ in 0..MAX_KEPT {
                let Some((packet, time)) = receive(socket)? else {
                    break;
                };
                match parse(&packet, time) {
                    Some(_) if log.segments.len() >= MAX_KEPT => log.uncollected += 1,
                    Some(rst) => log.segments.push(rst),
                    None => {}
                }
            }
            log.uncollected += u64::from(getsockopt(socket, PacketStatistics)?.tp_drops);
        }
        Ok(())
    }
}

fn receive(socket: &Socket) -> io::Result<Option<(Vec<u8>, f64)>> {
    let mut packet = vec![0; SNAP];
    let mut control = nix::cmsg_space!(libc::timespec);
    let mut buffers = [IoSliceMut::new(&mut packet)];
    let (length, time) =
        match recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut control), MsgFlags::MSG_DONTWAIT) {
            Ok(message) => {
                let time = message.cmsgs()?.find_map(|message| match message {
                    ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
                    _ => None,
                });
                (message.bytes, time)
            }
            Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
    let time = time.or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    packet.truncate(length);
    Ok(Some((packet, time.as_secs_f64())))
}

/// Parses an IP packet, which may be truncated to [`SNAP`] bytes; `None` if it is no RST, or a fragment without TCP
/// header.
fn parse(packet: &[u8], time: f64) -> Option<Rst> {
    let ip = IpPacket::read_quoted(packet).ok()?;
    let has_header = ip.fragment.is_none_or(|fragment| fragment.offset == 0);
    if ip.protocol != ip::TCP || !has_header {
        return None;
    }
    let tcp = ip.payload().first_chunk::<14>()?;
    let flags = tcp[13];
    (flags & 0x04 != 0).then(|| Rst {
        source: ip.source,
        port: u16::from_be_bytes([tcp[0], tcp[1]]),
        destination: ip.destination,
        destination_port: u16::from_be_bytes([tcp[2], tcp[3]]),
        seq: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
        ack: flags & 0x10 != 0,
        time,
    })
}

/// A packet socket without link-layer header, for one protocol (host byte order) on one interface, that receives what
/// [`FILTER`] accepts.
fn packet_socket(index: u32, protocol: libc::c_int) -> io::Result<Socket> {
    // With protocol 0 it receives nothing until it is bound: the filter is attached by then.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    socket.attach_filter(&FILTER)?;
    socket.bind(&link_address(index, protocol as u16))?;
    Ok(socket)
}

/// Socket option PACKET_STATISTICS, which is reset by reading it.
#[derive(Clone, Copy)]
struct PacketStatistics;

nix::getsockopt_impl!(
    PacketStatistics,
    libc::SOL_PACKET,
    libc::PACKET_STATISTICS,
    libc::tpacket_stats,
    sockopt::GetStruct<libc::tpacket_stats>
);

const fn op(code: u32, jt: u8, jf: u8, k: u32) -> SockFilter {
    SockFilter::new(code as u16, jt, jf, k)
}

/// Classic BPF from the IP header on: accepts TCP RSTs, and IPv6 packets whose first extension header may precede one.
#[rustfmt::skip]
const FILTER: [SockFilter; 24] = {
    use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET};
    [
        /*  0 */ op(BPF_LD | BPF_B | BPF_ABS, 0, 0, 0),
        /*  1 */ op(BPF_ALU | BPF_AND | BPF_K, 0, 0, 0xf0),
        /*  2 */ op(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 0x40),
        /*  3 */ op(BPF_JMP | BPF_JEQ | BPF_K, 7, 19, 0x60),
        // IPv4: TCP, not a later fragment, RST.
        /*  4 */ op(BPF_LD | BPF_B | BPF_ABS, 0, 0, 9),
        /*  5 */ op(BPF_JMP | BPF_JEQ | BPF_K, 0, 17, 6),
        /*  6 */ op(BPF_LD | BPF_H | BPF_ABS, 0, 0, 6),
        /*  7 */ op(BPF_JMP | BPF_JSET | BPF_K, 15, 0, 0x1fff),
        /*  8 */ op(BPF_LDX | BPF_B | BPF_MSH, 0, 0, 0),
        /*  9 */ op(BPF_LD | BPF_B | BPF_IND, 0, 0, 13),
        /* 10 */ op(BPF_JMP | BPF_JSET | BPF_K, 11, 12, 0x04),
        // IPv6: TCP at once and RST, or an extension header for parse() to skip.
        /* 11 */ op(BPF_LD | BPF_B | BPF_ABS, 0, 0, 6),
        /* 12 */ op(BPF_JMP | BPF_JEQ | BPF_K, 7, 0, 6),
        /* 13 */ op(BPF_JMP | BPF_JEQ | BPF_K, 8, 0, ip::HOP_BY_HOP as u32),
        /* 14 */ op(BPF_JMP | BPF_JEQ | BPF_K, 7, 0, ip::ROUTING as u32),
        /* 15 */ op(BPF_JMP | BPF_JEQ | BPF_K, 6, 0, ip::FRAGMENT as u32),
        /* 16 */ op(BPF_JMP | BPF_JEQ | BPF_K, 5, 0, ip::AUTHENTICATION as u32),
        /* 17 */ op(BPF_JMP | BPF_JEQ | BPF_K, 4, 0, ip::DESTINATION_OPTIONS as u32),
        /* 18 */ op(BPF_JMP | BPF_JEQ | BPF_K, 3, 0, ip::MOBILITY as u32),
        /* 19 */ op(BPF_RET | BPF_K, 0, 0, 0),
        /* 20 */ op(BPF_LD | BPF_B | BPF_ABS, 0, 0, 40 + 13),
        /* 21 */ op(BPF_JMP | BPF_JSET | BPF_K, 0, 1, 0x04),
        /* 22 */ op(BPF_RET | BPF_K, 0, 0, SNAP as u32),
        /* 23 */ op(BPF_RET | BPF_K, 0, 0, 0),
    ]
};

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use socket2::SockRef;

    use super::*;

    /// A 20-byte TCP header with flags, from port 4660 to 80, sequence number 0x01020304.
    fn tcp(flags: u8) -> [u8; 20] {
        [0x12, 0x34, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]
    }

    fn v4(flags: u8) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1];
        packet.extend(tcp(flags));
        packet
    }

    fn v6(next: u8, extension: &[u8], flags: u8) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 20 + extension.len() as u8, next, 64];
        packet.extend(super::super::CLIENT_V6.octets());
        packet.extend(super::super::SERVER_V6.octets());
        packet.extend(extension);
        packet.extend(tcp(flags));
        packet
    }

    #[test]
    fn rsts_of_both_versions_are_parsed() {
        let hop_by_hop = [6, 0, 1, 4, 0, 0, 0, 0];
        for packet in [v4(0x14), v6(6, &[], 0x14), v6(0, &hop_by_hop, 0x14)] {
            let rst = parse(&packet, 1.5).unwrap();
            assert_eq!((rst.port, rst.destination_port, rst.seq, rst.ack), (4660, 80, 0x0102_0304, true));
        }
        assert_eq!(parse(&v4(0x04), 0.0).unwrap().source, super::super::CLIENT_V4);
        assert_eq!(parse(&v6(6, &[], 0x04), 0.0).unwrap().source, super::super::CLIENT_V6);
    }

    #[test]
    fn rsts_after_extension_headers_are_parsed_as_by_the_kernel_half() {
        let fragment = |field: u8| [6, 0, 0, field, 0, 0, 0, 7];
        let authentication = [6, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
        let mobility = [6, 0, 7, 0, 0, 0, 0, 0];
        for (next, extension) in [(44, &fragment(0)[..]), (44, &fragment(1)), (51, &authentication), (135, &mobility)] {
            let rst = parse(&v6(next, extension, 0x04), 0.0).unwrap();
            assert_eq!((rst.port, rst.seq), (4660, 0x0102_0304), "{next}");
        }
        assert_eq!(parse(&v6(44, &fragment(8), 0x04), 0.0), None, "later fragment");
        assert_eq!(parse(&v6(139, &mobility, 0x04), 0.0), None, "HIP");
        // Longer than SNAP.
        let mut long = v4(0x04);
        long[2..4].copy_from_slice(&900_u16.to_be_bytes());
        assert!(parse(&long, 0.0).is_some());
    }

    #[test]
    fn filter_accepts_what_parse_reads() {
        let (send, receive) = UnixDatagram::pair().unwrap();
        SockRef::from(&receive).attach_filter(&FILTER).unwrap();
        receive.set_nonblocking(true).unwrap();
        // Sending succeeds if the filter drops the packet (`unix_dgram_sendmsg()`).
        let takes = |packet: &[u8]| {
            send.send(packet).unwrap();
            receive.recv(&mut [0; SNAP]).is_ok()
        };
        let other = [6, 0, 0, 0, 0, 0, 0, 0];
        for flags in [0x04, 0x14] {
            assert!(takes(&v4(flags)) && takes(&v6(6, &[], flags)), "{flags}");
        }
        assert!(!takes(&v4(0x12)) && !takes(&v6(6, &[], 0x12)));
        let mut later = v4(0x04);
        later[7] = 1;
        assert!(!takes(&later));
        for next in 0..=255 {
            if next != 6 {
                assert_eq!(takes(&v6(next, &other, 0x04)), crafter_common::parse::extends(next), "{next}");
            }
        }
    }

    #[test]
    fn other_packets_are_ignored() {
        assert_eq!(parse(&v4(0x12), 0.0), None, "SYN-ACK");
        let mut later = v4(0x04);
        later[7] = 1;
        assert_eq!(parse(&later, 0.0), None, "later fragment");
        for packet in [v4(0x04), v6(6, &[], 0x04), v6(0, &[6, 0, 1, 4, 0, 0, 0, 0], 0x04)] {
            for length in 0..packet.len() - 7 {
                assert_eq!(parse(&packet[..length], 0.0), None, "cut after {length} bytes");
            }
        }
    }
}
