//! Captures the packets of an interface by libpcap, with the filters of tcpdump.
//!
//! A tap consumes no packet, and needs no eBPF. It sees the packets that reach the kernel's stack and those that leave
//! it. It does **not** see packets that an XDP program consumes. That includes crafter's own program: if it is
//! attached in native mode, packets for an owned port go to the lease and not to the tap. Frames sent by
//! [`Outlet::Direct`](super::frames::Outlet) are not seen either.

use std::{fmt, io, time::Duration};

use pcap::{Active, Capture, Direction as PcapDirection, Linktype, Precision};
use tokio::io::unix::AsyncFd;

use super::{interface, watch};
use crate::{
    capture::{Captured, Direction, Link},
    error::{Error, Result},
};

/// What to capture, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapOptions {
    /// A filter expression, pcap-filter(7). All packets without one.
    pub filter: Option<String>,
    /// Promiscuous mode: also frames for other stations, if they arrive at this interface.
    pub promiscuous: bool,
    /// Bytes of a packet that are kept, 1 to 262,144; longer packets are cut.
    pub snaplen: u32,
    /// Only received or only sent packets, as seen from this host.
    pub direction: Option<Direction>,
    /// Bytes of the ring that the kernel fills, 64 KiB to 1 GiB.
    pub buffer: u32,
    /// How long the kernel may collect packets before it wakes this process, in whole milliseconds up to one second;
    /// the packets are then stored without gaps. Zero: each packet wakes the process at once, and occupies a slot of
    /// the ring as large as the longest possible packet, some 64 KiB if the link has offloads.
    pub gather: Duration,
}

impl Default for TapOptions {
    fn default() -> Self {
        Self {
            filter: None,
            promiscuous: false,
            snaplen: MAXIMUM_SNAPLEN,
            direction: None,
            buffer: 8 << 20,
            gather: Duration::from_millis(2),
        }
    }
}

/// The largest packet that libpcap captures (`MAXIMUM_SNAPLEN`).
const MAXIMUM_SNAPLEN: u32 = 262_144;

/// The link type as capture files number it. It differs from libpcap's `DLT_` number only for raw IP (`DLT_RAW`).
fn link_of(datalink: Linktype) -> Link {
    const DLT_RAW: i32 = 12;
    match datalink {
        Linktype(DLT_RAW) => Link::RAW,
        Linktype(other) => u32::try_from(other).map_or(Link::UNKNOWN, Link),
    }
}

/// What the kernel has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TapStats {
    /// Packets that passed the filter, dropped ones included.
    pub received: u64,
    /// Those of the received packets that were dropped because the ring was full.
    pub dropped: u64,
}

/// An open capture on one interface.
///
/// ```no_run
/// # async fn look() -> crafter::Result<()> {
/// use crafter::datapath::tap::{Tap, TapOptions};
///
/// let options = TapOptions { filter: Some("arp or icmp6".to_owned()), ..TapOptions::default() };
/// let mut tap = Tap::open("eth0", &options).await?;
/// println!("{}", tap.next().await?.packet().summary());
/// # Ok(()) }
/// ```
pub struct Tap {
    capture: AsyncFd<Capture<Active>>,
    interface: String,
    link: Link,
    snaplen: usize,
    total: TapStats,
    /// What libpcap counted when it was asked last, in 32 bits.
    last: (u32, u32),
}

impl Tap {
    /// Begins to capture: packets from now on are seen.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a filter, with libpcap's words, and for options out of range;
    /// [`Error::UnknownInterface`], [`Error::Permission`] (`CAP_NET_RAW`), [`Error::Io`] if the interface is down.
    pub async fn open(interface: &str, options: &TapOptions) -> Result<Self> {
        options.check()?;
        let link = interface::interface(interface).await?;
        let action = || format!("capture on {interface}");
        if !link.up {
            return Err(Error::Io { action: action(), source: io::Error::from_raw_os_error(libc::ENETDOWN) });
        }
        let failed = |error: pcap::Error| {
            let words = words(error);
            // libpcap reports the errno only as text.
            let denied = ["CAP_NET_RAW", "permitted", "permission"].iter().any(|part| words.contains(part));
            let source = if denied { io::Error::from_raw_os_error(libc::EPERM) } else { io::Error::other(words) };
            Error::io(action(), "CAP_NET_RAW", source)
        };
        // Until the filter is installed in the kernel, libpcap applies it to the captured packets, and may reject one
        // that is already cut (pcap_handle_packet_mmap()). With a filter, packets are therefore cut here instead.
        let mut capture = Capture::from_device(interface)
            .map_err(failed)?
            .precision(Precision::Nano)
            .promisc(options.promiscuous)
            .snaplen(if options.filter.is_some() { MAXIMUM_SNAPLEN } else { options.snaplen } as i32)
            .buffer_size(options.buffer as i32)
            .immediate_mode(options.gather.is_zero())
            .timeout(options.gather.as_millis().clamp(1, 1000) as i32)
            .open()
            .and_then(Capture::setnonblock)
            .map_err(failed)?;
        if let Some(filter) = &options.filter {
            capture.filter(filter, true).map_err(refused)?;
        }
        match options.direction {
            None => {}
            Some(Direction::In) => capture.direction(PcapDirection::In).map_err(failed)?,
            Some(Direction::Out) => capture.direction(PcapDirection::Out).map_err(failed)?,
        }
        Ok(Self {
            link: link_of(capture.get_datalink()),
            capture: watch(capture, "a capture")?,
            interface: interface.to_owned(),
            snaplen: options.snaplen as usize,
            total: TapStats::default(),
            last: (0, 0),
        })
    }

    /// The interface.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// What its packets begin with.
    pub fn link(&self) -> Link {
        self.link
    }

    /// The next packet, with the kernel's timestamp in nanoseconds. A VLAN tag that the kernel removed from the frame
    /// is restored. Dropping the future loses no packet.
    ///
    /// # Errors
    /// [`Error::Io`] if the interface no longer exists. If it is down, waits until packets arrive again.
    pub async fn next(&mut self) -> Result<Captured> {
        loop {
            let ready = self.capture.readable_mut().await;
            let mut guard = ready.map_err(|source| Error::Io { action: "wait for packets".to_owned(), source })?;
            if let Some(captured) = read(guard.get_inner_mut(), &self.interface, self.link, self.snaplen)? {
                return Ok(captured);
            }
            guard.clear_ready();
        }
    }

    /// The next packet if one is already in the ring; does not wait.
    ///
    /// # Errors
    /// As [`Tap::next`].
    pub fn try_next(&mut self) -> Result<Option<Captured>> {
        read(self.capture.get_mut(), &self.interface, self.link, self.snaplen)
    }

    /// What the kernel has counted since the capture began.
    ///
    /// # Errors
    /// [`Error::Io`] if it does not say.
    pub fn stats(&mut self) -> Result<TapStats> {
        let stats = self.capture.get_mut().stats().map_err(|error| failed(&self.interface, error))?;
        self.total.received += u64::from(stats.received.wrapping_sub(self.last.0));
        self.total.dropped += u64::from(stats.dropped.wrapping_sub(self.last.1));
        self.last = (stats.received, stats.dropped);
        Ok(self.total)
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").field("interface", &self.interface).field("link", &self.link).finish_non_exhaustive()
    }
}

impl TapOptions {
    /// Whether the options make sense. Needs no privilege.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn check(&self) -> Result<()> {
        if !(1..=MAXIMUM_SNAPLEN).contains(&self.snaplen) {
            let reason = format!("{} bytes: 1 to {MAXIMUM_SNAPLEN} are possible", self.snaplen);
            return Err(Error::invalid("snaplen", reason));
        }
        if !(1 << 16..=1 << 30).contains(&self.buffer) {
            let reason = format!("{} bytes: 64 KiB to 1 GiB are possible", self.buffer);
            return Err(Error::invalid("capture buffer", reason));
        }
        match &self.filter {
            Some(filter) => check_filter(filter, Link::ETHERNET),
            None => Ok(()),
        }
    }
}

/// Checks a filter expression for links of a kind, without any privilege. Names of hosts in it are looked up.
///
/// # Errors
/// [`Error::Invalid`] with libpcap's words.
pub fn check_filter(filter: &str, link: Link) -> Result<()> {
    let datalink = Linktype(i32::try_from(link.0).unwrap_or_default());
    let nowhere = Capture::dead(datalink).map_err(refused)?;
    match nowhere.compile(filter, true) {
        Ok(_) => Ok(()),
        // `inbound`, `ifindex` and the like need an open capture; a filter that is invalid on Ethernet may be valid on
        // a tun device.
        Err(pcap::Error::PcapError(words)) if words.contains("not supported on") => Ok(()),
        Err(error) => Err(refused(error)),
    }
}

fn read(capture: &mut Capture<Active>, interface: &str, link: Link, snaplen: usize) -> Result<Option<Captured>> {
    match capture.next_packet() {
        Ok(packet) => {
            let since = |seconds: libc::time_t, nanos| Duration::new(seconds as u64, nanos as u32);
            Ok(Some(Captured {
                time: Some(since(packet.header.ts.tv_sec, packet.header.ts.tv_usec)),
                link,
                original_length: packet.header.len,
                interface: Some(interface.to_owned()),
                ..Captured::of(link.first(packet.data), packet.data[..packet.data.len().min(snaplen)].to_vec())
            }))
        }
        Err(pcap::Error::TimeoutExpired | pcap::Error::NoMorePackets) => Ok(None),
        Err(error) => Err(failed(interface, error)),
    }
}

fn failed(interface: &str, error: pcap::Error) -> Error {
    Error::Io { action: format!("capture on {interface}"), source: io::Error::other(words(error)) }
}

fn refused(error: pcap::Error) -> Error {
    Error::invalid("filter", words(error))
}

fn words(error: pcap::Error) -> String {
    match error {
        pcap::Error::PcapError(words) => words,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_filter_is_reported_with_libpcaps_message() {
        for good in ["", "tcp port 80", "icmp6 and ip6[40] == 1", "vlan 5 and arp", "inbound", "host 192.0.2.1"] {
            check_filter(good, Link::ETHERNET).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for (bad, part) in [("tcp port", "syntax error"), ("tcp prot 80", "syntax error"), ("port 65536", "65536")] {
            let error = check_filter(bad, Link::ETHERNET).unwrap_err();
            assert!(matches!(&error, Error::Invalid { what, reason } if what == "filter" && reason.contains(part)));
        }
        assert!(check_filter("a\0b", Link::RAW).is_err());
        assert!(TapOptions { snaplen: 0, ..TapOptions::default() }.check().is_err());
        assert!(TapOptions { buffer: u32::MAX, ..TapOptions::default() }.check().is_err());
    }
}
