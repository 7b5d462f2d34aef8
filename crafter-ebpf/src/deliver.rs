//! Copies for the owner, through the ring buffer.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use crafter_common::{
    reply::{CLASSES, ReplyHeader},
    share::{RING_POOL, record_class, record_units},
};

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
pub fn copy<P: Packet>(packet: &P, offset: u32, reason: u32, share: u32) -> bool {
    let length = packet.length();
    if length <= offset {
        return false;
    }
    let length = length - offset;
    let header = |captured| ReplyHeader {
        // SAFETY: no memory is involved.
        timestamp: unsafe { bpf_ktime_get_ns() },
        captured,
        length,
        ifindex: packet.ifindex(),
        reason,
        share,
        pad: 0,
    };
    match record_class(length) {
        0 => submit::<P, { CLASSES[0] as usize }, { mask(CLASSES[0]) }>(packet, offset, length, header),
        1 => submit::<P, { CLASSES[1] as usize }, { mask(CLASSES[1]) }>(packet, offset, length, header),
        2 => submit::<P, { CLASSES[2] as usize }, { mask(CLASSES[2]) }>(packet, offset, length, header),
        _ => submit::<P, { CLASSES[3] as usize }, { mask(CLASSES[3]) }>(packet, offset, length, header),
    }
}

/// Copies the packet from `offset` on by `copy`, if it fits into the shares of its lease and user.
#[inline(always)]
pub fn admitted<P: Packet>(packet: &P, offset: u32, share: u32, copy: impl FnOnce() -> bool) -> bool {
    let units = record_units(record_class(packet.length().saturating_sub(offset)));
    if !maps::admit(packet.slot(), share, RING_POOL, units) {
        return false;
    }
    let copied = copy();
    if !copied {
        maps::withdraw(packet.slot(), share, RING_POOL, units);
    }
    copied
}

/// The bits that an index into a class has.
const fn mask(class: u32) -> u32 {
    class.next_power_of_two() - 1
}

#[inline(always)]
fn submit<P: Packet, const N: usize, const MASK: u32>(
    packet: &P,
    offset: u32,
    length: u32,
    header: impl FnOnce(u32) -> ReplyHeader,
) -> bool {
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
        (&raw mut (*entry).header).write(header(captured));
        packet.copy(offset, (&raw mut (*entry).packet).cast(), captured)
    };
    if copied {
        record.submit(0);
    } else {
        record.discard(0);
    }
    copied
}
