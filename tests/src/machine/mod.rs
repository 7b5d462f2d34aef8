//! An interpreter that runs the kernel half's bytecode in user space and counts which branches are taken, which the
//! kernel does not report. The instructions are those of the object file, before the verifier rewrites context
//! accesses. Tests compare its results with the kernel's.

mod execute;
mod helpers;
mod memory;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use aya_obj::{Object, generated::bpf_insn};
use crafter::datapath::program::{Hook, OBJECT};
use crafter_common::map;

use crate::views::Views;
use memory::Memory;

/// How often a conditional jump was taken, and how often not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Times that it jumped.
    pub yes: u64,
    /// Times that it continued with the next instruction.
    pub no: u64,
}

/// A source location from the object's BTF; for inlined code that of the innermost function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The last three components of the file's path.
    pub file: String,
    /// The line, counted from 1.
    pub line: u32,
    /// The column, counted from 1; 0 if the compiler recorded none.
    pub column: u32,
}

/// One program, including all functions that it calls.
pub struct Program {
    instructions: Vec<bpf_insn>,
    /// Conditional jumps, by index of the instruction.
    jumps: BTreeMap<usize, Taken>,
    /// Source locations, by index of the first instruction.
    places: BTreeMap<usize, Place>,
}

impl Program {
    /// Conditional jumps, by index of the instruction.
    pub fn jumps(&self) -> &BTreeMap<usize, Taken> {
        &self.jumps
    }

    /// The last source location at or before instruction `at` that is in crafter's own source.
    pub fn near(&self, at: usize) -> Option<&Place> {
        self.places.range(..=at).rev().map(|(_, place)| place).find(|place| place.file.starts_with("crafter-"))
    }

    /// The source location of instruction `at`, or of the last instruction before it that has one.
    pub fn place(&self, at: usize) -> Option<&Place> {
        self.places.range(..=at).next_back().map(|(_, place)| place)
    }
}

/// Result of running a program on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its return value.
    pub action: i32,
    /// Records submitted to the ring buffer.
    pub records: Vec<Vec<u8>>,
}

/// A map of the interpreter.
struct Table {
    name: String,
    kind: u32,
    key_size: usize,
    value_size: usize,
    /// Addresses of the values, by key.
    entries: HashMap<Vec<u8>, u64>,
}

/// Conditions under which a packet is processed.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Whether queue 0 has an AF_XDP socket.
    pub socket: bool,
    /// Whether a ring buffer record can be reserved.
    pub room: bool,
    /// Bytes in the linear part of the packet.
    pub linear: usize,
    /// Whether `bpf_skb_pull_data` gets memory.
    pub memory: bool,
    /// Whether maps accept new entries.
    pub space: bool,
    /// The VLAN tag that the device has removed from the packet.
    pub vlan: Option<u16>,
}

impl Conditions {
    /// No shortage, and no socket.
    pub const NORMAL: Self =
        Self { socket: false, room: true, linear: usize::MAX, memory: true, space: true, vlan: None };
}

/// The interpreter: programs, maps, memory.
pub struct Machine {
    programs: HashMap<&'static str, Program>,
    maps: Vec<Table>,
    memory: Memory,
    conditions: Conditions,
    packet_length: usize,
    mark: u32,
    records: Vec<Vec<u8>>,
    /// Index of the ring buffer of the latest record.
    ring: usize,
    clock: u64,
}

/// The hooks whose programs are interpreted.
pub const HOOKS: [Hook; 3] = [Hook::Xdp, Hook::Ingress, Hook::Egress];

impl Machine {
    /// Loads the object with its constants set; `log`: level of aya-log, 5 for everything.
    pub fn new(link_header: u32, socket_frame: u32, mark: u32, log: u8) -> Self {
        let mut object = Object::parse(OBJECT).expect("the eBPF object");
        let globals: [(&str, &[u8]); 4] = [
            (map::LINK_HEADER, &link_header.to_le_bytes()),
            (map::SLOT_MASK, &[0; 4]),
            (map::MARK, &mark.to_le_bytes()),
            ("AYA_LOG_LEVEL", &[log]),
        ];
        let globals = globals.into_iter().map(|(name, value)| (name, (value, true))).collect();
        object.patch_map_data(globals).expect("the constants");
        let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let mut memory = Memory::default();
        let mut maps = Vec::new();
        let all: Vec<_> = object.maps.iter().map(|(name, map)| (name.clone(), map.clone())).collect();
        for (name, map) in &all {
            let mut table = Table {
                name: name.clone(),
                kind: map.map_type(),
                key_size: map.key_size() as usize,
                value_size: map.value_size() as usize,
                entries: HashMap::new(),
            };
            if !map.data().is_empty() {
                // Constants: one value, which instructions address directly.
                let at = memory.keep(map.data());
                table.entries.insert(vec![0; 4], at);
            } else if matches!(table.kind, helpers::ARRAY | helpers::PER_CPU_ARRAY) {
                for index in 0..map.max_entries() {
                    let at = memory.keep(&vec![0; table.value_size]);
                    table.entries.insert(index.to_le_bytes().to_vec(), at);
                }
            }
            maps.push(table);
        }
        let numbered = all.iter().enumerate().map(|(number, (name, map))| (name.as_str(), number as i32, map));
        object.relocate_maps(numbered, &sections).expect("the maps");
        object.relocate_calls(&sections).expect("the calls");
        let strings = object.btf.as_ref().map(strings).unwrap_or_default();
        let mut programs = HashMap::new();
        for hook in HOOKS {
            let key = object.programs[hook.program()].function_key();
            let function = &object.functions[&key];
            programs.insert(hook.program(), program(function, &strings));
        }
        let mut machine = Self {
            programs,
            maps,
            memory,
            conditions: Conditions::NORMAL,
            packet_length: 0,
            mark: 0,
            records: Vec::new(),
            ring: 0,
            clock: 1,
        };
        // Without limits on what waits.
        let (link, unlimited) = (1_u32, u32::MAX);
        let attached = [link, socket_frame, 0, unlimited, unlimited, 0, 0, 0].map(u32::to_le_bytes).concat();
        machine.put(map::LINKS, &[0; 4], &attached);
        machine
    }

    /// The program of a hook.
    pub fn program(&self, hook: Hook) -> &Program {
        &self.programs[hook.program()]
    }

    /// Copies owned ports, peers, filter and local addresses from the kernel's maps; clears flows and fragments.
    pub fn copy_maps(&mut self, views: &Views) {
        for name in [map::OWNED, map::LOCAL, map::PEERS, map::FLOWS, map::FRAGMENTS] {
            self.table(name).entries.clear();
        }
        for entry in views.owned.iter() {
            let (key, value) = entry.expect("an owned port");
            self.put(map::OWNED, &key, &value);
        }
        for entry in views.peers.iter() {
            let (key, heard) = entry.expect("a peer");
            self.put(map::PEERS, &key, &heard.to_le_bytes());
        }
        for entry in views.local.iter() {
            let (key, value) = entry.expect("a local address");
            self.put(map::LOCAL, &key, &[value]);
        }
        let attached = views.links.get(&0, 0).expect("the interface");
        self.put(map::LINKS, &[0; 4], &attached);
        for index in 0..views.filter.len() {
            let word = views.filter.get(&index, 0).expect("a word of the filter");
            self.put(map::FILTER, &index.to_le_bytes(), &word);
        }
    }

    /// Limits what may wait in the pools: frames of the socket, units of the ring.
    pub fn limit(&mut self, frames: u32, ring: u32) {
        let table = self.maps.iter().find(|table| table.name == map::LINKS).expect("the interface");
        let at = table.entries[&[0; 4][..]];
        self.memory.write_all(at + 12, &[frames, ring].map(u32::to_le_bytes).concat());
    }

    /// Sets the checks of the interface, as in `Attached`.
    pub fn check(&mut self, checks: u32) {
        let table = self.maps.iter().find(|table| table.name == map::LINKS).expect("the interface");
        let at = table.entries[&[0; 4][..]];
        self.memory.write_all(at + 20, &checks.to_le_bytes());
    }

    /// Removes all owners but keeps the filter, which then reports false positives.
    pub fn clear_owners(&mut self) {
        self.table(map::OWNED).entries.clear();
    }

    /// Replaces the owners of ports.
    pub fn replace_owners(&mut self, owners: impl Iterator<Item = ([u8; 24], [u8; 8])>) {
        self.clear_owners();
        owners.for_each(|(key, value)| self.put(map::OWNED, &key, &value));
    }

    /// Advances the clock of the programs.
    pub fn advance(&mut self, time: Duration) {
        self.clock += time.as_nanos() as u64;
    }

    /// Runs a packet through the program of `hook`.
    pub fn run(&mut self, hook: Hook, frame: &[u8], mark: u32, conditions: Conditions) -> Outcome {
        self.conditions = Conditions { linear: conditions.linear.min(frame.len()), ..conditions };
        self.packet_length = frame.len();
        self.mark = mark;
        self.memory.packet(frame);
        self.records.clear();
        let mut program = self.programs.remove(hook.program()).expect("a program");
        let action = self.execute(&mut program, hook == Hook::Xdp) as u32 as i32;
        self.programs.insert(hook.program(), program);
        Outcome { action, records: std::mem::take(&mut self.records) }
    }

    /// Value of the counter of `reason`.
    pub fn counter(&self, reason: u32) -> u64 {
        let table = self.maps.iter().find(|table| table.name == map::COUNTERS).expect("the counters");
        self.memory.read(table.entries[&reason.to_le_bytes()[..]], 8)
    }

    fn table(&mut self, name: &str) -> &mut Table {
        self.maps.iter_mut().find(|table| table.name == name).expect("a map by its name")
    }

    /// Writes an entry; an existing value keeps its address.
    fn put(&mut self, name: &str, key: &[u8], value: &[u8]) {
        let number = self.maps.iter().position(|table| table.name == name).expect("a map by its name");
        let table = &mut self.maps[number];
        match table.entries.get(key) {
            Some(&at) => self.memory.write_all(at, value),
            None => {
                let at = self.memory.keep(value);
                table.entries.insert(key.to_vec(), at);
            }
        }
    }
}

/// The string section of BTF, which holds the names of source files (linux/btf.h, `struct btf_header`).
fn strings(btf: &aya_obj::btf::Btf) -> Vec<u8> {
    let bytes = btf.to_bytes();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
    let start = word(4) + word(16);
    bytes[start..start + word(20)].to_vec()
}

fn program(function: &aya_obj::Function, strings: &[u8]) -> Program {
    let text = |offset: u32| {
        let rest = strings.get(offset as usize..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
        String::from_utf8_lossy(&rest[..end]).into_owned()
    };
    let mut places = BTreeMap::new();
    for info in &function.line_info.line_info {
        let path = text(info.file_name_off);
        let mut parts: Vec<&str> = path.rsplitn(4, '/').take(3).collect();
        parts.reverse();
        let place = Place { file: parts.join("/"), line: info.line_col >> 10, column: info.line_col & 0x3ff };
        places.insert(info.insn_off as usize, place);
    }
    let mut jumps = BTreeMap::new();
    let mut at = 0;
    while at < function.instructions.len() {
        let code = function.instructions[at].code;
        if execute::is_conditional(code) {
            jumps.insert(at, Taken::default());
        }
        at += if code == execute::LOAD_64 { 2 } else { 1 };
    }
    Program { instructions: function.instructions.clone(), jumps, places }
}
