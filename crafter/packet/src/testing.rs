//! TCP segments as tests want them: plain fields to compare and change, read by [`TcpView`] and built by the layers.
//!
//! Only for tests: the feature `testing`.

use std::fmt;
use std::net::SocketAddr;

use crate::error::Result;
use crate::layer::{AnyLayer, IpFlags, Packet, Tcp, TcpOption};
use crate::view::{Checksum, Flags, TcpView, checksum};

/// A TCP segment and what tests need of its IP header.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields of the headers")]
pub struct Segment {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: Flags,
    pub window: u16,
    pub options: Vec<TcpOption>,
    pub payload: Vec<u8>,
    /// `None`: the right one.
    pub checksum: Option<u16>,
    pub ttl: u8,
}

impl Segment {
    /// A segment without flags and data, window 64,240.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source,
            destination,
            seq: 0,
            ack: 0,
            flags: Flags::NONE,
            window: 64_240,
            options: Vec::new(),
            payload: Vec::new(),
            checksum: None,
            ttl: 64,
        }
    }

    /// Reads a segment; padding of the options is left out.
    ///
    /// # Errors
    /// Those of [`TcpView::parse`].
    pub fn parse(ip: &[u8]) -> Result<Self> {
        let view = TcpView::parse(ip)?;
        let mut options = TcpOption::parse(view.options());
        let is_padding = |option: &TcpOption| match option {
            TcpOption::Eol => true,
            TcpOption::Rest(bytes) => bytes.iter().all(|byte| *byte == 0),
            _ => false,
        };
        let padded = options.iter().position(|option| *option == TcpOption::Eol).unwrap_or(options.len());
        if options[padded..].iter().all(is_padding) {
            options.truncate(padded);
        }
        Ok(Self {
            source: view.source(),
            destination: view.destination(),
            seq: view.seq,
            ack: view.ack,
            flags: view.flags,
            window: view.window,
            options,
            payload: view.payload().to_vec(),
            checksum: (checksum::verify(ip, false) != Checksum::Valid).then_some(view.checksum),
            ttl: view.ip.ttl,
        })
    }

    /// The packet's bytes. One that is too long for its length field has length 0, as super-frames of Linux have.
    ///
    /// # Panics
    /// If the options do not fit the header.
    pub fn build(&self) -> Vec<u8> {
        let tcp = Tcp {
            seq: Some(self.seq),
            ack: Some(self.ack),
            reserved: Some((self.flags.0 >> 9) as u8),
            flags: Some(Flags(self.flags.0 & 0x1ff)),
            window: Some(self.window),
            chksum: self.checksum,
            options: (!self.options.is_empty()).then(|| self.options.clone()),
            ..Tcp::new()
        };
        let mut packet = tcp.between(self.source, self.destination) / self.payload.clone();
        let is_long = self.payload.len() > 65_535 - 40 - 60;
        match packet.layers_mut().first_mut() {
            Some(AnyLayer::Ip(ip)) => {
                (ip.ttl, ip.flags, ip.id) = (Some(self.ttl), Some(IpFlags::DF), Some(0));
                ip.len = is_long.then_some(0);
            }
            Some(AnyLayer::Ipv6(ip)) => (ip.hlim, ip.plen) = (Some(self.ttl), is_long.then_some(0)),
            _ => {}
        }
        packet.build().expect("fields that fit")
    }

    /// Data, SYN and FIN (SEG.LEN of RFC 9293, section 3.3.1).
    pub fn sequence_length(&self) -> u32 {
        let controls = [Flags::SYN, Flags::FIN].iter().filter(|flag| self.flags.contains(**flag)).count();
        (self.payload.len() + controls) as u32
    }

    /// The maximum segment size option, in bytes.
    pub fn mss(&self) -> Option<u16> {
        self.options.iter().find_map(|option| if let TcpOption::Mss(mss) = option { Some(*mss) } else { None })
    }

    /// The window scale option.
    pub fn window_scale(&self) -> Option<u8> {
        self.options.iter().find_map(|option| if let TcpOption::WScale(shift) = option { Some(*shift) } else { None })
    }
}

impl From<&Packet> for Segment {
    fn from(packet: &Packet) -> Self {
        let bytes = packet.build().expect("fields that fit");
        Self::parse(&bytes).expect("a segment")
    }
}

/// One line as tcpdump prints it.
impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        TcpView::parse(&self.build()).map_err(|_| fmt::Error)?.fmt(f)
    }
}
