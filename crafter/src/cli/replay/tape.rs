//! A capture in memory.

use std::{ops::Range, path::Path, time::Duration};

use crafter::{
    Error, Result,
    capture::{Captured, Reader},
    layer::Kind,
};

/// A whole capture.
pub struct Tape {
    bytes: Vec<u8>,
    /// In the order of the file.
    pub items: Vec<Item>,
    /// Packets of which the capture holds only the beginning.
    pub shortened: usize,
    /// Why reading stopped before the end of the file.
    pub broken: Option<String>,
}

/// A packet.
pub struct Item {
    /// Since 1970.
    pub time: Option<Duration>,
    /// Whether it begins with an Ethernet header; else with an IP header.
    pub ethernet: bool,
    range: Range<usize>,
}

impl Tape {
    /// Reads all of a file.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a file that is not a capture, that holds no packet, or that holds a packet that is neither an
    /// Ethernet frame nor an IP packet.
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
            let reason = tape.broken.as_deref().unwrap_or("the capture holds no packet; choose another file");
            return Err(Error::invalid(path.display().to_string(), reason));
        }
        Ok(tape)
    }

    fn push(&mut self, captured: Captured) -> Result<()> {
        let ethernet = match captured.first {
            Kind::Ether => true,
            Kind::Ip | Kind::Ipv6 => false,
            _ => {
                let reason = format!(
                    "neither an Ethernet frame nor an IP packet but link type {}; remove it from the capture",
                    captured.link
                );
                return Err(Error::invalid(self.name(self.items.len()), reason));
            }
        };
        self.shortened += usize::from(captured.original_length as usize > captured.bytes.len());
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&captured.bytes);
        self.items.push(Item { time: captured.time, ethernet, range: start..self.bytes.len() });
        Ok(())
    }

    /// The bytes of a packet.
    pub fn bytes(&self, index: usize) -> &[u8] {
        &self.bytes[self.items[index].range.clone()]
    }

    /// The name of a packet in messages; numbers begin with 1, as in Wireshark.
    pub fn name(&self, index: usize) -> String {
        format!("packet {}", index + 1)
    }
}
