//! The packets of a capture, one behind the other in memory.

use std::{ops::Range, path::Path, time::Duration};

use crafter::{
    Error, Result,
    capture::{Captured, Reader},
    layer::Kind,
};

/// A whole capture.
pub struct Tape {
    bytes: Vec<u8>,
    /// In the file's order.
    pub items: Vec<Item>,
    /// Packets that were longer when they were captured.
    pub shortened: usize,
    /// Why there are no more.
    pub broken: Option<String>,
}

/// A packet.
pub struct Item {
    /// Since 1970.
    pub time: Option<Duration>,
    /// Else it begins with its IP header.
    pub ethernet: bool,
    place: Range<usize>,
}

impl Tape {
    /// Reads all of a file.
    ///
    /// # Errors
    /// That it is no capture, or holds packets that are neither Ethernet frames nor IP packets, or none.
    pub fn read(path: &Path) -> Result<Self> {
        let mut tape = Self { bytes: Vec::new(), items: Vec::new(), shortened: 0, broken: None };
        for captured in Reader::open(path)? {
            match captured.map_err(Error::from) {
                Ok(captured) => tape.push(captured)?,
                Err(Error::Invalid { reason, .. }) => tape.broken = Some(reason),
                Err(other) => return Err(other),
            }
        }
        if tape.items.is_empty() {
            let reason = tape.broken.as_deref().unwrap_or("there is no packet in it");
            return Err(Error::invalid(path.display().to_string(), reason));
        }
        Ok(tape)
    }

    fn push(&mut self, captured: Captured) -> Result<()> {
        let ethernet = match captured.first {
            Kind::Ether => true,
            Kind::Ip | Kind::Ipv6 => false,
            _ => {
                let reason = format!("it is neither an Ethernet frame nor an IP packet (link type {})", captured.link);
                return Err(Error::invalid(self.name(self.items.len()), reason));
            }
        };
        self.shortened += usize::from(captured.original_length as usize > captured.bytes.len());
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&captured.bytes);
        self.items.push(Item { time: captured.time, ethernet, place: start..self.bytes.len() });
        Ok(())
    }

    /// The bytes of a packet.
    pub fn bytes(&self, index: usize) -> &[u8] {
        &self.bytes[self.items[index].place.clone()]
    }

    /// What messages call a packet: numbers begin with 1, as Wireshark's do.
    pub fn name(&self, index: usize) -> String {
        format!("packet {}", index + 1)
    }
}
