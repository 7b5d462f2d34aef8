//! Memory of the interpreter, in regions of 16 MiB below 4 GiB, because the context holds pointers as 32-bit fields. An
//! access outside the bytes of a region panics.

/// Region of the context, without bytes: `Machine::context` computes its fields.
pub const CONTEXT: u64 = 1 << 24;
/// Region of the packet.
pub const PACKET: u64 = 2 << 24;
/// Region of the stack.
pub const STACK: u64 = 3 << 24;
/// Region of map values.
pub const VALUES: u64 = 4 << 24;
/// Region of reserved ring buffer records.
pub const RECORDS: u64 = 5 << 24;
/// Base of map pointers; the number of the map is added.
pub const MAPS: u64 = 6 << 24;

/// Stack bytes of each function, and maximum call depth.
pub const FRAME: usize = 512;
const DEPTH: usize = 8;

/// Bytes of all regions.
#[derive(Default)]
pub struct Memory {
    regions: [Vec<u8>; 7],
}

impl Memory {
    /// Loads a new packet and clears the records.
    pub fn packet(&mut self, frame: &[u8]) {
        let region = &mut self.regions[2];
        region.clear();
        region.extend_from_slice(frame);
        self.regions[3].resize(FRAME * DEPTH, 0);
        self.regions[5].clear();
    }

    /// Stores `value` at a new address, aligned to eight bytes.
    pub fn keep(&mut self, value: &[u8]) -> u64 {
        let region = &mut self.regions[4];
        let at = region.len();
        region.extend_from_slice(value);
        region.resize(region.len().next_multiple_of(8), 0);
        assert!(region.len() < 1 << 24, "map values exceed their region");
        VALUES + at as u64
    }

    /// Reserves a record.
    pub fn record(&mut self, size: usize) -> u64 {
        let region = &mut self.regions[5];
        let at = region.len();
        region.resize(at + size, 0);
        RECORDS + at as u64
    }

    /// Length in bytes of the record at `address`, which must be the last one.
    pub fn record_size(&self, address: u64) -> usize {
        self.regions[5].len() - locate(address).1
    }

    /// `count` bytes at `address`.
    pub fn bytes(&self, address: u64, count: usize) -> &[u8] {
        let (region, at) = locate(address);
        let bytes = self.regions.get(region).and_then(|bytes| bytes.get(at..at + count));
        bytes.unwrap_or_else(|| panic!("read of {count} bytes at {address:#x}, outside of the region"))
    }

    /// Writes bytes at `address`.
    pub fn write_all(&mut self, address: u64, value: &[u8]) {
        let (region, at) = locate(address);
        let bytes = self.regions.get_mut(region).and_then(|bytes| bytes.get_mut(at..at + value.len()));
        let bytes =
            bytes.unwrap_or_else(|| panic!("write of {} bytes at {address:#x}, outside of the region", value.len()));
        bytes.copy_from_slice(value);
    }

    /// Reads a little-endian integer of `size` bytes.
    pub fn read(&self, address: u64, size: usize) -> u64 {
        let mut number = [0; 8];
        number[..size].copy_from_slice(self.bytes(address, size));
        u64::from_le_bytes(number)
    }

    /// Writes the low `size` bytes of `value`, little-endian.
    pub fn write(&mut self, address: u64, size: usize, value: u64) {
        self.write_all(address, &value.to_le_bytes()[..size]);
    }
}

fn locate(address: u64) -> (usize, usize) {
    ((address >> 24) as usize, (address & 0xff_ffff) as usize)
}
