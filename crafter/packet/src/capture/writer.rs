//! Writes capture files packet by packet.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, BufWriter, Write},
    mem,
    os::fd::AsFd as _,
    path::Path,
};

use pcap_file::{
    DataLink, Endianness, PcapError, TsResolution,
    pcap::PcapHeader,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            section_header::{SectionHeaderBlock, SectionHeaderOption},
        },
    },
};

use super::{Direction, Entry, Format, Link, SNAPLEN};
use crate::{
    error::{Error, Result},
    layer::Kind,
};

/// The sink of a [`Writer`] opened by file name.
pub type Out = Box<dyn Write + Send>;

/// Writes packets into a pcap or pcapng file, with nanoseconds in both.
pub struct Writer<W: Write> {
    inner: Inner<W>,
    live: bool,
}

enum Inner<W: Write> {
    /// A pcap file whose header is not written yet: its link type is that of the first packet.
    Waiting(W),
    Pcap(W, Link),
    /// With name and link type of the interfaces written so far.
    PcapNg(PcapNgWriter<W>, Vec<(Option<String>, Link)>),
    /// Writing a header failed.
    Failed,
}

impl Writer<Out> {
    /// Creates a file with the format that its name implies; `-` is pcapng on stdout, flushed after each packet
    /// ([`live`](Self::live)).
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        let to_stdout = path.as_os_str() == "-";
        let file = if to_stdout {
            // Not `io::stdout()`, which is line-buffered.
            io::stdout().as_fd().try_clone_to_owned().map(File::from)
        } else {
            File::create(path)
        };
        let file = file.map_err(|source| Error::Io { action: format!("create {}", path.display()), source })?;
        Ok(Self::new(Box::new(BufWriter::new(file)), Format::of(path))?.live(to_stdout))
    }
}

impl<W: Write> Writer<W> {
    /// Begins a file. Writes are small: pass a buffered `out`.
    ///
    /// # Errors
    /// [`Error::Io`] if writing fails.
    pub fn new(out: W, format: Format) -> Result<Self> {
        let inner = match format {
            Format::Pcap => Inner::Waiting(out),
            Format::PcapNg => {
                let application = concat!("crafter ", env!("CARGO_PKG_VERSION"));
                let section = SectionHeaderBlock {
                    endianness: Endianness::native(),
                    options: vec![
                        SectionHeaderOption::OS(Cow::Borrowed("Linux")),
                        SectionHeaderOption::UserApplication(Cow::Borrowed(application)),
                    ],
                    ..SectionHeaderBlock::default()
                };
                Inner::PcapNg(PcapNgWriter::with_section_header(out, section).map_err(writing)?, Vec::new())
            }
        };
        Ok(Self { inner, live: false })
    }

    /// Whether to flush after every packet, for readers of a file that is still being written.
    pub fn live(mut self, live: bool) -> Self {
        self.live = live;
        self
    }

    /// Writes an interface and the link type of its packets before its first packet. [`write`](Self::write) does so
    /// itself if needed.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the packets are neither Ethernet nor IP, or, in pcap, of another link type than those
    /// before; [`Error::Io`] if writing fails.
    pub fn interface(&mut self, name: Option<&str>, first: Kind) -> Result<()> {
        self.interface_of(name, link(first)?)?;
        if self.live { self.flush() } else { Ok(()) }
    }

    /// Appends a packet.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is longer than 262,144 bytes, a text is longer than 65,535, the time is after the year
    /// 2554 (2106 in pcap), the packet begins with neither Ethernet nor IP and has no link type, or, in pcap, its link
    /// type is not that of the first packet; [`Error::Io`] if writing fails.
    pub fn write(&mut self, entry: &Entry<'_>) -> Result<()> {
        let link = entry.link.map_or_else(|| link(entry.first), Ok)?;
        let length = entry.bytes.len() as u64;
        if length > SNAPLEN.into() {
            let reason = format_args!("a packet of {length} bytes does not fit, at most {SNAPLEN} do");
            return Err(Error::invalid("capture", reason));
        }
        if u64::try_from(entry.time.as_nanos()).is_err() {
            return Err(Error::invalid("capture", "times after the year 2554 do not fit"));
        }
        let comment = entry.comment.map(text).transpose()?;
        let original_len = entry.original_length.unwrap_or(0).max(length as u32);
        let interface = self.interface_of(entry.interface, link)?;
        match &mut self.inner {
            Inner::PcapNg(writer, _) => {
                let comment = comment.map(|comment| EnhancedPacketOption::Comment(Cow::Borrowed(comment)));
                let flags = entry.direction.map(|direction| {
                    EnhancedPacketOption::Flags(match direction {
                        Direction::In => 1,
                        Direction::Out => 2,
                    })
                });
                let block = EnhancedPacketBlock {
                    interface_id: interface,
                    timestamp: entry.time,
                    original_len,
                    data: Cow::Borrowed(entry.bytes),
                    options: comment.into_iter().chain(flags).collect(),
                };
                writer.write_pcapng_block(block).map_err(writing)?;
            }
            Inner::Pcap(out, _) => {
                let seconds = u32::try_from(entry.time.as_secs())
                    .map_err(|_| Error::invalid("pcap", "times after the year 2106 do not fit; pcapng holds them"))?;
                let mut record = [0; 16];
                let numbers = [seconds, entry.time.subsec_nanos(), length as u32, original_len];
                for (place, number) in record.as_chunks_mut().0.iter_mut().zip(numbers) {
                    *place = number.to_ne_bytes();
                }
                out.write_all(&record).and_then(|()| out.write_all(entry.bytes)).map_err(failed)?;
            }
            Inner::Waiting(_) | Inner::Failed => return Err(dead()),
        }
        if self.live { self.flush() } else { Ok(()) }
    }

    /// Flushes what was written so far.
    ///
    /// # Errors
    /// [`Error::Io`] if writing fails.
    pub fn flush(&mut self) -> Result<()> {
        match &mut self.inner {
            Inner::Waiting(out) | Inner::Pcap(out, _) => out.flush().map_err(failed),
            Inner::PcapNg(writer, _) => writer.get_mut().flush().map_err(failed),
            Inner::Failed => Err(dead()),
        }
    }

    /// Ends and flushes the file. A pcap file without packets has link type Ethernet.
    ///
    /// # Errors
    /// [`Error::Io`] if writing fails.
    pub fn finish(mut self) -> Result<W> {
        if matches!(self.inner, Inner::Waiting(_)) {
            self.interface_of(None, Link::ETHERNET)?;
        }
        self.flush()?;
        match self.inner {
            Inner::Waiting(out) | Inner::Pcap(out, _) => Ok(out),
            Inner::PcapNg(writer, _) => Ok(writer.into_inner()),
            Inner::Failed => Err(dead()),
        }
    }

    /// The number of an interface; writes its block if it is new.
    fn interface_of(&mut self, name: Option<&str>, link: Link) -> Result<u32> {
        match &mut self.inner {
            Inner::Pcap(_, first) if *first == link => Ok(0),
            Inner::Pcap(_, first) => {
                let reason = format_args!("its packets begin with {first}, not {link}: a pcapng file holds both");
                Err(Error::invalid("pcap", reason))
            }
            Inner::Waiting(_) => {
                let Inner::Waiting(mut out) = mem::replace(&mut self.inner, Inner::Failed) else { return Err(dead()) };
                let header = PcapHeader {
                    snaplen: SNAPLEN,
                    datalink: DataLink::from(link.0),
                    ts_resolution: TsResolution::NanoSecond,
                    endianness: Endianness::native(),
                    ..PcapHeader::default()
                };
                header.write_to(&mut out).map_err(writing)?;
                self.inner = Inner::Pcap(out, link);
                Ok(0)
            }
            Inner::PcapNg(writer, interfaces) => {
                let known = interfaces.iter().rposition(|known| known.0.as_deref() == name && known.1 == link);
                if let Some(number) = known {
                    return Ok(number as u32);
                }
                if u16::try_from(link.0).is_err() {
                    let reason = format_args!("there is no link type {link} in it, at most 65535");
                    return Err(Error::invalid("pcapng", reason));
                }
                let mut options = vec![InterfaceDescriptionOption::IfTsResol(9)];
                if let Some(name) = name {
                    options.insert(0, InterfaceDescriptionOption::IfName(Cow::Borrowed(text(name)?)));
                }
                let block = InterfaceDescriptionBlock { linktype: DataLink::from(link.0), snaplen: SNAPLEN, options };
                writer.write_pcapng_block(block).map_err(writing)?;
                interfaces.push((name.map(str::to_owned), link));
                Ok(interfaces.len() as u32 - 1)
            }
            Inner::Failed => Err(dead()),
        }
    }
}

fn link(first: Kind) -> Result<Link> {
    Link::of(first).ok_or_else(|| {
        let name = first.name();
        let reason = format_args!("packets that begin with {name} have no link type: Ether, IP or IPv6 is needed");
        Error::invalid("capture", reason)
    })
}

/// Checks that a text fits an option, whose length has 16 bits.
fn text(text: &str) -> Result<&str> {
    match u16::try_from(text.len()) {
        Ok(_) => Ok(text),
        Err(_) => Err(Error::invalid("pcapng", format_args!("the text has {} bytes; the limit is 65535", text.len()))),
    }
}

fn writing(error: PcapError) -> Error {
    match error {
        PcapError::IoError(source) => failed(source),
        other => Error::invalid("capture", other),
    }
}

fn failed(source: io::Error) -> Error {
    Error::Io { action: "write the capture".to_owned(), source }
}

fn dead() -> Error {
    failed(io::Error::other("its header could not be written"))
}
