//! Memory in areas of 16 MiB, far below 4 GiB: a context hands out pointers as 32-bit fields, and here they fit.
//! What lies outside of an area's bytes is not there, and touching it ends the test.

/// Area of the context; it holds no bytes, see `execute`.
pub const CONTEXT: u64 = 1 << 24;
/// Area of the packet.
pub const PACKET: u64 = 2 << 24;
/// Area of the stack.
pub const STACK: u64 = 3 << 24;
/// Area of map values.
pub const VALUES: u64 = 4 << 24;
/// Area of the records of the ring buffer that are being written.
pub const RECORDS: u64 = 5 << 24;
/// What stands for a map: this and its number.
pub const MAPS: u64 = 6 << 24;

/// Bytes of stack of each function, and functions that may call one another.
pub const FRAME: usize = 512;
const DEPTH: usize = 8;

/// The areas' bytes.
#[derive(Default)]
pub struct Memory {
    areas: [Vec<u8>; 7],
}

impl Memory {
    /// A new packet.
    pub fn packet(&mut self, frame: &[u8]) {
        let area = &mut self.areas[2];
        area.clear();
        area.extend_from_slice(frame);
        self.areas[3].resize(FRAME * DEPTH, 0);
        self.areas[5].clear();
    }

    /// A place of its own for `value`, aligned to eight bytes.
    pub fn keep(&mut self, value: &[u8]) -> u64 {
        let area = &mut self.areas[4];
        let at = area.len();
        area.extend_from_slice(value);
        area.resize(area.len().next_multiple_of(8), 0);
        assert!(area.len() < 1 << 24, "map values take more than their area");
        VALUES + at as u64
    }

    /// Room for a record.
    pub fn record(&mut self, size: usize) -> u64 {
        let area = &mut self.areas[5];
        let at = area.len();
        area.resize(at + size, 0);
        RECORDS + at as u64
    }

    /// How long the record at `address` is: it is the last one.
    pub fn record_size(&self, address: u64) -> usize {
        self.areas[5].len() - place(address).1
    }

    /// `count` bytes at `address`.
    pub fn bytes(&self, address: u64, count: usize) -> &[u8] {
        let (area, at) = place(address);
        let bytes = self.areas.get(area).and_then(|bytes| bytes.get(at..at + count));
        bytes.unwrap_or_else(|| panic!("{count} bytes at {address:#x} are read, which are not there"))
    }

    /// Writes bytes at `address`.
    pub fn write_all(&mut self, address: u64, value: &[u8]) {
        let (area, at) = place(address);
        let bytes = self.areas.get_mut(area).and_then(|bytes| bytes.get_mut(at..at + value.len()));
        let bytes = bytes.unwrap_or_else(|| panic!("{} bytes at {address:#x} are no place to write", value.len()));
        bytes.copy_from_slice(value);
    }

    /// A number of `size` bytes, little-endian.
    pub fn read(&self, address: u64, size: usize) -> u64 {
        let mut number = [0; 8];
        number[..size].copy_from_slice(self.bytes(address, size));
        u64::from_le_bytes(number)
    }

    /// Writes a number of `size` bytes, little-endian.
    pub fn write(&mut self, address: u64, size: usize, value: u64) {
        self.write_all(address, &value.to_le_bytes()[..size]);
    }
}

fn place(address: u64) -> (usize, usize) {
    ((address >> 24) as usize, (address & 0xff_ffff) as usize)
}
