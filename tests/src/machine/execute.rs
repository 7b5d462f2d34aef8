//! Interpreter of the BPF instructions (RFC 9669) that the programs use; it panics at any other.

use aya_obj::generated::bpf_insn;

use super::{
    Machine, Program,
    memory::{CONTEXT, FRAME, MAPS, PACKET, STACK},
};

/// Opcode of the 64-bit load, the only instruction that takes two slots.
pub const LOAD_64: u8 = 0x18;

/// Limit of executed instructions per packet, far above what any packet needs.
const MOST: usize = 100_000;

/// Whether an opcode is a conditional jump (RFC 9669, section 4.3).
pub const fn is_conditional(code: u8) -> bool {
    matches!(code & 7, 5 | 6) && !matches!(code & 0xf0, 0x00 | 0x80 | 0x90)
}

/// Return address and callee-saved registers of a call.
struct Caller {
    next: usize,
    saved: [u64; 4],
}

impl Machine {
    /// Runs `program` to its exit and returns register 0.
    pub(super) fn execute(&mut self, program: &mut Program, xdp: bool) -> u64 {
        let mut r = [0_u64; 11];
        r[1] = CONTEXT;
        r[10] = STACK + FRAME as u64;
        let mut callers: Vec<Caller> = Vec::new();
        let mut at = 0;
        for _ in 0..MOST {
            let i = program.instructions[at];
            let (to, from) = (i.dst_reg() as usize, i.src_reg() as usize);
            let offset = i64::from(i.off) as u64;
            let mut next = at + 1;
            match i.code & 7 {
                0 => {
                    assert_eq!(i.code, LOAD_64, "an unknown load instruction");
                    let high = program.instructions[at + 1].imm as u32;
                    r[to] = self.constant(from, i.imm, high);
                    next += 1;
                }
                1 => {
                    let (address, size) = (r[from].wrapping_add(offset), size(i.code));
                    r[to] = match i.code & 0xe0 {
                        0x60 if address >> 24 == CONTEXT >> 24 => self.context(address - CONTEXT, xdp),
                        0x60 => self.memory.read(address, size),
                        mode => panic!("a load of mode {mode:#x}"),
                    };
                }
                2 => self.memory.write(r[to].wrapping_add(offset), size(i.code), i.imm as i64 as u64),
                3 => {
                    let (address, size) = (r[to].wrapping_add(offset), size(i.code));
                    match (i.code & 0xe0, i.imm) {
                        (0x60, _) => self.memory.write(address, size, r[from]),
                        // Atomic addition.
                        (0xc0, 0) => {
                            let sum = self.memory.read(address, size).wrapping_add(r[from]);
                            self.memory.write(address, size, sum);
                        }
                        what => panic!("a store of kind {what:x?}"),
                    }
                }
                class @ (4 | 7) => r[to] = arithmetic(&i, class == 7, r[to], r[from]),
                class => match i.code & 0xf0 {
                    0x00 => {
                        let by = if class == 6 { i64::from(i.imm) } else { i64::from(i.off) };
                        next = jump_target(next, by);
                    }
                    0x80 if from == 1 => {
                        callers.push(Caller { next, saved: [r[6], r[7], r[8], r[9]] });
                        r[10] += FRAME as u64;
                        next = jump_target(next, i64::from(i.imm));
                    }
                    0x80 => {
                        assert_eq!(from, 0, "a call of a kernel function");
                        r[0] = self.help(i.imm, [r[1], r[2], r[3], r[4], r[5]]);
                    }
                    0x90 => {
                        let Some(caller) = callers.pop() else { return r[0] };
                        r[6..10].copy_from_slice(&caller.saved);
                        r[10] -= FRAME as u64;
                        next = caller.next;
                    }
                    _ => {
                        let other = if i.code & 8 == 0 { i.imm as i64 as u64 } else { r[from] };
                        let taken = program.jumps.get_mut(&at).expect("a conditional jump");
                        if holds(i.code, class == 6, r[to], other) {
                            taken.yes += 1;
                            next = jump_target(next, i64::from(i.off));
                        } else {
                            taken.no += 1;
                        }
                    }
                },
            }
            at = next;
        }
        panic!("the program did not exit within {MOST} instructions");
    }

    /// The operand of a 64-bit load (RFC 9669, section 5.4): a constant, a map, or an address within a map value.
    fn constant(&self, kind: usize, low: i32, high: u32) -> u64 {
        match kind {
            0 => u64::from(low as u32) | u64::from(high) << 32,
            1 => MAPS + low as u64,
            2 => self.maps[low as usize].entries[&[0; 4][..]] + u64::from(high),
            _ => panic!("a constant of kind {kind}"),
        }
    }

    /// A field of the context: `struct xdp_md` and `struct __sk_buff` of linux/bpf.h.
    fn context(&self, field: u64, xdp: bool) -> u64 {
        let end = PACKET + self.conditions.linear as u64;
        match (xdp, field) {
            (true, 0) | (false, 76) => PACKET,
            (true, 4) | (false, 80) => end,
            // Index of the receiving interface, and of its queue.
            (true, 12) | (false, 40) => 1,
            (true, 16) => 0,
            (false, 0) => self.packet_length as u64,
            // A VLAN tag beside the packet: whether there is one, and its value.
            (false, 20) => u64::from(self.conditions.vlan.is_some()),
            (false, 24) => u64::from(self.conditions.vlan.unwrap_or(0)),
            (false, 8) => u64::from(self.mark),
            _ => panic!("field {field} of the context"),
        }
    }
}

fn jump_target(next: usize, by: i64) -> usize {
    usize::try_from(next as i64 + by).expect("a valid jump target")
}

/// Operand size in bytes (RFC 9669, section 5.1).
fn size(code: u8) -> usize {
    [4, 2, 1, 8][usize::from(code >> 3 & 3)]
}

/// Arithmetic and byte swap instructions (RFC 9669, sections 4.1 and 4.2).
fn arithmetic(i: &bpf_insn, wide: bool, to: u64, from: u64) -> u64 {
    let other = if i.code & 8 == 0 { i.imm as i64 as u64 } else { from };
    if i.code & 0xf0 == 0xd0 {
        let bits = i.imm as u32;
        let kept = if bits == 64 { to } else { to & ((1 << bits) - 1) };
        // Conversion to little-endian changes nothing here; conversion to big-endian and unconditional swap reverse the
        // bytes.
        let swap = wide || i.code & 8 != 0;
        return if swap { kept.swap_bytes() >> (64 - bits) } else { kept };
    }
    let (a, b) = if wide { (to, other) } else { (to & 0xffff_ffff, other & 0xffff_ffff) };
    let shift = (b & if wide { 63 } else { 31 }) as u32;
    let result = match (i.code & 0xf0, i.off) {
        (0x00, _) => a.wrapping_add(b),
        (0x10, _) => a.wrapping_sub(b),
        (0x20, _) => a.wrapping_mul(b),
        (0x30, 0) => a.checked_div(b).unwrap_or(0),
        (0x40, _) => a | b,
        (0x50, _) => a & b,
        (0x60, _) => a << shift,
        (0x70, _) => a >> shift,
        (0x80, _) => (a as i64).wrapping_neg() as u64,
        (0x90, 0) => a.checked_rem(b).unwrap_or(a),
        (0xa0, _) => a ^ b,
        (0xb0, 0) => b,
        (0xc0, _) if wide => ((a as i64) >> shift) as u64,
        (0xc0, _) => ((a as i32) >> shift) as u64,
        what => panic!("arithmetic of kind {what:x?}"),
    };
    if wide { result } else { result & 0xffff_ffff }
}

/// Condition of a jump (RFC 9669, section 4.3).
fn holds(code: u8, narrow: bool, to: u64, other: u64) -> bool {
    let (a, b) = if narrow { (to & 0xffff_ffff, other & 0xffff_ffff) } else { (to, other) };
    let (s, t) = if narrow { (i64::from(a as i32), i64::from(b as i32)) } else { (a as i64, b as i64) };
    match code & 0xf0 {
        0x10 => a == b,
        0x20 => a > b,
        0x30 => a >= b,
        0x40 => a & b != 0,
        0x50 => a != b,
        0x60 => s > t,
        0x70 => s >= t,
        0xa0 => a < b,
        0xb0 => a <= b,
        0xc0 => s < t,
        0xd0 => s <= t,
        kind => panic!("a jump of kind {kind:#x}"),
    }
}
