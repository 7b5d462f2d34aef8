//! Implementations of the BPF helpers that the programs call, by their number in linux/bpf.h.

use crafter_common::map;

use super::{
    Machine,
    memory::{MAPS, RECORDS},
};

/// Map types (linux/bpf.h).
pub const ARRAY: u32 = 2;
/// See [`ARRAY`].
pub const PER_CPU_ARRAY: u32 = 6;
const HASH_OF_MAPS: u32 = 13;
const SOCKETS: u32 = 17;

/// `-ENOMEM`, `-EFAULT`, `-E2BIG` as returned by helpers.
const NO_MEMORY: u64 = -12_i64 as u64;
const FAULT: u64 = -14_i64 as u64;
const TOO_BIG: u64 = -7_i64 as u64;
/// `-ENOENT`.
const NO_ENTRY: u64 = -2_i64 as u64;

/// `XDP_REDIRECT`.
const REDIRECT: u64 = 4;

impl Machine {
    pub(super) fn help(&mut self, number: i32, [a, b, c, d, _]: [u64; 5]) -> u64 {
        match number {
            1 => self.look_up(a, b),
            2 => self.update(a, b, c),
            3 => self.delete(a, b),
            5 => {
                self.clock += 1;
                self.clock
            }
            // bpf_skb_load_bytes, bpf_xdp_load_bytes (context, offset, destination, length).
            26 | 189 => {
                let (offset, count) = (b as usize, d as usize);
                if count == 0 || offset + count > self.packet_length {
                    return FAULT;
                }
                let bytes = self.memory.bytes(super::memory::PACKET + offset as u64, count).to_vec();
                self.memory.write_all(c, &bytes);
                0
            }
            // bpf_skb_pull_data (context, length).
            39 => {
                if !self.conditions.memory || b as usize > self.packet_length {
                    return NO_MEMORY;
                }
                self.conditions.linear = self.conditions.linear.max(b as usize);
                0
            }
            // bpf_redirect_map (map, key, flags): the low bits of the flags are the action if the entry is empty.
            51 => {
                if self.conditions.socket && b == 0 {
                    REDIRECT
                } else {
                    c & 3
                }
            }
            // bpf_ringbuf_reserve (map, size, flags).
            131 => {
                self.ring = (a - MAPS) as usize;
                if self.conditions.room { self.memory.record(b as usize) } else { 0 }
            }
            // Submit and discard: only one record is reserved at a time. aya-log writes into a ring buffer of its own.
            132 => {
                if self.maps[self.ring].name == map::RINGS {
                    let record = self.memory.bytes(a, self.memory.record_size(a)).to_vec();
                    self.records.push(record);
                }
                0
            }
            133 => {
                assert_eq!(a >> 24, RECORDS >> 24);
                0
            }
            188 => self.packet_length as u64,
            _ => panic!("unknown helper {number}"),
        }
    }

    fn look_up(&mut self, map: u64, key: u64) -> u64 {
        let table = &self.maps[(map - MAPS) as usize];
        let key = self.memory.bytes(key, table.key_size);
        if table.kind == HASH_OF_MAPS {
            // The inner map has the number of the map that contains it.
            return map;
        }
        if table.kind == SOCKETS {
            // Programs only test a socket pointer for null.
            return u64::from(self.conditions.socket && key == [0; 4]);
        }
        table.entries.get(key).copied().unwrap_or(0)
    }

    fn delete(&mut self, map: u64, key: u64) -> u64 {
        let table = &mut self.maps[(map - MAPS) as usize];
        let key = self.memory.bytes(key, table.key_size);
        if table.entries.remove(key).is_some() { 0 } else { NO_ENTRY }
    }

    fn update(&mut self, map: u64, key: u64, value: u64) -> u64 {
        let table = &mut self.maps[(map - MAPS) as usize];
        let key = self.memory.bytes(key, table.key_size).to_vec();
        let value = self.memory.bytes(value, table.value_size).to_vec();
        match table.entries.get(&key) {
            Some(&at) => self.memory.write_all(at, &value),
            None if !self.conditions.space => return TOO_BIG,
            None => {
                let at = self.memory.keep(&value);
                table.entries.insert(key, at);
            }
        }
        0
    }
}
