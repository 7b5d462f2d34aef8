//! Copies for the owner, through the ring buffer.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use crafter_common::reply::{CLASSES, ReplyHeader};

use crate::{maps, packet::Packet};

/// A ring-buffer record of one size class.
#[repr(C)]
struct Record<const N: usize> {
    header: ReplyHeader,
    packet: [u8; N],
}

/// Copies the packet from `offset` on into the ring buffer, with `reason` in its header; false
/// where the ring is full.
#[inline(always)]
pub fn copy<P: Packet>(packet: &P, offset: u32, reason: u32) -> bool {
    let length = packet.length();
    if length <= offset {
        return false;
    }
    let length = length - offset;
    if length <= CLASSES[0] {
        submit::<P, { CLASSES[0] as usize }, { mask(CLASSES[0]) }>(packet, offset, length, reason)
    } else if length <= CLASSES[1] {
        submit::<P, { CLASSES[1] as usize }, { mask(CLASSES[1]) }>(packet, offset, length, reason)
    } else if length <= CLASSES[2] {
        submit::<P, { CLASSES[2] as usize }, { mask(CLASSES[2]) }>(packet, offset, length, reason)
    } else {
        submit::<P, { CLASSES[3] as usize }, { mask(CLASSES[3]) }>(packet, offset, length, reason)
    }
}

/// The bits that an index into a class has.
const fn mask(class: u32) -> u32 {
    class.next_power_of_two() - 1
}

#[inline(always)]
fn submit<P: Packet, const N: usize, const MASK: u32>(packet: &P, offset: u32, length: u32, reason: u32) -> bool {
    let Some(mut record) = maps::reserve::<Record<N>>(packet.slot()) else {
        return false;
    };
    let entry = record.as_mut_ptr();
    // The verifier needs to see 1..=N; the opaque mask keeps the compiler from removing the test as superfluous.
    let captured = if length as usize > N { N as u32 } else { length };
    let last = packet.opaque_mask::<MASK>(captured as usize - 1);
    if last >= N {
        record.discard(0);
        return false;
    }
    let captured = last as u32 + 1;
    // SAFETY: the reservation holds a Record<N>; captured is at most N.
    let copied = unsafe {
        (&raw mut (*entry).header).write(ReplyHeader {
            timestamp: bpf_ktime_get_ns(),
            captured,
            length,
            ifindex: packet.ifindex(),
            reason,
        });
        packet.copy(offset, (&raw mut (*entry).packet).cast(), captured)
    };
    if copied {
        record.submit(0);
    } else {
        record.discard(0);
    }
    copied
}
